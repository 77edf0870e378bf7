"""Traditional tunes of four old collections, read from the ABC files inside the music21 package, and their arrangement.

Only tunes whose key is certain are kept: the key field names a major or minor key and the last note is its tonic.
abc2midi expands repeats and ornaments; a drum stroke that it is told to play on every bar line tells where the bars
are, so pickups and uneven bars need no guessing.
"""

import random
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from tunesmith.errors import MissingDependencyError
from tunesmith.training.corpus import labels as facts
from tunesmith.training.corpus.band import STRENGTH, Section
from tunesmith.training.corpus.labels import Energy, Labels
from tunesmith.training.corpus.music import (
    ACCOMPANIMENTS,
    BASS,
    DRUMS,
    INSTRUMENTS,
    LEAD,
    MARGIN,
    METRES,
    PAD,
    TONICS,
    Key,
    Metre,
    Note,
    Score,
    into_range,
)
from tunesmith.training.corpus.works import same_works

COLLECTIONS = {
    "oneills1850": "O'Neill's Music of Ireland",
    "ryansMammoth": "Ryan's Mammoth Collection",
    "airdsAirs": "Aird's Airs",
    "miscFolk": "Northumbrian Minstrelsy and American fife tunes",
}
"""Folder in music21's corpus -> name of the book."""

_METRE_NAMES = {"C": "4/4", "C|": "2/2"}
_TEMPOS = {
    "2/2": (80, 124),
    "4/4": (84, 160),
    "2/4": (80, 126),
    "3/4": (80, 168),
    "6/8": (80, 138),
    "9/8": (80, 132),
    "12/8": (80, 126),
}
"""Beats per minute that a metre bears, widely taken so that tempo doesn't follow from the kind of tune."""
_KINDS = (
    *(
        "strathspey",
        "hornpipe",
        "slip jig",
        "reel",
        "jig",
        "polka",
        "waltz",
        "march",
        "quickstep",
        "minuet",
        "gavotte",
        "clog",
    ),
    *("fling", "slide", "schottische", "walkaround", "air"),
)
_SPELLINGS = {"slipjig": "slip jig", "quick step": "quickstep", "walk around": "walkaround", "minuit": "minuet"}


@dataclass(frozen=True, kw_only=True)
class Tune:
    """A melody in quarter notes, with its bar lines."""

    book: str
    title: str
    work: str
    kind: str
    """`jig`, `reel`, ..., or `folk tune` where the book doesn't say."""
    metre: str
    key: Key
    notes: tuple[tuple[float, float, int], ...]
    """Start and end in quarter notes, and pitch."""
    bars: tuple[float, ...]
    """Where bars begin, in quarter notes; the first is later than 0 when there is a pickup."""

    @property
    def length(self) -> float:
        """Quarter notes until the tune can begin again: its last bar leaves room for the pickup."""
        metre = METRES[self.metre]
        bar = metre.beats * metre.quarters
        length = self.bars[-1] + bar - self.bars[0]
        return length if self.notes[-1][1] < length + 0.05 else length + bar


@dataclass(frozen=True, kw_only=True)
class _Abc:
    """The text of one tune and what its header says."""

    book: str
    title: str
    kind: str
    metre: str
    key: Key
    body: str


def parse_key(field: str) -> Key | None:
    """The key of a K: field ("G", "E Minor", "Bbm"), or None unless it is plainly major or minor."""
    found = re.match(r"^\s*([A-G])([#b]?)\s*([A-Za-z]*)\s*$", field)
    if not found:
        return None
    mode = {"": "major", "maj": "major", "major": "major", "m": "minor", "min": "minor", "minor": "minor"}.get(
        found[3].lower()
    )
    return Key.parse(f"{found[1]}{found[2]} {mode}") if mode else None


def parse_abc(text: str, book: str) -> Iterator[_Abc]:
    """The tunes of an ABC file whose key and metre are certain."""
    for block in re.split(r"(?m)^(?=X:)", text.replace("\r\n", "\n").replace("\r", "\n"))[1:]:
        header, separator, body = re.split(r"(?m)^(K:.*)$", block, maxsplit=1)[:3] if "\nK:" in block else ("", "", "")
        key = parse_key(separator[2:].split("%")[0])
        metre = _field(header, "M").split("%")[0].strip()
        metre = _METRE_NAMES.get(metre, metre)
        # A change of key or metre in mid-tune would make the labels wrong.
        if key and metre in METRES and not re.search(r"(?m)^[KM]:|\[[KMV]:|^V:", body):
            title = _field(header, "T") or "untitled"
            kind = kind_of(f"{_field(header, 'R')} {title}")
            yield _Abc(
                book=book,
                title=title,
                kind=kind,
                metre=metre,
                key=key,
                body=f"{_field(header, 'L')}\n{separator}\n{body}",
            )


def _field(header: str, letter: str) -> str:
    found = re.search(rf"(?m)^{letter}:[ \t]*(.*)$", header)
    return found[1].strip() if found else ""


def kind_of(text: str) -> str:
    """The kind of dance that a rhythm field or a title names, else `folk tune`."""
    words = text.lower()
    for spelling, kind in _SPELLINGS.items():
        words = words.replace(spelling, kind)
    return next((kind for kind in _KINDS if re.search(rf"\b{kind}s?\b", words)), "folk tune")


def midi_source(tunes: Iterable[_Abc]) -> str:
    """One ABC file for abc2midi: numbered tunes without fingerings and grace notes, with a stroke on every bar line."""
    blocks = []
    for number, tune in enumerate(tunes, start=1):
        length, key, body = tune.body.split("\n", 2)
        music = re.sub(r'"[^"]*"|\{[^}]*\}', "", body)
        lines = [line for line in music.splitlines() if line.strip() and not re.match(r"^\s*(%|[A-Za-z]:)", line)]
        head = [
            f"X:{number}",
            "T:t",
            f"M:{tune.metre}",
            f"L:{length or '1/8'}",
            key,
            "%%MIDI drum dz 76 127",
            "%%MIDI drumon",
        ]
        blocks.append("\n".join([*head, *lines]))
    return "\n\n".join(blocks) + "\n"


def read_midi(path: Path) -> tuple[list[tuple[float, float, int]], list[float]]:
    """Notes (start, end, pitch) of the melody and bar lines, in quarter notes from the first note."""
    import mido

    song = mido.MidiFile(path)
    notes: list[tuple[int, int, int]] = []
    bars: set[int] = set()
    for track in song.tracks:
        time, sounding = 0, dict[int, int]()
        for message in track:
            time += message.time
            if message.type not in ("note_on", "note_off"):
                continue
            if message.channel == DRUMS:
                bars.update([time] if message.velocity else [])
            elif message.type == "note_on" and message.velocity:
                sounding.setdefault(message.note, time)
            elif message.note in sounding:
                notes.append((sounding.pop(message.note), time, message.note))
    notes.sort()
    first = notes[0][0] if notes else 0

    def quarters(ticks: int) -> float:
        return round((ticks - first) / song.ticks_per_beat, 4)

    starts = [(quarters(a), quarters(b), pitch) for a, b, pitch in notes]
    return starts, sorted({quarters(bar) for bar in bars if bar >= first})


def full_bars(bars: list[float], length: float) -> tuple[float, ...]:
    """Bar lines without the stroke that abc2midi plays at the start of a pickup."""
    return tuple(bars[1:] if len(bars) > 1 and bars[1] - bars[0] < length - 1e-3 else bars)


def read_books(corpus: Path) -> list[Tune]:
    """Parse every book below music21's corpus folder.  Takes about 10 s.

    Raises:
        MissingDependencyError: without the program abc2midi.

    """
    sources = [
        tune
        for book in COLLECTIONS
        for path in sorted((corpus / book).glob("*.abc"))
        for tune in parse_abc(path.read_text(encoding="latin-1"), book)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tunes.abc")
        file.write_text(midi_source(sources), encoding="latin-1", errors="replace")
        _run_abc2midi(file)
        tunes = [_tune(source, Path(folder, f"tunes{number}.mid")) for number, source in enumerate(sources, start=1)]
    kept = [tune for tune in tunes if tune]
    works = same_works([tune.title for tune in kept], [[pitch for *_, pitch in tune.notes] for tune in kept])
    return [replace(tune, work=f"{kept[i].book} / {kept[i].title}") for tune, i in zip(kept, works, strict=True)]


def _run_abc2midi(file: Path) -> None:
    try:
        subprocess.run(
            ["abc2midi", str(file), "-quiet", "-silent"], cwd=file.parent, capture_output=True, check=False, timeout=600
        )
    except FileNotFoundError as error:
        raise MissingDependencyError(
            "The corpus needs the program abc2midi to read tunes; install it with `apt-get install abcmidi`."
        ) from error


def _tune(source: _Abc, midi: Path) -> Tune | None:
    """The notes of a tune, or None if they are few, don't end on the tonic or don't fit the metre."""
    if not midi.exists():
        return None
    notes, lines = read_midi(midi)
    metre = METRES[source.metre]
    bar = metre.beats * metre.quarters
    bars = full_bars(lines, bar)
    if len(notes) < 24 or len(bars) < 6 or notes[-1][2] % 12 != source.key.tonic:
        return None
    if sum(abs(after - before - bar) > 0.01 for before, after in pairwise(bars)) > len(bars) / 5:
        return None
    return Tune(
        book=source.book,
        title=source.title,
        work=source.title,
        kind=source.kind,
        metre=source.metre,
        key=source.key,
        notes=tuple(notes),
        bars=bars,
    )


# ---- arrangement ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """How a tune is played."""

    tonic: int
    bpm: int
    lead: str
    drums: bool
    energy: Energy
    players: int
    accompaniment: str
    bass: str
    start: int
    """The bar with which the clip begins; 0 includes the pickup."""


def draw_tempo(metre: str, rng: random.Random) -> int:
    """Beats per minute, uniform over what the metre bears."""
    return rng.randint(*_TEMPOS[metre])


def draw_arrangement(tune: Tune, lead: str, rng: random.Random) -> Arrangement:
    """Draw everything but the lead."""
    drums = rng.random() < 0.5
    return Arrangement(
        tonic=rng.randrange(len(TONICS)),
        bpm=draw_tempo(tune.metre, rng),
        lead=lead,
        drums=drums,
        energy=rng.choice(list(STRENGTH)),
        players=rng.choice((2, 3, 3, 3) if drums else (1, 2, 2, 3, 3)),
        accompaniment=rng.choice([name for name in ACCOMPANIMENTS if name != lead]),
        bass=rng.choice(("acoustic bass", "acoustic bass", "electric bass")),
        start=rng.choice((0, 0, *range(0, max(1, len(tune.bars) - 8), 8))),
    )


def arrange(tune: Tune, how: Arrangement, rng: random.Random, seconds: float) -> tuple[Score, Labels]:
    """Play a tune with accompaniment on its own bar lines, round and round until the clip is full."""
    metre, key = METRES[tune.metre], Key(how.tonic, tune.key.mode)
    beats = (seconds + MARGIN) * how.bpm / 60
    melody, bars = _looped(tune, how.start, metre, beats)
    shift = _transposition(tune, how)
    instrument = INSTRUMENTS[how.lead]
    notes = []
    for start, end, pitch in melody:
        accent = 6 if start in bars else 0
        velocity = min(124, 98 + accent + STRENGTH[how.energy])
        length = (end - start) * (0.98 if how.energy == "gentle" else 0.92)
        notes.append(Note(start, start + length, into_range([pitch + shift], instrument)[0], velocity, LEAD))
    section = _section(tune, key, metre, how, rng)
    for begin, end in zip(bars, [*bars[1:], bars[-1] + metre.beats], strict=True):
        heard = [(start, stop, pitch + shift) for start, stop, pitch in melody if start < end and stop > begin]
        chord = fitting_chord(key, heard, begin, end)
        notes += (n for n in section.bar(begin, chord) if n.start < end - 1e-6)
    voices = dict(list({LEAD: how.lead, PAD: how.accompaniment, BASS: how.bass}.items())[: how.players])
    score = Score(notes=tuple(notes), voices=voices, bpm=float(how.bpm), room=rng.uniform(0.0, 0.3))
    return score, _labels(tune, key, how, score, seconds)


def _looped(tune: Tune, first: int, metre: Metre, beats: float) -> tuple[list[tuple[float, float, int]], list[float]]:
    """The melody from a bar on, in beats, repeated until it lasts long enough, and its bar lines."""
    begin = tune.bars[first] if first else 0.0
    melody, bars, offset = [], [], -begin
    while True:
        for start, end, pitch in tune.notes:
            if start + offset >= -1e-6 and (start + offset) / metre.quarters < beats:
                melody.append(((start + offset) / metre.quarters, (end + offset) / metre.quarters, pitch))
        bars += [(bar + offset) / metre.quarters for bar in tune.bars if bar + offset >= -1e-6]
        offset += tune.length
        if offset / metre.quarters >= beats:
            return melody, [bar for bar in bars if bar < beats]


def _transposition(tune: Tune, how: Arrangement) -> int:
    """Semitones to the wished tonic, by the octave that suits the lead best."""
    instrument = INSTRUMENTS[how.lead]
    pitches = [pitch for _, _, pitch in tune.notes]
    centre = (instrument.low + instrument.high - min(pitches) - max(pitches)) / 2
    shift = how.tonic - tune.key.tonic
    return shift + 12 * round((centre - shift) / 12)


def _section(tune: Tune, key: Key, metre: Metre, how: Arrangement, rng: random.Random) -> Section:
    groove = "march" if tune.kind in ("march", "quickstep") else rng.choice(("folk", "rock", "soft"))
    section = Section.of(
        key,
        metre,
        float(how.bpm),
        how.energy,
        figure=rng.choice(("oompah", "block", "sustained", "arpeggio")) if how.players > 1 else None,
        bass=rng.choice(("every beat", "root and fifth")) if how.players > 1 else None,
        groove=groove if how.drums else None,
    )
    return replace(
        section,
        centre=57.0 if INSTRUMENTS[how.lead].low >= 50 else 62.0,
        bass_channel=BASS if how.players > 2 else PAD,
    )


def fitting_chord(key: Key, notes: list[tuple[float, float, int]], begin: float, end: float) -> int:
    """Tonic, subdominant or dominant: the degree whose triad holds most of a bar, the tonic if in doubt."""

    def share(chord: int) -> float:
        classes = {(key.tonic + s) % 12 for s in key.triad(chord)}
        held = sum(min(b, end) - max(a, begin) for a, b, pitch in notes if pitch % 12 in classes)
        return held + (0.15 * (end - begin) if chord == 0 else 0.0)

    return max((0, 3, 4), key=share)


def _labels(tune: Tune, key: Key, how: Arrangement, score: Score, seconds: float) -> Labels:
    rate = facts.melody_rate(score.notes, score.bpm, seconds)
    return Labels(
        source=COLLECTIONS[tune.book],
        title=tune.title,
        work=tune.work,
        genre=tune.kind,
        bpm=float(how.bpm),
        tonic=TONICS[key.tonic],
        mode=key.mode,
        metre=tune.metre,
        lead=how.lead,
        instruments=tuple(score.voices.values()),
        drums=how.drums,
        density=facts.density_of(rate),
        notes_per_second=round(rate, 3),
        energy=how.energy,
        moods=facts.MOODS[key.mode, facts.arousal_of(float(how.bpm), how.energy)],
    )
