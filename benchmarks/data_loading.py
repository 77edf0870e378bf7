"""Crops a second and core, from FLAC of 60 s: decoded, resampled, mixed to mono; beside torchcodec and librosa.

    python benchmarks/data_loading.py                     ours, and each peer that is installed
    python benchmarks/data_loading.py --peer PYTHON       the peers of another environment

All read the same random crops of the same files, on one thread; the best of `--rounds` rounds counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile

SECONDS, FROM, TO, CROP = 60.0, 44100, 32000, 5.0
Read = Callable[[Path, float], Any]


def write_songs(folder: Path, count: int) -> list[Path]:
    """Stereo of tones and noise, which FLAC can't make very small: about as music."""
    time_axis = np.arange(round(SECONDS * FROM)) / FROM
    for i in range(count):
        random = np.random.default_rng(i)
        tones = [np.sin(2 * np.pi * f * time_axis + random.random()) for f in random.uniform(80, 2000, 6)]
        song = 0.08 * np.sum(tones, 0)[:, None] + random.normal(0, 0.01, (len(time_axis), 2))
        soundfile.write(folder / f"{i}.flac", song, FROM)
    return sorted(folder.glob("*.flac"))


def ours(folder: Path, count: int) -> Iterator[tuple[str, Callable[[int], Any]]]:
    from tunesmith.training.crops import AudioCrops
    from tunesmith.training.folders import open_songs

    songs = open_songs(folder)
    options: dict[str, Any] = {"rate": TO, "samples": round(CROP * TO), "count": count}
    plain, augmented = AudioCrops(songs, **options), AudioCrops(songs, aug_blend=True, **options)
    yield "tunesmith", plain.__getitem__
    yield "tunesmith, augmented", augmented.__getitem__


def by_librosa() -> Read:
    import librosa

    return lambda path, start: librosa.load(path, sr=TO, mono=True, offset=start, duration=CROP, res_type="soxr_hq")[0]


def by_torchcodec() -> Read:
    from torchcodec.decoders import AudioDecoder

    def read(path: Path, start: float) -> Any:
        decoder = AudioDecoder(path, sample_rate=TO, num_channels=1)
        return decoder.get_samples_played_in_range(start, start + CROP).data

    return read


def peers(paths: list[Path], count: int) -> Iterator[tuple[str, Callable[[int], Any]]]:
    random = np.random.default_rng(0)
    places = [(paths[random.integers(len(paths))], random.uniform(0, SECONDS - CROP)) for _ in range(count)]
    for name, prepare in (("librosa", by_librosa), ("torchcodec", by_torchcodec)):
        try:
            read = prepare()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name} can't be loaded here: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        yield name, lambda i, read=read: read(*places[i])


def measured(read: Callable[[int], Any], count: int, rounds: int) -> float:
    """Crops a second of this process's time on a core, in the best round; what is first read is not counted."""
    read(0)
    best = 0.0
    for _ in range(rounds):
        start = time.process_time()
        for i in range(count):
            read(i)
        best = max(best, count / (time.process_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=40)
    parser.add_argument("--crops", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="the python of another environment, for librosa and torchcodec")
    parser.add_argument("--folder", type=Path, help="of songs that are there; measures the peers alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        paths = sorted(given.folder.glob("*.flac")) if given.folder else write_songs(Path(made), given.songs)
        readers = [] if given.folder else [*ours(Path(made), given.crops)]
        readers += [] if given.peer else [*peers(paths, given.crops)]
        speeds = {name: measured(read, given.crops, given.rounds) for name, read in readers}
        if given.peer:
            command = [
                given.peer,
                __file__,
                "--folder",
                made,
                "--crops",
                str(given.crops),
                "--rounds",
                str(given.rounds),
            ]
            speeds |= json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    if given.folder:
        print(json.dumps(speeds))
        return
    best = max((speed for name, speed in speeds.items() if "tunesmith" not in name), default=None)
    for name, speed in speeds.items():
        print(f"{name:22}{speed:8.1f} crops/s" + ("" if best is None else f"  {speed / best:5.2f} x the best peer"))


if __name__ == "__main__":
    main()
