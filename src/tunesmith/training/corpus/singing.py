"""Songs of one line each, sung with accompaniment: audio that belongs to an artist, a genre and lyrics.

    corpus = SungCorpus(seed=0, split="train")
    song = corpus.song(0)  # the same for ever, on any machine with the same eSpeak NG and soundfont
    song.audio, song.labels.artist, song.labels.genre, song.labels.lyrics, song.labels.syllables

Six singers, four genres with four tunes each, and lines of eight places for syllables (`singing_lyrics.py`).  Singer,
genre, tune and line are drawn independently, so each can be learnt, and asked for, without the others.  The lines of
`validation` and `test` are never sung in `train`, though nearly all of their words are.
"""

import random
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tunesmith.audio import Clip
from tunesmith.errors import RequestError
from tunesmith.training.corpus.music import BASS, DRUMS, PAD, Key, Note, Score, close_chord, nearest_octave
from tunesmith.training.corpus.render import find_soundfont, level, renderer
from tunesmith.training.corpus.singing_lyrics import PLACES, Line, draw_line, parse, vocabulary
from tunesmith.training.corpus.singing_voice import RATE, Singer, Sung, sing
from tunesmith.training.corpus.split import SPLITS

VERSION = 1
"""Grows when the same seed and index give another song than before."""
SAMPLE_RATE = 8_000
SECONDS = 4.096
"""Length of a song: 2**15 samples at 8 kHz."""
STRESSES = PLACES // 2
_BEHIND = -15.0
"""Level of the accompaniment in dB, relative to the voice."""
_BRIGHT = 0.75
"""How much of each sample is taken from the next: what lies high would be lost first in a codec of few bits."""
_REST = 0.1
"""Seconds of silence at the end of a song."""

ARTISTS: dict[str, Singer] = {
    "Bruno Oak": Singer("en-us+m1", 43, size=1.08),
    "Emil Stone": Singer("en-us+m3", 46),
    "Felix Reed": Singer("en-us+m7", 50, breath=0.25),
    "Clara Brook": Singer("en-us+f5", 56),
    "Ada Finch": Singer("en-us+f2", 59),
    "Dora Lark": Singer("en-us+f4", 62, size=0.92),
}
"""Nobody of flesh and blood; each sings in a key of their own."""


@dataclass(frozen=True)
class Genre:
    """How a line is set and accompanied; times in seconds."""

    mode: str
    pair: float
    """From stress to stress."""
    weak: float
    """Length of the syllable before a stress."""
    chords: str
    bass: str
    figure: tuple[float, ...]
    """When chords are struck, in parts of the time from stress to stress; the bass plays on each stress."""
    broken: bool
    """Whether the notes of a chord come one after the other."""
    drums: tuple[tuple[float, int], ...]
    """When, in parts of the time from stress to stress, and which."""
    tunes: tuple[tuple[int, ...], ...]
    """A degree of the scale (0 is the tonic) for each place."""


_OLD_HUNDREDTH = (
    (0, 0, -1, -2, -3, 0, 1, 2),
    (2, 2, 2, 1, 0, 3, 2, 1),
    (0, 1, 2, 1, 0, -2, -1, 0),
    (4, 2, 0, 1, 3, 2, 1, 0),
)
"""The four lines of the tune of 1551."""

_KICK, _SNARE = 36, 38

GENRES: dict[str, Genre] = {
    "hymn": Genre("major", 0.88, 0.44, "organ", "organ", (0.0,), False, (), _OLD_HUNDREDTH),
    "lullaby": Genre(
        *("major", 0.90, 0.30, "music box", "harp", (0.0, 1 / 3, 2 / 3), True, ()),
        ((0, 2, 4, 4, 3, 1, 1, 0), (2, 2, 1, 0, -1, 1, 0, -3), (4, 4, 3, 2, 3, 3, 2, 1), (0, -1, 0, 2, 1, 0, -1, 0)),
    ),
    "march": Genre(
        *("major", 0.76, 0.38, "brass", "trombone", (0.5,), False),
        ((0.0, _KICK), (0.5, _SNARE), (0.75, _SNARE)),
        ((-3, 0, 0, 2, 2, 4, 4, 2), (0, 0, 1, 1, 2, 0, 1, -3), (4, 4, 3, 3, 2, 2, 1, 0), (2, 0, -3, 0, 2, 4, 2, 0)),
    ),
    "lament": Genre(
        *("minor", 0.84, 0.21, "acoustic guitar", "cello", (0.0, 0.25, 0.5, 0.75), True, ()),
        ((0, 2, 1, 0, -1, 0, 1, -3), (4, 4, 3, 2, 1, 2, 1, 0), (0, 0, 2, 2, 1, 1, 0, -1), (-3, 0, 0, 2, 3, 2, 1, 0)),
    ),
}


@dataclass(frozen=True)
class Syllable:
    """What is sung when, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class SungLabels:
    """What is known about a song."""

    artist: str
    genre: str
    lyrics: str
    title: str
    """The poem, or `verse`."""
    source: str
    """Who wrote the words, and when; `composed` for verses made here."""
    tune: int
    """Which of its genre's tunes."""
    syllables: tuple[Syllable, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Song:
    """One line, sung."""

    audio: Float32[np.ndarray, " T"]
    """Mono, full scale 1."""
    labels: SungLabels


@dataclass(frozen=True)
class Plan:
    """What is to be sung, by whom and how."""

    artist: str
    genre: str
    tune: int
    line: Line

    def __post_init__(self) -> None:
        for kind, name, known in (("artist", self.artist, ARTISTS), ("genre", self.genre, GENRES)):
            if name not in known:
                raise RequestError(f"The singing corpus has no {kind} {name!r}; it has {', '.join(known)}.")

    @property
    def notes(self) -> list[list[Sung]]:
        """A note for each syllable, word by word."""
        genre, key = GENRES[self.genre], self.key
        places = range(PLACES - self.line.syllables, PLACES)
        degrees = genre.tunes[self.tune]
        pitches = [self.tonic + key.semitones(degrees[i], chord=self.chord(i // 2)) for i in range(PLACES)]
        notes = iter([Sung(*_place(genre, place), pitches[place]) for place in places])
        return [[next(notes) for _ in word] for word in self.line.words]

    @property
    def tonic(self) -> int:
        """MIDI pitch."""
        return ARTISTS[self.artist].tonic

    @property
    def key(self) -> Key:
        """The singer's tonic in the genre's mode."""
        return Key(self.tonic % 12, GENRES[self.genre].mode)

    def chord(self, stress: int) -> int:
        """Tonic, dominant or subdominant: the first that holds the stressed note of the tune."""
        degree = GENRES[self.genre].tunes[self.tune][2 * stress + 1]
        return next(chord for chord in (0, 4, 3) if (degree - chord) % 7 in (0, 2, 4))


def _place(genre: Genre, place: int) -> tuple[float, float]:
    """When the syllable of a place begins and ends; the last one is held."""
    stress = _first_stress(genre) + place // 2 * genre.pair
    if place % 2 == 0:
        return stress - genre.weak, stress
    return stress, min(stress + (genre.pair if place == PLACES - 1 else genre.pair - genre.weak), SECONDS - _REST)


def _first_stress(genre: Genre) -> float:
    """After an upbeat of chord and syllable."""
    return genre.weak + 0.12


class SungCorpus:
    """An endless, indexed set of songs.

    Args:
        seed: another seed, other songs.
        split: `train`, `validation` or `test`; no line is in two of them.
        sample_rate: samples per second of the audio, 8,000 to 16,000.
        soundfont: a General MIDI soundfont; None finds the installed one when the first song is rendered.

    Raises:
        RequestError: for values that are not allowed.

    """

    def __init__(
        self, seed: int, split: str = "train", sample_rate: int = SAMPLE_RATE, soundfont: Path | None = None
    ) -> None:
        if split not in SPLITS:
            raise RequestError(f"'{split}' is no split of the corpus; it has {', '.join(SPLITS)}.")
        if not 8_000 <= sample_rate <= RATE:
            raise RequestError(f"Songs can't be sung at {sample_rate} samples per second; 8000 to {RATE} are possible.")
        self.seed, self.split, self.sample_rate, self.soundfont = seed, split, sample_rate, soundfont

    def plan(self, index: int) -> Plan:
        """What the song of an index (0 or more, without end) will be."""
        rng = random.Random(f"tunesmith singing / {self.seed} / {self.split} / {index}")
        artist, genre = rng.choice(list(ARTISTS)), rng.choice(list(GENRES))
        return Plan(artist, genre, rng.randrange(len(GENRES[genre].tunes)), draw_line(rng, self.split))

    def song(self, index: int) -> Song:
        """The song of an index: the same in every process and order."""
        return self.render(self.plan(index))

    def labels_of(self, index: int) -> SungLabels:
        """The labels of `song(index)` without its sound."""
        return labels_of(self.plan(index))

    def render(self, plan: Plan) -> Song:
        """A plan in sound.  Raises MissingDependencyError for what isn't installed."""
        font = self.soundfont or find_soundfont()
        words = ["".join(word) for word in plan.line.words]
        voice = sing(ARTISTS[plan.artist], zip(words, plan.notes, strict=True), SECONDS, vocabulary())
        behind = accompaniment(plan.artist, plan.genre, plan.tune, font)
        mixed = _loud(voice) + 10 ** (_BEHIND / 20) * _loud(behind)
        bright = mixed - _BRIGHT * np.concatenate([[0.0], mixed[:-1]])
        audio = Clip(bright[None].astype(np.float32), RATE).resample(self.sample_rate).samples[0]
        return Song(audio=level(audio), labels=labels_of(plan))


def labels_of(plan: Plan) -> SungLabels:
    """What a plan says of its song."""
    sung = [
        Syllable(text, round(note.start, 3), round(note.end, 3))
        for word, notes in zip(plan.line.words, plan.notes, strict=True)
        for text, note in zip(word, notes, strict=True)
    ]
    own = plan.line.source == "composed"
    return SungLabels(
        artist=plan.artist,
        genre=plan.genre,
        lyrics=plan.line.text,
        title="verse" if own else plan.line.work,
        source=plan.line.source,
        tune=plan.tune,
        syllables=tuple(sung),
    )


def plan_for(artist: str, genre: str, words: str, tune: int = 0) -> Plan:
    """A song of one's own words, hyphens between syllables; all words must be in `vocabulary()`.

    Raises RequestError for unknown names and words, and for another number of syllables than 7 or 8.
    """
    line = parse(words, "composed", words)
    unknown = {"".join(word) for word in line.words} - set(vocabulary())
    if unknown or line.syllables not in (PLACES - 1, PLACES):
        raise RequestError(
            f"{words!r} can't be sung: a line has {PLACES - 1} or {PLACES} syllables, this one {line.syllables}"
            + (f", and the corpus doesn't know {', '.join(sorted(unknown))}." if unknown else ".")
        )
    return Plan(artist, genre, tune, line)


@lru_cache(maxsize=128)
def accompaniment(artist: str, genre: str, tune: int, font: Path) -> Float32[np.ndarray, " T"]:
    """What is played behind a tune, at the voice's rate; it depends on nothing else."""
    plan, how = Plan(artist, genre, tune, Line("", "", ())), GENRES[genre]
    first, notes = _first_stress(how), list(_chord(plan, 0, 0.0, _first_stress(how), (0.0,)))
    for stress in range(STRESSES + 1):
        begin, chord = first + stress * how.pair, plan.chord(stress) if stress < STRESSES else 0
        end = begin + how.pair
        notes += _chord(plan, chord, begin, end, how.figure if stress < STRESSES else (0.0,))
        pitch = nearest_octave(plan.tonic + plan.key.semitones(chord, chord=chord), 43.0)
        notes.append(Note(begin, end, pitch, 80, BASS))
        notes += [Note(begin + part * how.pair, end, drum, 70, DRUMS) for part, drum in how.drums]
    voices = {PAD: how.chords, BASS: how.bass}
    return renderer(font, RATE).render(Score(notes=tuple(notes), voices=voices, bpm=60.0, room=0.0), SECONDS)


def _chord(plan: Plan, chord: int, begin: float, end: float, figure: tuple[float, ...]) -> list[Note]:
    """A chord as the genre plays it; at 60 beats per minute beats are seconds."""
    how, pitches = GENRES[plan.genre], close_chord(plan.key, chord, 62.0)
    struck = [begin + part * (end - begin) for part in figure]
    if how.broken:
        return [Note(time, end, pitches[i % 3], 80, PAD) for i, time in enumerate(struck)]
    return [Note(time, end, pitch, 80, PAD) for time in struck for pitch in pitches]


def _loud(audio: np.ndarray) -> np.ndarray:
    """At a mean power of 1."""
    return audio / max(float(np.sqrt(np.mean(audio**2))), 1e-9)
