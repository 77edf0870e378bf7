"""Patterns: the pictures of the docstrings, the reference layouts, and there and back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.generation import patterns
from tunesmith.generation.patterns import Pattern

# How each reference layout is spelled here.
LAYOUTS = {
    "delay4": lambda t: patterns.delay(t, [0, 1, 2, 3]),
    "delay8_stereo": lambda t: patterns.musicgen(t, 8, audio_channels=2),
    "delay3_custom": lambda t: patterns.delay(t, [0, 2, 5]),
    "delay4_flatten2": lambda t: patterns.delay(t, [0, 1, 2, 3], flatten_first=2),
    "delay4_empty1": lambda t: patterns.delay(t, [0, 1, 2, 3], empty_initial=1),
    "parallel4": lambda t: patterns.parallel(t, 4),
    "unroll4": lambda t: patterns.unroll(t, [0, 1, 2, 3]),
    "unroll4_partial": lambda t: patterns.unroll(t, [0, 1, 1, 1], [0, 2, 2, 2]),
    "coarse4": lambda t: patterns.coarse_first(t, 4),
    "musiclm4": lambda t: patterns.musiclm(t, 4, group_by=2),
}


@pytest.mark.parametrize("frames", [1, 6])
@pytest.mark.parametrize("name", LAYOUTS)
def test_reference_layouts(goldens: Path, name: str, frames: int) -> None:
    folder = goldens / "musicgen" / "audiocraft" / "patterns"
    key = f"{name}.T{frames}"
    meta = json.loads((folder / "meta.json").read_text())[key]
    want = {
        k.removeprefix(key + "."): v for k, v in load_file(folder / "io.safetensors").items() if k.startswith(key + ".")
    }
    pattern, special = LAYOUTS[name](frames), meta["special_token"]

    assert [[list(c) for c in column] for column in pattern.columns] == meta["layout"]
    assert (pattern.steps, pattern.overhang) == (meta["sequence_steps"], meta["max_delay"])
    for valid_only, prefix in ((False, ""), (True, "valid_only.")):
        grid = pattern.build(want["codes"].long(), special, valid_only)
        assert torch.equal(grid, want[prefix + "sequence"].long())
        assert torch.equal(pattern.mask(valid_only).int(), want[prefix + "sequence_mask"])
        logits = want[prefix + "logits"].permute(0, 2, 3, 1)
        reverted = want[prefix + "logits_reverted"].permute(0, 2, 3, 1)
        assert torch.equal(pattern.revert_logits(logits).nan_to_num(99.0), reverted.nan_to_num(99.0))
        assert torch.equal(pattern.revert_logits_mask(logits.shape[2]).int(), want[prefix + "logits_mask"])
    assert torch.equal(pattern.revert(want["sequence"].long(), special), want["reverted"].long())
    assert torch.equal(pattern.revert_mask(pattern.steps).int(), want["reverted_mask"])


def test_delay_by_hand() -> None:
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    grid = patterns.delay(3, [0, 1]).build(codes, special=9)
    assert grid.tolist() == [[[9, 1, 2, 3, 9], [9, 9, 4, 5, 6]]]


def test_stereo_rows_are_pairwise_equal() -> None:
    mask = patterns.musicgen(5, 8, audio_channels=2).mask()
    assert torch.equal(mask[::2], mask[1::2])


def test_negative_empty_initial_removes_the_start() -> None:
    assert patterns.delay(2, [0, 1], empty_initial=-1).columns[0] == ((0, 0),)


def test_coarse_first_with_delays() -> None:
    pattern = patterns.coarse_first(2, 3, delays=[0, 1])
    assert pattern.columns == ((), ((0, 0),), ((1, 0),), ((0, 1),), ((1, 1), (0, 2)), ((2, 1), (1, 2)))


@pytest.mark.parametrize(
    ("pattern", "steps", "valid"),
    [
        (patterns.musicgen(1500, 4), 1504, 1501),
        (patterns.musicgen(1500, 8, 2), 1504, 1501),
        (patterns.parallel(1500, 4), 1501, 1501),
        (patterns.unroll(1500, [0, 1, 2, 3]), 6001, 6001),
        (patterns.unroll(1500, [0, 1, 1, 1]), 3001, 3001),
        (patterns.coarse_first(1500, 4), 3001, 3001),
        (patterns.musiclm(1500, 4), 6001, 6001),
    ],
)
def test_lengths_of_thirty_seconds(pattern: Pattern, steps: int, valid: int) -> None:
    assert (pattern.steps, pattern.steps - pattern.overhang) == (steps, valid)


@pytest.mark.parametrize("name", LAYOUTS)
def test_there_and_back(name: str) -> None:
    pattern = LAYOUTS[name](7)
    codes = torch.randint(0, 50, (2, pattern.codebooks, 7), generator=torch.Generator().manual_seed(1))
    assert torch.equal(pattern.revert(pattern.build(codes, special=50), special=50), codes)


def test_complete_frames_grow_with_the_columns() -> None:
    pattern = patterns.delay(3, [0, 1])
    assert [pattern.complete_frames(n) for n in range(6)] == [0, 0, 0, 1, 2, 3]
