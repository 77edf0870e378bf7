"""Windows: the original's starts, whole codes of the level above, exact ends."""

import json
from pathlib import Path

import pytest
import torch

from tunesmith.errors import RequestError
from tunesmith.generation.windows import hop_of, upper_slice, window_starts


@pytest.mark.parametrize(
    ("total", "window", "hop", "ratio", "starts"),
    [
        (27560, 8192, 4096, 4, [0, 4096, 8192, 12288, 16384, 19368]),  # the middle level of 20 s
        (6890, 6144, 768, 1, [0, 746]),  # the top level of the 1b model
        (6890, 8192, 1024, 1, [0]),  # less than a window
        (8192, 8192, 1024, 1, [0]),
        (16, 8, 8, 4, [0, 8]),  # nothing overlaps
        (17, 8, 4, 4, [0, 4, 8, 12]),  # the last window reaches 3 codes beyond the total
        (0, 8, 4, 1, [0]),
    ],
)
def test_starts(total: int, window: int, hop: int, ratio: int, starts: list[int]) -> None:
    assert window_starts(total, window, hop, ratio) == starts


def test_the_bottom_level_of_20_seconds_has_26_windows() -> None:
    starts = window_starts(110_240, 8192, 4096, 4)
    assert (len(starts), starts[-1]) == (26, 102_048)


@pytest.mark.parametrize("style", ["1b_lyrics_style", "5b_lyrics_style"])
def test_starts_of_the_original(goldens: Path, style: str) -> None:
    meta = json.loads((goldens / "jukebox" / "full_model" / style / "meta.json").read_text())
    for level, (window, fraction) in enumerate(zip(meta["n_ctx"], meta["hop_fraction_by_level"], strict=True)):
        ratio, total = (1 if level == 2 else 4), meta["sample_length"] // [8, 32, 128][level]
        starts = window_starts(total, window, hop_of(fraction, window, ratio), ratio)
        assert starts == meta["window_starts"][f"level{level}"]


@pytest.mark.parametrize("total", range(1, 60))
def test_windows_cover_everything(total: int) -> None:
    starts = window_starts(total, 16, 8, 4)
    ends = [min(start + 16, total) for start in starts]
    assert ends[-1] == total
    assert all(start % 4 == 0 for start in starts)
    assert all(start < end for start, end in zip(starts[1:], ends, strict=False))  # each has something to go on from
    assert sorted(set(ends)) == ends  # and something to add


@pytest.mark.parametrize(
    ("fraction", "window", "ratio", "hop"), [(0.5, 8192, 4, 4096), (0.125, 6144, 1, 768), (1, 8, 4, 8)]
)
def test_hops(fraction: float, window: int, ratio: int, hop: int) -> None:
    assert hop_of(fraction, window, ratio) == hop


def test_a_hop_is_rounded_down_but_not_by_rounding_errors() -> None:
    assert hop_of(0.3, 10) == 3
    assert hop_of(0.29, 100) == 29  # 28.999...
    assert hop_of(0.39, 10) == 3


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, 0.01, float("nan"), 0.3])
def test_hops_that_do_not_divide(fraction: float) -> None:
    with pytest.raises(RequestError, match=r"hop_fraction is .* multiple of 4: 0\.\d+ would"):
        hop_of(fraction, 32, 4)


def test_upper_codes_of_a_window() -> None:
    upper = torch.arange(1, 6)[None]
    assert upper_slice(upper, 4, 12, 4).tolist() == [[2, 3, 4]]
    assert upper_slice(upper, 12, 12, 4).tolist() == [[4, 5, 0]]
