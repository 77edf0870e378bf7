"""Padding by hand-written rows, lengths, causality, and weight norm folded or not."""

import copy

import pytest
import torch
from torch import nn

from tunesmith.errors import RequestError
from tunesmith.nn.conv import Conv1d, ConvStyle, ConvTranspose1d, fold_weight_norm, pad1d, reset_conv

CENTRED, CAUSAL = ConvStyle(), ConvStyle(causal=True)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([[values]], dtype=torch.float32)


def padding_of(layer: Conv1d, samples: torch.Tensor) -> list[float]:
    """What the layer's convolution gets to see."""
    seen = []
    layer.conv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    layer(samples)
    return seen[0][0, 0].tolist()


@pytest.mark.parametrize(
    ("samples", "left", "right", "mode", "expected"),
    [
        (row(1, 2, 3, 4), 2, 1, "reflect", [3, 2, 1, 2, 3, 4, 3]),
        (row(1, 2, 3, 4), 2, 1, "constant", [0, 0, 1, 2, 3, 4, 0]),
        (row(1, 2, 3, 4), 1, 2, "replicate", [1, 1, 2, 3, 4, 4, 4]),
        # Too short to be reflected: zeros on the right first (1 2 0 0 -> 0 0 2 1 2 0 0), then those two are cut off.
        (row(1, 2), 3, 0, "reflect", [0, 0, 2, 1, 2]),
        (row(5), 1, 1, "reflect", [0, 5, 0]),
        (row(1, 2), 0, 0, "reflect", [1, 2]),
    ],
)
def test_pad1d_rows(samples, left, right, mode, expected):
    assert pad1d(samples, left, right, mode)[0, 0].tolist() == expected


def test_centred_puts_the_larger_half_left_and_fills_the_last_window():
    layer = Conv1d(1, 1, 5, stride=2, style=ConvStyle(pad_mode="constant"))  # P = 3: 2 left, 1 right
    assert padding_of(layer, row(1, 2, 3)) == [0, 0, 1, 2, 3, 0, 0]


def test_causal_pads_left_only_and_fills_the_last_window():
    layer = Conv1d(1, 1, 4, stride=2, style=ConvStyle(causal=True, pad_mode="constant"))
    assert padding_of(layer, row(1, 2, 3)) == [0, 0, 1, 2, 3, 0]


def test_dilation_widens_the_window():
    layer = Conv1d(1, 1, 3, dilation=2, style=ConvStyle(pad_mode="constant"))
    assert padding_of(layer, row(1, 2, 3)) == [0, 0, 1, 2, 3, 0, 0]


@pytest.mark.parametrize("style", [CENTRED, CAUSAL, ConvStyle(norm="time_group_norm", pad_mode="constant")])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 30])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_lengths(style, length, stride):
    down = Conv1d(2, 3, 2 * stride, stride=stride, style=style)
    up = ConvTranspose1d(3, 2, 2 * stride, stride=stride, style=style)
    frames = down(torch.randn(1, 2, length))
    assert frames.shape == (1, 3, -(-length // stride))
    assert up(frames).shape == (1, 2, frames.shape[-1] * stride)


@pytest.mark.parametrize(
    ("style", "left", "right"),
    [
        (ConvStyle(causal=True), 0, 3),
        (ConvStyle(causal=True, trim_right_ratio=0.5), 1, 2),
        (ConvStyle(causal=True, trim_right_ratio=0.0), 3, 0),
        (ConvStyle(), 2, 1),
    ],
)
def test_transposed_cuts(style, left, right):
    layer = ConvTranspose1d(1, 1, 5, stride=2, style=style)
    given = torch.randn(1, 1, 4)
    whole = layer.conv(given)
    assert torch.equal(layer(given), whole[..., left : whole.shape[-1] - right])


def test_causal_sees_no_future():
    layer = Conv1d(1, 2, 6, stride=3, style=CAUSAL)
    clip = torch.randn(1, 1, 30)
    changed = clip.clone()
    changed[..., 15:] += 1.0
    before, after = layer(clip), layer(changed)
    assert torch.equal(before[..., :5], after[..., :5])
    assert not torch.equal(before[..., 5:], after[..., 5:])


def test_weight_norm_runs_over_dimension_zero():
    conv = Conv1d(3, 4, 5, style=CENTRED).conv
    transposed = ConvTranspose1d(3, 4, 6, stride=3, style=CENTRED).conv
    assert conv.state_dict()["parametrizations.weight.original0"].shape == (4, 1, 1)
    assert transposed.state_dict()["parametrizations.weight.original0"].shape == (3, 1, 1)


@pytest.mark.parametrize("make", [Conv1d, ConvTranspose1d])
def test_folding_changes_neither_result_nor_names(make):
    layer = make(3, 4, 6, stride=3, style=CENTRED)
    with torch.no_grad():
        layer.conv.parametrizations.weight.original0.mul_(torch.rand(layer.conv.weight.shape[0], 1, 1) + 0.5)
    folded = copy.deepcopy(layer)
    fold_weight_norm(folded)
    clip = torch.randn(2, 3, 20)
    assert torch.equal(folded(clip), layer(clip))
    assert "weight" in dict(folded.conv.named_parameters())
    assert folded.state_dict().keys() == layer.state_dict().keys()
    layer.load_state_dict(folded.state_dict())
    torch.testing.assert_close(layer(clip), folded(clip))


def test_folded_layers_load_unfolded_states():
    source, target = (Conv1d(3, 4, 6, stride=3, style=CENTRED) for _ in range(2))
    fold_weight_norm(target)
    target.load_state_dict(source.state_dict())
    clip = torch.randn(2, 3, 20)
    torch.testing.assert_close(target(clip), source(clip))


@pytest.mark.parametrize("folded", [False, True])
def test_older_names_load(folded):
    source, target = (Conv1d(3, 4, 6, style=CENTRED) for _ in range(2))
    if folded:
        fold_weight_norm(target)
    names = {"original0": "weight_g", "original1": "weight_v"}
    state = {
        next((k.replace(f"parametrizations.weight.{n}", o) for n, o in names.items() if k.endswith(n)), k): v
        for k, v in source.state_dict().items()
    }
    assert {"conv.weight_g", "conv.weight_v", "conv.bias"} == set(state)
    target.load_state_dict(state)
    clip = torch.randn(2, 3, 20)
    torch.testing.assert_close(target(clip), source(clip))


def test_fresh_gains_equal_the_norms_of_their_directions():
    conv = Conv1d(3, 4, 5, style=CENTRED).conv
    assert isinstance(conv, nn.Conv1d)
    reset_conv(conv)
    weight = conv.parametrizations.weight
    torch.testing.assert_close(weight.original0[:, 0, 0], weight.original1.flatten(1).norm(dim=1))
    torch.testing.assert_close(conv.weight, weight.original1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"norm": "layer_norm"}, "norm_type is 'layer_norm'"),
        ({"pad_mode": "mirror"}, "pad_mode is 'mirror'"),
        ({"trim_right_ratio": 0.5}, "only causal"),
        ({"trim_right_ratio": 1.5, "causal": True}, "between 0 and 1"),
    ],
)
def test_impossible_styles_are_refused(arguments, said):
    with pytest.raises(RequestError, match=said):
        ConvStyle(**arguments)
