"""Forced choice: a judge scores every asked-for thing against every result of a group, and chooses one for each.

Whoever follows what is asked for is chosen more often than chance; the test permutes who was asked for what within each
group, so that preferences of the judge, and what all of a group have in common, count for nothing.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How often the right one was chosen."""

    share: float
    """Of all results."""
    permuted: float
    """The same when asked-for things are dealt out again, on average."""
    p: float
    """How probable so large a share is without any relation."""


def chosen(scores: Float[np.ndarray, "G N N"]) -> Int[np.ndarray, "G N"]:
    """Which of a group's N candidates (last axis) the judge chooses for each of its results (axis before)."""
    return scores.argmax(-1)


def forced_choice(scores: Float[np.ndarray, "G N N"], seed: int = 0, draws: int = 100_000) -> Choice:
    """Judge scores of G groups; result i of a group was asked for by candidate i.

    The test is one of `draws` random permutations; p is at least 1 / (draws + 1).
    """
    groups, size, _ = scores.shape
    picks, rng = chosen(scores), np.random.default_rng(seed)
    asked = np.arange(size)
    right = int((picks == asked).sum())
    dealt = np.zeros(draws, np.int64)
    for pick in picks:
        orders = rng.permuted(np.tile(asked, (draws, 1)), axis=1)
        dealt += (orders == pick).sum(1)
    total = groups * size
    return Choice(
        share=right / total, permuted=float(dealt.mean()) / total, p=float(((dealt >= right).sum() + 1) / (draws + 1))
    )
