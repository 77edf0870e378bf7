"""Parts -> a whole model: a VQ-VAE and priors to a Jukebox, a codec and a language model to a MusicGen.

A part is a folder of its own, as training writes them, or a whole model of which it is taken; released ones and one's
own mix.  Weights are copied tensor by tensor, so a model needn't fit into memory.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tunesmith import hub
from tunesmith.conditioning.merge import joined
from tunesmith.conditioning.tables import KINDS, Kind, Rules, Table, join_tables
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.convert import jukebox
from tunesmith.convert.fingerprint import codes_hash
from tunesmith.convert.folders import (
    CONFIG,
    SHARD,
    Converted,
    TextEncoder,
    iterate_tensors,
    new_folder,
    read_folder,
    read_forms,
    read_json,
    read_text_encoder,
    shard_bytes,
    stream_tensors,
    write_folder,
    write_json,
)
from tunesmith.convert.jukebox import Part
from tunesmith.errors import CheckpointError, IncompatiblePartsError
from tunesmith.models.jukebox import JukeboxPriorConfig
from tunesmith.models.jukebox_config import attention_order
from tunesmith.nn.factored import CROSS, PRIME, attention_kinds
from tunesmith.pipelines.jukebox import JukeboxConfig, JukeboxModel
from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration

Json = dict[str, Any]

TABLES: dict[Kind, tuple[str, int]] = {"artist": ("artist_emb", 1), "genre": ("bow_genre_emb", 0)}
"""Kind of name -> its embedding in a prior, and where in `metadata_dims` the number of its rows stands."""


# -------------------------------------------------------------------------------------------------------------- Jukebox


@dataclass(frozen=True)
class Level:
    """A prior on its way into a model: where it is, and what is known of its labels."""

    part: Part
    tokenizer: JukeboxTokenizer
    rules: Rules
    rows: dict[str, list[int]]
    """Tensor, by its name within the prior -> which of its old rows the new ones are."""

    @property
    def config(self) -> Json:
        """As the new model has it."""
        rows = [self.rows.get(_embedding(kind)) for kind in ("genre", "artist")]
        dims = [
            old if new is None else len(new) for old, new in zip(self.part.config["metadata_dims"], rows, strict=True)
        ]
        return {**self.part.config, "metadata_dims": dims, **_alignment(self.part)}


def assemble_jukebox(
    destination: Path,
    *,
    vqvae: str | Path,
    prior: str | Path,
    upsamplers: Sequence[str | Path] = (),
    other_codec: bool = False,
    max_shard_size: int | str = SHARD,
) -> Path:
    """Make a folder of a whole Jukebox, which appears whole or not at all.

    vqvae, prior: names or folders.  upsamplers: those of the lower levels in any order; of a whole model all that
    are missing are taken.  Names of artists and genres that only some of the priors know are unknown to the others.
    other_codec: take priors that say they were trained on another VQ-VAE's codes.
    Raises IncompatiblePartsError for parts that don't fit each other, CheckpointError, ModelNotFoundError.
    """
    shard = shard_bytes(max_shard_size)
    codec = _vqvae(vqvae)
    count = len(codec.config["res_downs_t"])
    parts = _upsamplers(upsamplers, count)
    levels = _one_table([_level(part) for part in (_top(prior), *parts)])
    if not other_codec:
        _refuse_other_codes(codec, levels)
    config = _whole(codec, [level.config for level in levels])
    with new_folder(destination) as draft:
        write_json({**config, "dtype": "float32", "transformers_version": transformers.__version__}, draft / CONFIG)
        _tokenizer(levels).save_pretrained(draft)
        stream_tensors(dict(_forms(codec, levels)), _tensors(codec, levels), draft, shard)
    return destination


def _refuse_other_codes(codec: Part, levels: Sequence[Level]) -> None:
    """Raise IncompatiblePartsError for a prior that says it learnt what this VQ-VAE doesn't speak."""
    own = codes_hash(codec.path)
    for level in levels:
        if level.part.config.get("codes_hash", own) not in (None, own):
            raise IncompatiblePartsError(
                f"The prior of level {level.part.config['level']} in {str(level.part.path)!r} was trained on the codes "
                f"of another VQ-VAE than that in {str(codec.path)!r}; give that one with --vqvae, or --other-codec."
            )


def _vqvae(name: str | Path) -> Part:
    return _only([part for part in _parts(name) if not part.is_prior], name, "VQ-VAE")


def _top(name: str | Path) -> Part:
    return _only([part for part in _parts(name) if part.is_prior and not part.config["level"]], name, "top prior")


def _only(parts: list[Part], name: str | Path, wanted: str) -> Part:
    if not parts:
        raise IncompatiblePartsError(
            f"{str(name)!r} holds no {wanted.removeprefix('a ')}; give the folder of {wanted}."
        )
    return parts[0]


def _parts(name: str | Path) -> list[Part]:
    folder = hub.locate(name)
    family = hub.family_of(folder) if folder.is_dir() else None
    if family not in jukebox.FAMILIES:
        raise IncompatiblePartsError(f"{str(name)!r} is no part of a Jukebox, but of the family {family!r}.")
    return jukebox.read_model(folder)


def _upsamplers(names: Sequence[str | Path], count: int) -> list[Part]:
    """One a level below the top."""
    found: dict[int, Part] = {}
    for name in sorted(names, key=lambda name: len(_parts(name)) > 1):  # whole models fill in what is missing
        parts = [part for part in _parts(name) if part.is_prior and part.config["level"]]
        if len(parts) == 1 and parts[0].config["level"] in found:
            raise IncompatiblePartsError(
                f"There are two upsamplers of level {parts[0].config['level']}; leave one out."
            )
        if not parts:
            raise IncompatiblePartsError(f"{str(name)!r} holds no upsampler; give the folder of one.")
        found = {part.config["level"]: part for part in parts} | found
    missing = [level for level in range(1, count) if level not in found]
    if missing:
        raise IncompatiblePartsError(
            f"The VQ-VAE has {count} levels, and there is no upsampler of level {' and '.join(map(str, missing))} "
            "(0 is the top); give one with --upsampler, or a whole model to take it of."
        )
    return [found[level] for level in range(1, count)]


def _level(part: Part) -> Level:
    tokenizer = JukeboxTokenizer.from_pretrained(part.path)
    number = part.config["level"] if part.prefix else 0  # a prior alone has the rules of one
    return Level(part, tokenizer, tokenizer.version[min(number, len(tokenizer.version) - 1)], {})


def _embedding(kind: Kind) -> str:
    return f"metadata_embedding.{TABLES[kind][0]}.weight"


def _one_table(levels: list[Level]) -> list[Level]:
    """The same, with one table for all that spell names by the same rules."""
    labelled = [level for level in levels if level.part.config["metadata_conditioning"]]
    for kind in KINDS:
        for rules, group in groupby(sorted(labelled, key=lambda level: level.rules), key=lambda level: level.rules):
            _join(kind, rules, list(group))
    return levels


def _join(kind: Kind, rules: Rules, levels: list[Level]) -> None:
    tables = [level.tokenizer.tables[kind, rules] for level in levels]
    if all(table.ids == tables[0].ids for table in tables):
        return
    if not all(table.ids for table in tables):
        nameless = next(level for level, table in zip(levels, tables, strict=True) if not table.ids)
        raise IncompatiblePartsError(
            f"{str(nameless.part.path)!r} came without names of {kind}s and other parts with some; add them with "
            "`tunesmith convert SRC DST --ids FOLDER`."
        )
    sizes = [level.part.config["metadata_dims"][TABLES[kind][1]] for level in levels]
    table, plans = joined(tables, sizes)
    for level, rows in zip(levels, plans, strict=True):
        level.tokenizer.tables[kind, rules] = table
        level.rows[_embedding(kind)] = rows


def _tokenizer(levels: Sequence[Level]) -> JukeboxTokenizer:
    """That of the whole: a table by rules, the alphabet of the top prior."""
    top = levels[0].part.config
    tokenizer = JukeboxTokenizer(
        version=[level.rules for level in levels],
        n_genres=[level.part.config["max_nb_genres"] for level in levels],
        max_n_lyric_tokens=top["nb_relevant_lyric_tokens"],
    )
    tokenizer.alphabet = levels[0].tokenizer.alphabet
    tables: dict[tuple[Kind, Rules], Table] = join_tables({}, {})
    for level in reversed(levels):
        tables |= {(kind, level.rules): level.tokenizer.tables[kind, level.rules] for kind in KINDS}
    tokenizer.tables = tables
    return tokenizer


def _alignment(part: Part) -> Json:
    """The alignment layer and head that the configuration names, if such a layer reads lyrics; else none."""
    config = JukeboxPriorConfig(**part.config)
    layer, head = config.alignment_layer, config.alignment_head
    reads = layer in lyric_layers(config) and head is not None and head < config.n_heads
    return {} if reads else {"alignment_layer": None, "alignment_head": None}


def follows_no_words(folder: Path) -> bool:
    """Whether a Jukebox' top prior reads lyrics and names no layer that shows which are sung."""
    config = JukeboxConfig.from_pretrained(folder).prior_configs[0]
    return bool(lyric_layers(config)) and config.alignment_layer is None


def lyric_layers(config: JukeboxPriorConfig) -> list[int]:
    """The layers that attend to lyrics, by the configuration alone."""
    kinds = attention_kinds(attention_order(config.attention_pattern), config.num_layers)
    return [i for i, kind in enumerate(kinds) if config.nb_relevant_lyric_tokens and kind in (CROSS, PRIME)]


def _whole(codec: Part, priors: Sequence[Json]) -> Json:
    """The whole model's configuration.  Raises IncompatiblePartsError."""
    rate = codec.config["sampling_rate"]
    for prior in priors:
        if prior["sampling_rate"] != rate:
            raise IncompatiblePartsError(
                f"The VQ-VAE is for {rate} samples a second and the prior of level {prior['level']} for "
                f"{prior['sampling_rate']}; use parts that were trained together."
            )
    config = JukeboxConfig(vqvae_config=codec.config, prior_config_list=list(priors), nb_priors=len(priors))
    with torch.device("meta"):
        JukeboxModel(config)  # which refuses what doesn't fit
    return {**config.to_dict(), "architectures": ["JukeboxModel"]}


def _forms(codec: Part, levels: Sequence[Level]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the whole, on the meta device."""
    for name, form in _own(codec):
        yield f"vqvae.{name}", form
    for number, level in enumerate(levels):
        for name, form in _own(level.part):
            rows = level.rows.get(name)
            yield f"priors.{number}.{name}", form if rows is None else form.new_empty(len(rows), *form.shape[1:])


def _own(part: Part) -> list[tuple[str, Tensor]]:
    forms = read_forms(part.path)
    return [(name.removeprefix(part.prefix), form) for name, form in forms.items() if name.startswith(part.prefix)]


def _tensors(codec: Part, levels: Sequence[Level]) -> Iterator[tuple[str, Tensor]]:
    """The same with their values, one after another."""
    yield from _read(codec, "vqvae.", {})
    for number, level in enumerate(levels):
        yield from _read(level.part, f"priors.{number}.", level.rows)


def _read(part: Part, prefix: str, rows: dict[str, list[int]]) -> Iterator[tuple[str, Tensor]]:
    names = {part.prefix + name: name for name, _ in _own(part)}
    for name, tensor in iterate_tensors(part.path, names):
        plan = rows.get(names[name])
        yield prefix + names[name], tensor if plan is None else tensor[torch.tensor(plan)]


# ------------------------------------------------------------------------------------------------------------- MusicGen


def assemble_musicgen(
    destination: Path,
    *,
    codec: str | Path,
    lm: str | Path,
    text_encoder: str | Path | None = None,
    other_codec: bool = False,
    max_shard_size: int | str = SHARD,
) -> Path:
    """Make a folder of a whole MusicGen, which appears whole or not at all.

    codec: an EnCodec, or a MusicGen whose codec is taken.  lm: a MusicGen, of which decoder, projection and, unless
    another is given, text encoder are taken; or a decoder alone, which reads text states of its own width.
    other_codec: take a language model that says it was trained on another codec's codes.
    Raises IncompatiblePartsError for parts that don't fit each other, CheckpointError, ModelNotFoundError.
    """
    shard = shard_bytes(max_shard_size)
    decoder, text = _decoder(lm), _text_encoder(lm if text_encoder is None else text_encoder)
    config, voice = _codec(codec)
    whole = {
        **decoder.config,
        "architectures": ["MusicgenForConditionalGeneration"],
        "model_type": "musicgen",
        "text_encoder": text.config,
        "audio_encoder": config,
    }
    _refuse_unlike(whole, decoder)
    own = codes_hash(hub.locate(codec))
    if not other_codec and decoder.config["decoder"].get("codes_hash", own) not in (None, own):
        raise IncompatiblePartsError(
            f"The language model in {str(lm)!r} was trained on the codes of another codec than that in {str(codec)!r}; "
            "give that one with --codec, or --other-codec."
        )
    tensors = decoder.tensors | voice | {f"text_encoder.{name}": tensor for name, tensor in text.tensors.items()}
    with new_folder(destination) as draft:
        write_folder(replace(decoder, config=whole, tensors=tensors, tokenizer=text.tokenizer), draft, shard)
    return destination


def _decoder(name: str | Path) -> Converted:
    """A language model with its projection, in a whole model's names; alone it has none."""
    folder = hub.locate(name)
    config = read_json(folder / CONFIG)
    if config.get("model_type") == "musicgen":
        found = read_folder(folder)
        own = {key: tensor for key, tensor in found.tensors.items() if key.startswith(("decoder.", "enc_to_dec_proj."))}
        return replace(found, tensors=own)
    if config.get("model_type") != "musicgen_decoder":
        raise IncompatiblePartsError(
            f"{str(name)!r} is of the family {config.get('model_type')!r}; --lm is a MusicGen or its decoder."
        )
    tensors = {f"decoder.{key}": tensor for key, tensor in iterate_tensors(folder, read_forms(folder))}
    return Converted({"decoder": config}, tensors, None, "musicgen")


def _text_encoder(name: str | Path) -> TextEncoder:
    found = read_text_encoder(hub.locate(name))
    if found.tokenizer is None:
        raise CheckpointError(f"{str(name)!r} has no tokenizer (tokenizer.json or spiece.model), so it reads no text.")
    return found


def _codec(name: str | Path) -> tuple[Json, dict[str, Tensor]]:
    """A codec's configuration, and its tensors in a whole model's names."""
    found = read_folder(hub.locate(name))
    if found.kind == "encodec":
        return found.config, {f"audio_encoder.{key}": tensor for key, tensor in found.tensors.items()}
    own = {key: tensor for key, tensor in found.tensors.items() if key.startswith("audio_encoder.")}
    return found.config["audio_encoder"], own


def _refuse_unlike(config: Json, decoder: Converted) -> None:
    parts = {name: config[name] for name in ("text_encoder", "audio_encoder", "decoder")}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the misfit, which is an error here
        model = MusicgenForConditionalGeneration(MusicgenConfig(**parts))
    if misfit := model.misfit():
        raise IncompatiblePartsError(f"{misfit} Use a codec and a decoder that were trained together.")
    forms = {name: form for name, form in model.state_dict().items() if name.startswith("enc_to_dec_proj.")}
    given = {name: tensor for name, tensor in decoder.tensors.items() if name.startswith("enc_to_dec_proj.")}
    if {name: form.shape for name, form in forms.items()} != {name: tensor.shape for name, tensor in given.items()}:
        raise IncompatiblePartsError(
            f"The text encoder makes states of width {parts['text_encoder']['d_model']}, and the language model has no "
            "projection from these; use the text encoder that it was trained with."
        )
