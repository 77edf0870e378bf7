"""Music made to learn from: composed and traditional pieces, rendered with exact labels and captions.

    corpus = Corpus(seed=0, split="train")
    example = corpus.example(0)  # the same for ever, on any machine with the same soundfont
    example.audio, example.labels.key, example.caption

Half of the clips are composed by rules, four in ten are traditional tunes, one in ten is a Bach chorale.
docs/corpus.md says where all of it comes from and under which terms.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tunesmith.errors import RequestError
from tunesmith.training.corpus import chorales, composer, tunes
from tunesmith.training.corpus.captions import describe, specify, split_words, unknown_words, vocabulary
from tunesmith.training.corpus.labels import Labels
from tunesmith.training.corpus.library import load_library
from tunesmith.training.corpus.music import LEADS, MODES, Score
from tunesmith.training.corpus.render import find_soundfont, renderer
from tunesmith.training.corpus.split import SPLITS, allowed, split_of

__all__ = ["Corpus", "Example", "Labels", "describe", "specify", "split_words", "unknown_words", "vocabulary"]

VERSION = 2
"""Grows when the same seed and index give another clip than before."""
SHARES = {"composed": 0.5, "tunes": 0.4, "chorales": 0.1}
"""How many of the clips each source gives."""
GRID = 0.02
"""Seconds between the moments at which notes begin and end: a frame of the pocket codec, so that the same note always
gives the same codes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One clip."""

    audio: Float32[np.ndarray, " T"]
    """Mono, full scale 1."""
    labels: Labels
    caption: str


class Corpus:
    """An endless, indexed set of clips.

    Args:
        seed: another seed, other clips of the same works.
        split: `train`, `validation` or `test`; no work and no held-out pair of style and lead is in two of them.
        seconds: length of each clip, 1 to 600.
        sample_rate: samples per second of the audio, 8,000 to 48,000.
        soundfont: a General MIDI soundfont; None finds the installed one when the first clip is rendered.

    Raises:
        RequestError: for values that are not allowed.

    """

    def __init__(
        self,
        seed: int,
        split: str = "train",
        seconds: float = 20.0,
        sample_rate: int = 16_000,
        soundfont: Path | None = None,
    ) -> None:
        if split not in SPLITS:
            raise RequestError(f"'{split}' is no split of the corpus; it has {', '.join(SPLITS)}.")
        if not 1 <= seconds <= 600:
            raise RequestError(f"A clip can't last {seconds:g} seconds; 1 to 600 are possible.")
        if not 8_000 <= sample_rate <= 48_000:
            raise RequestError(
                f"The corpus can't be rendered at {sample_rate} samples per second; 8000 to 48000 are possible."
            )
        self.seed, self.split = seed, split
        self.seconds, self.sample_rate, self.soundfont = seconds, sample_rate, soundfont
        self._by_mode: dict[tuple[str, str], list[Any]] = {}

    def example(self, index: int) -> Example:
        """The clip of an index (0 or more, without end): the same in every process and order."""
        rng = self._rng("example", index)
        score, labels = self._draw(rng)
        return self._rendered(score, labels, self._rng("caption", index))

    def labels_of(self, index: int) -> Labels:
        """The labels of `example(index)` without its sound: a thousand times faster."""
        return self._draw(self._rng("example", index))[1]

    def compose(self, index: int = 0, **fixed: Any) -> Example:
        """A rule-composed clip with chosen properties, for balanced tests.

        Args:
            index: another index, another clip with these properties.
            fixed: fields of `composer.Plan`: style, key ("D minor"), bpm (60 to 180), metre, lead, drums, density,
                energy, players (1 to 3),
                accompaniment, bass.  What isn't given is drawn.

        Raises:
            RequestError: for a value that the corpus doesn't have.

        """
        score, labels = self._composed(self._rng("composed", index), fixed)
        return self._rendered(score, labels, self._rng("caption", index))

    def labels_for(self, index: int = 0, **fixed: Any) -> Labels:
        """The labels of `compose(index, **fixed)` without its sound."""
        return self._composed(self._rng("composed", index), fixed)[1]

    def describe(self, labels: Labels, rng: random.Random) -> str:
        """A new caption for labels; see `captions.describe`."""
        return describe(labels, rng)

    def _rng(self, purpose: str, index: int) -> random.Random:
        """Random numbers that depend on nothing but these names (a text seed is hashed with SHA-512)."""
        return random.Random(f"tunesmith corpus / {self.seed} / {self.split} / {purpose} / {index}")

    def _rendered(self, score: Score, labels: Labels, rng: random.Random) -> Example:
        soundfont = self.soundfont or find_soundfont()
        audio = renderer(soundfont, self.sample_rate).render(score, self.seconds, GRID)
        return Example(audio=audio, labels=labels, caption=describe(labels, rng))

    def _draw(self, rng: random.Random) -> tuple[Score, Labels]:
        source = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if source == "composed":
            return self._composed(rng, {})
        return self._tune(rng) if source == "tunes" else self._chorale(rng)

    def _composed(self, rng: random.Random, fixed: dict[str, Any]) -> tuple[Score, Labels]:
        return composer.compose(composer.draw_plan(rng, self.split, **fixed), rng, self.seconds)

    def _tune(self, rng: random.Random) -> tuple[Score, Labels]:
        tune = rng.choice(self._works("tunes", rng.choice(MODES)))
        lead = rng.choice([name for name in LEADS if allowed(tune.kind, name, self.split)])
        return tunes.arrange(tune, tunes.draw_arrangement(tune, lead, rng), rng, self.seconds)

    def _chorale(self, rng: random.Random) -> tuple[Score, Labels]:
        chorale = rng.choice(self._works("chorales", rng.choice(MODES)))
        ensemble = rng.choice([name for name in chorales.ENSEMBLES if allowed("chorale", name, self.split)])
        soloists = [name for name in chorales.SOLOISTS if allowed("chorale", name, self.split)]
        lead = ensemble if rng.random() < 0.5 else rng.choice(soloists)
        return chorales.score_chorale(chorale, chorales.draw_scoring(lead, ensemble, rng), rng, self.seconds)

    def _works(self, source: str, mode: str) -> list[Any]:
        """The works of this split in a mode: modes are drawn first, for most tunes are in major."""
        if not self._by_mode:
            found = defaultdict(list)
            library = load_library()
            for name, works in (("tunes", library.tunes), ("chorales", library.chorales)):
                for work in works:
                    if split_of(work.work) == self.split:
                        found[name, work.key.mode].append(work)
            self._by_mode = dict(found)
        return self._by_mode[source, mode]
