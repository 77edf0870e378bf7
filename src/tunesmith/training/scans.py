"""What was found out about audio files, remembered until they change.

One file in the user's cache for each folder of songs; an entry counts as long as the audio file has the same size and
time of change, so nothing is read twice, and a folder of songs itself is never written to.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.audio import Sound
from tunesmith.errors import AudioFileError, MissingDependencyError

FORMAT = 1
"""Of the cache; files of another one are ignored."""


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """What only listening to the whole tells."""

    peak: float
    """The largest sample; full scale is 1."""
    clipped: float
    """Share of samples that lie in runs at the largest value, near full scale."""
    digest: str
    """Of the samples in 16 bits: the same for lossless copies."""
    portrait: str
    """What it sounds like, coarsely (check.py), in base64."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What is known of an audio file."""

    size: int
    """Bytes."""
    changed: int
    """Time of the last change, ns."""
    rate: int = 0
    channels: int = 0
    frames: int = 0
    """Samples per channel."""
    broken: str = ""
    """Why it can't be used."""
    heard: Hearing | None = field(default=None)


class Scans:
    """The scans of a folder."""

    def __init__(self, folder: Path) -> None:
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.file = root / "tunesmith" / "scans" / f"{place}.json"
        self.known = _load(self.file)

    def get(self, name: str, path: Path) -> Scan | None:
        """What is known, if the file hasn't changed since."""
        scan = self.known.get(name)
        state = path.stat()
        return scan if scan and (scan.size, scan.changed) == (state.st_size, state.st_mtime_ns) else None

    def read(self, files: Mapping[str, Path], workers: int) -> dict[str, Scan]:
        """Scans of all files, from their headers where nothing is known; remembered."""
        scans = {name: scan for name, path in files.items() if path.exists() and (scan := self.get(name, path))}
        new = {name: path for name, path in files.items() if name not in scans}
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            scans |= zip(new, pool.map(read_header, new.values()), strict=True)
        if new:
            self.remember(scans)
        return {name: scans[name] for name in files}

    def remember(self, scans: Mapping[str, Scan]) -> None:
        """Keep these.  A cache that can't be written is no reason to fail; what a missing package caused is no fact."""
        self.known |= {name: scan for name, scan in scans.items() if "needs the package" not in scan.broken}
        content = {"format": FORMAT, "scans": {name: asdict(scan) for name, scan in self.known.items()}}
        part = self.file.with_suffix(f".{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(content))
            part.replace(self.file)
        except OSError:
            return


def read_header(path: Path) -> Scan:
    """What the beginning of a file says."""
    try:
        state = path.stat()
    except OSError as error:
        return Scan(size=0, changed=0, broken=f"It can't be read: {error.strerror}.")
    scan = Scan(size=state.st_size, changed=state.st_mtime_ns)
    try:
        with Sound(path) as sound:
            found = replace(scan, rate=sound.rate, channels=sound.channels, frames=sound.frames)
    except (AudioFileError, MissingDependencyError) as error:
        return replace(scan, broken=str(error))
    return found if found.frames > 0 else replace(found, broken=f"{str(path)!r} holds no audio: its length is 0.")


def _load(file: Path) -> dict[str, Scan]:
    try:
        content = json.loads(file.read_text())
        return dict(_entries(content["scans"])) if content["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _entries(scans: Mapping[str, Any]) -> Iterator[tuple[str, Scan]]:
    for name, entry in scans.items():
        heard = entry.pop("heard")
        yield name, Scan(**entry, heard=None if heard is None else Hearing(**heard))
