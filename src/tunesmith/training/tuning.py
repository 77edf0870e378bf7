"""What fine-tuning is asked for, and what a model is taught by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from tunesmith.errors import RequestError
from tunesmith.events import Finished
from tunesmith.models.jukebox_rows import Place
from tunesmith.pipelines.adapters import Facts
from tunesmith.training.encode import Job, encode_songs
from tunesmith.training.folders import Songs, open_songs
from tunesmith.training.schedule import Schedule
from tunesmith.training.trainer import Objective, sharing_asked_of_accelerate

METHODS = ("lora", "dora", "full")
SCHEDULE = Schedule(
    steps=1000, batch=2, warmup=20, weight_decay=0.0, clip=1.0, beta1=0.9, beta2=0.99, log_every=10, learning_rate=2e-4
)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What to fine-tune, on what, and how."""

    model: str
    data: Path
    run: Path
    method: str = "lora"
    rank: int = 16
    level: int = 0
    """Of a Jukebox, 0 is the top."""
    like: Mapping[str, str] = field(default_factory=dict)
    """New artist or genre -> the known one whose row it begins as."""
    seconds: float | None = None
    """Of a MusicGen's crops; by default as long as the songs are, up to the model's window."""
    schedule: Schedule = SCHEDULE
    """Its weight_decay must be 0 for adapters of a Jukebox: it would reach rows that aren't trained."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise RequestError(f"There is no method {self.method!r}; choose from {', '.join(METHODS)}.")
        if self.schedule.fsdp or sharing_asked_of_accelerate():  # new rows and peft's files know whole tensors alone
            raise RequestError(
                "Fine-tuning can't share a model among processes (FSDP); each of them holds all of it, so leave FSDP "
                "out, or train all weights with `tunesmith train RECIPE --from MODEL --set fsdp=true`."
            )
        if self.rank < 1 or self.schedule.steps < 1 or self.schedule.batch < 1:
            raise RequestError(
                f"rank is {self.rank}, steps is {self.schedule.steps} and batch is {self.schedule.batch}; all are at "
                "least 1."
            )
        if self.seconds is not None and self.seconds <= 0:
            raise RequestError(f"seconds is {self.seconds:g}; it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A model with what it is taught by."""

    objective: Objective
    model: Any
    """What adapters are put on."""
    data: Dataset[Any]
    test: Dataset[Any]
    collate: Callable[[list[Any]], dict[str, Any]]
    facts: Facts
    places: Sequence[Place] = ()
    """New rows."""
    write: Callable[[Path], object] = lambda folder: None
    """The tables that belong to an adapter."""
    export: Callable[[Path], object]
    """The whole model."""
    align: Callable[[], tuple[int, int] | None] = lambda: None


def songs_for(
    tuning: Tuning, tell: Callable[[str], object], shortest: float = 0.0, longest: float = float("inf")
) -> Songs:
    """Those of shortest <= length < longest, in seconds.  Raises RequestError where none can be held out."""
    songs = open_songs(tuning.data).between(shortest, longest)
    for name, why in songs.left_out.items():
        tell(f"{name} is left out: {why}")
    if not len(songs.test) or not len(songs.train):
        raise RequestError(
            f"{str(songs.folder)!r} has {len(songs)} song that can be used; fine-tuning needs two at least, for one is "
            "held out to see what was learnt."
        )
    return songs


def encode(tuning: Tuning, songs: Songs, folder: Path, seconds: float, tell: Callable[[str], object]) -> None:
    """Codes of all songs in the run's folder, shorter ones followed by silence; what is there is kept."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    job = Job(songs=songs, out=tuning.run / "codes", codec=str(folder), pad_seconds=seconds, device=device)
    short = sum(song.seconds < seconds for song in songs)
    if short:
        tell(f"{short} of {len(songs)} songs are shorter than {seconds:.3g} s and are followed by silence.")
    for event in encode_songs(job):
        if isinstance(event, Finished):
            for name, why in event.result.failed.items():
                tell(f"{name} is left out: {why}")
