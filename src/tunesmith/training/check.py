"""Listening to a folder of songs before training: what is broken, silent, clipped, there twice or too short."""

import base64
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from tunesmith.audio import Samples, Sound
from tunesmith.errors import AudioFileError, MissingDependencyError
from tunesmith.events import Event, Finished, Pace
from tunesmith.training.crops import read_crop
from tunesmith.training.folders import Listing, Song, list_folder, open_songs, songs_of
from tunesmith.training.scans import Hearing, Scan, Scans

SILENT = 1e-3
"""Without a sample above this (-60 dB), nothing can be heard."""
CLIPPED = 1e-3
"""More than this share of samples in runs at full scale is no accident."""
FULL_SCALE = 0.999
RUN = 3
"""A single sample at full scale is a peak; so many in a row are a cut-off one."""

BANDS, MOMENTS, MOMENT_SECONDS = 12, 40, 0.25
EDGES_HZ = np.geomspace(80, 3600, BANDS + 1)
"""A portrait is the loudness of these bands at moments spread over the song, in half decibels above FLOOR_DB."""
FLOOR_DB = -60.0
"""Below the loudest; what is softer is not told apart."""
SAME_SECONDS, SAME_DB, SAME_WAVE = 0.5, 6.0, 0.8
"""Copies are as long as each other to within this, their portraits differ by less (root mean square), and their
waveforms correlate by more."""
SAMPLE_SECONDS = 5.0
REMEMBER_SECONDS = 20.0
CHUNK = 1024


class Problem(NamedTuple):
    """Something that training would suffer from."""

    kind: str
    """broken, silent, clipped, duplicate or too short."""
    name: str
    """Of the file."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in a folder."""

    folder: str
    files: int
    songs: int
    """Files that can be trained on: all but the broken ones."""
    hours: float
    """Of those."""
    seconds: tuple[float, float, float]
    """Shortest, median, longest."""
    train: int
    test: int
    rates: Mapping[str, int]
    """Samples per second -> files; likewise the next two."""
    channels: Mapping[str, int]
    formats: Mapping[str, int]
    artists: Mapping[str, int]
    """Label -> songs, most first; likewise the next."""
    genres: Mapping[str, int]
    described: int
    """Songs with a description."""
    lyrics: int
    timed_lyrics: int
    """Of those, the ones that say when."""
    problems: tuple[Problem, ...]
    rows_without_files: tuple[str, ...]
    files_without_rows: tuple[str, ...]
    unknown_fields: tuple[str, ...]
    """In metadata; perhaps misspelt."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "problems": [problem._asdict() for problem in self.problems]}


def check_folder(folder: str | Path, *, shortest: float | int = 6.0, workers: int | None = None) -> Iterator[Event]:
    """Decode every file that isn't known yet: Progress, at last Finished with a `Report`.

    shortest: songs below this many seconds are too short.  workers: threads; by default one a processor.
    Raises what `open_songs` does, but not where all files are broken.
    """
    listing = list_folder(folder)
    files = {name: path for name, (path, _) in listing.files.items()}
    if not files:
        open_songs(folder)  # says what is wrong
    scans = Scans(listing.folder)
    known = scans.read(files, workers or os.cpu_count() or 1)
    yield from _hear_all(scans, files, known, workers or os.cpu_count() or 1)
    yield Finished(result=report(listing, scans.read(files, 1), shortest))


def _hear_all(scans: Scans, files: Mapping[str, Path], known: Mapping[str, Scan], workers: int) -> Iterator[Event]:
    """Remembered from time to time, so that a check that was stopped goes on where it was."""
    new = [name for name, scan in known.items() if not scan.broken and scan.heard is None]
    pace, heard, last = Pace("listening"), dict[str, Scan](), time.monotonic()
    yield pace.at(0, max(len(new), 1))
    with ThreadPoolExecutor(workers) as pool:
        tasks = {pool.submit(hear, files[name], known[name]): name for name in new}
        try:
            for done, task in enumerate(as_completed(tasks), start=1):
                heard[tasks[task]] = task.result()
                if time.monotonic() - last > REMEMBER_SECONDS:
                    scans.remember(heard)
                    last = time.monotonic()
                yield pace.at(done, len(new))
        finally:
            pool.shutdown(cancel_futures=True)
            scans.remember(heard)


def report(listing: Listing, scans: Mapping[str, Scan], shortest: float | int) -> Report:
    """What scans of all files say."""
    usable = {name: scan for name, scan in scans.items() if not scan.broken}
    lengths = {name: scan.frames / scan.rate for name, scan in usable.items()}
    songs = songs_of(listing, scans)
    told = [song.metadata for song in songs]
    return Report(
        folder=str(listing.folder),
        files=len(scans),
        songs=len(usable),
        hours=sum(lengths.values()) / 3600,
        seconds=_extent([*lengths.values()] or [0.0]),
        train=len(songs.train),
        test=len(songs.test),
        rates=_counted(str(scan.rate) for scan in usable.values()),
        channels=_counted(str(scan.channels) for scan in usable.values()),
        formats=_counted(Path(name).suffix.lower().removeprefix(".") for name in scans),
        artists=_counted(known.artist for known in told if known.artist),
        genres=_counted(genre for known in told for genre in known.genres),
        described=sum(bool(known.text) for known in told),
        lyrics=sum(bool(known.lyrics.text) for known in told),
        timed_lyrics=sum(bool(known.lyrics.times) for known in told),
        problems=tuple(sorted([*_problems(scans, lengths, shortest), *duplicates(songs, scans)])),
        rows_without_files=tuple(listing.rows_without_files),
        files_without_rows=tuple(listing.files_without_rows),
        unknown_fields=tuple(listing.unknown_fields),
    )


def _extent(values: Sequence[float]) -> tuple[float, float, float]:
    """Smallest, median, largest."""
    return min(values), float(np.median(values)), max(values)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _problems(scans: Mapping[str, Scan], lengths: Mapping[str, float], shortest: float | int) -> Iterator[Problem]:
    for name, scan in scans.items():
        if scan.broken:
            yield Problem("broken", name, scan.broken)
        elif lengths[name] < shortest:
            yield Problem("too short", name, f"{lengths[name]:.3g} s; at least {shortest:g} s are asked for")
        if scan.heard and scan.heard.peak < SILENT:
            yield Problem("silent", name, "nothing above -60 dB")
        if scan.heard and scan.heard.clipped > CLIPPED:
            yield Problem("clipped", name, f"{scan.heard.clipped:.2%} of the samples are cut off at full scale")


# Listening ------------------------------------------------------------------------------------------------------------


def hear(path: Path, scan: Scan) -> Scan:
    """The scan with what decoding the whole file tells."""
    peak, cut, digest = 0.0, 0, hashlib.sha256(f"{scan.rate} {scan.channels}".encode())
    portrait = Portrait(scan.rate, scan.frames)
    try:
        with Sound(path) as sound:
            for start, block in _blocks(sound, scan.frames):
                peak = max(peak, float(np.abs(block).max()))
                cut += _cut_off(block)
                digest.update(np.round(block.T.clip(-1, 1) * 32767).astype("<i2").tobytes())
                portrait.add(start, block.mean(0))
    except (AudioFileError, MissingDependencyError) as error:
        return replace(scan, broken=str(error))
    heard = Hearing(
        peak=peak, clipped=cut / (scan.frames * scan.channels), digest=digest.hexdigest(), portrait=portrait.text()
    )
    return replace(scan, heard=heard)


def _blocks(sound: Sound, frames: int) -> Iterator[tuple[int, Samples]]:
    size = 2**18
    for start in range(0, frames, size):
        yield start, sound.read(start, min(size, frames - start))


def _cut_off(block: Samples) -> int:
    """Samples in runs at full scale, less the two ends of each run."""
    if np.abs(block).max() < FULL_SCALE:
        return 0
    at_full: Bool[np.ndarray, "C T"] = np.abs(block) >= FULL_SCALE
    length = at_full.shape[1] - RUN + 1
    return int(np.logical_and.reduce([at_full[:, i : i + length] for i in range(RUN)]).sum()) if length > 0 else 0


class Portrait:
    """How loud each band is at each of the moments, filled in as a song goes by."""

    def __init__(self, rate: int, frames: int) -> None:
        self.rate, self.size = rate, max(1, min(round(MOMENT_SECONDS * rate), frames // MOMENTS or 1))
        self.starts = np.linspace(0, frames - self.size, MOMENTS).astype(int)
        self.energy = np.zeros((MOMENTS, BANDS))
        self._window = np.hanning(self.size + 2)[1:-1]
        edges = np.searchsorted(np.fft.rfftfreq(self.size, 1 / rate), EDGES_HZ)
        self._edges = np.minimum(edges, self.size // 2)
        self._before = np.zeros(0, np.float32)

    def add(self, start: int, mono: Float32[np.ndarray, " T"]) -> None:
        """The next block of the song; a moment that began in the one before is whole with what was kept of it."""
        joined = np.concatenate([self._before, mono])
        first = start - len(self._before)
        for i in np.flatnonzero((self.starts >= first) & (self.starts + self.size <= first + len(joined))):
            heard = joined[self.starts[i] - first :][: self.size]
            power = np.square(np.abs(np.fft.rfft(heard * self._window)))
            sums = np.concatenate([[0.0], np.cumsum(power)])
            self.energy[i] = sums[self._edges[1:]] - sums[self._edges[:-1]]
        self._before = joined[-(self.size - 1) :] if self.size > 1 else joined[:0]

    def text(self) -> str:
        """In base64, a byte a value."""
        loudness = 10 * np.log10(np.maximum(self.energy, 1e-12) / max(self.energy.max(), 1e-12))
        steps = np.round((loudness - FLOOR_DB).clip(0, -FLOOR_DB) * 2).astype(np.uint8)
        return base64.b64encode(steps.tobytes()).decode()


def _read_portrait(text: str) -> Float[np.ndarray, "M B"]:
    """In dB above the floor."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(MOMENTS, BANDS) / np.float32(2)


# Duplicates -----------------------------------------------------------------------------------------------------------


def duplicates(songs: Sequence[Song], scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Copies, each of a song before it (in the order of lengths, then names).

    Same samples are the same digest.  Other encodings are looked for among songs of the same length with like
    portraits; those are heard again, and are copies if their waveforms are.
    """
    ordered = sorted((song for song in songs if _audible(scans[song.name])), key=lambda song: (song.seconds, song.name))
    heard = [scan for song in ordered if (scan := scans[song.name].heard)]
    first: dict[str, str] = {}
    copies = {}
    for song, hearing in zip(ordered, heard, strict=True):
        if (original := first.setdefault(hearing.digest, song.name)) != song.name:
            copies[song.name] = f"the same samples as {original}"
    portraits = np.array([_read_portrait(hearing.portrait) for hearing in heard], np.float32)
    for i, j in () if len(heard) < 2 else _alike(portraits, [song.seconds for song in ordered]):
        one, other = ordered[i], ordered[j]
        if not {one.name, other.name} & set(copies) and _same(one, other):
            copies[other.name] = f"sounds the same as {one.name}"
    yield from (Problem("duplicate", name, how) for name, how in copies.items())


def _audible(scan: Scan) -> bool:
    return scan.heard is not None and scan.heard.peak >= SILENT


def _alike(portraits: Float[np.ndarray, "N M B"], lengths: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Pairs of about the same length whose portraits are close: one multiplication of matrices, a chunk at a time."""
    flat = portraits.reshape(len(portraits), -1)
    norms, ends = np.square(flat).sum(1), np.searchsorted(lengths, np.add(lengths, SAME_SECONDS), side="right")
    limit = flat[:1].size * SAME_DB**2
    for start in range(0, len(flat), CHUNK):
        rows = slice(start, min(start + CHUNK, len(flat)))
        columns = slice(start, int(ends[rows.stop - 1]))
        distances = norms[rows, None] + norms[None, columns] - 2 * flat[rows] @ flat[columns].T
        for i, j in np.argwhere(distances < limit) + start:
            if i < j < ends[i]:
                yield int(i), int(j)


def _same(one: Song, other: Song) -> bool:
    """Whether a few seconds from the middle have the same waveform, wherever it is to within a tenth of a second."""
    rate = min(one.rate, other.rate, 16_000)
    length = min(int(SAMPLE_SECONDS * rate), one.length(rate), other.length(rate))
    start = (min(one.length(rate), other.length(rate)) - length) // 2
    try:
        a, b = (_excerpt(song, start, length, rate) for song in (one, other))
    except AudioFileError:
        return False
    size, reach = 2 * length, rate // 10
    course = np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size).conj(), size)
    best = np.abs(np.concatenate([course[: reach + 1], course[-reach:]])).max()
    return bool(best > SAME_WAVE * np.sqrt(np.square(a).sum() * np.square(b).sum()))


def _excerpt(song: Song, start: int, length: int, rate: int) -> Float[np.ndarray, " T"]:
    with Sound(song.path) as sound:
        return np.asarray(read_crop(sound, song, start, length, rate, 1)[0].numpy(), np.float64)
