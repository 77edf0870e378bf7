"""Windows of labels: the original's numbers, and an obvious version in plain Python."""

import json
import random
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file

from tunesmith.conditioning.labels import NONE, Window, cut_window, lyric_lengths, per_song, with_timing
from tunesmith.errors import RequestError


def labels(*lyrics: list[int], total: int = 1000, offset: int = 0, genres: int = 2) -> torch.Tensor:
    """A batch with ids 1, 2, ... as artists and as first genres."""
    longest = max(map(len, lyrics))
    return torch.tensor(
        [
            [total, offset, 0, i, i, *[NONE] * (genres - 1), *tokens, *[NONE] * (longest - len(tokens))]
            for i, tokens in enumerate(lyrics, start=1)
        ]
    )


def obvious(tokens: list[int], n_tokens: int, total: int, offset: int, length: int) -> tuple[list[int], list[int]]:
    """Characters and indices of one song's window, in Python's own numbers."""
    missing = n_tokens - len(tokens)
    if missing > 0:
        return [0] * missing + tokens, [-1] * missing + list(range(len(tokens)))
    middle = int(len(tokens) * (offset + length / 2) / total)
    first = min(max(middle - n_tokens // 2, 0), len(tokens) - n_tokens)
    return tokens[first : first + n_tokens], list(range(first, first + n_tokens))


def test_windows_are_the_obvious_ones():
    dice = random.Random(5)
    for _ in range(300):
        total, n_tokens = dice.randrange(1000, 20_000_000), dice.choice([0, 1, 6, 7, 384])
        songs = [[dice.randrange(1, 80) for _ in range(dice.choice([0, 1, 6, 7, 384, 900]))] for _ in range(3)]
        offset, length, start = dice.randrange(total // 2), dice.randrange(1, 2 * total), dice.randrange(total // 2)
        window = cut_window(
            labels(*songs, total=total, offset=offset),
            start=start,
            length=length,
            n_genres=2,
            n_tokens=n_tokens,
            dtype=torch.float64,
        )
        for i, tokens in enumerate(songs):
            characters, indices = obvious(tokens, n_tokens, total, offset + start, length)
            assert window.labels[i].tolist() == [total, offset + start, length, i + 1, i + 1, NONE, *characters]
            assert window.indices[i].tolist() == indices


def test_the_batch_does_not_matter():
    songs = [list(range(1, 50)), [3], [], list(range(20, 30))]
    settings = {"start": 300, "length": 200, "n_genres": 2, "n_tokens": 8}
    together = cut_window(labels(*songs), **settings)
    for i, tokens in enumerate(songs):
        alone = cut_window(labels(tokens), **settings)
        assert torch.equal(together.labels[i, 6:], alone.labels[0, 6:])
        assert torch.equal(together.indices[i], alone.indices[0])


def test_the_window_moves_with_the_music():
    rows = labels(list(range(1, 101)), total=10_000)
    first = [
        int(cut_window(rows, start=start, length=1000, n_genres=2, n_tokens=10).indices[0, 0])
        for start in (0, 100, 2000, 5000, 9000, 9999)
    ]
    assert first == [0, 1, 20, 50, 90, 90]


@pytest.mark.parametrize(
    ("count", "total", "offset", "single", "double"),
    [(1859, 5113178, 2984397, 1228, 1227), (1311, 4927153, 1745266, 569, 568)],
)
def test_the_samplers_precision_is_float32(count, total, offset, single, double):
    """Rare songs in which the precisions differ by a character: the original samples in single, prepares in double."""
    rows, length = labels([1] * count, total=total, offset=offset), torch.tensor(786432)
    assert int(count * (torch.tensor(offset) + length / 2.0) / torch.tensor(total)) == single
    for dtype, middle in ((torch.float32, single), (torch.float64, double)):
        window = cut_window(rows, start=0, length=int(length), n_genres=2, n_tokens=384, dtype=dtype)
        assert int(window.indices[0, 0]) == middle - 192


def test_labels_without_lyrics_keep_their_genres():
    rows = labels([], genres=5)
    window = cut_window(rows, start=10, length=20, n_genres=None, n_tokens=0)
    assert window.labels.tolist() == [[1000, 10, 20, 1, 1, NONE, NONE, NONE, NONE]]
    assert window.indices.shape == (1, 0)


def test_the_labels_stay_as_they_were():
    rows = labels([1, 2, 3])
    before = rows.clone()
    cut_window(rows, start=10, length=20, n_genres=2, n_tokens=2)
    with_timing(rows, sample_length=500, offset=3)
    assert torch.equal(rows, before)


@pytest.mark.parametrize(("start", "offset"), [(0, 1000), (900, 100), (-1, 0)])
def test_a_window_outside_the_song_is_refused(start, offset):
    with pytest.raises(RequestError, match="must lie inside the total length"):
        cut_window(labels([], offset=offset), start=start, length=20, n_genres=2, n_tokens=0)


def test_timing_is_given_or_the_labels_own_or_the_samples():
    rows = torch.cat([labels([5], total=0), labels([5], total=900, offset=7)])
    assert with_timing(rows, sample_length=500)[:, :3].tolist() == [[500, 0, 500], [900, 7, 500]]
    given = with_timing(rows, sample_length=[500, 600], total_length=torch.tensor([800, 1000]), offset=0)
    assert given[:, :3].tolist() == [[800, 0, 500], [1000, 0, 600]]
    assert torch.equal(given[:, 3:], rows[:, 3:])


def test_wrong_timing_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse a text first
    rows = labels([5], [6])
    for wrong, sentence in (
        ({"offset": 1000}, "song 0 start at sample 1000 of a song of 1000"),
        ({"total_length": [5, 0]}, "inside the total length"),
        ({"offset": [1, 2, 3]}, "offset has 3 values for 2 songs"),
        ({"offset": -1}, "whole number"),
        ({"total_length": 10.5}, "whole number"),
        ({"total_length": float("nan")}, "whole number"),
        ({"total_length": "10"}, "whole number|2 values"),
    ):
        with pytest.raises(RequestError, match=sentence):
            with_timing(rows, **{"sample_length": 10, **wrong})


def test_whole_floats_are_numbers_of_samples():
    assert per_song(903936.0, 2, "total_length") == [903936, 903936]


def test_lyric_lengths():
    assert lyric_lengths(labels([1, 2], [], [0, 0, 0]), 2).tolist() == [2, 0, 3]


@pytest.mark.parametrize("style", ["1b_lyrics_style", "5b_lyrics_style"])
def test_windows_of_the_original(goldens: Path, style: str) -> None:
    folder = goldens / "jukebox" / "full_model" / style
    given, expected = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "window_labels"))
    genres = json.loads((folder / "hps_prior_level_2.json").read_text())["max_bow_genre_size"]
    for name in [name for name in expected if name.endswith(".y")]:
        which, level, start = name.split(".")[:3]
        window = golden_window(given, which, level, int(start.removeprefix("start")), genres)
        assert torch.equal(window.labels, expected[name]), name
        if level == "level2":
            assert torch.equal(window.indices, expected[name.replace(".y", ".lyric_indices")])


def golden_window(given: dict[str, torch.Tensor], which: str, level: str, start: int, genres: int) -> Window:
    """Our labels for a golden's songs, and the window that begins at a code."""
    rows, hop = given[f"{which}_{level}.y"], {"level0": 8, "level1": 32, "level2": 128}[level]
    lyrics = [given[f"{which}.full_tokens_item{i}"].tolist() for i in range(2)]
    whole = labels(*(lyrics if level == "level2" else [[], []]), genres=genres if level == "level2" else 5)
    head = rows.shape[1] if level != "level2" else 4 + genres
    whole[:, :head] = rows[:, :head]
    return cut_window(
        whole,
        start=start * hop,
        length=32 * hop,
        n_genres=genres if level == "level2" else None,
        n_tokens=16 if level == "level2" else 0,
    )
