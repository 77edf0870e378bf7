"""Rows become metadata, whoever wrote them, and LRC becomes text with times."""

import json

import pytest

from tunesmith.training.metadata import Lyrics, Metadata, unknown_fields


def test_a_row_of_ours():
    row = {
        "text": "a waltz",
        "artist": "Zoë",
        "genre": ["Folk", "Rock"],
        "bpm": 90,
        "moods": "sad, slow",
        "key": "E Minor",
    }
    known = Metadata.from_row(row)
    assert (known.text, known.artist, known.genres, known.bpm) == ("a waltz", "Zoë", ("Folk", "Rock"), 90.0)
    assert (known.moods, known.key) == (("sad", "slow"), "e minor")


def test_a_sidecar_of_audiocraft():
    sidecar = {
        "title": "Night", "artist": "", "key": "C major, A minor", "bpm": "None", "genre": "Jazz", "moods": ["calm"],
        "keywords": "late piano", "description": "slow jazz", "name": "x", "instrument": "Mix", "duration": 3.0,
    }  # fmt: skip
    known = Metadata.from_row(sidecar)
    assert known.text == "slow jazz"
    assert known.key == ""  # several
    assert known.bpm is None
    assert known.keywords == ("late", "piano")
    assert unknown_fields(sidecar | {"artsit": 1}) == {"artsit"}


@pytest.mark.parametrize("nothing", [None, "", "None", float("nan"), []])
def test_nothing_is_nothing(nothing):
    assert Metadata.from_row(dict.fromkeys(("text", "artist", "genre", "bpm", "lyrics"), nothing)) == Metadata()


@pytest.mark.parametrize("bpm", ["fast", -3, float("inf"), 0])
def test_a_tempo_that_is_none(bpm):
    assert Metadata.from_row({"bpm": bpm}).bpm is None


@pytest.mark.parametrize("script", ["Ærøskøbing", "北国の春", "Тёмная ночь", "أغنية", "🎵"])
def test_labels_in_any_script_come_back(script):
    known = Metadata.from_row({"artist": script, "genre": [script], "lyrics": f"[00:01.5]{script}\n[00:02.5]{script}"})
    assert Metadata.from_row(json.loads(json.dumps(known.to_row()))) == known
    assert known.lyrics.text == f"{script}\n{script}"


def test_plain_lyrics_are_spread_evenly():
    lyrics = Lyrics.parse("[Verse 1]\nabcdef")
    assert lyrics.times == ()
    assert lyrics.position(30, 60) == len(lyrics.text) / 2


def test_timed_lyrics():
    lyrics = Lyrics.parse("[ti:Song]\n[offset:500]\n[00:10.00][00:30.00]refrain\n[00:20]a <00:21.50>verse\nmore\n")
    assert lyrics.text == "refrain\na verse\nmore\nrefrain"
    assert lyrics.times == ((0, 9.5), (8, 19.5), (10, 21.0), (21, 29.5))
    assert lyrics.position(9.5, 60) == 0
    assert lyrics.position(19.5, 60) == 8
    assert lyrics.position(20.25, 60) == pytest.approx(9)
    assert lyrics.position(60, 60) == len(lyrics.text)
    assert lyrics.position(5, 60) == 0
    assert 21 < lyrics.position(40, 60) < len(lyrics.text)


def test_times_beyond_the_end_do_no_harm():
    assert Lyrics.parse("[01:00.00]late").position(3, 10) == 0
