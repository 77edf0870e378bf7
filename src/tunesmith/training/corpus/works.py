"""Which tunes are one work: old books share tunes, under the same title or another and in any key."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise

_COMMON = {
    *(
        "the",
        "a",
        "or",
        "of",
        "in",
        "and",
        "no",
        "old",
        "new",
        "other",
        "another",
        "same",
        "set",
        "version",
        "untitled",
    ),
    *("irish", "scotch", "english", "french", "highland", "country", "grand", "favorite", "favourite", "double"),
    *("single", "quick", "slow", "step", "dance", "tune", "air", "song", "jig", "slip", "slipjig", "reel", "hornpipe"),
    *("strathspey", "polka", "waltz", "march", "quickstep", "minuet", "minuit", "gavotte", "clog", "fling", "slide"),
    *("schottische", "walkaround", "walk", "around", "allegro", "andante"),
}
"""Words that alone don't name a tune."""


def plain_title(title: str) -> str:
    """The distinctive words of a title, lower case and without its kind of dance; empty if there are none."""
    words = re.sub(r"[^a-z0-9 ]", "", title.lower().replace("-", " ").replace("'", "")).split()
    distinctive = [word for word in words if not {word, word.removesuffix("s")} & _COMMON]
    return " ".join(distinctive) if any(word.isalpha() for word in distinctive) else ""


def interval_grams(pitches: Iterable[int], n: int = 9) -> set[tuple[int, ...]]:
    """All runs of n melodic steps, repeated notes left out: the same in every key."""
    heard = [pitch for pitch, _ in groupby(pitches)]
    steps = [after - before for before, after in pairwise(heard)]
    return {tuple(steps[i : i + n]) for i in range(len(steps) - n + 1)}


def same_works(titles: Sequence[str], melodies: Sequence[Sequence[int]], share: float = 0.25) -> list[int]:
    """For each tune the index of the first tune that is the same work, itself included.

    Args:
        titles: as printed; tunes whose distinctive words agree are one work.
        melodies: pitches; tunes that share this part of the shorter one's interval n-grams are one work.
        share: 0 to 1.

    """
    parent = list(range(len(titles)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in (*_same_titles(titles), *_same_melodies(melodies, share)):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(i) for i in range(len(titles))]


def _same_titles(titles: Sequence[str]) -> Iterator[tuple[int, int]]:
    first: dict[str, int] = {}
    for i, title in enumerate(titles):
        if plain := plain_title(title):
            yield first.setdefault(plain, i), i


def _same_melodies(melodies: Sequence[Sequence[int]], share: float) -> Iterator[tuple[int, int]]:
    grams = [interval_grams(melody) for melody in melodies]
    holders: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, found in enumerate(grams):
        common: dict[int, int] = defaultdict(int)
        for gram in found:
            for j in holders[gram]:
                common[j] += 1
            holders[gram].append(i)
        yield from ((j, i) for j, count in common.items() if count >= share * min(len(found), len(grams[j])))
