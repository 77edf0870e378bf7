"""Fine-tuning one level of a Jukebox: songs with new artists, genres and letters."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from tunesmith import hub
from tunesmith.conditioning.lyrics import Alphabet
from tunesmith.conditioning.merge import grown
from tunesmith.conditioning.tables import KINDS, Kind
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.errors import RequestError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.pipelines.adapters import Facts, widen
from tunesmith.pipelines.jukebox import JukeboxConfig, JukeboxModel
from tunesmith.pipelines.levels import level_name
from tunesmith.training.alignment import alignment_of
from tunesmith.training.encoded import EncodedCodes
from tunesmith.training.jukebox import PriorObjective
from tunesmith.training.labels import JukeboxLabels
from tunesmith.training.metadata import Metadata
from tunesmith.training.tuning import Lesson, Tuning, encode, songs_for

COMMON = 1e-3
"""A character that the alphabet lacks gets a row if it makes this share of the lyrics; else it is spelled in ASCII."""


def jukebox_lesson(tuning: Tuning, folder: Path, tell: Callable[[str], object]) -> Lesson:
    """A level's prior, with rows for what is new.  Raises RequestError for levels and names that aren't there."""
    if tuning.method != "full" and tuning.schedule.weight_decay:
        raise RequestError(
            f"weight_decay is {tuning.schedule.weight_decay}; it must be 0 for a Jukebox' adapters, or embeddings that "
            "aren't trained would decay."
        )
    hub.check_files(folder)
    whole = JukeboxModel.from_pretrained(folder, one_prior_at_a_time=True)
    configs = whole.config.prior_configs
    if not 0 <= tuning.level < len(configs):
        raise RequestError(f"There is no level {tuning.level}; this Jukebox has 0 (the top) to {len(configs) - 1}.")
    top = configs[tuning.level]
    timed = top.metadata_conditioning and not tuning.level
    songs = songs_for(tuning, tell, *((top.min_duration, top.max_duration) if timed else ()))
    encode(tuning, songs, folder, top.window_length / top.sampling_rate, tell)
    tokenizer = JukeboxTokenizer.from_pretrained(folder)
    prior = JukeboxPrior.from_pretrained(folder, level=tuning.level, config=top)
    facts = _facts(tuning, folder, tokenizer, [song.metadata for song in songs], configs)
    for name in ("artists", "genres", "characters"):
        count = facts.characters if name == "characters" else len(getattr(facts, name))
        if count:
            tell(f"{count} new {name}.")
    places = widen(prior, facts, characters=True)
    prior.requires_grad_(True)
    labels = JukeboxLabels(_of_level(tokenizer, tuning.level), n_tokens=top.nb_relevant_lyric_tokens)
    codes = functools.partial(
        EncodedCodes,
        tuning.run / "codes",
        steps=top.n_ctx,
        level=len(configs) - 1 - tuning.level,
        seed=tuning.schedule.seed,
        labels=labels,
    )
    data, test = codes(count=tuning.schedule.steps * tuning.schedule.batch), codes(split="test")
    shown = default_collate([test[0]])
    shown.pop("codes")
    objective = PriorObjective(prior, whole.vqvae, shown)

    def export(target: Path) -> None:
        _export(whole, folder, tokenizer, prior, facts, target)

    return Lesson(
        objective=objective,
        model=prior,
        data=data,
        test=test,
        collate=default_collate,
        facts=facts,
        places=places,
        write=tokenizer.save_pretrained,
        export=export,
        align=functools.partial(alignment_of, objective, test),
    )


def _facts(
    tuning: Tuning, folder: Path, tokenizer: JukeboxTokenizer, known: list[Metadata], configs: list[Any]
) -> Facts:
    """What grows; the tokenizer knows it from now on."""
    own = configs[tuning.level]
    return Facts(
        family="jukebox",
        model=tuning.model,
        model_hash=hub.weights_hash(folder),
        method=tuning.method,
        level=tuning.level,
        **_new_names(tuning, tokenizer, known, configs),
        characters=_new_characters(tokenizer, known) if own.nb_relevant_lyric_tokens else 0,
    )


def _new_names(
    tuning: Tuning, tokenizer: JukeboxTokenizer, songs: list[Metadata], configs: list[Any]
) -> dict[str, Any]:
    """Names that the tables lack, added to the tokenizer's; what `Facts` says of them.

    Under other rules, of levels that aren't trained, a new name stands for the one that it is like, or the unknown.
    """
    rules = tokenizer.version[tuning.level]
    sharing = [config for config, own in zip(configs, tokenizer.version, strict=True) if own == rules]
    sizes = tuple(max(config.metadata_dims[i] for config in sharing) for i in (0, 1))
    found: dict[str, Any] = {"sizes": sizes}
    like = dict(tuning.like)
    for kind, size in zip(KINDS, sizes[::-1], strict=True):
        table = tokenizer.tables[kind, rules]
        said = {name for song in songs for text in _named(song, kind) for name in table.names(text)}
        fresh = sorted(said - {*table.ids, "", "unknown"}) if configs[tuning.level].metadata_conditioning else []
        begins = {name: _known(tokenizer, kind, like, name, table) for name in fresh}
        grown_table, rows = grown(table, size, begins)
        tokenizer.tables[kind, rules] = grown_table
        found[f"{kind}s"] = tuple(rows[size:])
        _alias(tokenizer, kind, rules, begins)
    if like:
        raise RequestError(
            f"--like names {', '.join(map(repr, like))}, which no song of the data has as artist or genre."
        )
    return found


def _named(song: Metadata, kind: Kind) -> tuple[str, ...]:
    return (song.artist,) if kind == "artist" else song.genres


def _known(tokenizer: JukeboxTokenizer, kind: Kind, like: dict[str, str], name: str, table: Any) -> str | None:
    """The name that a new one is like, which is taken off the list.  Raises RequestError where the model lacks it."""
    asked = next((key for key in like if name in table.names(key)), None)
    if asked is None:
        return None
    old = table.names(like.pop(asked))
    missing = [word for word in old if word not in table.ids]
    if missing:
        close = ", ".join(repr(hit.name) for hit in table.search(missing[0], 3)) or "none"
        raise RequestError(f"The model knows no {kind} {missing[0]!r} for {asked!r} to begin as; the closest: {close}.")
    return old[0]


def _alias(tokenizer: JukeboxTokenizer, kind: Kind, rules: str, begins: Mapping[str, str | None]) -> None:
    for other in {*tokenizer.version} - {rules}:
        table = tokenizer.tables[kind, other]
        for name, old in begins.items():
            for spelled in filter(None, table.names(name) if table.ids else ()):
                known = [] if old is None else [word for word in table.names(old) if word in table.ids]
                table.ids.setdefault(spelled, table.ids[known[0]] if known else 0)


def _new_characters(tokenizer: JukeboxTokenizer, songs: list[Metadata]) -> int:
    """Characters that the alphabet lacks and the lyrics hold often, added to the tokenizer's; how many."""
    text = "".join(song.lyrics.text for song in songs)
    ids = dict(tokenizer.alphabet.ids)
    fresh = [c for c in sorted({*text} - {*ids, "\\", "\r"}) if text.count(c) >= COMMON * len(text)]
    first = 1 + max(ids.values())
    tokenizer.alphabet = Alphabet(ids | {c: first + i for i, c in enumerate(fresh)})
    return len(fresh)


def _of_level(tokenizer: JukeboxTokenizer, level: int) -> JukeboxTokenizer:
    """The same for one prior alone: what the others know doesn't matter to it."""
    own = JukeboxTokenizer(
        version=[tokenizer.version[level]],
        n_genres=[tokenizer.n_genres[level]],
        max_n_lyric_tokens=tokenizer.max_n_lyric_tokens,
    )
    own.tables, own.alphabet = tokenizer.tables, tokenizer.alphabet
    return own


def _export(
    whole: JukeboxModel, folder: Path, tokenizer: JukeboxTokenizer, prior: JukeboxPrior, facts: Facts, target: Path
) -> None:
    """The whole model with this prior in its level, and the new names in all levels that share its tables."""
    for level, own in enumerate(tokenizer.version):
        if level == facts.level:
            whole.priors[level] = prior.cpu()
        else:
            with whole.open_prior(level) as other:
                if own == tokenizer.version[facts.level]:
                    widen(other, facts, characters=False)
                whole.priors[level] = other
        whole.config.prior_config_list[level] = whole.priors[level].config
    vars(whole).pop("hf_device_map", None)  # nothing is on disk any more
    whole.save_pretrained(target)
    tokenizer.save_pretrained(target)


def level_of(model: str, name: str | None) -> int:
    """A Jukebox's level by what people call it, or its number from the top.  Raises RequestError."""
    folder = hub.locate(model)
    if hub.family_of(folder) != "jukebox":
        if name is not None:
            raise RequestError(f"--level is for a Jukebox, which {model!r} isn't; leave it out.")
        return 0
    levels = len(JukeboxConfig.from_pretrained(folder).prior_configs)
    names = {level_name(i, levels): i for i in range(levels)} | {"top": 0, "bottom": levels - 1}
    if name is not None and name not in names:
        raise RequestError(f"There is no level {name!r}; this Jukebox has {', '.join(names)}.")
    return 0 if name is None else names[name]
