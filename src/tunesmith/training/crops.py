"""Random crops of songs, read from the files as they are: seeking, mixing and resampling of what is needed alone.

A crop equals the same part of the whole song, resampled as a whole, to about 1e-6.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.utils.data import Dataset

from tunesmith.audio import Sound, resample
from tunesmith.errors import AudioFileError, RequestError
from tunesmith.training.epochs import Epoch
from tunesmith.training.folders import Song, Songs
from tunesmith.training.metadata import Metadata

ATTEMPTS = 10
"""So many crops in a row that can't be read end the run: the disk is gone, not a file."""
OPEN_FILES = 32
"""Kept open in each process."""
FILTER = 192
"""The resampler hears less than this many samples, of the lower rate, to either side."""


@dataclass(frozen=True)
class Crop:
    """Which part of which song, for functions that make labels of it."""

    name: str
    """Of the song."""
    metadata: Metadata
    start: int
    """In samples at `rate`."""
    samples: int
    total: int
    """Samples in the song."""
    rate: int
    """Samples per second of what is trained on, not of the file."""
    random: np.random.Generator
    """Depends on (seed, epoch, index) alone."""


Opened = TypeVar("Opened")

Labels = Callable[[Crop], Mapping[str, Any]]
"""What is added to an item; tensors, numbers and texts, as the collator takes them."""


class Places:
    """Where crops lie in songs of these lengths; everything in the same unit, samples or codes."""

    def __init__(
        self,
        lengths: Sequence[int],
        size: int,
        count: int | None = None,
        least_part: float | int = 1.0,
        aug_shift: bool = False,
        step: int = 1,
    ) -> None:
        """As AudioCrops has it.  step: crops begin at multiples of it.  Raises RequestError."""
        if size < 1 or not 0 < least_part <= 1 or (count is not None and count < 1):
            raise RequestError(
                f"Crops have the size {size}, the count {count} and the least part {least_part}; sizes and counts are "
                "from 1 on, the part is above 0 and at most 1."
            )
        self.lengths, self.size, self.count, self.least_part = np.array(lengths), size, count, least_part
        self.aug_shift, self.step, self.ends = aug_shift, step, np.cumsum(self.lengths)

    def __len__(self) -> int:
        return self.count or max(1, int(self.ends[-1]) // self.size)

    def at(self, index: int, random: np.random.Generator) -> tuple[int, int]:
        """Song and start of crop `index`: with a count anywhere, else where it lies in all songs one after the other,
        moved into the song that holds its middle.
        """
        if self.count is not None:
            return self.anywhere(random)
        shift = int(random.integers(-self.size // 2, self.size // 2 + 1)) if self.aug_shift else 0
        first = index * self.size + shift
        middle = min(max(first + self.size // 2, 0), int(self.ends[-1]) - 1)
        song = int(np.searchsorted(self.ends, middle, side="right"))
        begin = int(self.ends[song] - self.lengths[song])
        return song, self._stepped(min(max(first - begin, 0), max(int(self.lengths[song]) - self.size, 0)))

    def anywhere(self, random: np.random.Generator) -> tuple[int, int]:
        """Any song, all with the same probability, and any start in it."""
        song = int(random.integers(len(self.lengths)))
        last = max(int(self.lengths[song]) - math.ceil(self.least_part * self.size), 0)
        return song, self._stepped(int(random.integers(last + 1)))

    def _stepped(self, start: int) -> int:
        return start - start % self.step


class Drawn(Dataset[dict[str, Any]]):
    """Items at places in songs; item i depends on (seed, epoch, i) alone."""

    def __init__(self, places: Places, seed: int) -> None:
        self.places, self.seed, self.epoch = places, seed, Epoch()

    def __len__(self) -> int:
        return len(self.places)

    def set_epoch(self, epoch: int) -> None:
        """Items of another epoch are other crops."""
        self.epoch.set(epoch)

    def random(self, index: int, attempt: int = 0) -> np.random.Generator:
        """What an item is drawn with; another attempt, another item.  Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return np.random.default_rng((self.seed, int(self.epoch), index, attempt))


class AudioCrops(Drawn):
    """Crops of songs: {"audio": float32 [T], or [C T] unless mono}, and what `labels` says.

    Item i depends on (seed, epoch, i) alone, whatever the number of workers, so a run that goes on in the middle of an
    epoch hears what it would have heard.  A crop that can't be read is replaced by one of another song and counted in
    `skipped`; songs that are shorter than a crop are followed by silence.
    """

    def __init__(
        self,
        songs: Songs,
        *,
        rate: int,
        samples: int,
        channels: int = 1,
        seed: int = 0,
        count: int | None = None,
        least_part: float | int = 1.0,
        aug_shift: bool = False,
        aug_blend: bool = False,
        labels: Labels | None = None,
    ) -> None:
        """rate, samples, channels: of the crops; samples is T.

        count: None, and an epoch is each song once, in crops that lie side by side (the original Jukebox's way); a
        number, and it has so many crops, each of a song drawn anew and from anywhere in it (MusicGen's way).
        least_part: with a count, how much of a crop lies in its song at least; the rest is silence.  MusicGen has 0.8.
        aug_shift: without a count, move each crop at random by up to half its length.
        aug_blend: stereo becomes mono with a random share of each side, instead of half and half.

        Raises RequestError for sizes that make no sense, AudioFileError without songs.
        """
        if channels not in (1, 2) or rate < 1:
            raise RequestError(f"Crops can have 1 or 2 channels and a rate from 1 up, not {channels} and {rate}.")
        if not len(songs):
            raise AudioFileError(f"There are no songs of {str(songs.folder)!r} to crop.")
        super().__init__(Places([song.length(rate) for song in songs], samples, count, least_part, aug_shift), seed)
        self.songs, self.rate, self.samples, self.channels = songs, rate, samples, channels
        self.aug_blend, self.labels = aug_blend, labels
        self._failures = torch.zeros(len(songs), dtype=torch.int64).share_memory_()
        self._open = Recent(OPEN_FILES, Sound)

    @property
    def skipped(self) -> dict[str, int]:
        """Songs with damaged parts -> how often they were met, in all processes of this data set's loaders."""
        return {self.songs[int(i)].name: int(self._failures[i]) for i in self._failures.nonzero()[:, 0]}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises AudioFileError when one crop after the other can't be read."""
        for attempt in range(ATTEMPTS):
            random = self.random(index, attempt)
            song, start = self.places.anywhere(random) if attempt else self.places.at(index, random)
            try:
                return self._item(song, start, random)
            except AudioFileError as failure:
                error = failure
                self._failures[song] += 1  # two processes at once may count one; the song is named all the same
        raise AudioFileError(f"{ATTEMPTS} songs in a row can't be read; the last: {error}") from None

    def _item(self, index: int, start: int, random: np.random.Generator) -> dict[str, Any]:
        song = self.songs[index]
        sides = _blend(song.channels, random) if self.aug_blend and self.channels == 1 else None
        audio = read_crop(self._open[song.path], song, start, self.samples, self.rate, self.channels, sides)
        item: dict[str, Any] = {"audio": audio[0] if self.channels == 1 else audio}
        if self.labels is not None:
            total = int(self.places.lengths[index])
            item |= self.labels(Crop(song.name, song.metadata, start, self.samples, total, self.rate, random))
        return item


def _blend(channels: int, random: np.random.Generator) -> Float32[np.ndarray, "1 C2"]:
    """Shares that sum to 1."""
    share = random.random()
    return np.array([[1.0] if channels == 1 else [share, 1 - share] + [0.0] * (channels - 2)], dtype=np.float32)


class Recent(Generic[Opened]):
    """The files that were read last, open.  A process that was forked opens its own: positions would be shared."""

    def __init__(self, most: int, open_file: Callable[[Path], Opened]) -> None:
        self.most, self.open_file = most, open_file
        self._process, self._files = os.getpid(), OrderedDict[Path, Opened]()

    def __getitem__(self, path: Path) -> Opened:
        """Raises what `open_file` does."""
        if self._process != os.getpid():
            self._process, self._files = os.getpid(), OrderedDict()
        if path not in self._files:
            self._files[path] = self.open_file(path)
        self._files.move_to_end(path)
        while len(self._files) > self.most:
            self._files.popitem(last=False)
        return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": OrderedDict()}


def read_crop(
    sound: Sound,
    song: Song,
    start: int,
    samples: int,
    rate: int,
    channels: int,
    sides: Float32[np.ndarray, "1 C2"] | None = None,
) -> Float[Tensor, "C T"]:
    """A part of a song at another rate: `samples` from sample `start` on, followed by silence where the song ends.

    sides: shares of the file's channels in a mono mix; by default all the same.
    Raises AudioFileError for a damaged part, and for a file that isn't any more what it was when it was scanned.
    """
    if (sound.rate, sound.channels) != (song.rate, song.channels):
        raise AudioFileError(f"{str(song.path)!r} has been replaced by another file since its folder was opened.")
    part = Part.of(song.rate, rate, start, min(samples, song.length(rate) - start), song.frames)
    audio = _mixed(sound.read(part.start, part.stop - part.start), channels, sides)
    audio = part.resampled(audio)
    return torch.from_numpy(np.pad(audio, ((0, 0), (0, samples - audio.shape[1]))))


@dataclass(frozen=True)
class Part:
    """What to read of a file for a crop at another rate.

    The rates are as L to M in lowest terms, so input sample n·M and output sample n·L are at the same moment; reading
    begins at such a pair, far enough before the crop that the filter doesn't feel the edge.
    """

    start: int
    stop: int
    """In samples of the file."""
    skip: int
    """So many samples of the result are before the crop."""
    samples: int
    """Wanted, at the new rate."""
    rates: tuple[int, int]
    """Of the file and of the crop."""

    @classmethod
    def of(cls, old: int, new: int, start: int, samples: int, frames: int) -> "Part":
        """For `samples` from `start` on, at the new rate; the file has `frames` at the old one."""
        if old == new:
            return cls(start, min(start + samples, frames), 0, samples, (old, new))
        divisor = math.gcd(old, new)
        margin = math.ceil(FILTER * max(old / new, 1))
        block = max((start * old // new - margin) * divisor // old, 0)
        stop = min(-(-(start + samples) * old // new) + margin, frames)
        return cls(block * old // divisor, stop, start - block * new // divisor, samples, (old, new))

    def resampled(self, audio: Float32[np.ndarray, "C _"]) -> Float32[np.ndarray, "C _"]:
        """The crop, of what was read; a sample short where rounding says so."""
        if self.rates[0] == self.rates[1]:
            return audio
        return resample(audio, *self.rates)[:, self.skip : self.skip + self.samples]


def _mixed(
    audio: Float32[np.ndarray, "C2 _"], channels: int, sides: Float32[np.ndarray, "1 C2"] | None
) -> Float32[np.ndarray, "C _"]:
    """Before resampling, for that is half the work."""
    if channels == len(audio) and sides is None:
        return audio
    if channels == 1:
        return audio.mean(0, keepdims=True) if sides is None else sides @ audio
    return np.repeat(audio.mean(0, keepdims=True), channels, axis=0) if len(audio) != channels else audio
