"""A run of Jukebox in a folder, which survives whatever happens to the program.

    RUN/
      run.json              settings: the model, each take's request, how far to go
      labels.safetensors    the labels of each level, a row a take
      takes/1.safetensors   codes of each level and where the generators stand; replaced after every window
      top/take-1.wav        what the codes of a level sound like, the recipe inside; written when the level is done
      middle/  bottom/
      lyrics/take-1.json    when each word is sung; also take-1.lrc, and take-1.safetensors with the alignment
      index.html            plays all that and lights the lyrics; also in top/, middle/ and bottom/

Files appear whole or not at all, and what matters is in the first three: the rest is made of them where it is missing.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tunesmith.audio import Strategy, write_atomically
from tunesmith.errors import AudioFileError, RequestError, RunError
from tunesmith.hub import local_path, on_disk
from tunesmith.pipelines.levels import State, level_name
from tunesmith.requests import JukeboxRequest, check_known

SETTINGS, LABELS, TAKES, LYRICS, PAGE = "run.json", "labels.safetensors", "takes", "lyrics", "index.html"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What run.json says."""

    tunesmith: str
    """The version that began the run."""
    model: str
    """As the user named it; a folder by its full path."""
    model_hash: str
    """SHA-256 of its weights."""
    dtype: str
    levels: int
    """Of the model."""
    depth: int
    """How many levels to sample, from the top down."""
    takes: tuple[JukeboxRequest, ...]
    """What each take is; all are equally long."""
    picked: tuple[int, ...] = ()
    """The takes to go on with, from 0; all if empty."""
    loudness: Strategy = "loudness"
    """Of the audio files; see audio.py."""
    chunk_size: tuple[int, ...] = ()
    max_batch_size: tuple[int, ...] = ()
    adapter: str = ""
    """The full path of the adapter's folder, if there is one."""
    adapter_hash: str = ""
    """SHA-256 of what it changes."""
    quantize: str = ""
    """How the priors' weights are quantised, if they are."""
    audio_hashes: tuple[str, ...] = ()
    """Of each take: SHA-256 of its audio prompt's samples as they were read; "" for none."""
    history: tuple[tuple[dict[str, Any], ...], ...] = ()
    """Of each take what its request alone wouldn't make again: {"file": where codes came from}, or {"request": an
    earlier one, "codes": how many of its codes were kept, by level}."""

    def __post_init__(self) -> None:
        texts = (self.tunesmith, self.model, self.model_hash, self.dtype, self.loudness, self.adapter)
        numbers = (self.levels, self.depth, *self.picked, *self.chunk_size, *self.max_batch_size)
        if not all(isinstance(text, str) for text in (*texts, self.adapter_hash, self.quantize)) or not all(
            type(number) is int for number in numbers
        ):
            raise TypeError("a setting is of another type")
        past = [entry for take in self.history for entry in take]
        if not all(isinstance(entry, dict) for entry in past) or not all(isinstance(x, str) for x in self.audio_hashes):
            raise TypeError("history or audio_hashes are of another type")
        for name in ("chunk_size", "max_batch_size"):
            if any(number < 1 for number in getattr(self, name)):
                raise RequestError(
                    f"{name} is {getattr(self, name)}; it must be 1 or more, or one such for each level."
                )
        if not (1 <= self.depth <= self.levels and self.takes and set(self.picked) <= set(range(len(self.takes)))):
            raise ValueError("depth, takes and picked don't fit each other")
        if not {len(self.audio_hashes), len(self.history)} <= {0, len(self.takes)}:
            raise ValueError("takes, history and audio_hashes don't fit each other")

    @property
    def chosen(self) -> tuple[int, ...]:
        """The takes to work on, from 0."""
        return self.picked or tuple(range(len(self.takes)))

    @property
    def names(self) -> list[str]:
        """What the levels are called, top first."""
        return [level_name(level, self.levels) for level in range(self.levels)]

    def audio_hash(self, take: int) -> str | None:
        """Of its audio prompt; None without one."""
        return (self.audio_hashes[take] if self.audio_hashes else "") or None

    def origin(self, take: int) -> dict[str, Any]:
        """What the recipe of a take says beside its request."""
        history = self.history[take] if self.history else ()
        return {"audio_prompt_hash": self.audio_hash(take), **({"history": list(history)} if history else {})}

    def remember(self, take: int, entry: dict[str, Any]) -> "Settings":
        """With one more step of a take."""
        history = list(self.history or [()] * len(self.takes))
        history[take] = (*history[take], entry)
        return replace(self, history=tuple(history))

    def check_alike(self) -> None:
        """Raise RequestError unless the chosen takes are equally long and sampled by the same options."""
        for name in ("seconds", "hop_fraction", "temperature", "top_k", "top_p"):
            if len({getattr(self.takes[take], name) for take in self.chosen}) > 1:
                raise RequestError(f"The takes of the run differ in {name} by now; pick such as have the same.")

    def with_takes(self, change: Callable[[JukeboxRequest], JukeboxRequest]) -> "Settings":
        """With the chosen takes changed."""
        takes = (change(take) if i in self.chosen else take for i, take in enumerate(self.takes))
        return replace(self, takes=tuple(takes))

    def to_json(self) -> str:
        """The file's content."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(values | {"takes": [take.to_dict() for take in self.takes]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The opposite.  Raises ValueError, TypeError or KeyError for anything else."""
        values: dict[str, Any] = json.loads(text)
        for name in values:
            check_known("setting of a run", name, [field.name for field in fields(cls)])
        listed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        takes, history = tuple(map(JukeboxRequest.from_dict, values["takes"])), values.get("history", ())
        return cls(**listed | {"takes": takes, "history": tuple(map(tuple, history))})


class Run:
    """A run's folder.  Takes are numbered from 0 here, and from 1 in file names."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings

    @classmethod
    def create(cls, folder: Path, settings: Settings, labels: Sequence[Int[Tensor, "B _"]], state: State) -> "Run":
        """A new folder, there as a whole or not at all.  Raises RunError if it exists or can't be made."""
        check_new(folder)
        folder = local_path(folder)
        part = folder.with_name(f".{folder.name}.part")
        try:
            with _sentences(folder):
                shutil.rmtree(part, ignore_errors=True)
                (part / TAKES).mkdir(parents=True)
                run = cls(part, settings)
                tensors = {f"labels.{level}": rows.cpu().contiguous() for level, rows in enumerate(labels)}
                write_atomically(part / LABELS, save(tensors))
                for take in range(len(settings.takes)):
                    run.save_take(take, state.pick([take]))
                run.update(settings)
                part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cls(folder, settings)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Raises RunError for what is no run, and for a damaged one."""
        file = local_path(folder) / SETTINGS
        try:
            settings = Settings.from_json(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{str(folder)!r} is no run: it has no {SETTINGS}; give the folder of one.") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{str(file)!r} is damaged or of another version of tunesmith ({error}).") from None
        return cls(local_path(folder), settings)

    def update(self, settings: Settings) -> None:
        """Replace the settings."""
        self.settings = settings
        write_atomically(self.folder / SETTINGS, settings.to_json().encode())

    def labels(self) -> list[Int[Tensor, "B _"]]:
        """By level, a row a take."""
        tensors, takes = self._load(LABELS), len(self.settings.takes)
        rows = [tensors.get(f"labels.{level}", torch.empty(0)) for level in range(self.settings.levels)]
        if any(row.shape[:1] != (takes,) for row in rows):
            raise RunError(f"The labels in {str(self.folder)!r} are damaged: they aren't those of {takes} takes.")
        return rows

    def state(self, takes: Sequence[int]) -> State:
        """What there is of these takes."""
        records = [self._load(f"{TAKES}/{take + 1}.safetensors") for take in takes]
        levels = range(self.settings.levels)
        try:
            return State(
                codes=[[record[f"codes.{level}"] for record in records] for level in levels],
                seeds=[[int(record[f"seed.{level}"]) for record in records] for level in levels],
                generators=[[record[f"generator.{level}"] for record in records] for level in levels],
            )
        except (KeyError, ValueError, RuntimeError) as error:
            raise RunError(f"The takes in {str(self.folder)!r} are damaged ({error}).") from None

    def save_take(self, take: int, state: State) -> None:
        """Write what there is of a take; `state` is of this take alone."""
        tensors = {}
        for level in range(self.settings.levels):
            tensors[f"codes.{level}"] = state.codes[level][0].contiguous()
            tensors[f"seed.{level}"] = torch.tensor(state.seeds[level][0])
            tensors[f"generator.{level}"] = state.generators[level][0].contiguous()
        write_atomically(self.folder / TAKES / f"{take + 1}.safetensors", save(tensors))

    def path(self, kind: str, take: int, suffix: str) -> Path:
        """Where a file of a take belongs; `kind` is a level's name or "lyrics"."""
        return self.folder / kind / f"take-{take + 1}{suffix}"

    def has(self, kind: str, take: int, suffix: str) -> bool:
        """Is it there?"""
        return self.path(kind, take, suffix).is_file()

    def write(self, kind: str, take: int, suffix: str, data: bytes) -> None:
        """A file of a take."""
        path = self.path(kind, take, suffix)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, data)

    def change(self, settings: Settings, lengths: Sequence[int | None]) -> None:
        """Go on by other settings, with at most so many codes of each level (None: all).

        What was made of codes that change is deleted first, so that a kill in between leaves a whole run.
        """
        cut = any(length is not None for length in lengths)
        for take in settings.chosen:
            old, new, state = self.settings.takes[take], settings.takes[take], self.state([take])
            again = not cut and _same_so_far(old, new, state)
            state.codes = [[codes[0][:length]] for codes, length in zip(state.codes, lengths, strict=True)]
            if not again:
                there = {name: len(codes[0]) for name, codes in zip(settings.names, state.codes, strict=True)}
                settings = settings.remember(take, {"request": old.to_dict(), "codes": there})
            if cut or (old.seconds, old.sample_rate) != (new.seconds, new.sample_rate):
                self._forget(take)
            if cut:
                self.save_take(take, state)
        self.update(settings)

    def _forget(self, take: int) -> None:
        for kind in (*self.settings.names, LYRICS):
            for file in (self.folder / kind).glob(f"take-{take + 1}.*"):
                file.unlink()

    def tidy(self) -> None:
        """Delete what a kill left half-written."""
        for part in self.folder.rglob(".*.part"):
            if part.is_file():
                part.unlink(missing_ok=True)

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            return load((self.folder / name).read_bytes())
        except (OSError, SafetensorError, ValueError) as error:
            raise RunError(f"{str(self.folder / name)!r} is missing or damaged ({error}).") from None


def _same_so_far(old: JukeboxRequest, new: JukeboxRequest, state: State) -> bool:
    """Whether the new request makes what there is of a take, too."""
    drawn = [level for level, generators in enumerate(state.generators) if len(generators[0])]
    names = ("hop_fraction", "temperature", "top_k", "top_p")
    same = (_at(old, name, level) == _at(new, name, level) for level in drawn for name in names)
    return not drawn or (old.seconds == new.seconds and all(same))


def _at(request: JukeboxRequest, name: str, level: int) -> Any:
    """What a request says of a level; None for nothing."""
    values = getattr(request, name) or (None,)
    return values[level if len(values) > 1 else 0]


def check_new(folder: Path) -> None:
    """Raise RunError for a folder that can't be a new run."""
    folder = local_path(folder)
    if not folder.name:
        raise RunError(f"{str(folder)!r} can't be made; give --out a name.")
    if on_disk(folder) and (not folder.is_dir() or any(folder.iterdir())):
        is_run = (folder / SETTINGS).is_file()
        hint = "resume it, or give another --out" if is_run else "give another --out"
        raise RunError(f"{str(folder)!r} exists already{' and holds a run' if is_run else ''}; {hint}.")


def parse_picks(text: str, takes: int) -> tuple[int, ...]:
    """From "2,5" to (1, 4).  Raises RequestError for what isn't a take."""
    picks = [word.strip() for word in text.split(",")]
    if not all(pick.isdecimal() and 1 <= int(pick) <= takes for pick in picks):
        raise RequestError(f"--pick is {text!r}; give numbers of takes from 1 to {takes}, as in 2,5.")
    return tuple(sorted({int(pick) - 1 for pick in picks}))


@contextmanager
def kept(run: Run) -> Iterator[None]:
    """A disk that is full or gone ends in a sentence that says how to go on."""
    with _sentences(run.folder, f" The run is kept: make room, then `tunesmith resume {run.folder}`."):
        yield


@contextmanager
def _sentences(folder: Path, hint: str = "") -> Iterator[None]:
    try:
        yield
    except (AudioFileError, OSError) as error:
        told = (
            str(error) if isinstance(error, AudioFileError) else f"{str(folder)!r} can't be written: {error.strerror}."
        )
        raise RunError(told + hint) from None
