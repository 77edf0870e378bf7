"""Crops a second and core, from FLAC of 60 s: decoded, resampled, mixed to mono; beside torchcodec and librosa.

    python benchmarks/data_loading.py                     ours, and each peer that is installed
    python benchmarks/data_loading.py --peer PYTHON       the peers of another environment

All read random crops of the same files, each by its own draw, on one thread and in turn.  What counts is the median of
`--rounds` rounds, and that of the ratios to the best peer of the same round.
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
from statistics import median
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


def one_round(readers: dict[str, Callable[[int], Any]], count: int) -> dict[str, float]:
    """Crops a second of this process's time on a core."""
    speeds = {}
    for name, read in readers.items():
        start = time.process_time()
        for i in range(count):
            read(i)
        speeds[name] = count / (time.process_time() - start)
    return speeds


def elsewhere(python: str, folder: Path, count: int) -> dict[str, float]:
    """A round of the peers in another environment."""
    command = [python, __file__, "--folder", folder, "--crops", str(count), "--rounds", "1"]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=40)
    parser.add_argument("--crops", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="the python of another environment, for librosa and torchcodec")
    parser.add_argument("--folder", type=Path, help="of songs that are there: one round of the peers alone, as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        paths = sorted(folder.glob("*.flac")) if given.folder else write_songs(folder, given.songs)
        readers = {} if given.folder else dict(ours(folder, given.crops))
        readers |= {} if given.peer else dict(peers(paths, given.crops))
        for read in readers.values():
            read(0)  # what is loaded at first isn't counted
        if given.folder:
            print(json.dumps(one_round(readers, given.crops)))
            return
        rounds = []
        for _ in range(given.rounds):
            rounds.append(one_round(readers, given.crops))
            rounds[-1] |= elsewhere(given.peer, folder, given.crops) if given.peer else {}
    for name in rounds[0]:
        ratios = [speeds[name] / best for speeds in rounds if (best := best_peer(speeds))]
        told = f"  {median(ratios):5.2f} x the best peer" if ratios else ""
        print(f"{name:22}{median(speeds[name] for speeds in rounds):8.1f} crops/s{told}")


def best_peer(speeds: dict[str, float]) -> float:
    """0 where there is no peer."""
    return max((speed for name, speed in speeds.items() if "tunesmith" not in name), default=0.0)


if __name__ == "__main__":
    main()
