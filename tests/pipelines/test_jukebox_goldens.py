"""The whole Jukebox against the original implementation: every mode, greedy, from its own files and from ours.

The reference sets `partial_continue` and `partial_continue_short` don't apply: there the original adds as many codes as
are asked for to those given, while here a length is final (`test_a_partial_window_ends_where_it_is_asked_to`).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tunesmith.convert.checkpoints import convert_checkpoint
from tunesmith.pipelines.jukebox import JukeboxModel

STYLES = ("1b_lyrics_style", "5b_lyrics_style")
HEAD = 4  # columns of labels before the genres
SLOT = 16  # lyric tokens of a window
TOLERANCE = 5e-5


class Golden:
    """A model and what the original makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.meta = folder, json.loads((folder / "meta.json").read_text())
        self.inputs, self.outputs = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
        self.model = JukeboxModel.from_pretrained(folder / "hf")
        top_first = {name: self.meta[f"{name}_by_level"][::-1] for name in ("hop_fraction", "chunk_size")}
        self.options: dict[str, Any] = {**top_first, "sample_length": self.meta["sample_length"], "top_k": 1}

    def labels(self, number: int) -> list[Tensor]:
        """With whole lyrics instead of those of a window."""
        top, *lower = (self.inputs[f"labels{number}_level{level}.y"] for level in (2, 1, 0))
        lyrics = [self.inputs[f"labels{number}.full_tokens_item{i}"] for i in range(len(top))]
        return [torch.cat([top[:, :-SLOT], pad_sequence(lyrics, True, -1)], 1), *lower]

    def given(self, name: str) -> list[Tensor]:
        return [self.inputs[f"{name}_level{level}"] for level in (2, 1, 0) if f"{name}_level{level}" in self.inputs]

    def check(self, mode: str, codes: list[Tensor]) -> None:
        for level, found in zip((2, 1, 0), codes, strict=True):
            assert torch.equal(found, self.outputs[f"{mode}.codes_level{level}"]), level
            name = f"{mode}.audio_from_level{level}"
            if name in self.outputs:
                audio = self.model.decode(codes[: 3 - level])
                torch.testing.assert_close(audio, self.outputs[name], rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module", params=STYLES)
def golden(request: pytest.FixtureRequest, goldens: Path) -> Golden:
    return Golden(goldens / "jukebox" / "full_model" / request.param)


def test_ancestral(golden: Golden) -> None:
    codes = golden.model.ancestral_sample(golden.labels(1), **golden.options)
    golden.check("ancestral", codes)
    assert torch.equal(golden.model.decode(codes), golden.model.decode(codes, start_level=0))


def test_continue(golden: Golden) -> None:
    codes = golden.given("continue_codes")
    golden.check("continue", golden.model.continue_sample(codes, golden.labels(2), **golden.options))


def test_upsample(golden: Golden) -> None:
    del golden.options["sample_length"]  # that of the codes
    golden.check("upsample", golden.model.upsample(golden.given("upsample_codes"), golden.labels(2), **golden.options))


def test_primed(golden: Golden) -> None:
    audio, options = golden.inputs["prompt_audio"], {**golden.options, "sample_length": golden.meta["sample_length"]}
    for level, codes in zip((2, 1, 0), golden.model.encode(audio), strict=True):
        assert torch.equal(codes, golden.outputs[f"primed.encoded_prompt_level{level}"])
    golden.check("primed", golden.model.primed_sample(audio, golden.labels(1), **options))


def test_partial_top_window(golden: Golden) -> None:
    options = {**golden.options, "sample_length": golden.meta["partial_sample_length"]}
    golden.check("partial_top_window", golden.model.ancestral_sample(golden.labels(1), **options))


def test_a_partial_window_ends_where_it_is_asked_to(golden: Golden) -> None:
    """With few codes given the original's window is ours, and goes on beyond the total by as many."""
    start, theirs = (golden.outputs[f"partial_continue_short.{name}_level2"] for name in ("start_codes", "codes"))
    options = {**golden.options, "sample_length": golden.meta["partial_sample_length"]}
    codes = golden.model.continue_sample([start], golden.labels(1), [0], **options)[0]
    assert codes.shape[1] == 24 == theirs.shape[1] - start.shape[1]
    assert torch.equal(codes, theirs[:, :24])


@pytest.mark.parametrize("style", STYLES)
def test_from_the_originals_files(goldens: Path, style: str, tmp_path: Path) -> None:
    golden = Golden(goldens / "jukebox" / "full_model" / style)
    convert_checkpoint(golden.folder, tmp_path / "model")
    converted = JukeboxModel.from_pretrained(tmp_path / "model")
    ours, theirs = converted.state_dict(), golden.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
