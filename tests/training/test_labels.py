"""Captions vary as asked; rows for Jukebox have the words that are sung in the crop."""

import numpy as np
import pytest
import torch

from tiny_jukebox import tiny_tokenizer
from tunesmith.conditioning.labels import cut_window, with_timing
from tunesmith.errors import RequestError
from tunesmith.training.crops import Crop
from tunesmith.training.labels import Captions, JukeboxLabels, fields
from tunesmith.training.metadata import Metadata

KNOWN = Metadata.from_row(
    {
        "text": "a slow waltz.",
        "key": "E minor",
        "bpm": 90,
        "genre": ["Folk", "Jazz"],
        "moods": ["sad"],
        "keywords": "old",
    }
)


def crop(metadata: Metadata = KNOWN, start: int = 0, samples: int = 100, total: int = 1000, seed: int = 0) -> Crop:
    return Crop("song", metadata, start, samples, total, 10, np.random.default_rng(seed))


def test_a_description_is_left_alone_by_default():
    assert Captions()(crop()) == {"text": "a slow waltz."}
    assert Captions()(crop(Metadata())) == {"text": None}


def test_fields_are_merged_in_random_order():
    told = {Captions(merge=1.0)(crop(seed=seed))["text"] for seed in range(40)}
    assert len(told) > 20
    for text in told:
        first, *rest = text.split(". ")
        assert first == "a slow waltz"
        assert set(rest) == {"key: e minor", "bpm: 90", "genre: folk, jazz", "moods: sad", "keywords: old"}
    assert "moods: sad" in Captions()(crop(Metadata.from_row({"moods": "sad"})))["text"]  # nothing else is known


def test_shares_are_what_they_say():
    vary = Captions(merge=0.25, keep_text=0.5, keep_field=0.5, withhold=0.2)
    texts = [vary(crop(seed=seed))["text"] for seed in range(4000)]
    said = [text for text in texts if text]
    merged = [text for text in said if text != "a slow waltz."]
    named = [len([part for part in text.split(". ") if ": " in part]) for text in merged]
    assert texts.count(None) / 4000 == pytest.approx(0.2, abs=0.03)
    assert len(merged) / len(said) == pytest.approx(0.25, abs=0.03)
    assert np.mean(named) == pytest.approx(len(fields(KNOWN)) / 2, abs=0.3)
    assert np.mean([text.startswith("a slow waltz") for text in merged]) == pytest.approx(0.5, abs=0.06)


def test_words_are_dropped():
    texts = [Captions(drop_words=0.3)(crop(seed=seed))["text"] or "" for seed in range(2000)]
    assert np.mean([len(text.split()) for text in texts]) == pytest.approx(0.7 * 3, abs=0.1)


@pytest.mark.parametrize("name", ["merge", "keep_text", "keep_field", "drop_words", "withhold"])
def test_probabilities_are_checked(name):
    with pytest.raises(RequestError, match=f"{name} is 1.5"):
        Captions(**{name: 1.5})


@pytest.mark.parametrize("lyrics", ["", "la", "la la la, oh so blue, and so on"])
@pytest.mark.parametrize("start", [0, 310, 900])
def test_rows_are_those_that_sampling_sees(lyrics, start):
    """Plain lyrics: the same window as when a song is made."""
    tokenizer = tiny_tokenizer()
    known = Metadata.from_row({"artist": "Salt", "genre": "Folk Rock", "lyrics": lyrics})
    row = JukeboxLabels(tokenizer, n_tokens=8)(crop(known, start=start))["labels"]
    whole = tokenizer("Salt", "Folk Rock", lyrics)["input_ids"][0]
    timed = with_timing(whole, sample_length=100, total_length=1000)
    window = cut_window(timed, start=start, length=100, n_genres=1, n_tokens=8, dtype=torch.float64)
    assert torch.equal(row, window.labels[0])


def test_timed_lyrics_say_when():
    lines = "[00:50.00]abcdefgh\n[01:30.00]ijklmnop"
    labels = JukeboxLabels(tiny_tokenizer(), n_tokens=8)
    rows = [labels(crop(Metadata.from_row({"lyrics": lines}), start=start))["labels"] for start in (0, 450, 900)]
    sung = [tiny_tokenizer().alphabet.decode(row[-8:].tolist()) for row in rows]
    assert sung[0] == "abcdefgh"
    assert sung[1] == "abcdefgh"  # at second 50 it begins
    assert sung[2].endswith("mnop")


def test_of_more_genres_than_slots_the_first_ones():
    known = Metadata.from_row({"artist": "salt", "genre": ["country", "folk rock"]})
    row = JukeboxLabels(tiny_tokenizer())(crop(known))["labels"]
    assert row.tolist() == [1000, 0, 100, 2, 2]
    below = JukeboxLabels(tiny_tokenizer(), level=1)(crop(known))["labels"]
    assert below.tolist() == [1000, 0, 100, 2, 3, 1, 2, -1, -1]
