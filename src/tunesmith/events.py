"""What a long task says while it runs: the progress bar, the streamed audio and the server's events are these records.

A long task is a generator of them; its last one is `Finished`.
"""

import time
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float32

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """So much of a stage is done."""

    stage: str
    done: int
    total: int
    seconds_left: float | None = None
    """Of this stage, at the pace so far; None while nothing is known."""


@dataclass(frozen=True, kw_only=True)
class AudioChunk:
    """A piece of a song that can be played."""

    song: int
    """Index of the song in the request."""
    samples: Float32[np.ndarray, "C T"]
    rate: int
    """Samples per second."""
    start: float = 0.0
    """Where the piece begins in the song, in seconds."""


@dataclass(frozen=True, kw_only=True)
class WindowDone:
    """The codes of one window of a level are chosen, for these songs: a moment at which the work can be saved."""

    level: int
    """0 is the top."""
    start: int
    """The window's first code of that level, and after its last; what was there already is counted."""
    end: int
    songs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LevelDone:
    """All codes of one level of the model are chosen, for these songs.  MusicGen has one level, Jukebox three."""

    level: int
    songs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Finished(Generic[Result]):
    """The last event: what the task was for."""

    result: Result


Event = Progress | AudioChunk | WindowDone | LevelDone | Finished[Any]


class Pace:
    """Turns counts into `Progress` with the time left."""

    def __init__(self, stage: str) -> None:
        self.stage, self.began = stage, time.monotonic()

    def at(self, done: int, total: int) -> Progress:
        """So many of the total are done now."""
        elapsed = time.monotonic() - self.began
        left = elapsed / done * (total - done) if done else None
        return Progress(stage=self.stage, done=done, total=total, seconds_left=left)
