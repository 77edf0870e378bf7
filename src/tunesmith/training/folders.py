"""A folder of songs, for training.  The whole interface of training data:

    songs = open_songs("my-songs")                  # audio files and what is known of them; headers only, cached
    songs.train, songs.test                         # by song; a song stays where it is when others are added
    songs[0].seconds, songs[0].metadata.artist      # songs is a sequence
    songs.between(24, 600)                          # only those of a length, in seconds

    AudioCrops(songs.train, rate=22050, samples=65536, seed=0)    # crops.py: {"audio": float32 [T], stereo [C T]}
    EncodedCodes("codes", steps=1500, seed=0, split="train")      # encoded.py: {"codes": int64 [K S], of a level [S]}
    data.set_epoch(3)                               # item i depends on (seed, epoch, i) alone; epochs.py tells when
    data.skipped                                    # {song: how many of its crops couldn't be read}; say it at the end

Both take `labels`, a function of a `Crop` (crops.py) whose dictionary is added to the item: `Captions(...)` ({"text"}),
`JukeboxLabels(tokenizer, ...)` ({"labels"}), both in training/labels.py, or your own.

Where metadata comes from, the later over the earlier: a side-car `song.json`, `song.txt` (a description) and
`song.lrc` or `song.lyrics.txt` (lyrics) beside `song.wav`; `metadata.jsonl` or `metadata.csv` in any folder of the tree
with a `file_name` in each row (Hugging Face's audiofolder).  Instead of a folder of audio, a manifest of audiocraft
(`data.jsonl`, `data.jsonl.gz`, or the folder of one) lists files anywhere.
"""

import csv
import gzip
import hashlib
import json
import os
import zipfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, overload

from tunesmith.audio import READABLE
from tunesmith.errors import AudioFileError, RequestError
from tunesmith.training.metadata import Metadata, unknown_fields
from tunesmith.training.scans import Scan, Scans

TABLES = ("metadata.jsonl", "metadata.csv")
MANIFESTS = ("data.jsonl", "data.jsonl.gz")
HELD_OUT = ("test", "valid", "validation", "val", "eval", "evaluate", "dev")
"""Folders of the tree that are the test set."""


@dataclass(frozen=True, kw_only=True)
class Song:
    """An audio file and what is known of it."""

    path: Path
    name: str
    """Its path in the folder, with forward slashes; of a manifest the path that stands there."""
    rate: int
    """Samples per second in the file."""
    channels: int
    frames: int
    """Samples per channel in the file."""
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def seconds(self) -> float:
        """Length."""
        return self.frames / self.rate

    def length(self, rate: int) -> int:
        """Samples at another rate."""
        return max(1, round(self.frames * rate / self.rate))


@dataclass(frozen=True)
class Songs(Sequence[Song]):
    """Songs in the order of their names."""

    folder: Path
    songs: tuple[Song, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Files that can't be trained on -> why."""
    test_share: float = 0.1

    def __len__(self) -> int:
        return len(self.songs)

    @overload
    def __getitem__(self, index: int) -> Song: ...
    @overload
    def __getitem__(self, index: slice) -> "Songs": ...
    def __getitem__(self, index: int | slice) -> "Song | Songs":
        return self.songs[index] if isinstance(index, int) else self._with(self.songs[index])

    @property
    def train(self) -> "Songs":
        """Those that aren't held out."""
        return self._with(song for song in self.songs if song.name not in self.held_out)

    @property
    def test(self) -> "Songs":
        """About `test_share` of the songs, at least one if there are two; none of a single song."""
        return self._with(song for song in self.songs if song.name in self.held_out)

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Names of the test songs: as the metadata or the names of folders (train/, test/) say, else by their names'
        hashes, so that no song changes sides when others come.
        """
        said = {song.name: split for song in self.songs if (split := _said(song))}
        draws = {song.name: _draw(song.name) for song in self.songs if song.name not in said}
        test = {name for name, split in said.items() if split == "test"}
        if test or not self.test_share:
            return frozenset(test)
        ranked = sorted(draws, key=lambda name: draws[name])
        share = bisect_left([draws[name] for name in ranked], self.test_share)
        return frozenset(ranked[: min(max(share, 1), len(self.songs) - 1)])

    @property
    def hours(self) -> float:
        """Of all songs together."""
        return sum(song.seconds for song in self.songs) / 3600

    def between(self, shortest: float | int = 0.0, longest: float | int = float("inf")) -> "Songs":
        """The songs of shortest <= length < longest, in seconds; the others are told in `left_out`.

        Raises AudioFileError if there is none.
        """
        out = {
            song.name: f"it lasts {song.seconds:.3g} s; {shortest:.4g} to {longest:.4g} s are asked for"
            for song in self.songs
            if not shortest <= song.seconds < longest
        }
        kept = tuple(song for song in self.songs if song.name not in out)
        if self.songs and not kept:
            length = max(song.seconds for song in self.songs)
            raise AudioFileError(
                f"No song in {str(self.folder)!r} has between {shortest:.4g} and {longest:.4g} s, as is needed; "
                f"the longest has {length:.4g} s. Add longer songs, or train on shorter crops."
            )
        split = replace(self, songs=kept, left_out={**self.left_out, **out})
        split.__dict__["held_out"] = self.held_out  # nobody changes sides because others went
        return split

    def _with(self, songs: Iterable[Song]) -> "Songs":
        part = replace(self, songs=tuple(songs))
        part.__dict__["held_out"] = self.held_out
        return part


def open_songs(folder: str | Path, *, test_share: float | int = 0.1, workers: int = 4) -> Songs:
    """The songs of a folder (or manifest) and what is known of them.  Files that can't be read are named in `left_out`.

    test_share: part of the songs to hold out, 0 to 1.  workers: threads that read headers.
    Raises AudioFileError where there is no song at all, RequestError for metadata that can't be read.
    """
    if not 0 <= test_share < 1:
        raise RequestError(f"test_share is {test_share}; it is a part of the songs, from 0 to below 1.")
    listing = list_folder(folder)
    scans = Scans(listing.folder)
    songs = songs_of(
        listing, scans.read({name: path for name, (path, _) in listing.files.items()}, workers), test_share
    )
    if not songs:
        raise AudioFileError(_nothing_in(listing.folder, songs.left_out))
    return songs


def songs_of(listing: "Listing", scans: Mapping[str, Scan], test_share: float | int = 0.1) -> Songs:
    """The files of a listing that can be read, and what is known of them."""
    left_out = {name: scan.broken for name, scan in scans.items() if scan.broken}
    songs = [_song(name, path, scans[name], row) for name, (path, row) in listing.files.items() if name not in left_out]
    return Songs(listing.folder, tuple(songs), left_out, test_share)


def _song(name: str, path: Path, scan: Scan, row: Mapping[str, Any]) -> Song:
    metadata = Metadata.from_row(row)
    return Song(path=path, name=name, rate=scan.rate, channels=scan.channels, frames=scan.frames, metadata=metadata)


def _nothing_in(folder: Path, left_out: Mapping[str, str]) -> str:
    if not left_out:
        return f"{str(folder)!r} holds no audio files ({', '.join(READABLE)}); give a folder with songs in it."
    name, why = next(iter(left_out.items()))
    return f"None of the {len(left_out)} audio files in {str(folder)!r} can be used; {name}: {why}"


def _said(song: Song) -> str:
    """Train or test by its metadata or by a folder's name; nothing where neither says it."""
    places = [part.lower() for part in Path(song.name).parts[:-1]]
    by_folder = "train" if "train" in places else "test" if set(places) & set(HELD_OUT) else ""
    return song.metadata.split or by_folder


def _draw(name: str) -> float:
    """From 0 to 1."""
    return int.from_bytes(hashlib.sha256(f"split {name}".encode()).digest()[:8], "big") / 2**64


# What is in the folder ------------------------------------------------------------------------------------------------


class Listing(NamedTuple):
    """Audio files and rows, before any file is opened."""

    folder: Path
    files: dict[str, tuple[Path, dict[str, Any]]]
    """Name -> path and fields, in the order of names."""
    rows_without_files: list[str]
    files_without_rows: list[str]
    """Where there are metadata at all: the files that these don't name, and that have nothing beside them."""
    unknown_fields: list[str]


def list_folder(folder: str | Path) -> Listing:
    """What is there.  Raises AudioFileError for a folder that isn't, RequestError for damaged metadata."""
    folder = Path(folder).expanduser()
    manifest = next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)
    if manifest is not None or (folder.is_file() and ".jsonl" in folder.suffixes):
        return _list_manifest(manifest or folder)
    if not folder.is_dir():
        raise AudioFileError(f"There is no folder {str(folder)!r}; give one with songs in it, or a manifest (.jsonl).")
    files, tables = _walk(folder)
    rows: dict[str, dict[str, Any]] = {}
    for name, row in chain.from_iterable(_table_rows(folder, table) for table in tables):
        rows.setdefault(name, {}).update(row)
    audio = {name: (path, {**_beside(path), **_resolved(rows.get(name, {}), path.parent)}) for name, path in files}
    without = [name for name, (_, fields) in audio.items() if name not in rows and not fields]
    described = len(without) < len(audio)
    unknown = sorted(set(chain.from_iterable(unknown_fields(fields) for _, fields in audio.values())))
    return Listing(folder, audio, sorted(set(rows) - set(audio)), without if described else [], unknown)


def _walk(folder: Path) -> tuple[list[tuple[str, Path]], list[Path]]:
    """Audio files by name, and tables of metadata; links are followed, hidden files and folders left alone."""
    files, tables, seen = [], [], set()
    for place, inside, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        inside[:] = [] if real in seen else sorted(name for name in inside if not name.startswith("."))
        names = [] if real in seen else names
        seen.add(real)
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in READABLE and not name.startswith("."):
                files.append((path.relative_to(folder).as_posix(), path))
            tables += [path] if name in TABLES else []
    return sorted(files), sorted(tables)


def _table_rows(folder: Path, table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows by the names of their files."""
    for row in _read_jsonl(table) if table.suffix == ".jsonl" else _read_csv(table):
        if not row.get("file_name"):
            raise RequestError(
                f"{str(table)!r} has a row without file_name, which says what file it is about; "
                "it is the path of the file as seen from the table's folder."
            )
        yield Path(os.path.relpath(table.parent / str(row["file_name"]), folder)).as_posix(), row


def _beside(path: Path) -> dict[str, Any]:
    """What files of the same name say."""
    fields: dict[str, Any] = {}
    if (sidecar := path.with_suffix(".json")).is_file():
        fields |= _object(sidecar.read_bytes(), sidecar)
    for suffix, name in ((".txt", "text"), (".lyrics.txt", "lyrics"), (".lrc", "lyrics")):
        if (file := path.with_suffix(suffix)).is_file():
            fields[name] = _text(file)
    return fields


def _resolved(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A row without empty fields, in which lyrics that are the name of a file are that file's text."""
    fields = {name: value for name, value in row.items() if value not in (None, "") and name != "file_name"}
    lyrics = fields.get("lyrics")
    if isinstance(lyrics, str) and lyrics.endswith((".lrc", ".txt")) and (folder / lyrics).is_file():
        fields["lyrics"] = _text(folder / lyrics)
    return fields


# audiocraft -----------------------------------------------------------------------------------------------------------


def _list_manifest(manifest: Path) -> Listing:
    """Files anywhere, each with a side-car of its own; paths are taken from the working folder or the manifest's."""
    files, missing = {}, []
    for row in _read_jsonl(manifest):
        if not isinstance(row.get("path"), str):
            raise RequestError(f"{str(manifest)!r} has a line without path; audiocraft's manifests have one in each.")
        path = _found(row["path"], manifest.parent)
        if path is None:
            missing.append(row["path"])
        else:
            files[row["path"]] = (path, {**_beside(path), **_info(row.get("info_path"), manifest.parent)})
    described = any(fields for _, fields in files.values())
    without = [name for name, (_, fields) in files.items() if described and not fields]
    unknown = sorted(set(chain.from_iterable(unknown_fields(fields) for _, fields in files.values())))
    return Listing(manifest, dict(sorted(files.items())), missing, without, unknown)


def _found(name: str, folder: Path) -> Path | None:
    return next((path for path in (Path(name).expanduser(), folder / name) if path.is_file()), None)


def _info(pointer: str | None, folder: Path) -> dict[str, Any]:
    """A side-car elsewhere: a path, or `archive.zip:path inside`."""
    if not pointer:
        return {}
    if (path := _found(pointer, folder)) is not None:
        return _object(path.read_bytes(), path)
    archive, colon, inside = pointer.rpartition(":")
    if not colon or (path := _found(archive, folder)) is None:
        return {}
    try:
        with zipfile.ZipFile(path) as opened:
            return _object(opened.read(inside), path)
    except (zipfile.BadZipFile, KeyError):
        raise RequestError(f"{pointer!r}, named in a manifest, is not in a zip archive that can be read.") from None


# Files ----------------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    data = path.read_bytes()
    try:
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig").splitlines()
    except (OSError, EOFError, UnicodeDecodeError):
        raise RequestError(f"{str(path)!r} is damaged: it is no text in UTF-8.") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _object(line.encode(), path, f" in line {number}")


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [{str(name): value for name, value in row.items()} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error):
        raise RequestError(f"{str(path)!r} is damaged: it is no table of comma-separated values in UTF-8.") from None


def _object(data: bytes, path: Path, where: str = "") -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"{str(path)!r} is damaged{where}: it is no JSON object.")
    return value


def _text(path: Path) -> str:
    """Old lyrics files are often not in UTF-8; what isn't is read as western European."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace").strip()
