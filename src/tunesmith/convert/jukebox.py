"""Jukebox's checkpoints: OpenAI's `.pth.tar` files <-> folders in our layout, one part at a time.

A file holds one part, the VQ-VAE or the prior of one level, as a dictionary: `model` has the tensors, `hps` the
settings, `opt` and `step` are of training.  A folder in our layout holds one part too, or all of them under `vqvae.`
and `priors.N.`, of which 0 is the top; the original counts levels from the finest.

Files are looked at twice: first without the tensors' values, so that whatever is wrong is told before anything is
written, then part by part.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tunesmith.codecs.vqvae import PRESETS as VQVAES
from tunesmith.codecs.vqvae import JukeboxVQVAEConfig
from tunesmith.convert import jukebox_settings as settings
from tunesmith.convert.folders import (
    CONFIG,
    SHARD,
    copy_tokenizer,
    iterate_tensors,
    read_forms,
    read_json,
    read_pickle,
    stream_tensors,
    write_json,
)
from tunesmith.convert.jukebox_hub import RELEASED, modern_config, prior_preset, vqvae_preset
from tunesmith.convert.jukebox_keys import TRAINING, plain_name, prior_rows, vqvae_rows
from tunesmith.convert.keymaps import Row, refuse_misshapen
from tunesmith.errors import CheckpointError, IncompatiblePartsError, RequestError
from tunesmith.models.jukebox import PRESETS as PRIORS
from tunesmith.models.jukebox import JukeboxPriorConfig

Json = dict[str, Any]

FAMILIES = ("jukebox", "jukebox_vqvae", "jukebox_prior")
"""`model_type` of folders in our layout."""

SUFFIXES = (".tar", ".pth", ".pt")
"""Of files that may be OpenAI's; what they are, their content says."""

TOKENIZER = ("artists.json", "genres.json", "lyrics.json", "tokenizer_config.json", "special_tokens_map.json")

_MARKS = ("prior.", "bottleneck.level_blocks.")  # beginnings of names in every prior and every VQ-VAE
_LEVEL = re.compile(r"level_(\d+)")


@dataclass(frozen=True)
class Part:
    """A VQ-VAE or a prior.  path: the file or folder that it is in; prefix: of its tensors' names in a whole model."""

    path: Path
    config: Json
    prefix: str = ""

    @cached_property
    def rows(self) -> list[Row]:
        """Its tensors."""
        if self.is_prior:
            return list(prior_rows(JukeboxPriorConfig(**self.config)))
        return list(vqvae_rows(JukeboxVQVAEConfig(**self.config)))

    @property
    def is_prior(self) -> bool:
        """Else it is the VQ-VAE."""
        return self.config["model_type"] == "jukebox_prior"

    @property
    def level(self) -> int:
        """Of a prior; 0 is the finest."""
        return len(self.config["res_downs_t"]) - 1 - self.config["level"]


# ------------------------------------------------------------------------------------------------- OpenAI's files


def is_openai(path: Path, preset: str | None = None) -> bool:
    """Whether a file or a folder without other models holds OpenAI's checkpoints, or claims to by its suffix.

    Raises `CheckpointError` for a file that can't be read.
    """
    if path.is_dir() or path.suffix in SUFFIXES:
        return any(file.suffix in SUFFIXES for file in _files(path, preset))
    package = read_pickle(path, values=False)
    state = package.get("model") if isinstance(package, dict) else None
    return isinstance(state, dict) and any(plain_name(str(name)).startswith(_MARKS) for name in state)


def read_parts(path: Path, preset: str | None = None) -> list[Part]:
    """What OpenAI's files at path hold: one part, or a whole model, VQ-VAE first, then priors from the top.

    preset: of a set or a part, for files without settings of their own, or for choosing from the folder of all released
    models.  Raises `CheckpointError` or
    `IncompatiblePartsError`.
    """
    files = {file: _peek(file) for file in _files(path, preset)}
    codecs = [_read_vqvae(file, *found, preset) for file, found in files.items() if not _has_prior(found[1])]
    hops = None
    if codecs:
        hops = settings.Hops(codecs[0].config["res_downs_t"], codecs[0].config["res_strides_t"])
    priors = [_read_prior(file, *found, preset, hops) for file, found in files.items() if _has_prior(found[1])]
    parts = [*codecs, *sorted(priors, key=lambda prior: prior.config["level"])]
    if len(parts) > 1:
        _refuse_unlike(parts, path)
    return parts


def write_folder(parts: list[Part], folder: Path, shard: int = SHARD) -> None:
    """Write parts of OpenAI's in our layout: `config.json` and float32 weights; parts are read one after another."""
    whole = len(parts) > 1
    config = _whole_config([part.config for part in parts]) if whole else parts[0].config
    write_json({**config, "dtype": "float32", "transformers_version": transformers.__version__}, folder / CONFIG)
    prefixes = ["vqvae.", *(f"priors.{i}." for i in range(len(parts) - 1))] if whole else [""]
    forms = {
        prefix + row.ours[0]: torch.empty(row.shape, device="meta")
        for prefix, part in zip(prefixes, parts, strict=True)
        for row in part.rows
    }
    tensors = (pair for prefix, part in zip(prefixes, parts, strict=True) for pair in iterate(part, prefix))
    stream_tensors(forms, tensors, folder, shard)


def _files(path: Path, preset: str | None) -> list[Path]:
    """The file, or those of a folder that may be OpenAI's; or of a set in the folder where OpenAI's code keeps all."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if files or preset not in RELEASED:
        return files
    shared = [path / "5b" / f"{name}.pth.tar" for name in ("vqvae", "prior_level_0", "prior_level_1")]
    return [file for file in (*shared, path / preset / "prior_level_2.pth.tar") if file.is_file()]


def _peek(path: Path) -> tuple[Json, dict[str, Tensor]]:
    """The settings and the forms (tensors on the meta device) of a file."""
    package = read_pickle(path, values=False)
    state = _state(package, path)
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, state.values())}
    if path.stat().st_size < (size := sum(storages.values())):
        raise CheckpointError(f"{path} is incomplete: it should have more than {size} bytes; fetch it again.")
    hps = package.get("hps")
    return dict(hps) if isinstance(hps, Mapping) else {}, {name: tensor.to("meta") for name, tensor in state.items()}


def _state(package: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a file under the names that rows have."""
    state = package.get("model") if isinstance(package, dict) else None
    if isinstance(state, dict):
        tensors = {plain_name(str(name)): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
        if any(name.startswith(_MARKS) for name in tensors):
            return tensors
    raise CheckpointError(f"{path} isn't a checkpoint of Jukebox: it holds neither a VQ-VAE nor a prior under `model`.")


def iterate(part: Part, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """A part's tensors under our names; each can be forgotten when the next is asked for."""
    state = _state(read_pickle(part.path), part.path)
    for row in part.rows:
        yield prefix + row.ours[0], state.pop(row.theirs)


def _has_prior(forms: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("prior.") for name in forms)


def _read_vqvae(path: Path, hps: Json, forms: Mapping[str, Tensor], preset: str | None) -> Part:
    for name in _presets(preset, VQVAES):
        config = vqvae_preset(name)
        if _fits(Part(path, config), forms):
            hps = {**settings.write_vqvae(config), **hps}
            break
    _refuse_without_settings(hps, preset, path)
    return _checked(Part(path, settings.read_vqvae(hps, path)), forms)


def _read_prior(
    path: Path, hps: Json, forms: Mapping[str, Tensor], preset: str | None, hops: settings.Hops | None
) -> Part:
    named = _LEVEL.search(path.name)
    level = hps.get("level", int(named[1]) if named else None)
    for name in _presets(preset, PRIORS):
        part = Part(path, prior_preset(name))
        if level in (None, part.level) and _fits(part, forms):
            hps, level = {**settings.write_prior(part.config), **hps}, part.level
            break
    _refuse_without_settings(hps, preset, path)
    if type(level) is not int or level < 0:
        raise CheckpointError(f"{path} doesn't say of which level its prior is; call it prior_level_N.pth.tar.")
    return _checked(Part(path, settings.read_prior(hps, forms, hops, level, path)), forms)


def check_preset(name: str) -> None:
    """Raises RequestError for one that doesn't exist."""
    if name not in (*RELEASED, *VQVAES, *PRIORS):
        raise RequestError(f"There is no preset {name!r}; there are {', '.join([*RELEASED, *VQVAES, *PRIORS])}.")


def _presets(name: str | None, among: Iterable[str]) -> list[str]:
    """The presets of one kind that a set's or a part's name allows; all of them without a name."""
    if name is not None:
        check_preset(name)
    return [part for part in among if name is None or part in RELEASED.get(name, (name,))]


def _fits(part: Part, forms: Mapping[str, Tensor]) -> bool:
    return {row.theirs: row.shape for row in part.rows} == {name: tuple(form.shape) for name, form in forms.items()}


def _checked(part: Part, forms: Mapping[str, Tensor]) -> Part:
    refuse_misshapen({row.theirs: row.shape for row in part.rows}, forms, part.path)
    return part


def _refuse_without_settings(hps: Json, preset: str | None, path: Path) -> None:
    if not hps:
        known = f"the preset {preset!r}" if preset else "any preset"
        raise CheckpointError(
            f"{path} has no settings of its own (`hps`), and its tensors aren't those of {known}; give the preset that "
            f"it was made from: {', '.join(RELEASED)} or one of its parts."
        )


def _refuse_unlike(parts: list[Part], path: Path) -> None:
    """Raise unless the parts are a whole model's."""
    names = [f"the prior of level {part.level}" if part.is_prior else "the VQ-VAE" for part in parts]
    for i, name in enumerate(names):
        if name in names[:i]:
            twins = " and ".join(parts[j].path.name for j in (names.index(name), i))
            raise CheckpointError(f"{twins} in {path} both hold {name}; leave one of them there.")
    levels = len(parts[0].config["res_downs_t"])
    wanted = ["the VQ-VAE", *(f"the prior of level {level}" for level in range(levels))]
    if set(names) != set(wanted):
        raise CheckpointError(
            f"{path} holds {', '.join(names)}, but a whole model needs {', '.join(wanted)}. Put all of them "
            "into one folder, or convert them one by one."
        )
    codes = parts[0].config["nb_discrete_codes"]
    for part in parts[1:]:
        if part.config["music_vocab_size"] != codes:
            raise IncompatiblePartsError(
                f"{part.path} is for a VQ-VAE with {part.config['music_vocab_size']} codes a level, but "
                f"{parts[0].path.name} has {codes}."
            )


def _whole_config(configs: list[Json]) -> Json:
    """Of a VQ-VAE and its priors, top first; what Hugging Face says of the whole model is taken from the top."""
    codec, *priors = configs
    shared = ("metadata_conditioning", "timing_dims", "max_nb_genres", "min_duration", "max_duration", "sampling_rate")
    return {
        **{name: priors[0][name] for name in shared if name in priors[0]},
        "architectures": ["JukeboxModel"],
        "model_type": "jukebox",
        "nb_priors": len(priors),
        "hop_fraction": [0.125] + [0.5] * (len(priors) - 1),  # of a window, as the original's samples
        "vqvae_config": codec,
        "prior_config_list": priors,
    }


# ------------------------------------------------------------------------------------------------------ our layout


def read_model(folder: Path) -> list[Part]:
    """What a folder in our layout (which is Hugging Face's) holds; VQ-VAE first, then priors from the top.

    Raises `CheckpointError`.
    """
    config = modern_config(read_json(folder / CONFIG), folder)
    forms = read_forms(folder)
    if config["model_type"] == "jukebox":
        parts = [Part(folder, config["vqvae_config"], "vqvae.")]
        parts += [Part(folder, prior, f"priors.{i}.") for i, prior in enumerate(config["prior_config_list"])]
    else:
        parts = [Part(folder, config)]
    shapes = {part.prefix + row.ours[0]: row.shape for part in parts for row in part.rows}
    for part in parts:
        if _is_tied(part) and _head(part) not in forms:
            del shapes[_head(part)]
    refuse_misshapen(shapes, {name: form for name, form in forms.items() if not TRAINING.search(name)}, folder)
    return parts


def write_openai(parts: list[Part], folder: Path) -> None:
    """Write each part as the original's code does: in the serialisation that torch 1.4 reads.

    A prior whose projections are all exact in float16 keeps them so, as the original did for large ones.
    """
    for part in parts:
        name = f"prior_level_{part.level}" if part.is_prior else "vqvae"
        half = part.is_prior and _is_half(part)
        hps = (settings.write_prior if part.is_prior else settings.write_vqvae)(part.config)
        package = {"hps": {**hps, "fp16_params": half}, "model": _theirs(part, half), "opt": None, "step": 0}
        torch.save(package, folder / f"{name}.pth.tar", _use_new_zipfile_serialization=False)


def rewrite(folder: Path, destination: Path, shard: int = SHARD) -> None:
    """Write a folder in our layout again, as safetensors and with the configuration that is meant.

    Raises as `read_model`.
    """
    read_model(folder)  # which says what is wrong
    config = modern_config(read_json(folder / CONFIG), folder)
    write_json({**config, "dtype": "float32", "transformers_version": transformers.__version__}, destination / CONFIG)
    copy_tokenizer(folder, destination, TOKENIZER)
    forms = read_forms(folder)
    stream_tensors(forms, iterate_tensors(folder, forms), destination, shard)


def _theirs(part: Part, half: bool) -> dict[str, Tensor]:
    """A part's tensors, fresh, under OpenAI's names."""
    names = {part.prefix + row.ours[0]: row.theirs for row in part.rows}
    state: dict[str, Tensor] = {}
    for name, tensor in iterate_tensors(part.path, names):
        kind = torch.float16 if half and names[name].endswith(".w") else torch.float32
        state[names[name]] = tensor.to(kind, copy=True)
    if _is_tied(part):
        state["prior.x_out.weight"] = state["prior.x_emb.weight"]
    return {row.theirs: state[row.theirs] for row in part.rows}


def _is_half(part: Part) -> bool:
    """Whether nothing is lost of a prior's projections in float16."""
    names = {part.prefix + row.ours[0] for row in part.rows if row.theirs.endswith(".w")}
    return all(torch.equal(tensor.half().to(tensor.dtype), tensor) for _, tensor in iterate_tensors(part.path, names))


def _is_tied(part: Part) -> bool:
    """Whether a prior's output weights are its embeddings, which files then may leave out."""
    return part.is_prior and not part.config["merged_decoder"]


def _head(part: Part) -> str:
    return f"{part.prefix}prior.fc_proj_out.weight"
