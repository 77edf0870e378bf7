"""Which works, and which pairs of style and lead instrument, belong to training, validation and test.

The split is a property of the work's name alone: it depends neither on the seed nor on the order or the rest of the
corpus.
"""

import hashlib
from functools import cache
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT = 0.05
"""Share of the works, and of the pairs, that validation gets, and again that test gets."""


@cache
def split_of(name: str) -> Split:
    """The split of a work or a pair by the hash of its name."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if place < HELD_OUT:
        return "test"
    return "validation" if place < 2 * HELD_OUT else "train"


def pair_split(genre: str, lead: str) -> Split:
    """The split to which a pair of style and lead instrument is reserved; `train` stands for all three."""
    return split_of(f"pair {genre} / {lead}")


def allowed(genre: str, lead: str, split: Split) -> bool:
    """Whether a split may contain a pair: training never hears those that are held out."""
    return pair_split(genre, lead) in ("train", split)
