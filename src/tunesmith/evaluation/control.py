"""Does the music follow the prompt?  Pure functions over what analysers heard.

Each clip is scored against its own prompt and against the prompts of all other clips; corpus renders with the same
labels, heard by the same analyser, show how good a score can get.  The control score is

    (own - permuted) / (ceiling - permuted)

0 for music that ignores its prompt, 1 for music in which the analyser finds as much of it as in real renders.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Mode = Literal["major", "minor"]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a prompt asks for."""

    tempo: float
    """Beats per minute."""
    tonic: int
    """Semitones above C, 0 to 11."""
    mode: Mode
    lead: str
    """Name of the instrument, as the analyser's tag."""
    drums: bool


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What the analysers found in a clip."""

    tempo: float
    tonic: int
    mode: Mode
    leads: Mapping[str, float]
    """Strength of each instrument's tag."""
    drums: float
    """Strength of the drum tags; a threshold decides."""


def tempo_hit(heard: float, asked: float, tolerance: float = 0.04, octaves: bool = False) -> bool:
    """Within a relative tolerance; `octaves` forgives twice and half the tempo."""
    factors = (1.0, 2.0, 0.5) if octaves else (1.0,)
    return any(abs(heard / (asked * factor) - 1) <= tolerance for factor in factors)


def related_key(heard: Heard, asked: Labels) -> bool:
    """The key itself, its relative or parallel, or a fifth away in the same mode (one step on the circle of keys)."""
    if heard.tonic == asked.tonic:
        return True
    step = (heard.tonic - asked.tonic) % 12
    return step in (5, 7) if heard.mode == asked.mode else step == (9 if asked.mode == "major" else 3)


def lead_hit(leads: Mapping[str, float], asked: str, top: int = 2) -> bool:
    """The asked instrument is among the strongest `top` tags."""
    return asked in sorted(leads, key=leads.__getitem__, reverse=True)[:top]


def hits(
    heard: Sequence[Heard],
    asked: Sequence[Labels],
    *,
    drums_threshold: float,
    tempo_tolerance: float = 0.04,
    lead_top: int = 2,
) -> dict[str, Bool[np.ndarray, "N N"]]:
    """For each axis, whether clip i (row) meets prompt j (column)."""

    def table(hit: Callable[[Heard, Labels], bool]) -> Bool[np.ndarray, "N N"]:
        return np.array([[hit(h, a) for a in asked] for h in heard], dtype=bool)

    return {
        "tempo": table(lambda h, a: tempo_hit(h.tempo, a.tempo, tempo_tolerance)),
        "key": table(lambda h, a: (h.tonic, h.mode) == (a.tonic, a.mode)),
        "lead": table(lambda h, a: lead_hit(h.leads, a.lead, lead_top)),
        "drums": table(lambda h, a: (h.drums > drums_threshold) == a.drums),
        "tempo, octaves forgiven": table(lambda h, a: tempo_hit(h.tempo, a.tempo, tempo_tolerance, octaves=True)),
        "related key": table(related_key),
    }


def own_and_permuted(table: Bool[np.ndarray, "N N"]) -> tuple[float, float]:
    """Share of hits on the clips' own prompts, and on all other clips' prompts (N >= 2)."""
    count = len(table)
    own = float(np.trace(table))
    return own / count, (float(table.sum()) - own) / (count * (count - 1))


def control_score(own: float, permuted: float, ceiling: float) -> float:
    """(own - permuted) / (ceiling - permuted); NaN where the ceiling doesn't rise above permuted prompts."""
    return (own - permuted) / (ceiling - permuted) if ceiling > permuted else float("nan")


def best_threshold(scores: Float[np.ndarray, "N"], truth: Bool[np.ndarray, "N"]) -> float:
    """The threshold that splits the scores with the highest mean of both sides' accuracies.

    Lies in the middle between two neighbouring scores; the lowest of equally good ones.  Both sides must occur.
    """
    assert 0 < truth.sum() < len(truth), "a threshold needs both sides"
    levels = np.unique(scores)
    candidates = np.concatenate([levels[:1] - 1, (levels[1:] + levels[:-1]) / 2])
    balance = [(scores[truth] > c).mean() + (scores[~truth] <= c).mean() for c in candidates]
    return float(candidates[int(np.argmax(balance))])


def auc(scores: Float[np.ndarray, "N"], truth: Bool[np.ndarray, "N"]) -> float:
    """Probability that a random true item scores above a random false one (ties count half)."""
    above = scores[truth][:, None] - scores[~truth][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
