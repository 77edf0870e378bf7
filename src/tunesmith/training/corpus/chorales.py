"""Bach's four-part chorales, read from the MusicXML files inside the music21 package, and their scoring.

The MusicXML is read here because music21 itself takes over a minute for it; pitches, durations and ties are enough.
A chorale is kept when its key signature and its last chord agree on a key: the key label is a fact, not an analysis.
"""

import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree as Xml

from tunesmith.training.corpus import labels as facts
from tunesmith.training.corpus.band import STRENGTH
from tunesmith.training.corpus.labels import Energy, Labels
from tunesmith.training.corpus.music import (
    INSTRUMENTS,
    LEAD,
    MARGIN,
    METRES,
    TONICS,
    Key,
    Note,
    Score,
    into_range,
    pitch_class,
)
from tunesmith.training.corpus.works import same_works

SOURCE = "J. S. Bach's chorales"
ENSEMBLES = (
    "choir",
    "organ",
    "strings",
    "brass",
    "piano",
    "harpsichord",
    "harp",
    "accordion",
    "acoustic guitar",
    "marimba",
)
"""What can play the lower voices, or all four."""
SOLOISTS = ("oboe", "violin", "flute", "clarinet", "trumpet", "french horn", "choir", "pan flute", "saxophone", "cello")
"""What can play the melody over an ensemble."""
_STRANGE = 0.05
"""A chorale farther from its key than this in its first eight bars is left out: clips would belie their label."""
_SLOWEST, _FASTEST = 80, 116


@dataclass(frozen=True, kw_only=True)
class Chorale:
    """Four voices in quarter notes."""

    title: str
    work: str
    """Chorales on the same melody are one work."""
    metre: str
    key: Key
    notes: tuple[tuple[float, float, int, int], ...]
    """Start, end, pitch and voice (0 is the soprano)."""


def read_chorales(corpus: Path) -> list[Chorale]:
    """Every four-part chorale whose key is certain.  Takes about 3 s."""
    found = (read_chorale(path) for path in sorted((corpus / "bach").glob("*.mxl")))
    kept = [chorale for chorale in found if chorale]
    sopranos = [[pitch for _, _, pitch, voice in chorale.notes if voice == LEAD] for chorale in kept]
    works = same_works([chorale.title for chorale in kept], sopranos)
    return [replace(chorale, work=f"bach / {kept[i].title}") for chorale, i in zip(kept, works, strict=True)]


def read_chorale(path: Path) -> Chorale | None:
    """One chorale, or None if it has not four voices, an uncommon metre, no certain key or leaves its key early."""
    with zipfile.ZipFile(path) as archive:
        container = Xml.fromstring(archive.read("META-INF/container.xml"))
        name = next(node.attrib["full-path"] for node in container.iter() if node.tag.endswith("rootfile"))
        score = Xml.fromstring(archive.read(name))
    parts = score.findall("part")
    times = {(node.findtext("beats"), node.findtext("beat-type")) for node in score.iter("time")}
    signatures = {node.findtext("fifths") for node in score.iter("key")}
    metre = "/".join(part or "" for part in times.pop()) if len(times) == 1 else ""
    if len(parts) != 4 or metre not in METRES or METRES[metre].parts == 3 or len(signatures) != 1:
        return None
    notes = sorted(note for voice, part in enumerate(parts) for note in read_part(part, voice))
    key = certain_key(int(signatures.pop() or 0), notes)
    if key is None or strangeness(key, notes) > _STRANGE:
        return None
    title = path.stem.upper().replace("BWV", "BWV ")
    return Chorale(title=title, work=title, metre=metre, key=key, notes=tuple(notes))


def read_part(part: Xml.Element, voice: int) -> Iterator[tuple[float, float, int, int]]:
    """The notes (start, end, pitch, voice) of a part, in quarter notes; ties are joined, repeats are not taken."""
    time, divisions, last = 0.0, 1.0, 0.0
    tied: dict[int, float] = {}
    for node in (node for measure in part.findall("measure") for node in measure):
        length = float(node.findtext("duration") or 0) / divisions
        if node.tag == "attributes":
            divisions = float(node.findtext("divisions") or divisions)
        elif node.tag in ("backup", "forward"):
            time += length if node.tag == "forward" else -length
        elif node.tag == "note" and length:
            start = last if node.find("chord") is not None else time
            last, time = start, max(time, start + length)
            pitch = _pitch(node)
            ties = {tie.get("type") for tie in node.findall("tie")}
            if pitch is not None:
                begun = tied.pop(pitch, start) if "stop" in ties else start
                if "start" in ties:
                    tied[pitch] = begun
                else:
                    yield begun, start + length, pitch, voice


def _pitch(note: Xml.Element) -> int | None:
    """The MIDI pitch, None for a rest."""
    pitch = note.find("pitch")
    if pitch is None:
        return None
    octave = int(pitch.findtext("octave") or 4)
    # The alteration is added after the octave, so that B sharp and C flat stay where they are written.
    return 12 * (octave + 1) + pitch_class(pitch.findtext("step") or "C") + round(float(pitch.findtext("alter") or 0))


def certain_key(fifths: int, notes: list[tuple[float, float, int, int]]) -> Key | None:
    """The key whose signature has so many sharps (negative: flats) and on whose tonic the piece ends in the bass."""
    end = max(note[1] for note in notes)
    bass = min(pitch for _, stop, pitch, _ in notes if stop > end - 0.01)
    major = Key(fifths * 7 % 12, "major")
    minor = Key((major.tonic + 9) % 12, "minor")
    return next((key for key in (major, minor) if bass % 12 == key.tonic), None)


def strangeness(key: Key, notes: list[tuple[float, float, int, int]], quarters: float = 32.0) -> float:
    """The share of the opening that lies outside the key (in minor the raised sixth and seventh belong to it)."""
    scale = {(key.tonic + key.semitones(degree)) % 12 for degree in range(7)}
    scale |= {(key.tonic + step) % 12 for step in (9, 11)} if key.mode == "minor" else set()
    opening = [(end - start, pitch) for start, end, pitch, _ in notes if start < quarters]
    return sum(length for length, pitch in opening if pitch % 12 not in scale) / sum(length for length, _ in opening)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a chorale is played."""

    tonic: int
    bpm: int
    lead: str
    ensemble: str
    """Plays the lower voices; the same as the lead for one group alone."""
    energy: Energy


def draw_scoring(lead: str, ensemble: str, rng: random.Random) -> Scoring:
    """Draw everything but the players."""
    tonic, energy = rng.randrange(len(TONICS)), rng.choice(list(STRENGTH))
    return Scoring(tonic=tonic, bpm=rng.randint(_SLOWEST, _FASTEST), lead=lead, ensemble=ensemble, energy=energy)


def score_chorale(chorale: Chorale, how: Scoring, rng: random.Random, seconds: float) -> tuple[Score, Labels]:
    """Write out a chorale for its players, round and round until the clip is full."""
    key = Key(how.tonic, chorale.key.mode)
    shift = (how.tonic - chorale.key.tonic + 6) % 12 - 6
    beat = METRES[chorale.metre].quarters
    length = max(end for _, end, _, _ in chorale.notes)
    begin = chorale.notes[0][0]
    rounds = int((seconds + MARGIN) * how.bpm / 60 * beat / (length - begin)) + 1
    notes = []
    for turn in range(rounds):
        offset = turn * (length - begin) - begin
        for start, end, pitch, voice in chorale.notes:
            notes.append(_played(((start + offset) / beat, (end + offset) / beat, pitch + shift, voice), how))
    voices = {0: how.lead, 1: how.ensemble, 2: how.ensemble, 3: how.ensemble}
    score = Score(notes=tuple(notes), voices=voices, bpm=float(how.bpm), room=rng.uniform(0.15, 0.4))
    return score, _labels(chorale, key, how, score, seconds)


def _played(note: tuple[float, float, int, int], how: Scoring) -> Note:
    start, end, pitch, voice = note
    if voice == LEAD:
        pitch = into_range([pitch], INSTRUMENTS[how.lead])[0]
    base = 96 if voice == LEAD else 84 if how.lead == how.ensemble else 66
    velocity = base + STRENGTH[how.energy]
    return Note(start, start + (end - start) * 0.97, pitch, velocity, voice)


def _labels(chorale: Chorale, key: Key, how: Scoring, score: Score, seconds: float) -> Labels:
    rate = facts.melody_rate(score.notes, score.bpm, seconds)
    return Labels(
        source=SOURCE,
        title=chorale.title,
        work=chorale.work,
        genre="chorale",
        bpm=float(how.bpm),
        tonic=TONICS[key.tonic],
        mode=key.mode,
        metre=chorale.metre,
        lead=how.lead,
        instruments=tuple(dict.fromkeys((how.lead, how.ensemble))),
        drums=False,
        density=facts.density_of(rate),
        notes_per_second=round(rate, 3),
        energy=how.energy,
        moods=facts.MOODS[key.mode, facts.arousal_of(float(how.bpm), how.energy)],
    )
