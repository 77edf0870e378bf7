import random
import zipfile
from pathlib import Path

import pytest

from tunesmith.training.corpus.chorales import (
    Chorale,
    certain_key,
    draw_scoring,
    read_chorale,
    score_chorale,
    strangeness,
)
from tunesmith.training.corpus.music import LEAD, Key

CONTAINER = '<container><rootfiles><rootfile full-path="x.xml"/></rootfiles></container>'


def note(step: str, octave: int, length: int, extra: str = "", alter: int = 0) -> str:
    pitch = f"<pitch><step>{step}</step><alter>{alter}</alter><octave>{octave}</octave></pitch>"
    return f"<note>{extra}{pitch}<duration>{length}</duration></note>"


def written(folder: Path, bass: str = "C", parts: int = 4, beats: int = 4) -> Path:
    """Four voices in C: two bars, the soprano with a tie, a rest and a second voice, the last bass note as given."""
    head = (
        "<attributes><divisions>2</divisions><key><fifths>0</fifths></key>"
        f"<time><beats>{beats}</beats><beat-type>4</beat-type></time></attributes>"
    )
    tie = note("C", 5, 4, '<tie type="start"/>') + "</measure><measure>" + note("C", 5, 4, '<tie type="stop"/>')
    soprano = head + "<note><rest/><duration>4</duration></note>" + tie + note("B", 4, 4, alter=1)
    soprano += "<backup><duration>4</duration></backup><forward><duration>2</duration></forward>" + note("E", 4, 2)
    inner = head + note("E", 4, 8) + "</measure><measure>" + note("G", 4, 8) + note("E", 4, 8, "<chord/>")
    low = head + note("C", 3, 8) + "</measure><measure>" + note(bass, 2, 8)
    voices = [soprano, inner, inner, low][:parts]
    body = "".join(f"<part><measure>{voice}</measure></part>" for voice in voices)
    path = folder / "bwv1.2.mxl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("x.xml", f"<score-partwise>{body}</score-partwise>")
    return path


def test_ties_rests_voices_and_accidentals(tmp_path: Path) -> None:
    chorale = read_chorale(written(tmp_path))
    assert chorale is not None
    assert (chorale.title, chorale.metre, chorale.key) == ("BWV 1.2", "4/4", Key(0, "major"))
    soprano = [(start, end, pitch) for start, end, pitch, voice in chorale.notes if voice == 0]
    assert soprano == [(2.0, 6.0, 72), (6.0, 8.0, 72), (7.0, 8.0, 64)]
    alto = [(start, end, pitch) for start, end, pitch, voice in chorale.notes if voice == 1]
    assert alto == [(0.0, 4.0, 64), (4.0, 8.0, 64), (4.0, 8.0, 67)]


def test_uncertain_chorales_are_left_out(tmp_path: Path) -> None:
    assert read_chorale(written(tmp_path, bass="F")) is None  # ends on neither tonic of the signature
    assert read_chorale(written(tmp_path, parts=3)) is None
    assert read_chorale(written(tmp_path, beats=5)) is None


@pytest.mark.parametrize(
    ("fifths", "bass", "key"),
    [
        (1, 43, Key(7, "major")),
        (1, 40, Key(4, "minor")),
        (-3, 39, Key(3, "major")),
        (-3, 36, Key(0, "minor")),
        (0, 38, None),
    ],
)
def test_keys(fifths: int, bass: int, key: Key | None) -> None:
    assert certain_key(fifths, [(0.0, 4.0, 50, 3), (4.0, 8.0, bass, 3), (4.0, 8.0, bass + 24, 0)]) == key


def test_strangeness_counts_what_is_outside_the_key() -> None:
    key = Key(9, "minor")
    assert strangeness(key, [(0.0, 3.0, 69, 0), (3.0, 4.0, 68, 0)]) == 0  # the leading tone belongs to minor
    assert strangeness(key, [(0.0, 3.0, 69, 0), (3.0, 4.0, 70, 0)]) == 0.25
    assert strangeness(key, [(0.0, 3.0, 69, 0), (40.0, 80.0, 70, 0)]) == 0  # what comes late doesn't count


CHORALE = Chorale(
    title="BWV 0",
    work="bach / BWV 0",
    metre="4/4",
    key=Key(0, "major"),
    notes=tuple((float(b), b + 1.0, pitch, voice) for b in range(8) for voice, pitch in enumerate((72, 67, 64, 48))),
)


@pytest.mark.parametrize(("lead", "ensemble"), [("choir", "choir"), ("oboe", "strings"), ("cello", "organ")])
def test_scoring(lead: str, ensemble: str) -> None:
    rng = random.Random(3)
    how = draw_scoring(lead, ensemble, rng)
    score, labels = score_chorale(CHORALE, how, rng, 30.0)
    assert labels.instruments == tuple(dict.fromkeys((lead, ensemble)))
    assert labels.solo == (lead == ensemble)
    assert (labels.genre, labels.drums, labels.bpm) == ("chorale", False, float(how.bpm))
    assert {n.pitch % 12 for n in score.notes} == {(how.tonic + s) % 12 for s in (0, 4, 7)}
    assert max(n.end for n in score.notes) * 60 / score.bpm > 30
    if lead != ensemble:
        top = min(n.velocity for n in score.notes if n.channel == LEAD)
        assert top > max(n.velocity for n in score.notes if n.channel != LEAD)
