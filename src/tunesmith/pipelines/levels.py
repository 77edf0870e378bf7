"""Sampling a Jukebox level by level and window by window: one generator that can be stopped and gone on with.

    plan = Plan.of(model.config, labels, Options(...))      what is to be made; whatever can't be is refused here
    state = State.of(plan, codes, seeds)                    what there is of it
    for event in model.iterate(plan, state): ...            Progress, WindowDone, LevelDone, at last Finished

The state changes when a window is done, just before `WindowDone` is yielded, and is whole at every other moment: saved
(`State.to_dict`) and gone on from, in another process too, it ends in the very same codes as without the break.

Every list by level is top first, and level 0 is the top.  Lengths are final: what is given counts, and is never cut.
"""

import copy
import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from tunesmith.conditioning.labels import GENRES, LENGTH, NONE, TOTAL, Samples, cut_window, per_song, with_timing
from tunesmith.errors import RequestError
from tunesmith.events import Event, Finished, LevelDone, Pace, WindowDone
from tunesmith.generation.batching import tell_halved, too_large
from tunesmith.generation.decode import Step
from tunesmith.generation.seeds import is_seed, one_each, plain
from tunesmith.generation.windows import hop_of, upper_slice, window_starts
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.models.jukebox_checks import check_labels, whole_numbers
from tunesmith.nn.ranges import COUNT

SECONDS = 24.0
"""Length of the result where nothing says it."""

LONGEST = 6 * 3600.0
"""In seconds: beyond this, models without labels, which have no limit of their own, are asked for nonsense."""

MOST_SONGS = 100_000

ALIASES = {"sampling_temperature": "temperature", "temp": "temperature"}
"""transformers' names of options."""

NAMES = ("top", "middle", "bottom")

Codes = Any
"""By level, whole numbers [B, S]; one row stands for all songs.  What users give is checked by us, in sentences."""

Labels = Any
"""By level, int64 [B, 4 + G + A], as JukeboxTokenizer makes them; None for a model that reads none."""

Load = Callable[[int], AbstractContextManager[JukeboxPrior]]
"""Gives the prior of a level for as long as it is needed."""


def level_name(level: int, levels: int = 3) -> str:
    """What people call a level: "top", "middle", "bottom"; where there aren't three, "level 0" is the top."""
    return NAMES[level] if levels == len(NAMES) else f"level {level}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to sample.  What goes by level is one value, or a list with one for each, top first."""

    sample_length: Any = None
    """Final length of the result in samples, what is given of it included; the same for all songs."""
    sample_length_in_seconds: float | int | None = None
    """The same in seconds, rounded down to whole codes of the top level."""
    sample_tokens: Any = None
    """The same in codes, so many on every level; to try things out."""
    total_length: Samples | None = None
    """Length in samples of the song that the result is a part of, as a whole; one for all songs, or one a song.  Where
    neither this nor labels say it, it is that of the result, whatever the offset."""
    offset: Samples | None = None
    """Where in that song the result begins, in samples; one for all songs, or one a song."""
    hop_fraction: Any = None
    """By level: how far windows move, as a part of a window; by default as the model's configuration says."""
    chunk_size: Any = None
    """By level: how many known codes are fed at a time; memory and speed depend on it, codes don't."""
    temperature: Any = 0.99
    """By level: 0 takes the likeliest code."""
    top_k: Any = 0
    """By level: 0 is off."""
    top_p: Any = 0.0
    """By level: 0 is off; it acts on what top_k leaves."""
    seeds: Any = None
    """A number (song i has seed + i), one a song, or a list of these by level.  By default they are drawn from torch's
    global generator."""
    max_batch_size: Any = 16
    """By level: the most songs that are sampled at once; codes don't depend on it."""
    lower_batch_size: int | None = None
    """The same for all levels below the top."""
    fp16: Any = False
    """True: run the transformer layers in float16, whatever they are stored in."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain(value))
        if not isinstance(self.fp16, bool):
            raise RequestError(f"fp16 is {self.fp16!r}; it must be True or False.")
        _check("sample_length_in_seconds", self.sample_length_in_seconds, "a number above 0", lambda v: v > 0)
        _check("sample_tokens", self.sample_tokens, "a whole number from 1 on", _is_count)
        _check("hop_fraction", self.hop_fraction, "above 0 and at most 1", lambda v: 0 < v <= 1)
        _check("chunk_size", self.chunk_size, "a whole number from 1 on", _is_count)
        _check("temperature", self.temperature, "0 (the likeliest code) or above", lambda v: 0 <= v < math.inf)
        _check("top_k", self.top_k, "0 (off) or a whole number above", lambda v: isinstance(v, int) and v >= 0)
        _check("top_p", self.top_p, "between 0 (off) and 1", lambda v: 0 <= v <= 1)
        _check("max_batch_size", self.max_batch_size, "a whole number from 1 on", _is_count)
        _check("lower_batch_size", self.lower_batch_size, "a whole number from 1 on", _is_count)

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> "Options":
        """From keywords, by transformers' names too.  Raises RequestError for one that doesn't exist."""
        named = {ALIASES.get(name, name): value for name, value in keywords.items()}
        known = [field.name for field in fields(cls)]
        for name in named:
            if name not in known:
                raise RequestError(f"Sampling doesn't know the argument {name!r}; known are {', '.join(known)}.")
        return cls(**named)


class Piece(NamedTuple):
    """A window of a level, for songs that are sampled together."""

    start: int
    known: int
    """How many codes of the level there are already."""
    end: int
    """How many there will be."""
    songs: tuple[int, ...]

    @property
    def codes(self) -> int:
        """How many are to be sampled, of each song."""
        return self.end - self.known

    def parts(self, most: int) -> list["Piece"]:
        """The same for at most so many songs at a time."""
        return [self._replace(songs=self.songs[i : i + most]) for i in range(0, len(self.songs), most)]


@dataclass(frozen=True)
class Level:
    """What is to be done on a level."""

    config: JukeboxPriorConfig
    """The prior's, with as many genre slots as the labels have."""
    labels: Int[Tensor, "B Y"]
    """Of the whole songs, with their timing."""
    total: int
    """Codes in the end."""
    starts: tuple[int, ...]
    """Of windows, in codes."""
    temperature: float | int
    top_k: int
    top_p: float | int
    chunk_size: int | None
    max_batch_size: int

    def window_labels(self, start: int, songs: Sequence[int]) -> Int[Tensor, "B A"] | None:
        """What the prior reads with the window that starts at a code.  Raises RequestError outside the song."""
        c = self.config
        if not _reads_labels(c):
            return None
        window = cut_window(
            self.labels[list(songs)],
            start=start * c.hop_length,
            length=c.window_length,
            n_genres=c.max_nb_genres,
            n_tokens=c.nb_relevant_lyric_tokens,
        )
        return window.labels

    def pieces(self, lengths: Sequence[int]) -> Iterator[Piece]:
        """All that remains to be done where songs have so many codes already."""
        before = 0
        for start in self.starts:
            end = min(start + self.config.n_ctx, self.total)
            todo = sorted((max(length, before), song) for song, length in enumerate(lengths) if length < end)
            for known, group in groupby(todo, key=lambda pair: pair[0]):
                songs = [song for _, song in group]
                yield from Piece(start, known, end, tuple(songs)).parts(self.max_batch_size)
            before = end

    def check(self) -> None:
        """Raise RequestError for labels that the prior couldn't read in some window."""
        songs = range(len(self.labels))
        for start in self.starts:
            if (labels := self.window_labels(start, songs)) is not None:
                check_labels(self.config, labels, len(songs))


@dataclass(frozen=True)
class Plan:
    """What is to be made, checked."""

    levels: tuple[Level, ...]
    """All levels of the model."""
    sampled: tuple[int, ...]
    """The levels to sample."""
    sample_length: int
    """Samples."""
    songs: int
    fp16: bool

    @classmethod
    def of(
        cls,
        config: Any,
        labels: Labels,
        options: Options | None = None,
        *,
        songs: Any = 1,
        sampled: Any = None,
        given_length: int | None = None,
    ) -> "Plan":
        """A plan for a model with this JukeboxConfig.

        labels: by level, [B, 4 + G + A], as JukeboxTokenizer makes them; one row stands for all songs.  sampled: the
        levels to sample, all by default.  given_length: the length in samples where options don't say it.
        Raises RequestError for whatever would fail later: hop fractions that don't divide, lengths and offsets out of
        the model's range, artists and genres that it doesn't have.
        """
        options, priors = options or Options(), config.prior_configs
        rows = _rows(labels, priors, songs)
        length = _length(options, priors[0], rows[0], given_length)
        levels = tuple(
            _level(prior, labels, _at(options, config, number), options, length)
            for number, (prior, labels) in enumerate(zip(priors, rows, strict=True))
        )
        plan = cls(levels, _sampled(sampled, len(levels)), length, len(rows[0]), options.fp16)
        for number in plan.sampled:
            levels[number].check()
        return plan


@dataclass
class State:
    """What there is of a plan's codes, and where each song's generator stands.  All on the CPU."""

    codes: list[list[Int[Tensor, " _"]]]
    """By level and song."""
    seeds: list[list[int]]
    """By level and song."""
    generators: list[list[Tensor]]
    """By level and song: the state of torch's generator, uint8; empty where nothing was drawn yet."""

    @classmethod
    def of(cls, plan: Plan, codes: Codes | None = None, seeds: Any = None) -> "State":
        """The beginning: given codes (by level; one row stands for all songs), and seeds as `Options` says.

        Raises RequestError for codes that don't fit the plan.
        """
        empty = torch.zeros(plan.songs, 0, dtype=torch.long)
        given = [empty] * len(plan.levels) if codes is None else [_given(rows, plan.songs) for rows in codes]
        if len(given) != len(plan.levels):
            raise RequestError(f"There are codes of {len(given)} levels; this model has {len(plan.levels)}, top first.")
        _check_given(plan, given)
        generators = [[torch.empty(0, dtype=torch.uint8)] * plan.songs for _ in plan.levels]
        return cls([list(rows) for rows in given], by_level_seeds(seeds, plan.songs, len(plan.levels)), generators)

    def stacked(self) -> list[Int[Tensor, "B _"]]:
        """The codes by level, songs together."""
        return [torch.stack(songs) for songs in self.codes]

    def pick(self, songs: Sequence[int]) -> "State":
        """That of some of the songs, for a plan of these."""
        return State(*([[level[song] for song in songs] for level in part] for part in vars(self).values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and tensors, which `torch.load(..., weights_only=True)` reads."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "State":
        """The opposite of `to_dict`."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})

    def generator(self, level: int, song: int, device: torch.device | str) -> torch.Generator:
        """Where it stands: seeded, or as it was left.  Raises RequestError for that of another kind of device."""
        generator, left = torch.Generator(device), self.generators[level][song]
        if not len(left):
            return generator.manual_seed(self.seeds[level][song])
        try:
            return generator.set_state(left)
        except RuntimeError:
            raise RequestError(
                f"These codes were begun on another kind of device than {str(device)!r}, whose random numbers are "
                "others; go on on one of that kind."
            ) from None


def iterate(plan: Plan, state: State, load: Load) -> Iterator[Event]:
    """Sample what remains: Progress with every code, WindowDone, LevelDone, at last Finished with the codes by level.

    The state is changed in place; stop iterating to stop.  A level that is complete already is told too.
    """
    for number in plan.sampled:
        pieces = list(plan.levels[number].pieces(list(map(len, state.codes[number]))))
        if pieces:
            yield from _sample_level(plan, state, number, load, pieces)
        yield LevelDone(level=number, songs=tuple(range(plan.songs)))
    yield Finished(result=state.stacked())


def _sample_level(plan: Plan, state: State, number: int, load: Load, pieces: Sequence[Piece]) -> Iterator[Event]:
    """What the prior is named by goes when this returns, so the next one is loaded when this one is gone.

    Where a GPU's memory is too short for the songs of a window, the window is sampled anew for half as many at a time;
    for one, once without what else the prior keeps there.
    """
    pace, done, most, todo = Pace(level_name(number, len(plan.levels))), 0, plan.songs, deque(pieces)
    alone = False
    total = sum(piece.codes for piece in pieces)
    with load(number) as prior:
        while todo:
            piece, *others = todo.popleft().parts(most)
            todo.extendleft(reversed(others))
            total += sum(other.codes for other in others)
            steps = 0
            try:
                for _ in _sample_piece(plan.levels[number], state, number, prior, piece):
                    steps += 1
                    yield pace.at(done + steps, total)
            except torch.OutOfMemoryError:
                todo.appendleft(piece)
            else:
                done += steps
                yield WindowDone(level=number, start=piece.start, end=piece.end, songs=piece.songs)
                continue
            if alone:
                raise too_large()
            most = max(len(piece.songs) // 2, 1)
            alone = most == 1
            tell_halved(most)
            prior.prior.kept.clear()


def _sample_piece(
    level: Level, state: State, number: int, prior: JukeboxPrior, piece: Piece
) -> Generator[Step, None, None]:
    """Sample a window; the state changes at its end."""
    start, known, end, songs = piece
    generators = [state.generator(number, song, prior.device) for song in songs]
    codes = yield from prior.iterate_codes(
        len(songs),
        labels=level.window_labels(start, songs),
        upper_codes=_upper_codes(level, state, number, piece),
        codes=torch.stack([state.codes[number][song][start:] for song in songs]),
        sample_tokens=end - start,
        temperature=level.temperature,
        top_k=level.top_k,
        top_p=level.top_p,
        chunk_size=level.chunk_size,
        generators=generators,
    )
    fresh = codes[:, known - start :].cpu()
    for song, row, generator in zip(songs, fresh, generators, strict=True):
        state.codes[number][song] = torch.cat([state.codes[number][song], row])
        state.generators[number][song] = generator.get_state()


def _upper_codes(level: Level, state: State, number: int, piece: Piece) -> Int[Tensor, "B R"] | None:
    if not number:
        return None
    c = level.config
    return torch.cat(
        [upper_slice(state.codes[number - 1][song][None], piece.start, c.n_ctx, c.upper_ratio) for song in piece.songs]
    )


# ------------------------------------------------------------------------------------------------------------ options


def by_level_seeds(seeds: Any, songs: int, levels: int) -> list[list[int]]:
    """A seed for each level and song; see `Options.seeds`.

    Lower levels have seeds of their own, made of the song's, so a top level sampled before has the lower levels that it
    would have had in one go.
    """
    given = plain(torch.randint(2**62, (songs,)) if seeds is None else seeds)
    by_level = isinstance(given, list) and len(given) == levels and (levels != songs or not all(map(is_seed, given)))
    if by_level:
        return [one_each(level, songs) for level in given]
    own = one_each(given, songs)
    return [[_derived(seed, level) for seed in own] for level in range(levels)]


def _derived(seed: int, level: int) -> int:
    """The seed itself at the top."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{level}".encode()).digest()[:7]) if level else seed


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _check(name: str, values: Any, allowed: str, fits: Callable[[Any], bool]) -> None:
    """One value or several; None is left to others."""
    for value in values if isinstance(values, list | tuple) else [values]:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and fits(value)):
            raise RequestError(f"{name} is {value!r}; it must be {allowed}.")


def _at(options: Options, config: Any, number: int) -> dict[str, Any]:
    """The options of a level."""
    levels = len(config.prior_configs)
    names = ("hop_fraction", "chunk_size", "temperature", "top_k", "top_p", "max_batch_size")
    chosen = {name: _entry(name, getattr(options, name), number, levels) for name in names}
    if chosen["hop_fraction"] is None:
        chosen["hop_fraction"] = _entry("hop_fraction", config.hop_fraction, number, levels)
    if options.lower_batch_size is not None and number:
        chosen["max_batch_size"] = options.lower_batch_size
    return chosen


def _entry(name: str, values: Any, number: int, levels: int) -> Any:
    if not isinstance(values, list | tuple):
        return values
    if len(values) != levels:
        raise RequestError(f"{name} has {len(values)} values for {levels} levels; give one, or one a level, top first.")
    return values[number]


def _level(config: JukeboxPriorConfig, labels: Tensor, chosen: dict[str, Any], options: Options, length: int) -> Level:
    config = copy.copy(config)
    if _reads_labels(config):
        said = (labels[:, TOTAL] > 0) | (options.total_length is not None)
        labels, config.max_nb_genres = _with_slots(config, labels)
        labels = with_timing(labels, sample_length=length, total_length=options.total_length, offset=options.offset)
        _refuse_beyond(labels[said], length)
    hop = hop_of(chosen.pop("hop_fraction"), config.n_ctx, config.upper_ratio)
    total = options.sample_tokens or length // config.hop_length
    starts = tuple(window_starts(total, config.n_ctx, hop, config.upper_ratio))
    return Level(config=config, labels=labels, total=total, starts=starts, **chosen)


def _refuse_beyond(labels: Int[Tensor, "_ Y"], length: int) -> None:
    """Unless songs that say how long they are have room for the result."""
    for total, offset in labels[:, :LENGTH].tolist():
        if offset + length > total:
            raise RequestError(
                f"A song of {total} samples has no room for {length} from sample {offset} on; give a total_length of "
                f"{offset + length} or more, or ask for less."
            )


def _sampled(levels: Any, count: int) -> tuple[int, ...]:
    chosen = range(count) if levels is None else plain(levels)
    if not isinstance(chosen, list | range) or not chosen or any(level not in range(count) for level in chosen):
        raise RequestError(f"sample_levels is {levels!r}; it lists levels, which are 0 (top) to {count - 1}.")
    return tuple(sorted({int(level) for level in chosen}))


def _length(options: Options, top: JukeboxPriorConfig, labels: Tensor, given: int | None) -> int:
    """Final length in samples."""
    hop, own = top.hop_length, set(labels[:, LENGTH].tolist() if labels.shape[1] > LENGTH else ())
    if options.sample_tokens is not None:
        length = int(options.sample_tokens) * hop
    elif options.sample_length is not None:
        lengths = set(per_song(options.sample_length, len(labels), "sample_length"))
        if len(lengths) > 1:
            raise RequestError(f"sample_length is {options.sample_length}; the songs of a call are equally long.")
        length = lengths.pop()
    elif options.sample_length_in_seconds is not None:
        length = int(options.sample_length_in_seconds * top.sampling_rate) // hop * hop
    elif given is not None:
        length = given
    else:
        length = own.pop() if len(own) == 1 and own != {0} else int(SECONDS * top.sampling_rate) // hop * hop
    if length < hop:
        raise RequestError(
            f"{length} samples are asked for, less than one code of the top level; ask for {hop} or more."
        )
    longest = top.max_duration if top.metadata_conditioning else LONGEST
    if length >= longest * top.sampling_rate:
        raise RequestError(f"{length} samples are asked for; songs of this model are shorter than {longest:g} s.")
    return length


# ------------------------------------------------------------------------------------------------------------- labels


def _reads_labels(config: JukeboxPriorConfig) -> bool:
    return bool(config.metadata_conditioning or config.nb_relevant_lyric_tokens)


def _rows(labels: Labels, priors: Sequence[JukeboxPriorConfig], songs: Any) -> list[Tensor]:
    """Labels by level, a row a song, on the CPU."""
    if not COUNT.allows(songs := plain(songs)):
        raise RequestError(f"n_samples is {songs!r}; it must be {COUNT}.")
    if songs > MOST_SONGS:
        raise RequestError(f"n_samples is {songs}; at most {MOST_SONGS} are sampled in one call.")
    if labels is None:
        if any(map(_reads_labels, priors)):
            raise RequestError(
                f"There are no labels, and this model reads them; give a list of {len(priors)} tensors, one a level, "
                "top first, as the tokenizer's input_ids."
            )
        labels = [torch.zeros(songs, 0, dtype=torch.long)] * len(priors)
    if not isinstance(labels, list | tuple) or len(labels) != len(priors):
        raise RequestError(
            f"labels are {len(labels) if isinstance(labels, list | tuple) else type(labels).__name__}; they must be a "
            f"list of {len(priors)} tensors, one a level, top first, as the tokenizer's input_ids."
        )
    rows = [whole_numbers("labels", _tensor(each)).cpu() for each in labels]
    for each, config in zip(rows, priors, strict=True):
        lowest = GENRES if _reads_labels(config) else 0
        if each.ndim != 2 or each.shape[1] < lowest:
            raise RequestError(
                f"labels are {each.dtype} {list(each.shape)}; each level's are torch.int64 [songs, 4 + genres + "
                "lyric tokens]."
            )
    counts = {songs, *map(len, rows)} - {1}
    if len(counts) > 1 or 0 in counts:
        raise RequestError(
            f"There are labels of {', '.join(str(len(each)) for each in rows)} songs and n_samples is {songs}; give "
            "one row, or one a song."
        )
    return [each.expand(max(counts, default=1), -1) if len(each) == 1 else each for each in rows]


def _tensor(rows: Any) -> Any:
    """Arrays and lists of numbers as a tensor; what can't be one as it is."""
    try:
        return torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        return rows


def _with_slots(config: JukeboxPriorConfig, labels: Int[Tensor, "B Y"]) -> tuple[Int[Tensor, "B Z"], int]:
    """Labels with the prior's number of genre slots, and that number.

    What a prior without lyrics has behind its slots is lyrics at the top, which it can't read, and below it genres: of
    those it takes any number (configurations of other programs say 1 where models take 5).
    """
    slots = int(config.max_nb_genres)
    if config.nb_relevant_lyric_tokens:
        return labels, slots
    if config.level:
        used = (labels[:, GENRES:] != NONE).any(0).nonzero().flatten().tolist()
        slots = max([slots, *(column + 1 for column in used)])
    labels = labels[:, : GENRES + slots]
    return functional.pad(labels, (0, GENRES + slots - labels.shape[1]), value=NONE), slots


# -------------------------------------------------------------------------------------------------------------- codes


def _given(rows: Any, songs: int) -> Int[Tensor, "B S"]:
    whole = whole_numbers("codes", rows).cpu()
    if whole.ndim != 2 or len(whole) not in (1, songs):
        raise RequestError(f"Codes of a level are {list(whole.shape)}; they must be whole numbers [{songs}, steps].")
    return whole.expand(songs, -1)


def _check_given(plan: Plan, given: list[Tensor]) -> None:
    for number, (level, rows) in enumerate(zip(plan.levels, given, strict=True)):
        highest = level.config.music_vocab_size - 1
        if rows.numel() and not (rows.min() >= 0 and rows.max() <= highest):
            raise RequestError(
                f"Codes of level {number} lie between {int(rows.min())} and {int(rows.max())}; this model has 0 to "
                f"{highest}."
            )
        if rows.shape[1] > level.total:
            raise RequestError(
                f"There are {rows.shape[1]} codes of {_called(number, given)}, but the final length asked for is "
                f"{level.total}; ask for more, or cut the codes."
            )
        needed, there = level.total // level.config.upper_ratio, given[number - 1].shape[1]
        if number in plan.sampled and number and number - 1 not in plan.sampled and there < needed:
            above = _called(number - 1, given)
            found = f"There are {there} codes of {above}" if there else f"{above.capitalize()} is missing"
            raise RequestError(
                f"{found}, and to sample {level.total} codes of the level below it {needed} are needed; give them, or "
                f"sample level {number - 1} too."
            )


def _called(number: int, given: Sequence[Any]) -> str:
    name = level_name(number, len(given))
    return f"the {name} level" if name in NAMES else name
