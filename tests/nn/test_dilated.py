"""Dilated stacks: their dilations, lengths, and how far they see."""

import pytest
import torch

from tunesmith.nn.dilated import DilatedBlock, DilatedStack, DilatedStyle, DownBlock, UpBlock


@pytest.mark.parametrize(
    ("style", "dilations"),
    [
        (DilatedStyle(depth=3), [1, 1, 1]),
        (DilatedStyle(depth=4, growth=3), [1, 3, 9, 27]),
        (DilatedStyle(depth=4, growth=3, reverse=True), [27, 9, 3, 1]),
        (DilatedStyle(depth=5, growth=2, cycle=2), [1, 2, 1, 2, 1]),
        (DilatedStyle(depth=5, growth=2, cycle=3, reverse=True), [2, 1, 4, 2, 1]),
    ],
)
def test_dilations(style, dilations):
    assert style.dilations == dilations
    assert style.reach == sum(dilations)
    assert [block.conv1d_1.dilation[0] for block in DilatedStack(2, style).resnet_block] == dilations


def test_a_block_by_hand():
    block = DilatedBlock(1, 1, dilation=2, scale=0.5)
    with torch.no_grad():
        block.conv1d_1.weight.copy_(torch.tensor([[[1.0, 10.0, 100.0]]]))
        block.conv1d_2.weight.fill_(2.0)
        block.conv1d_1.bias.fill_(-20.0)
        block.conv1d_2.bias.fill_(1.0)
    x = torch.tensor([[[1.0, -1.0, 2.0, 3.0]]])
    inner = [10 + 200 - 20, 0 + 300 - 20, 1 + 20 - 20, 0 + 30 - 20]  # relu(x) = 1, 0, 2, 3 two steps apart
    assert block(x).flatten().tolist() == [a + 0.5 * (2 * b + 1) for a, b in zip((1, -1, 2, 3), inner, strict=True)]


def test_scaling_and_widening():
    style = DilatedStyle(depth=4, scaled=True, multiplier=1.5)
    blocks = DilatedStack(4, style).resnet_block
    assert [block.scale for block in blocks] == [0.5] * 4
    assert blocks[0].conv1d_1.weight.shape == (6, 4, 3)


@pytest.mark.parametrize(("stages", "stride"), [(1, 2), (3, 2), (2, 4)])
@pytest.mark.parametrize("length", [64, 67, 100])
def test_lengths(stages, stride, length):
    style = DilatedStyle(depth=2, growth=3)
    down = DownBlock(1, 4, 3, stages=stages, stride=stride, style=style)(torch.zeros(2, 1, length))
    assert down.shape == (2, 3, length // stride**stages)
    up = UpBlock(3, 4, 5, stages=stages, stride=stride, style=style)(down)
    assert up.shape == (2, 5, down.shape[-1] * stride**stages)


def test_names():
    style = DilatedStyle(depth=1)
    down = DownBlock(1, 2, 3, stages=2, stride=2, style=style).state_dict()
    assert set(down) == {
        f"{name}.{kind}"
        for name in (
            "downsample_block.0",
            "downsample_block.1.resnet_block.0.conv1d_1",
            "downsample_block.1.resnet_block.0.conv1d_2",
            "downsample_block.2",
            "downsample_block.3.resnet_block.0.conv1d_1",
            "downsample_block.3.resnet_block.0.conv1d_2",
            "proj_out",
        )
        for kind in ("weight", "bias")
    }
    up = UpBlock(3, 2, 5, stages=2, stride=2, style=style)
    assert [tuple(up.upsample_block[i].weight.shape) for i in (1, 3)] == [(2, 2, 4), (2, 5, 4)]
    assert {name.split(".")[0] for name in up.state_dict()} == {"proj_in", "upsample_block"}
