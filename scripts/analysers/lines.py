"""Which of several lines was sung?  pocketsphinx (BSD, its model of American English is inside its wheel) decides.

    pip install pocketsphinx

Each line is aligned with the sound, and the likelihoods of the alignments are compared.  The beams are wide open, for
sung vowels are longer than any that the model of speech expects.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

RATE = 16_000
"""What the recogniser hears."""
DITHER = 1e-3
"""Noise that is added: where there is none at all, above the band of a low rate, the recogniser is lost."""
IMPOSSIBLE = -1e12
"""The score of a line that can't be aligned."""


class LineJudge:
    """Holds the recogniser's model."""

    def __init__(self) -> None:
        from pocketsphinx import Config, Decoder

        beams = {"beam": 1e-120, "wbeam": 1e-120, "pbeam": 1e-120}
        config = Config(samprate=RATE, loglevel="FATAL", lm=None, bestpath=False, **beams)
        self._decoder: Any = Decoder(config)

    def knows(self, line: str) -> bool:
        """Whether the recogniser's dictionary has all words of a line."""
        return all(self._decoder.lookup_word(word) for word in line.lower().split())

    def scores(self, audio: Float[np.ndarray, " T"], lines: Sequence[str]) -> Float[np.ndarray, " N"]:
        """Log-likelihood of each line, to be compared for the same audio only; mono at `RATE`, full scale 1."""
        noise = np.random.default_rng(0).standard_normal(len(audio))
        loud = 0.7 * audio / max(float(np.abs(audio).max()), 1e-9) + DITHER * noise
        samples = np.round(loud * 32767).clip(-32768, 32767).astype("<i2").tobytes()
        return np.array([self._score(samples, line.lower()) for line in lines])

    def _score(self, samples: bytes, line: str) -> float:
        decoder = self._decoder
        decoder.set_align_text(line)
        decoder.start_utt()
        try:
            decoder.process_raw(samples, full_utt=True)
        finally:
            decoder.end_utt()
        found = decoder.hyp()
        return IMPOSSIBLE if found is None else float(found.score)
