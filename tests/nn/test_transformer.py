"""Decoder layers and positions."""

import math

import pytest
import torch

from tunesmith.nn.attention import Attention
from tunesmith.nn.cache import DenseCache, LayerCache
from tunesmith.nn.transformer import ACTIVATIONS, DecoderLayer, sinusoid, survives


def test_positions_by_hand() -> None:
    """All cosines, then all sines; the slowest frequency is 1 / 10000."""
    table = sinusoid(2, 2, 6, torch.device("cpu"))
    for row, position in zip(table, (2, 3), strict=True):
        rates = [10000 ** (-i / 2) for i in range(3)]
        wanted = [math.cos(position * r) for r in rates] + [math.sin(position * r) for r in rates]
        torch.testing.assert_close(row, torch.tensor(wanted))


def test_positions_are_float32_and_bear_odd_widths() -> None:
    assert sinusoid(0, 3, 7, torch.device("cpu")).dtype is torch.float32
    assert (sinusoid(5, 3, 7, torch.device("cpu"))[:, -1] == 0).all()


@pytest.fixture
def layer() -> DecoderLayer:
    torch.manual_seed(0)
    return DecoderLayer(width=8, heads=2, ffn_width=16)


def test_a_layer_is_three_residual_blocks(layer: DecoderLayer) -> None:
    x, text = torch.randn(2, 5, 8), torch.randn(2, 3, 8)

    def attend(attention: Attention, normed: torch.Tensor, memory: torch.Tensor, causal: bool) -> torch.Tensor:
        return attention(normed, *attention.keys_values(memory), causal=causal)[0]

    normed = layer.self_attn_layer_norm(x)
    y = x + attend(layer.self_attn, normed, normed, causal=True)
    y = y + attend(layer.encoder_attn, layer.encoder_attn_layer_norm(y), text, causal=False)
    y = y + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.final_layer_norm(y))))
    torch.testing.assert_close(layer(x, memory=text).hidden, y)


def test_one_column_at_a_time(layer: DecoderLayer) -> None:
    x, text = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    cache = LayerCache(DenseCache(2, 2, 5, 4))
    pieces = [layer(x[:, i : i + 1], memory=text, cache=cache, position=i).hidden for i in range(5)]
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x, memory=text).hidden)


def test_text_is_projected_once(layer: DecoderLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Tensor] = []
    project = layer.encoder_attn.keys_values
    monkeypatch.setattr(layer.encoder_attn, "keys_values", lambda memory: calls.append(memory) or project(memory))
    cache = LayerCache(DenseCache(1, 2, 4, 4))
    for i in range(4):
        layer(torch.randn(1, 1, 8), memory=torch.zeros(1, 3, 8), cache=cache, position=i)
    assert len(calls) == 1


def test_activations_are_transformers() -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-4, 4, 33)
    for name, function in ACTIVATIONS.items():
        torch.testing.assert_close(function(x), ACT2FN[name](x))


def test_layerdrop() -> None:
    torch.manual_seed(0)
    assert all(survives(0.5, training=False) for _ in range(20))
    assert all(survives(0.0, training=True) for _ in range(20))
    assert 60 < sum(survives(0.3, training=True) for _ in range(100)) < 80
