"""Key and tempo by essentia."""

import numpy as np

from tunesmith.evaluation.control import Mode

_TONICS = {"C": 0, "C#": 1, "Db": 1, "D": 2, "D#": 3, "Eb": 3, "E": 4, "F": 5, "F#": 6, "Gb": 6, "G": 7, "G#": 8,
           "Ab": 8, "A": 9, "A#": 10, "Bb": 10, "B": 11}  # fmt: skip


def tonic_number(name: str) -> int:
    """Semitones above C of a tonic's name, as in `Eb`."""
    return _TONICS[name]


class Essentia:
    """The two extractors, set up once."""

    def __init__(self, rate: int) -> None:
        """Raise ImportError when essentia is missing."""
        import essentia

        essentia.log.infoActive = essentia.log.warningActive = False
        from essentia import standard

        self._key = standard.KeyExtractor(sampleRate=rate)
        self._resample = standard.Resample(inputSampleRate=rate, outputSampleRate=44100)
        self._rhythm = standard.RhythmExtractor2013(method="multifeature")

    def key(self, audio: np.ndarray) -> tuple[int, Mode]:
        """Tonic (semitones above C) and mode of a mono clip."""
        tonic, mode, _ = self._key(audio.astype(np.float32))
        return tonic_number(tonic), mode

    def tempo(self, audio: np.ndarray) -> float:
        """Beats per minute of a mono clip; the extractor wants 44.1 kHz."""
        return float(self._rhythm(self._resample(audio.astype(np.float32)))[0])
