"""The theory that the composers share: keys, chords, metres, instruments, notes and scores.

Times are in beats (what a listener taps; a dotted quarter in 6/8), pitches are MIDI numbers (60 is middle C).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tunesmith.errors import RequestError

TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_DOMINANT = 4  # the scale degree (counted from 0) whose chord borrows the leading tone in minor

MARGIN = 1.0
"""Seconds of notes that are written beyond a clip, for the silence before its first attack is cut."""

LEAD, PAD, BASS, DRUMS = 0, 1, 2, 9
"""MIDI channels.  General MIDI reserves 9 for the drums."""


def pitch_class(name: str) -> int:
    """The pitch class (0 is C) of "C#", "Bb", "F-" and the like."""
    return (_LETTERS[name[0].upper()] + name.count("#") - name[1:].count("b") - name.count("-")) % 12


@dataclass(frozen=True)
class Key:
    """A tonic (pitch class, 0 is C) and a mode."""

    tonic: int
    mode: str

    @classmethod
    def parse(cls, name: str) -> "Key":
        """Read "D minor" or "f# major".

        Raises:
            RequestError: for anything else.

        """
        tonic, _, mode = name.strip().partition(" ")
        if mode not in MODES or tonic[:1].upper() not in _LETTERS or tonic[1:] not in ("", "#", "b"):
            raise RequestError(f"'{name}' is not a key; write a tonic and a mode, such as 'D minor' or 'Bb major'.")
        return cls(pitch_class(tonic), mode)

    @property
    def name(self) -> str:
        """As in "D minor"."""
        return f"{TONICS[self.tonic]} {self.mode}"

    def semitones(self, degree: int, *, chord: int = 0) -> int:
        """Semitones from the tonic to a scale degree (0 is the tonic, 7 its octave) while the chord on degree `chord`
        sounds.

        Over the dominant of a minor key the seventh degree is raised: the leading tone is what tells D minor from F
        major.
        """
        octave, step = divmod(degree, 7)
        raised = self.mode == "minor" and step == 6 and chord % 7 == _DOMINANT
        return _SCALES[self.mode][step] + raised + 12 * octave

    def triad(self, chord: int) -> tuple[int, int, int]:
        """Semitones from the tonic to root, third and fifth of the chord on a degree."""
        root, third, fifth = (self.semitones(chord % 7 + k, chord=chord) for k in (0, 2, 4))
        return root, third, fifth


@dataclass(frozen=True)
class Metre:
    """How bars are counted."""

    name: str
    beats: int
    """Beats in a bar."""
    parts: int
    """Into how many equal parts a beat falls first: 2, or 3 in compound time."""
    quarters: float
    """Length of a beat in quarter notes."""

    def strong(self, beat: int) -> bool:
        """Whether a beat of the bar carries weight: every second one, in triple time only the first."""
        return beat % (3 if self.beats % 3 == 0 else 2) == 0


METRES = {
    m.name: m
    for m in (
        Metre("4/4", 4, 2, 1.0),
        Metre("3/4", 3, 2, 1.0),
        Metre("2/4", 2, 2, 1.0),
        Metre("2/2", 2, 2, 2.0),
        Metre("6/8", 2, 3, 1.5),
        Metre("9/8", 3, 3, 1.5),
        Metre("12/8", 4, 3, 1.5),
    )
}


class Instrument(NamedTuple):
    """A General MIDI program and how it is used."""

    program: int
    low: int
    """Lowest pitch of a melody."""
    high: int
    """Highest pitch of a melody."""
    volume: int = 100
    """Channel volume (0 to 127) at which it is as loud as the others; measured, see docs/corpus.md."""
    chords: bool = False
    """Can play a melody and its chords at once."""


INSTRUMENTS: dict[str, Instrument] = {
    "piano": Instrument(0, 55, 88, 124, chords=True),
    "electric piano": Instrument(4, 52, 84, 90, chords=True),
    "harpsichord": Instrument(6, 53, 84, 125, chords=True),
    "music box": Instrument(10, 65, 96, 77),
    "vibraphone": Instrument(11, 55, 86, 106),
    "marimba": Instrument(12, 52, 86, 114),
    "organ": Instrument(19, 53, 84, 88, chords=True),
    "accordion": Instrument(21, 55, 86, 110, chords=True),
    "harmonica": Instrument(22, 60, 86, 87),
    "acoustic guitar": Instrument(24, 50, 79, 110, chords=True),
    "electric guitar": Instrument(27, 50, 81, 83, chords=True),
    "distorted guitar": Instrument(30, 50, 79, 83),
    "violin": Instrument(40, 57, 91, 87),
    "cello": Instrument(42, 40, 67, 109),
    "harp": Instrument(46, 52, 88, 124, chords=True),
    "strings": Instrument(48, 55, 84, 88),
    "choir": Instrument(52, 53, 77, 98),
    "trumpet": Instrument(56, 55, 81, 75),
    "trombone": Instrument(57, 43, 67, 64),
    "french horn": Instrument(60, 45, 72, 89),
    "brass": Instrument(61, 50, 77, 75),
    "saxophone": Instrument(65, 52, 79, 80),
    "oboe": Instrument(68, 59, 84, 73),
    "clarinet": Instrument(71, 52, 84, 85),
    "flute": Instrument(73, 62, 93, 71),
    "pan flute": Instrument(75, 60, 88, 84),
    "synth lead": Instrument(81, 55, 84, 81),
    "synth pad": Instrument(89, 50, 79, 127),
    "banjo": Instrument(105, 52, 81, 92),
    "bagpipe": Instrument(109, 57, 81, 62),
    "acoustic bass": Instrument(32, 28, 48, 115),
    "electric bass": Instrument(33, 28, 48, 100),
    "synth bass": Instrument(38, 28, 48, 112),
}

BASSES = ("acoustic bass", "electric bass", "synth bass")
ACCOMPANIMENTS = (
    *("piano", "electric piano", "organ", "acoustic guitar", "electric guitar", "harp", "strings", "choir", "brass"),
    *("synth pad", "accordion", "harpsichord"),
)
LEADS = tuple(name for name in INSTRUMENTS if name not in (*BASSES, "strings", "brass", "synth pad"))


class Note(NamedTuple):
    """One sounding note; times in beats."""

    start: float
    end: float
    pitch: int
    velocity: int
    channel: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Everything that the renderer needs."""

    notes: tuple[Note, ...]
    voices: dict[int, str]
    """Channel -> instrument name, without the drums."""
    bpm: float
    """Beats per minute."""
    room: float = 0.3
    """Reverberation, from 0 (dry) to 1 (a large hall)."""

    def retimed(self, warp: Callable[[float], float]) -> "Score":
        """The same notes at other times."""
        return replace(self, notes=tuple(n._replace(start=warp(n.start), end=warp(n.end)) for n in self.notes))


def swung(time: float) -> float:
    """Long-short: the half of each beat comes at two thirds of it."""
    beat, part = divmod(time, 1.0)
    return beat + (part * 4 / 3 if part <= 0.5 else 2 / 3 + (part - 0.5) * 2 / 3)


def nearest_octave(pitch: int, centre: float) -> int:
    """The pitch of the same class that lies nearest to a centre."""
    return pitch + 12 * round((centre - pitch) / 12)


def into_range(pitches: Iterable[int], instrument: Instrument) -> list[int]:
    """Move single notes by octaves into an instrument's range."""
    moved = []
    for pitch in pitches:
        while pitch < instrument.low:
            pitch += 12
        while pitch > instrument.high:
            pitch -= 12
        moved.append(pitch)
    return moved


def close_chord(key: Key, chord: int, centre: float) -> list[int]:
    """The triad on a degree, voiced closely around a centre, rising."""
    return sorted(nearest_octave(key.tonic + semitones, centre) for semitones in key.triad(chord))
