"""The rhythm section of composed pieces and tunes: how chords, bass and drums are played in one bar of any metre."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.training.corpus.labels import Energy
from tunesmith.training.corpus.music import BASS, DRUMS, PAD, Key, Metre, Note, close_chord, nearest_octave

STRENGTH: dict[Energy, int] = {"gentle": -16, "moderate": 0, "strong": 12}
"""What playing gently or strongly adds to a note's velocity."""

# A groove gives each drum four steps for a strong beat and four for a weak one; x is a hit, o a soft hit.
# In compound time, and when swung, the third step falls on the last third of the beat and the even ones are silent.
_KICK, _RIM, _SNARE, _CLAP, _HAT, _PEDAL, _TOM, _CRASH, _RIDE, _SHAKER = 36, 37, 38, 39, 42, 44, 45, 49, 51, 70
SLOW = 95
"""Beats per minute below which little is played between the beats, else the beat would seem twice as fast."""
_SLOW_FIGURES = {"offbeat": "block", "pulse": "block", "syncopated": "block"}
_SLOW_BASS = {"pulse": "every beat", "syncopated": "root and fifth"}

GROOVES: dict[str, dict[int, tuple[str, str]]] = {
    "rock": {_KICK: ("x.o.", "...."), _SNARE: ("....", "x..."), _HAT: ("x.o.", "x.o.")},
    "four on the floor": {_KICK: ("x...", "x..."), _CLAP: ("....", "x..."), _HAT: ("..x.", "..x.")},
    "funk": {_KICK: ("x..o", "...."), _SNARE: ("...o", "x..."), _HAT: ("xooo", "xooo")},
    "soft": {_KICK: ("x...", "...."), _RIM: ("....", "x..."), _HAT: ("o.o.", "o.o.")},
    "reggae": {_KICK: ("o...", "x..."), _RIM: ("....", "x..."), _HAT: ("x.o.", "x.o.")},
    "swing": {_RIDE: ("x...", "x.o."), _PEDAL: ("....", "x..."), _KICK: ("o...", "....")},
    "latin": {_KICK: ("x..o", "o..."), _RIM: ("...x", "..x."), _SHAKER: ("xooo", "xooo")},
    "train": {_KICK: ("x...", "o..."), _SNARE: ("oox.", "oxo."), _HAT: ("..o.", "..o.")},
    "march": {_KICK: ("x...", "...."), _SNARE: ("x.o.", "xooo")},
    "folk": {_KICK: ("x...", "...."), _TOM: ("....", "x..."), _SHAKER: ("x.o.", "x.o.")},
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """Who accompanies and how."""

    key: Key
    metre: Metre
    energy: Energy
    figure: str | None
    """How chords are played; None for no chords."""
    bass: str | None
    """The bass line; None for no bass."""
    groove: str | None
    """The drums' groove; None for no drums."""
    centre: float = 60.0
    """Pitch around which chords lie."""
    slow: bool = False
    """Whether little is played between the beats."""
    bass_channel: int = BASS
    """The channel of the chords when one player plays both."""

    @classmethod
    def of(
        cls,
        key: Key,
        metre: Metre,
        bpm: float,
        energy: Energy,
        *,
        figure: str | None,
        bass: str | None,
        groove: str | None,
    ) -> "Section":
        """A section whose beat is clear: slow ones play on the beats, and still ones without drums mark them."""
        slow = bpm < SLOW
        if slow:
            figure, bass = _SLOW_FIGURES.get(figure or "", figure), _SLOW_BASS.get(bass or "", bass)
        if figure == "sustained" and groove is None:
            figure = "broken"
        return cls(key=key, metre=metre, energy=energy, figure=figure, bass=bass, groove=groove, slow=slow)

    def bar(self, start: float, chord: int, *, crash: bool = False) -> Iterator[Note]:
        """The accompaniment of one bar.

        Args:
            start: where the bar begins, in beats.
            chord: degree of the scale on which the chord stands, 0 to 6.
            crash: whether a cymbal opens the bar.

        """
        if self.figure:
            yield from self._chords(start, chord)
        if self.bass:
            yield from self._bass(start, chord)
        if self.groove:
            yield from self._drums(start, crash)

    def _pulse(self, onset: float) -> int:
        """What a slow beat adds to the strokes on it, and takes from those between."""
        return (20 if onset == int(onset) else -22) if self.slow else 0

    def _velocity(self, base: int) -> int:
        return max(24, min(124, base + STRENGTH[self.energy]))

    def _chords(self, start: float, chord: int) -> Iterator[Note]:
        assert self.figure is not None
        voices = close_chord(self.key, chord, self.centre)
        for onset, length, voice in _figure(self.figure, self.metre):
            accent = 6 * (onset == 0) + self._pulse(onset)
            for pitch in voices if voice is None else (voices[voice],):
                yield Note(start + onset, start + onset + length, pitch, self._velocity(56 + accent), PAD)

    def _bass(self, start: float, chord: int) -> Iterator[Note]:
        assert self.bass is not None
        root, third, fifth = (nearest_octave(self.key.tonic + s, 38.0) for s in self.key.triad(chord))
        tones = {0: root, 1: third, 2: fifth}
        lift, base = (0, 84) if self.bass_channel == BASS else (12, 66)
        for onset, length, tone in _bass_line(self.bass, self.metre):
            pitch, velocity = tones[tone] + lift, self._velocity(base + self._pulse(onset))
            yield Note(start + onset, start + onset + length, pitch, velocity, self.bass_channel)

    def _drums(self, start: float, crash: bool) -> Iterator[Note]:
        assert self.groove is not None
        for beat in range(self.metre.beats):
            for drum, (strong, weak) in GROOVES[self.groove].items():
                for step, hit in enumerate(strong if self.metre.strong(beat) else weak):
                    place = _step(step, self.metre)
                    if hit == "." or place is None or (self.slow and step % 2):
                        continue
                    base = (92 if hit == "x" else 60) + (8 if beat == step == 0 else 0)
                    if self.slow and step:
                        base = 44
                    time = start + beat + place
                    yield Note(time, time + 0.1, drum, self._velocity(base), DRUMS)
        if crash:
            yield Note(start, start + 1, _CRASH, self._velocity(80), DRUMS)


def _step(step: int, metre: Metre) -> float | None:
    """Where one of the four steps of a beat falls."""
    if metre.parts == 2:
        return step / 4
    return {0: 0.0, 2: 2 / 3}.get(step)


def _figure(name: str, metre: Metre) -> list[tuple[float, float, int | None]]:
    """Onset, length (beats) and voice (None: the whole chord) of each stroke in a bar."""
    beats = range(metre.beats)
    half = 0.5 if metre.parts == 2 else 2 / 3  # the last part of a beat
    parts = [beat + part / metre.parts for beat in beats for part in range(metre.parts)]
    match name:
        case "sustained":
            return [(0.0, metre.beats * 0.98, None)]
        case "broken":
            return [(float(beat), 1.8, (0, 1, 2, 1)[beat % 4]) for beat in beats]
        case "block":
            return [(float(beat), 0.9, None) for beat in beats]
        case "oompah":
            if metre.name in ("2/2", "2/4", "6/8"):
                return [(beat + half, (1 - half) * 0.8, None) for beat in beats]
            return [(float(beat), 0.6, None) for beat in beats if not metre.strong(beat)]
        case "offbeat":
            return [(beat + half, (1 - half) * 0.8, None) for beat in beats]
        case "arpeggio":
            return [(onset, 1.5 / metre.parts, (0, 1, 2, 1)[i % 4]) for i, onset in enumerate(parts)]
        case "pulse":
            return [(onset, 0.8 / metre.parts, None) for onset in parts]
        case _:  # syncopated: strokes of a beat and a half, as many as fit
            step = 1.5 if metre.parts == 2 else 2 / 3
            return [(i * step, step * 0.7, None) for i in range(round(metre.beats / step))]


def _bass_line(name: str, metre: Metre) -> list[tuple[float, float, int]]:
    """Onset, length (beats) and chord tone (0 root, 1 third, 2 fifth) of each note in a bar."""
    beats = range(metre.beats)
    half = 0.5 if metre.parts == 2 else 2 / 3
    match name:
        case "long":
            return [(0.0, metre.beats * 0.95, 0)]
        case "root and fifth":
            middle = max(1, metre.beats // 2)
            return [(0.0, middle * 0.9, 0), (float(middle), (metre.beats - middle) * 0.9, 2)]
        case "every beat":
            return [(float(beat), 0.85, 0) for beat in beats]
        case "walking":
            return [(float(beat), 0.9, (0, 1, 2, 1)[beat % 4]) for beat in beats]
        case "pulse":
            return [(beat + part, 0.4, 0) for beat in beats for part in (0.0, half)]
        case _:  # syncopated
            return [(0.0, 0.9, 0), (metre.beats / 2 - 1 + half, 0.4, 0), (metre.beats / 2, 0.9, 2)]
