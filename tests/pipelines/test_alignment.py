"""Alignments equal the original's; timed lyrics and the search on matrices made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tunesmith.errors import RequestError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.pipelines.alignment import _monotone, _straightness, align, best_heads, lyric_layers, timed

MODES = {"ancestral": 1, "continue": 2, "upsample": 2, "primed": 1, "partial_top_window": 1}
STYLES = ("1b_lyrics_style", "5b_lyrics_style")


def golden_labels(inputs: dict[str, Tensor], number: int, genres: int) -> Tensor:
    """Labels of whole songs, from those of a window and the lists of characters."""
    head = inputs[f"labels{number}_level2.y"][:, : 4 + genres]
    lyrics = [inputs[f"labels{number}.full_tokens_item{i}"] for i in range(len(head))]
    return torch.cat([head, pad_sequence(lyrics, batch_first=True, padding_value=-1)], 1)


@pytest.fixture(scope="module", params=STYLES)
def folder(request: pytest.FixtureRequest, goldens: Path) -> Path:
    return goldens / "jukebox" / "full_model" / request.param


@pytest.fixture(scope="module")
def prior(folder: Path) -> JukeboxPrior:
    return JukeboxPrior.from_pretrained(folder / "hf").eval()


@pytest.mark.parametrize("mode", MODES)
def test_alignments_are_the_originals(folder: Path, prior: JukeboxPrior, mode: str) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    labels = golden_labels(inputs, MODES[mode], prior.config.max_nb_genres)
    found = align(
        prior,
        outputs[f"{mode}.codes_level2"],
        labels,
        hop_fraction=meta["hop_fraction_by_level"][2],
        layer=meta["alignment_layer"],
        head=meta["alignment_head"],
    )
    for i, matrix in enumerate(found):
        torch.testing.assert_close(matrix, outputs[f"{mode}.alignment_item{i}"], atol=1e-4, rtol=0)
    assert found[0].any()


def test_the_search_covers_every_head_that_reads_lyrics(folder: Path, prior: JukeboxPrior) -> None:
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    labels = golden_labels(inputs, 1, prior.config.max_nb_genres)
    heads = best_heads(prior, outputs["ancestral.codes_level2"], labels)
    layers, count = lyric_layers(prior), prior.config.n_heads
    assert {(found.layer, found.head) for found in heads} == {(a, b) for a in layers for b in range(count)}
    assert [found.score for found in heads] == sorted((found.score for found in heads), reverse=True)
    with pytest.raises(RequestError, match=r"layers? .*do, with heads 0 to"):
        align(prior, outputs["ancestral.codes_level2"], labels, hop_fraction=1.0, layer=0, head=0)


def test_a_straight_line_scores_one_and_standing_still_zero() -> None:
    line, flat, back = torch.eye(20), torch.ones(20, 20), torch.eye(20).flip(0)
    scores = _straightness(torch.stack([line, flat, back]), torch.arange(20))
    assert scores.tolist() == pytest.approx([1, 0, -1], abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_way_is_the_best_of_all_that_never_go_back(seed: int) -> None:
    scores = np.random.default_rng(seed).random((4, 4))
    ways = [(a, b, c, d) for a in range(4) for b in range(a, 4) for c in range(b, 4) for d in range(c, 4)]
    best = max(ways, key=lambda way: sum(scores[row, column] for row, column in enumerate(way)))
    assert tuple(_monotone(scores)) == best


def sung(text: str, codes_per_character: int, first: int = 0, last: int | None = None) -> Tensor:
    """The attention of someone who sings a character after another: column i + 1 while character i is sung."""
    last = len(text) if last is None else last
    matrix = torch.zeros((last - first) * codes_per_character, len(text))
    for row in range(len(matrix)):
        matrix[row, min(first + row // codes_per_character + 1, len(text) - 1)] = 0.5
    return matrix


def test_words_and_lines_have_the_times_at_which_they_are_sung() -> None:
    lyrics = "we sing\n\nno more"
    found = timed(sung(lyrics, 10), lyrics, rate=100.0)  # a tenth of a second a character
    assert [(word.text, word.start, word.end) for word in found.words] == [
        ("we", 0.0, 0.2),
        ("sing", 0.3, 0.7),
        ("no", 0.9, 1.1),
        ("more", 1.2, 1.6),
    ]
    assert [(line.text, line.start) for line in found.lines] == [("we sing", 0.0), ("no more", 0.9)]
    assert found.to_lrc() == "[00:00.00]we sing\n[00:00.90]no more\n"
    assert found.to_dict()["words"][1] == {"text": "sing", "start": 0.3, "end": 0.7}


def test_what_is_not_sung_has_no_time() -> None:
    lyrics = "one two three four"
    found = timed(sung(lyrics, 10, first=4, last=13), lyrics, rate=100.0)  # "two three"
    assert [word.start for word in found.words] == [None, 0.0, 0.4, None]
    assert timed(torch.zeros(50, 4), "abcd", rate=100.0).to_lrc() == ""
    assert timed(torch.zeros(50, 0), "", rate=100.0).words == ()
