import pytest

from tunesmith.errors import RequestError
from tunesmith.training.corpus.band import GROOVES, Section
from tunesmith.training.corpus.music import (
    BASS,
    DRUMS,
    INSTRUMENTS,
    LEADS,
    METRES,
    PAD,
    Key,
    close_chord,
    into_range,
    nearest_octave,
    pitch_class,
    swung,
)


@pytest.mark.parametrize(
    ("name", "tonic", "mode"),
    [("C major", 0, "major"), ("f# minor", 6, "minor"), ("Bb major", 10, "major"), ("Cb minor", 11, "minor")],
)
def test_key_names(name: str, tonic: int, mode: str) -> None:
    assert Key.parse(name) == Key(tonic, mode)


@pytest.mark.parametrize("name", ["", "H major", "C", "C dorian", "Csharp major", "major"])
def test_what_is_no_key(name: str) -> None:
    with pytest.raises(RequestError, match="is not a key"):
        Key.parse(name)


def test_every_key_name_is_read_back() -> None:
    keys = {Key(tonic, mode) for tonic in range(12) for mode in ("major", "minor")}
    assert {Key.parse(key.name) for key in keys} == keys


def test_scales_and_triads() -> None:
    major, minor = Key(0, "major"), Key(9, "minor")
    assert [major.semitones(d) for d in range(-1, 8)] == [-1, 0, 2, 4, 5, 7, 9, 11, 12]
    assert [major.triad(d) for d in (0, 3, 4)] == [(0, 4, 7), (5, 9, 12), (7, 11, 14)]
    assert minor.triad(0) == (0, 3, 7)
    # The dominant of a minor key has the leading tone, its other chords don't.
    assert minor.triad(4) == (7, 11, 14)
    assert minor.triad(6) == (10, 14, 17)


def test_chords_are_close() -> None:
    assert close_chord(Key(0, "major"), 0, 60.0) == [55, 60, 64]
    for tonic in range(12):
        for chord in range(7):
            pitches = close_chord(Key(tonic, "minor"), chord, 60.0)
            assert max(pitches) - min(pitches) <= 12
            assert all(abs(pitch - 60) <= 6 for pitch in pitches)


def test_pitch_helpers() -> None:
    assert [pitch_class(name) for name in ("C", "F#", "Bb", "B-", "b", "bb")] == [0, 6, 10, 10, 11, 10]
    assert nearest_octave(0, 61.0) == 60
    assert into_range([30, 60, 99], INSTRUMENTS["flute"]) == [66, 72, 87]


def test_swing_keeps_beats_and_order() -> None:
    times = [i / 8 for i in range(33)]
    warped = [swung(time) for time in times]
    assert [swung(float(beat)) for beat in range(4)] == [0, 1, 2, 3]
    assert swung(1.5) == pytest.approx(1 + 2 / 3)
    assert warped == sorted(warped)


def test_leads_fit_general_midi() -> None:
    assert len(LEADS) >= 24
    assert "strings" not in LEADS
    assert all(0 <= i.program < 128 and 0 < i.low < i.high < 128 and 0 < i.volume < 128 for i in INSTRUMENTS.values())
    assert len({i.program for i in INSTRUMENTS.values()}) == len(INSTRUMENTS)


@pytest.mark.parametrize("metre", METRES)
@pytest.mark.parametrize(
    "figure", ["sustained", "block", "broken", "oompah", "offbeat", "arpeggio", "pulse", "syncopated"]
)
def test_accompaniment_stays_in_its_bar_and_key(metre: str, figure: str) -> None:
    key = Key(2, "minor")
    section = Section.of(key, METRES[metre], 120.0, "moderate", figure=figure, bass="root and fifth", groove="rock")
    notes = list(section.bar(8.0, 0))
    assert {note.channel for note in notes} == {PAD, BASS, DRUMS}
    assert all(8 <= note.start < 8 + METRES[metre].beats and note.end > note.start for note in notes)
    triad = {(2 + s) % 12 for s in key.triad(0)}
    assert {note.pitch % 12 for note in notes if note.channel != DRUMS} <= triad
    assert all(1 <= note.velocity <= 127 for note in notes)
    assert any(note.start == 8 and note.channel == BASS for note in notes)


@pytest.mark.parametrize("groove", GROOVES)
def test_slow_bands_play_little_between_beats(groove: str) -> None:
    def between(bpm: float) -> int:
        section = Section.of(
            Key(0, "major"), METRES["4/4"], bpm, "moderate", figure="pulse", bass="pulse", groove=groove
        )
        notes = section.bar(0.0, 0)
        return sum(note.velocity for note in notes if note.start != int(note.start))

    assert between(70.0) < 0.4 * between(130.0)


def test_still_music_without_drums_marks_its_beats() -> None:
    section = Section.of(Key(0, "major"), METRES["3/4"], 100.0, "gentle", figure="sustained", bass=None, groove=None)
    assert sorted({note.start for note in section.bar(0.0, 0)}) == [0, 1, 2]
