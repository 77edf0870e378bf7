"""Sung songs: words that fit their places, labels that are independent, splits that share no line, sound."""

import ctypes.util
import json
import random
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import MissingDependencyError, RequestError
from tunesmith.events import Finished, Progress
from tunesmith.training.corpus import singing_voice
from tunesmith.training.corpus.render import find_soundfont
from tunesmith.training.corpus.singing import ARTISTS, GENRES, SECONDS, Plan, SungCorpus, labels_of, plan_for
from tunesmith.training.corpus.singing_folder import Recipe, lrc, main, row_of, sing_folder
from tunesmith.training.corpus.singing_lyrics import (
    PLACES,
    POEMS,
    POEMS_SHARE,
    Line,
    draw_line,
    draw_verse,
    parse,
    poem_lines,
    vocabulary,
)
from tunesmith.training.corpus.singing_voice import FRAME, RATE, Phoneme, Singer, Spoken, Sung, sing
from tunesmith.training.corpus.split import SPLITS, split_of
from tunesmith.training.metadata import Lyrics


@pytest.fixture(scope="session")
def singers() -> None:
    """Tests that ask for this skip where songs can't be sung."""
    if ctypes.util.find_library("espeak-ng") is None:
        pytest.skip("eSpeak NG is not installed (apt-get install libespeak-ng1 espeak-ng-data)")
    if find_spec("pyworld") is None:
        pytest.skip("WORLD is not installed (pip install tunesmith[singing])")
    try:
        find_soundfont()
    except MissingDependencyError as error:
        pytest.skip(str(error))


# ---- words ----------------------------------------------------------------------------------------------------------


def test_every_line_fits_the_places() -> None:
    poems = [line for split in SPLITS for line in poem_lines(split)]
    assert len(poems) == sum(len(poem.lines) for poem in POEMS) > 40
    rng = random.Random(0)
    verses = [draw_verse(rng, "train") for _ in range(300)]
    assert all(line.syllables in (PLACES - 1, PLACES) for line in poems)
    assert {line.syllables for line in verses} == {PLACES}
    assert len({line.text for line in verses}) > 290


def test_every_word_is_in_the_vocabulary() -> None:
    rng, known = random.Random(1), set(vocabulary())
    for split in SPLITS:
        for _ in range(200):
            assert {"".join(word) for word in draw_line(rng, split).words} <= known
    assert len(known) == len(vocabulary()) < 300
    assert list(vocabulary()) == sorted(known)


def test_verses_use_no_word_of_meaning_twice() -> None:
    rng = random.Random(2)
    for _ in range(200):
        words = [word for word in draw_verse(rng, "train").text.split() if len(word) > 3]
        assert max(Counter(word.removesuffix("s") for word in words).values()) == 1


def test_splits_share_no_line() -> None:
    rng = random.Random(3)
    for split in SPLITS:
        lines = [draw_line(rng, split) for _ in range(300)]
        verses = [line for line in lines if line.source == "composed"]
        assert all(split_of(f"verse / {' '.join('-'.join(w) for w in line.words)}") == split for line in verses)
        assert all(split_of(f"poem / {line.work}") == split for line in lines if line.source != "composed")
        expected = POEMS_SHARE if poem_lines(split) else 0.0
        assert abs(1 - len(verses) / len(lines) - expected) < 0.08


def test_poems_are_old_enough() -> None:
    assert max(poem.year for poem in POEMS) < 1929  # before that, published works are free in the United States
    assert all(poem.author and poem.title for poem in POEMS)


def test_lines_are_read_from_syllables() -> None:
    line = parse("twin-kle lit-tle star", "somebody, 1806", "The Star")
    assert (line.text, line.syllables) == ("twinkle little star", 5)
    assert line.words == (("twin", "kle"), ("lit", "tle"), ("star",))


# ---- plans and labels -----------------------------------------------------------------------------------------------


def test_labels_are_drawn_independently_and_evenly() -> None:
    plans = [SungCorpus(0).plan(i) for i in range(2400)]
    counts = Counter((plan.artist, plan.genre) for plan in plans)
    assert set(counts) == {(artist, genre) for artist in ARTISTS for genre in GENRES}
    expected = len(plans) / len(counts)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 49.7  # p = 0.001 at 23 degrees of freedom
    tunes = Counter((plan.genre, plan.tune) for plan in plans)
    assert len(tunes) == 16
    words = Counter((plan.artist, "moon" in plan.line.text.split()) for plan in plans)
    shares = [words[artist, True] / (words[artist, True] + words[artist, False]) for artist in ARTISTS]
    assert min(shares) > 0.01
    assert max(shares) < 0.12


SEVENTH = ("Emil Stone", "lullaby", 2, "for joy and song the field is small")


def test_songs_of_a_version_never_change() -> None:
    plan = SungCorpus(0).plan(7)
    assert (plan.artist, plan.genre, plan.tune, plan.line.text) == SEVENTH
    assert SungCorpus(1).plan(7) != plan
    assert SungCorpus(0, "test").plan(7) != plan


@pytest.mark.parametrize("genre", GENRES)
@pytest.mark.parametrize("words", ["twin-kle twin-kle lit-tle star", "I saw a moon be-side the sea"])
def test_syllables_follow_each_other_inside_the_song(genre: str, words: str) -> None:
    plan = plan_for("Ada Finch", genre, words)
    syllables = labels_of(plan).syllables
    assert [syllable.text for syllable in syllables] == words.replace("-", " ").split()
    assert syllables[0].start > 0
    assert syllables[-1].end <= SECONDS
    assert all(a.end <= b.start + 1e-6 for a, b in pairwise(syllables))
    assert all(syllable.end - syllable.start > 0.2 for syllable in syllables)
    shorter = plan_for("Ada Finch", genre, "I saw a moon be-side the sea").notes
    assert plan.notes[-1][-1].start == shorter[-1][-1].start  # the same places, whatever the words


def test_every_tune_has_chords_that_hold_its_stresses() -> None:
    for name, genre in GENRES.items():
        for tune, degrees in enumerate(genre.tunes):
            assert len(degrees) == PLACES
            plan = Plan("Ada Finch", name, tune, Line("", "", ()))
            for stress in range(PLACES // 2):
                assert (degrees[2 * stress + 1] - plan.chord(stress)) % 7 in (0, 2, 4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("Nobody", "hymn", "I saw a moon be-side the sea"), "Ada Finch"),
        (("Ada Finch", "techno", "I saw a moon be-side the sea"), "lullaby"),
        (("Ada Finch", "hymn", "I saw a moon"), "this one 4"),
        (("Ada Finch", "hymn", "I saw a zeppe-lin be-side the moon"), "zeppelin"),
    ],
)
def test_what_cannot_be_sung_is_told(wrong: tuple[str, str, str], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        plan_for(*wrong)


@pytest.mark.parametrize("wrong", [{"split": "dev"}, {"sample_rate": 4000}, {"sample_rate": 44_100}])
def test_wrong_settings_are_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        SungCorpus(**{"seed": 0} | wrong)


def test_timed_lyrics_can_be_read_back() -> None:
    labels = labels_of(plan_for("Ada Finch", "hymn", "twin-kle twin-kle lit-tle star"))
    lyrics = Lyrics.parse(lrc(labels))
    assert lyrics.text == "twinkle twinkle little star"
    assert [at for at, _ in lyrics.times] == [0, 8, 16, 23]
    assert [when for _, when in lyrics.times] == pytest.approx(
        [labels.syllables[i].start for i in (0, 2, 4, 6)], abs=0.01
    )


def test_some_training_songs_keep_a_label_to_themselves() -> None:
    def told(split: str) -> Counter[str]:
        recipe = Recipe(out=Path("x"), split=split, songs=1)
        return Counter(name for i in range(500) for name in row_of(recipe, i))

    train, test = told("train"), told("test")
    assert {test[name] for name in ("file_name", "title", "artist", "genre", "lyrics")} == {500}
    assert train["title"] == 500
    assert all(0.85 < train[name] / 500 < 0.95 for name in ("artist", "genre", "lyrics"))


# ---- voice ----------------------------------------------------------------------------------------------------------


def spoken(*phonemes: Phoneme) -> Spoken:
    frames = round(phonemes[-1].end / FRAME) + 1
    return Spoken(phonemes, np.ones(frames, bool), np.ones((frames, 513)), np.ones((frames, 513)))


def test_a_consonant_between_vowels_belongs_to_the_later_one() -> None:
    sounds = [Phoneme(0.1 * i, 0.1 * i + 0.1, vowel) for i, vowel in enumerate((False, True, False, True, False))]
    first, second = spoken(*sounds).syllables(2)
    assert [first, second] == [tuple(sounds[:2]), tuple(sounds[2:])]
    assert spoken(*sounds).syllables(1) == [tuple(sounds)]
    assert spoken(*sounds).syllables(3)[2] == (sounds[3],)  # the last vowel, again


def test_vowels_stretch_and_consonants_keep_their_length() -> None:
    sounds = (Phoneme(0.0, 0.1, False), Phoneme(0.1, 0.2, True), Phoneme(0.2, 0.3, False))
    target, source = singing_voice._frames(sounds, Sung(1.0, 2.0, 60), 1000)
    assert target[0] == round(1 / FRAME)
    assert target[-1] < 2 / FRAME
    assert (source < 0.1 / FRAME).sum() == pytest.approx(0.1 / FRAME, abs=1)
    assert (source >= 0.2 / FRAME).sum() == pytest.approx(0.1 / FRAME, abs=1)
    assert (np.diff(source) >= 0).all()


def test_a_longer_throat_lowers_resonances() -> None:
    envelope = np.full((1, 513), 1e-6)
    envelope[0, 100] = 1.0
    assert singing_voice._resized(envelope, 1.25).argmax() == 80
    assert singing_voice._resized(envelope, 1.0) is envelope


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    with pytest.raises(MissingDependencyError, match="apt-get install libespeak-ng1"):
        singing_voice.Speaker("en-us")


def test_a_failed_speaker_tells_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="apt-get install"):
        singing_voice._said.__wrapped__("nobody's voice", ("a",))


def test_words_are_the_same_in_every_process(singers: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words, made = ("moon", "star", "twinkle"), []
    for place in ("one", "other"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
        made.append(singing_voice._said.__wrapped__("en-us+f2", words))
    for word in words:
        assert np.array_equal(made[0][word][0], made[1][word][0])
        assert made[0][word][1] == made[1][word][1]
    assert sum(phoneme.vowel for phoneme in made[0]["twinkle"][1]) == 2
    assert sum(phoneme.vowel for phoneme in made[0]["moon"][1]) == 1


def test_the_voice_sings_the_notes(singers: None) -> None:
    import pyworld

    notes = [Sung(0.2, 0.9, 57), Sung(1.0, 1.8, 64)]
    audio = sing(Singer("en-us+f2", 57), [("moon", notes[:1]), ("star", notes[1:])], 2.0, ("moon", "star"))
    assert audio.shape == (2 * RATE,)
    pitch, time = pyworld.harvest(audio, RATE, f0_floor=80.0, f0_ceil=600.0)
    for note in notes:
        held = pitch[(time > note.start + 0.2) & (time < note.end - 0.25)]
        wanted = 440 * 2 ** ((note.pitch - 69) / 12)
        assert np.abs(1200 * np.log2(held[held > 0] / wanted)).max() < 50  # cents
        assert (held > 0).mean() > 0.8
    assert np.abs(audio[: round(0.15 * RATE)]).max() < 1e-3


# ---- sound and folders ----------------------------------------------------------------------------------------------


def test_songs_are_the_same_in_any_order(singers: None) -> None:
    one, other = SungCorpus(0, "test"), SungCorpus(0, "test")
    first = one.song(0)
    other.song(1)
    assert np.array_equal(other.song(0).audio, first.audio)
    assert other.labels_of(0) == first.labels
    assert first.audio.shape == (2**15,)
    assert 0.3 < np.abs(first.audio).max() <= 0.9


def test_folders_are_continued_and_never_mixed(singers: None, tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--split", "validation"]
    assert main([*arguments, "--songs", "2"]) == 0
    stamp = (tmp_path / "validation" / "000001.flac").stat().st_mtime_ns
    events = list(sing_folder(Recipe(out=tmp_path, split="validation", songs=3)))
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 1]
    assert events[-1] == Finished(result=tmp_path / "validation")
    assert (tmp_path / "validation" / "000001.flac").stat().st_mtime_ns == stamp
    rows = [json.loads(row) for row in (tmp_path / "validation" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["000000.flac", "000001.flac", "000002.flac"]
    assert main([*arguments, "--songs", "3", "--seed", "1"]) == 2
    assert main([*arguments, "--songs", "0"]) == 2


def test_the_trainer_reads_the_folder(singers: None, tmp_path: Path) -> None:
    from tunesmith.training.folders import open_songs

    for split in ("train", "test"):
        list(sing_folder(Recipe(out=tmp_path, split=split, songs=2)))
    songs = open_songs(tmp_path)
    assert (len(songs.train), len(songs.test)) == (2, 2)
    labels = SungCorpus(0, "test").labels_of(1)
    metadata = songs.test[1].metadata
    assert (metadata.artist, metadata.genres, metadata.lyrics.text) == (labels.artist, (labels.genre,), labels.lyrics)
    assert songs.test[1].seconds == pytest.approx(SECONDS)
