"""All analysers together over a set of clips, in several processes."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysers.musicnn import RATE, TAGS, MusicNN, installed_weights
from analysers.pitch_and_pulse import Essentia
from tunesmith.evaluation.control import Heard
from tunesmith.evaluation.sanity import Sanity, measure

SANITY = [field.name for field in fields(Sanity)]
_FLOOR = 1e-6  # probabilities nearer to 0 or 1 than this are not told apart


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """What was heard in N clips."""

    tempo: np.ndarray
    """[N], beats per minute; NaN where key and tempo were not asked for."""
    tonic: np.ndarray
    """[N], semitones above C."""
    minor: np.ndarray
    """[N], 1 for minor."""
    tags: np.ndarray
    """[N, 50], probabilities of musicnn's tags, averaged over the clip."""
    embeddings: np.ndarray
    """[N, patches, 200]."""
    sanity: np.ndarray
    """[N, figures], in the order of `SANITY`."""

    def save(self, path: Path) -> None:
        """Write all arrays to one file."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Hearing":
        """The inverse of `save`."""
        with np.load(path) as arrays:
            return cls(**arrays)

    def sanities(self) -> list[Sanity]:
        """The plain facts about each clip."""
        return [Sanity(**dict(zip(SANITY, map(float, row), strict=True))) for row in self.sanity]


class Panel:
    """The analysers in worker processes, which start with the first clips (that takes some seconds) and then stay."""

    def __init__(self, workers: int) -> None:
        """Raise RuntimeError when an analyser is not installed."""
        weights = installed_weights()
        if weights is None:
            raise RuntimeError("musicnn is missing; install it by hand: pip install --no-deps musicnn")
        if find_spec("essentia") is None:
            raise RuntimeError("essentia is missing; install it by hand: pip install essentia")
        spawn = get_context("spawn")  # torch's threads don't survive a fork
        self._pool = ProcessPoolExecutor(workers, spawn, _set_up, (sys.path, weights))

    def hear(self, clips: np.ndarray, key_and_tempo: bool = True) -> Hearing:
        """Listen to clips [N, T] at 16 kHz, 16-bit integers."""
        rows = list(self._pool.map(partial(_hear_one, key_and_tempo=key_and_tempo), clips, chunksize=4))
        return Hearing(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


_ears: tuple[MusicNN, Essentia]


def _set_up(path: list[str], weights: Path) -> None:
    global _ears
    sys.path[:] = path
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _ears = MusicNN(weights), Essentia(RATE)


def _hear_one(clip: np.ndarray, *, key_and_tempo: bool) -> dict[str, Any]:
    network, essentia = _ears
    samples = clip.astype(np.float32) / 32768
    audio = torch.from_numpy(samples)
    tags, embeddings = network.hear(audio)
    tonic, mode = essentia.key(samples) if key_and_tempo else (-1, "major")
    found = measure(audio, RATE)
    return {
        "tempo": np.float64(essentia.tempo(samples) if key_and_tempo else np.nan),
        "tonic": np.int64(tonic),
        "minor": np.int64(mode == "minor"),
        "tags": tags.mean(0).numpy(),
        "embeddings": embeddings.numpy(),
        "sanity": np.array([getattr(found, name) for name in SANITY]),
    }


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How tags are read; learnt from corpus renders, before any model is heard."""

    leads: Mapping[str, Sequence[str]]
    """Label of a lead -> musicnn's tags for it; the strongest counts."""
    usual: Mapping[str, float]
    """Label of a lead -> mean log-odds of its tag over the renders: how strong it is whatever sounds."""
    drums: float
    """Threshold of `drum_strength`."""

    def heard(self, hearing: Hearing) -> list[Heard]:
        """What the clips are taken to be."""
        odds, drums = lead_odds(hearing.tags, self.leads), drum_strength(hearing.tags)
        return [
            Heard(
                tempo=float(hearing.tempo[i]),
                tonic=int(hearing.tonic[i]),
                mode="minor" if hearing.minor[i] else "major",
                leads={name: float(values[i]) - self.usual[name] for name, values in odds.items()},
                drums=float(drums[i]),
            )
            for i in range(len(hearing.tempo))
        ]


def lead_odds(tags: np.ndarray, leads: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Log-odds [N] of each lead's strongest tag."""
    share = tags.astype(np.float64).clip(_FLOOR, 1 - _FLOOR)
    odds = np.log(share / (1 - share))
    return {name: odds[:, [TAGS.index(tag) for tag in names]].max(1) for name, names in leads.items()}


def drum_strength(tags: np.ndarray) -> np.ndarray:
    """[N], the probabilities of `drums` and `beat` together."""
    return tags[:, TAGS.index("drums")] + tags[:, TAGS.index("beat")]
