"""Reading ABC, and arranging what was read."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.errors import MissingDependencyError
from tunesmith.training.corpus.labels import Labels
from tunesmith.training.corpus.music import BASS, DRUMS, INSTRUMENTS, LEAD, LEADS, Key, Score
from tunesmith.training.corpus.tunes import (
    Tune,
    arrange,
    draw_arrangement,
    fitting_chord,
    full_bars,
    kind_of,
    midi_source,
    parse_abc,
    parse_key,
    read_books,
)

JIG = """% a comment
X:1
T:The Test Jig
R:double jig
M:6/8
L:1/8
K:G
D|"4"G2A B2G|{c}B2A G2D|G2A B2G|c2A d2B|e2d c2B|A2G F2A|G2A B2G|A3 G2:|
|:d|e2d c2B|A2G F2A|G2A B2G|A3 G2:|

X:2
T:Two keys
M:C
L:1/4
K:D
DEFG|
K:A
ABcd|

X:3
T:Mode
M:C|
K:A Dorian
A2|

X:4
T:Odd
M:5/4
K:C
C2|
"""


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("G", Key(7, "major")),
        (" Bb", Key(10, "major")),
        ("F#m", Key(6, "minor")),
        ("E Minor", Key(4, "minor")),
        ("A Dorian", None),
        ("Dmix", None),
        ("HP", None),
        ("Hp", None),
        ("G % really", None),
        ("", None),
    ],
)
def test_keys(field: str, key: Key | None) -> None:
    assert parse_key(field) == key


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("double jig The Rakes", "jig"),
        ("slipjig", "slip jig"),
        ("A Minuit", "minuet"),
        ("Quick Step. 25th Regt.", "quickstep"),
        ("Reel The Waltz", "reel"),
        ("The Fair Maid", "folk tune"),
        ("Jigger's Delight", "folk tune"),
        ("Favourite Airs", "air"),
    ],
)
def test_kinds(text: str, kind: str) -> None:
    assert kind_of(text) == kind


def test_only_certain_tunes_are_kept() -> None:
    tunes = list(parse_abc(JIG, "oneills1850"))
    assert [(tune.title, tune.kind, tune.metre, tune.key) for tune in tunes] == [
        ("The Test Jig", "jig", "6/8", Key(7, "major"))
    ]
    assert list(parse_abc(JIG.replace("\n", "\r\n"), "oneills1850")) == tunes


def test_abc_for_the_converter_has_no_fingerings_and_marks_bars() -> None:
    source = midi_source(parse_abc(JIG, "oneills1850"))
    assert source.startswith("X:1\n")
    assert '"' not in source
    assert "{" not in source
    assert "drumon" in source


def test_the_stroke_of_a_pickup_is_no_bar_line() -> None:
    assert full_bars([0.0, 0.5, 3.5, 6.5], 3.0) == (0.5, 3.5, 6.5)
    assert full_bars([0.0, 3.0, 6.0], 3.0) == (0.0, 3.0, 6.0)


def books(folder: Path) -> Path:
    (folder / "oneills1850").mkdir(parents=True)
    (folder / "oneills1850" / "a.abc").write_text(JIG)
    return folder


@pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi is not installed (apt-get install abcmidi)")
def test_reading_repeats_and_pickups(tmp_path: Path) -> None:
    [tune] = read_books(books(tmp_path))
    assert tune.notes[0][:1] == (0.0,)
    assert [pitch for _, _, pitch in tune.notes[:4]] == [62, 67, 69, 71]
    assert tune.bars[0] == 0.5  # after the pickup
    assert all(after - before == 3.0 for before, after in zip(tune.bars, tune.bars[1:], strict=False))
    assert tune.notes[-1][2] % 12 == tune.key.tonic
    assert tune.length == pytest.approx(3.0 * len(tune.bars))
    assert tune.work == "oneills1850 / The Test Jig"


def test_a_missing_converter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="apt-get install abcmidi"):
        read_books(books(tmp_path))


# ---- arrangement ----------------------------------------------------------------------------------------------------

MELODY = [7, 9, 11, 7, 11, 9, 7, 2, 4, 6, 7, 11]
TUNE = Tune(
    book="airdsAirs",
    title="Made up",
    work="airdsAirs / Made up",
    kind="jig",
    metre="6/8",
    key=Key(7, "major"),
    notes=((0.0, 0.45, 62), *((0.5 + i * 0.5, 0.95 + i * 0.5, 60 + MELODY[i % 12]) for i in range(71))),
    bars=tuple(0.5 + 3.0 * bar for bar in range(12)),
)


def arranged(seed: int, seconds: float = 20.0) -> tuple[Score, Labels]:
    rng = random.Random(seed)
    return arrange(TUNE, draw_arrangement(TUNE, LEADS[seed % len(LEADS)], rng), rng, seconds)


def test_a_tune_begins_again_where_its_last_bar_leaves_off() -> None:
    assert TUNE.length == 36.0


@pytest.mark.parametrize("seed", range(40))
def test_arrangements_match_their_labels(seed: int) -> None:
    score, labels = arranged(seed)
    channels = {note.channel for note in score.notes}
    assert labels.drums == (DRUMS in channels)
    assert channels - {DRUMS} == set(score.voices)
    assert labels.instruments == tuple(score.voices.values())
    assert labels.solo == (channels == {LEAD})
    assert (labels.source, labels.genre, labels.metre) == ("Aird's Airs", "jig", "6/8")
    key = Key.parse(labels.key)
    scale = {(key.tonic + key.semitones(degree)) % 12 for degree in range(7)}
    assert {note.pitch % 12 for note in score.notes if note.channel != DRUMS} <= scale
    low, high = INSTRUMENTS[labels.lead].low, INSTRUMENTS[labels.lead].high
    assert all(low <= note.pitch <= high for note in score.notes if note.channel == LEAD)


@pytest.mark.parametrize("seed", range(12))
def test_accompaniment_lies_on_the_bars_of_the_tune(seed: int) -> None:
    rng = random.Random(seed)
    how = replace(draw_arrangement(TUNE, "flute", rng), players=3, start=0)
    score, _ = arrange(TUNE, how, rng, 20.0)
    lead = [note.start for note in score.notes if note.channel == LEAD]
    bass = [note.start for note in score.notes if note.channel == BASS]
    assert min(lead) == 0
    assert max(lead) * 60 / score.bpm > 20
    pickup = 0.5 / 1.5  # beats
    assert min(bass) == pytest.approx(pickup)
    assert all((start - pickup + 0.01) % 1 < 0.02 for start in bass)


def test_clips_may_begin_at_a_later_bar() -> None:
    rng = random.Random(0)
    how = replace(draw_arrangement(TUNE, "flute", rng), players=3, start=2, bpm=90)
    score, _ = arrange(TUNE, how, rng, 20.0)
    assert min(note.start for note in score.notes) == min(n.start for n in score.notes if n.channel == BASS) == 0
    first = next(note.pitch for note in sorted(score.notes) if note.channel == LEAD)
    assert (first - how.tonic) % 12 == (60 + MELODY[0] - TUNE.key.tonic) % 12  # the third bar begins the melody anew


def test_chords_follow_the_melody() -> None:
    key = Key(0, "major")
    assert fitting_chord(key, [(0.0, 4.0, 65)], 0.0, 4.0) == 3
    assert fitting_chord(key, [(0.0, 2.0, 62), (2.0, 4.0, 71)], 0.0, 4.0) == 4
    assert fitting_chord(key, [], 0.0, 4.0) == 0
    assert fitting_chord(key, [(0.0, 4.0, 67)], 0.0, 4.0) == 0  # of tonic and dominant, the tonic


def test_all_keys_and_tempos_are_drawn() -> None:
    rng = random.Random(0)
    drawn = [draw_arrangement(TUNE, "flute", rng) for _ in range(600)]
    assert {how.tonic for how in drawn} == set(range(12))
    assert min(how.bpm for how in drawn) < 85
    assert max(how.bpm for how in drawn) > 130
    assert 0.4 < sum(how.drums for how in drawn) / 600 < 0.6
    assert all(how.accompaniment != "flute" for how in drawn)
