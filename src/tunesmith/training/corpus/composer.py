"""A rule-based composer: sixteen styles of band music from a plan whose axes are drawn independently.

Key, tempo, metre, lead, drums, density and energy each come from their own draw, so that a model can learn each and
a test can ask for each.  A style prefers some leads and tempos, but many clips ignore it.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tunesmith.errors import RequestError
from tunesmith.training.corpus import labels as facts
from tunesmith.training.corpus.band import SLOW, STRENGTH, Section
from tunesmith.training.corpus.labels import Density, Energy, Labels
from tunesmith.training.corpus.music import (
    ACCOMPANIMENTS,
    BASS,
    BASSES,
    INSTRUMENTS,
    LEAD,
    LEADS,
    MARGIN,
    METRES,
    MODES,
    PAD,
    TONICS,
    Instrument,
    Key,
    Metre,
    Note,
    Score,
    nearest_octave,
    swung,
)
from tunesmith.training.corpus.split import Split, pair_split

SLOWEST, FASTEST = 60, 180
"""Beats per minute."""
OFF_STYLE = 0.3
"""How often the lead ignores the style."""
OFF_TEMPO = 0.5
"""How often the tempo does."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What is usual in a style of music."""

    tempo: tuple[int, int]
    leads: tuple[str, ...]
    accompaniments: tuple[str, ...]
    figures: tuple[str, ...]
    bass: str
    bass_lines: tuple[str, ...]
    groove: str
    metres: tuple[str, ...] = ("4/4", "4/4", "4/4", "3/4", "6/8")
    swing: bool = False
    blues: bool = False
    """Twelve bars instead of phrases of four."""


STYLES: dict[str, Style] = {
    "rock": Style(
        tempo=(100, 160),
        leads=("distorted guitar", "electric guitar", "saxophone"),
        accompaniments=("organ", "electric guitar", "piano"),
        figures=("pulse", "block"),
        bass="electric bass",
        bass_lines=("pulse", "every beat"),
        groove="rock",
    ),
    "pop": Style(
        tempo=(92, 132),
        leads=("piano", "synth lead", "acoustic guitar", "harpsichord"),
        accompaniments=("piano", "acoustic guitar", "synth pad"),
        figures=("block", "syncopated", "arpeggio"),
        bass="electric bass",
        bass_lines=("every beat", "syncopated"),
        groove="rock",
    ),
    "house": Style(
        tempo=(112, 132),
        leads=("synth lead", "piano", "vibraphone", "marimba"),
        accompaniments=("synth pad", "electric piano", "organ"),
        figures=("offbeat",),
        bass="synth bass",
        bass_lines=("pulse", "every beat"),
        groove="four on the floor",
        metres=("4/4",),
    ),
    "synthwave": Style(
        tempo=(80, 124),
        leads=("synth lead", "electric guitar", "saxophone"),
        accompaniments=("synth pad", "electric piano"),
        figures=("sustained", "arpeggio"),
        bass="synth bass",
        bass_lines=("pulse",),
        groove="four on the floor",
        metres=("4/4",),
    ),
    "lofi": Style(
        tempo=(64, 88),
        leads=("vibraphone", "electric guitar", "harp", "piano"),
        accompaniments=("electric piano", "piano"),
        figures=("syncopated", "block"),
        bass="electric bass",
        bass_lines=("long", "syncopated"),
        groove="soft",
        metres=("4/4",),
    ),
    "funk": Style(
        tempo=(92, 120),
        leads=("saxophone", "trumpet", "electric guitar"),
        accompaniments=("electric guitar", "organ", "electric piano"),
        figures=("offbeat", "syncopated"),
        bass="electric bass",
        bass_lines=("syncopated", "pulse"),
        groove="funk",
        metres=("4/4",),
    ),
    "reggae": Style(
        tempo=(104, 156),
        leads=("organ", "trombone", "harmonica", "electric guitar"),
        accompaniments=("electric guitar", "organ", "piano"),
        figures=("oompah",),
        bass="electric bass",
        bass_lines=("root and fifth", "syncopated"),
        groove="reggae",
        metres=("4/4",),
    ),
    "blues": Style(
        tempo=(66, 126),
        leads=("harmonica", "electric guitar", "saxophone", "piano"),
        accompaniments=("piano", "electric guitar", "organ"),
        figures=("block", "pulse"),
        bass="electric bass",
        bass_lines=("walking", "every beat"),
        groove="swing",
        metres=("4/4", "4/4", "12/8"),
        swing=True,
        blues=True,
    ),
    "swing": Style(
        tempo=(110, 176),
        leads=("saxophone", "clarinet", "trumpet", "trombone", "vibraphone"),
        accompaniments=("piano", "acoustic guitar"),
        figures=("block", "offbeat"),
        bass="acoustic bass",
        bass_lines=("walking",),
        groove="swing",
        metres=("4/4", "4/4", "3/4"),
        swing=True,
    ),
    "bossa nova": Style(
        tempo=(96, 140),
        leads=("flute", "acoustic guitar", "saxophone", "vibraphone"),
        accompaniments=("acoustic guitar", "electric piano"),
        figures=("syncopated",),
        bass="acoustic bass",
        bass_lines=("root and fifth", "syncopated"),
        groove="latin",
        metres=("4/4",),
    ),
    "country": Style(
        tempo=(90, 150),
        leads=("banjo", "violin", "acoustic guitar", "harmonica"),
        accompaniments=("acoustic guitar", "piano"),
        figures=("oompah", "block"),
        bass="acoustic bass",
        bass_lines=("root and fifth",),
        groove="train",
    ),
    "waltz": Style(
        tempo=(84, 168),
        leads=("violin", "accordion", "clarinet", "harp", "cello"),
        accompaniments=("piano", "strings", "accordion"),
        figures=("oompah",),
        bass="acoustic bass",
        bass_lines=("long",),
        groove="soft",
        metres=("3/4",),
    ),
    "march": Style(
        tempo=(92, 132),
        leads=("trumpet", "clarinet", "french horn", "flute"),
        accompaniments=("brass", "organ", "piano"),
        figures=("oompah", "block"),
        bass="acoustic bass",
        bass_lines=("root and fifth",),
        groove="march",
        metres=("4/4", "2/4", "6/8"),
    ),
    "ballad": Style(
        tempo=(60, 84),
        leads=("piano", "cello", "oboe", "acoustic guitar", "choir"),
        accompaniments=("piano", "strings", "acoustic guitar"),
        figures=("sustained", "arpeggio"),
        bass="electric bass",
        bass_lines=("long", "root and fifth"),
        groove="soft",
    ),
    "ambient": Style(
        tempo=(60, 88),
        leads=("harp", "pan flute", "choir", "piano", "music box"),
        accompaniments=("synth pad", "strings", "choir"),
        figures=("sustained",),
        bass="synth bass",
        bass_lines=("long",),
        groove="soft",
    ),
    "classical": Style(
        tempo=(72, 144),
        leads=("harpsichord", "violin", "oboe", "flute", "harp", "cello"),
        accompaniments=("strings", "harpsichord", "piano"),
        figures=("arpeggio", "block"),
        bass="acoustic bass",
        bass_lines=("every beat", "root and fifth"),
        groove="march",
    ),
}

# Chords of four bars by scale degree.  Each begins on the tonic, and minor ones keep away from the relative major.
PROGRESSIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "major": ((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 5, 3), (0, 3, 0, 4), (0, 0, 3, 4), (0, 4, 3, 0), (0, 0, 4, 0)),
    "minor": ((0, 3, 4, 0), (0, 5, 4, 0), (0, 0, 5, 4), (0, 3, 0, 4), (0, 0, 3, 4), (0, 6, 3, 4), (0, 0, 4, 0)),
}
_TWELVE_BARS = (0, 0, 0, 0, 3, 3, 0, 0, 4, 3, 0, 4)
_NOTES_PER_SECOND: dict[Density, tuple[float, float]] = {
    "sparse": (0.9, 1.45),
    "steady": (1.9, 3.0),
    "busy": (3.9, 5.5),
}
_SLOW_SWING = 0.9
"""How often slow music is long-short: even halves of a slow beat sound like a beat twice as fast."""
_PLAYERS = {
    (True, True): (2, 3, 3, 3),
    (True, False): (2, 3, 3, 3),
    (False, True): (1, 2, 2, 3, 3),
    (False, False): (1, 2, 2, 2, 3, 3, 3, 3),  # alone, a single line leaves the key in doubt
}
"""How many play, drawn from these: with drums or without, and a lead that can play chords or only a line."""
_LEGATO: dict[Energy, float] = {"gentle": 1.0, "moderate": 0.92, "strong": 0.85}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is decided before the first note."""

    style: str
    key: Key
    bpm: int
    metre: str
    lead: str
    drums: bool
    density: Density
    energy: Energy
    players: int
    """Pitched instruments: 1 (solo), 2 (with accompaniment) or 3 (and a bass)."""
    accompaniment: str
    bass: str

    @property
    def voices(self) -> dict[int, str]:
        """Channel -> instrument."""
        return dict(list({LEAD: self.lead, PAD: self.accompaniment, BASS: self.bass}.items())[: self.players])


_CHOICES: dict[str, Iterable[object]] = {
    "style": STYLES,
    "metre": METRES,
    "lead": LEADS,
    "drums": (True, False),
    "density": _NOTES_PER_SECOND,
    "energy": STRENGTH,
    "players": (1, 2, 3),
    "accompaniment": ACCOMPANIMENTS,
    "bass": BASSES,
}


def _check(name: str, value: object) -> None:
    """Refuse what the corpus doesn't have."""
    if name == "bpm":
        if not (isinstance(value, int) and SLOWEST <= value <= FASTEST):
            raise RequestError(
                f"The corpus has no tempo of {value} bpm; it has whole numbers from {SLOWEST} to {FASTEST}."
            )
    elif name in _CHOICES and value not in (choices := list(_CHOICES[name])):
        raise RequestError(f"The corpus has no {name} '{value}'; it has {', '.join(map(str, choices))}.")
    elif name not in Plan.__dataclass_fields__:
        raise RequestError(f"'{name}' can't be chosen; {', '.join(Plan.__dataclass_fields__)} can.")


def draw_plan(rng: random.Random, split: Split, **fixed: Any) -> Plan:
    """Draw what is not given.

    Args:
        rng: source of chance.
        split: `train` avoids the held-out pairs of style and lead; the others use theirs in three clips of ten.
        fixed: fields of `Plan` with their values; `key` may be a name, and a `style` and `lead` that are both given are
            taken whatever the split.

    """
    if isinstance(fixed.get("key"), str):
        fixed["key"] = Key.parse(fixed["key"])
    for name, value in fixed.items():
        _check(name, value)
    style, lead = _draw_pair(rng, split, fixed.get("style"), fixed.get("lead"))
    usual = STYLES[style]
    slowest, fastest = usual.tempo if rng.random() >= OFF_TEMPO else (SLOWEST, FASTEST)
    drums = fixed.get("drums", rng.random() < 0.5)
    drawn: dict[str, Any] = {
        "style": style,
        "lead": lead,
        "key": Key(rng.randrange(len(TONICS)), rng.choice(MODES)),
        "bpm": round(slowest * (fastest / slowest) ** rng.random()),  # each ratio equally often
        "metre": rng.choice(usual.metres),
        "drums": drums,
        "density": rng.choice(list(_NOTES_PER_SECOND)),
        "energy": rng.choice(list(STRENGTH)),
        "players": rng.choice(_PLAYERS[drums, INSTRUMENTS[lead].chords]),
        "accompaniment": rng.choice([name for name in _accompaniments(usual, rng) if name != lead]),
        "bass": usual.bass,
    }
    return Plan(**drawn | fixed)


def _draw_pair(rng: random.Random, split: Split, style: str | None, lead: str | None) -> tuple[str, str]:
    """A style and a lead instrument that the split may combine: mostly a usual pair, each style equally often."""
    if style and lead:
        return style, lead
    held_out, free, usual = _pairs(split, style, lead)
    if held_out and rng.random() < OFF_STYLE:
        return rng.choice(held_out)
    pool = usual if usual and rng.random() >= OFF_STYLE else free
    style = rng.choice(list(dict.fromkeys(s for s, _ in pool)))
    return style, rng.choice([name for s, name in pool if s == style])


Pairs = list[tuple[str, str]]


@cache
def _pairs(split: Split, style: str | None, lead: str | None) -> tuple[Pairs, Pairs, Pairs]:
    """The pairs of style and lead that are held out for a split, those that are free to all, and the usual of these."""
    pairs = [(s, name) for s in ([style] if style else STYLES) for name in ([lead] if lead else LEADS)]
    held_out = [pair for pair in pairs if split != "train" and pair_split(*pair) == split]
    free = [pair for pair in pairs if pair_split(*pair) == "train"]
    return held_out, free, [(s, name) for s, name in free if name in STYLES[s].leads]


def _accompaniments(usual: Style, rng: random.Random) -> tuple[str, ...]:
    return usual.accompaniments if rng.random() >= OFF_STYLE / 2 else ACCOMPANIMENTS


def compose(plan: Plan, rng: random.Random, seconds: float) -> tuple[Score, Labels]:
    """Write the notes of a plan, and say what was written."""
    style, metre = STYLES[plan.style], METRES[plan.metre]
    bars = int((seconds + MARGIN) * plan.bpm / 60 / metre.beats) + 1
    chords = _chords(plan, bars, rng)
    section = _section(plan, style, metre, rng)
    notes, voices = _melody(plan, metre, chords, rng), plan.voices
    if plan.players == 1 and INSTRUMENTS[plan.lead].chords:
        notes += _left_hand(plan, metre, chords, rng)
        voices[PAD] = plan.lead
    for bar, chord in enumerate(chords):
        notes += section.bar(float(bar * metre.beats), chord, crash=plan.energy == "strong" and bar % 8 == 0)
    score = Score(notes=tuple(notes), voices=voices, bpm=float(plan.bpm), room=rng.uniform(0.0, 0.3))
    if metre.parts == 2 and (style.swing or (plan.bpm < SLOW and rng.random() < _SLOW_SWING)):
        score = score.retimed(swung)
    return score, _labels(plan, score, seconds, f"{plan.style} in {plan.key.name}, {rng.randrange(10**6):06d}")


def _section(plan: Plan, style: Style, metre: Metre, rng: random.Random) -> Section:
    """The accompaniment of a plan.  Two players share three parts: the one with the chords plays a bass to them."""
    figure, bass = rng.choice(style.figures), rng.choice(style.bass_lines)
    section = Section.of(
        plan.key,
        metre,
        float(plan.bpm),
        plan.energy,
        figure=figure if plan.players > 1 else None,
        bass=bass if plan.players > 1 else None,
        groove=style.groove if plan.drums else None,
    )
    return replace(
        section,
        centre=57.0 if INSTRUMENTS[plan.lead].low >= 50 else 62.0,
        bass_channel=BASS if plan.players > 2 else PAD,
    )


def _labels(plan: Plan, score: Score, seconds: float, title: str) -> Labels:
    rate = facts.melody_rate(score.notes, score.bpm, seconds)
    moods = facts.MOODS[plan.key.mode, facts.arousal_of(float(plan.bpm), plan.energy)]
    return Labels(
        source="composed",
        title=title,
        work=title,
        genre=plan.style,
        bpm=float(plan.bpm),
        tonic=TONICS[plan.key.tonic],
        mode=plan.key.mode,
        metre=plan.metre,
        lead=plan.lead,
        instruments=tuple(plan.voices.values()),
        drums=plan.drums,
        density=facts.density_of(rate),
        notes_per_second=round(rate, 3),
        energy=plan.energy,
        moods=moods,
    )


def _chords(plan: Plan, bars: int, rng: random.Random) -> list[int]:
    """The chord of each bar: phrases A A B A of four bars, or the twelve bars of a blues."""
    if STYLES[plan.style].blues:
        return [_TWELVE_BARS[bar % 12] for bar in range(bars)]
    known = PROGRESSIONS[plan.key.mode]
    if plan.bpm < SLOW:  # a short clip hears only three bars: two of them on the tonic
        known = tuple(chords for chords in known if chords[:3].count(0) > 1)
    first, second = rng.choice(known), rng.choice(known)
    return [(second if bar // 4 % 4 == 2 else first)[bar % 4] for bar in range(bars)]


def _melody(plan: Plan, metre: Metre, chords: list[int], rng: random.Random) -> list[Note]:
    """A melody of two four-bar phrases in the order A A B A: chord notes on strong beats, steps between."""
    instrument = INSTRUMENTS[plan.lead]
    base = nearest_octave(plan.key.tonic, (instrument.low + instrument.high) / 2)
    phrases = [[_motif(plan, metre, rng) for _ in range(4)] for _ in range(2)]
    notes: list[Note] = []
    degree = rng.choice((0, 2, 4))
    for bar, chord in enumerate(chords):
        motif = phrases[bar // 4 % 4 == 2][bar % 4]
        for place, (onset, step) in enumerate(motif):
            stressed = place == 0 or (onset == int(onset) and metre.strong(int(onset)))
            degree = _next_degree(degree, 0 if place == 0 else step, chord if stressed else None)
            if chord == 0 and place in (0, len(motif) - 1):
                # Home at the end of a bar, the third at its beginning: tonic and mode are never in doubt.
                home = 0 if place or len(motif) == 1 else 2
                degree = home + 7 * round((degree - home) / 7)
            pitch = _playable(base + plan.key.semitones(degree, chord=chord), instrument)
            accent = 6 if stressed else -28 if plan.bpm < SLOW and onset != int(onset) else 0
            velocity = 98 + STRENGTH[plan.energy] + accent
            notes.append(Note(bar * metre.beats + onset, 0.0, pitch, min(velocity, 124), LEAD))
    return _held(notes, float(len(chords) * metre.beats), _LEGATO[plan.energy])


def _motif(plan: Plan, metre: Metre, rng: random.Random) -> list[tuple[float, int]]:
    """Onsets in one bar (the first on the beat), as many as the density asks for, and the melodic step to each."""
    wanted = rng.uniform(*_NOTES_PER_SECOND[plan.density]) * 60 / plan.bpm * metre.beats
    count = max(1, round(wanted))
    fine = metre.parts if count <= metre.parts * metre.beats else 2 * metre.parts
    slots = [beat + part / fine for beat in range(metre.beats) for part in range(fine)]
    weights = {slot: _weight(slot, metre) * rng.uniform(0.5, 1.5) for slot in slots[1:]}
    onsets = [0.0, *sorted(sorted(weights, key=lambda slot: -weights[slot])[: count - 1])]
    return [(onset, rng.choice((-2, -1, -1, 0, 1, 1, 2))) for onset in onsets]


def _weight(slot: float, metre: Metre) -> float:
    """How naturally a note falls on a place in the bar."""
    if slot == int(slot):
        return 4.0 if metre.strong(int(slot)) else 3.0
    return 1.5 if abs(slot * metre.parts - round(slot * metre.parts)) < 1e-6 else 0.5


def _next_degree(degree: int, step: int, chord: int | None) -> int:
    """Walk by a step within an octave and a half around the tonic; with a chord given, land on its nearest note."""
    degree = max(-4, min(8, degree + step))
    if chord is None:
        return degree
    return min((d for d in range(-4, 9) if (d - chord) % 7 in (0, 2, 4)), key=lambda d: abs(d - degree))


def _playable(pitch: int, instrument: Instrument) -> int:
    """Moved by octaves into the instrument's range, with some tolerance so that melodies keep their shape."""
    if pitch > instrument.high + 3:
        return pitch - 12
    return pitch + 12 if pitch < instrument.low - 3 else pitch


def _held(notes: list[Note], end: float, legato: float) -> list[Note]:
    """Give each note of a melody its length: until the next, but no longer than four beats."""
    following = [note.start for note in notes[1:]] + [end]
    return [
        note._replace(end=note.start + min(4.0, nxt - note.start) * legato)
        for note, nxt in zip(notes, following, strict=True)
    ]


def _left_hand(plan: Plan, metre: Metre, chords: list[int], rng: random.Random) -> list[Note]:
    """What a pianist or guitarist alone plays below the melody, on the same instrument."""
    figure, bass = rng.choice(("arpeggio", "block", "oompah")), "root and fifth"
    hand = Section.of(plan.key, metre, float(plan.bpm), plan.energy, figure=figure, bass=bass, groove=None)
    hand = replace(hand, centre=54.0, bass_channel=PAD)
    return [note for bar, chord in enumerate(chords) for note in hand.bar(float(bar * metre.beats), chord)]
