"""Attention against the definition, written as loops."""

import math

import pytest
import torch
from torch import Tensor

from tunesmith.nn.attention import Attention
from tunesmith.nn.cache import additive


def obvious(layer: Attention, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
    """softmax(q . k / sqrt(H)) v for each sample, head and query on its own.  visible [B, S, M]"""
    q, k, v = layer.q_proj(x), layer.k_proj(memory), layer.v_proj(memory)
    width = x.shape[2] // layer.heads
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            for s in range(x.shape[1]):
                seen = visible[b, s].nonzero().flatten()
                scores = k[b, seen, part] @ q[b, s, part] / math.sqrt(width)
                out[b, s, part] = scores.softmax(0) @ v[b, seen, part]
    return layer.out_proj(out)


@pytest.fixture
def layer() -> Attention:
    torch.manual_seed(0)
    return Attention(width=12, heads=3)


@pytest.mark.parametrize("need_weights", [False, True])
def test_causal_self_attention(layer: Attention, need_weights: bool) -> None:
    x = torch.randn(2, 5, 12)
    out, weights = layer(x, *layer.keys_values(x), causal=True, need_weights=need_weights)
    visible = torch.ones(2, 5, 5).tril().bool()
    torch.testing.assert_close(out, obvious(layer, x, x, visible))
    assert (weights is not None) == need_weights
    if weights is not None:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
        assert (weights[:, :, 0, 1:] == 0).all()


@pytest.mark.parametrize("need_weights", [False, True])
def test_masked_cross_attention(layer: Attention, need_weights: bool) -> None:
    x, memory = torch.randn(2, 4, 12), torch.randn(2, 6, 12)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    bias = additive(mask, torch.float32)[:, None, None]
    out, _ = layer(x, *layer.keys_values(memory), bias, need_weights=need_weights)
    torch.testing.assert_close(out, obvious(layer, x, memory, mask.bool()[:, None].expand(2, 4, 6)))


def test_a_query_that_sees_nothing_is_finite(layer: Attention) -> None:
    x, memory = torch.randn(1, 1, 12), torch.zeros(1, 3, 12)
    out, _ = layer(x, *layer.keys_values(memory), additive(torch.zeros(1, 3), torch.float32)[:, None, None])
    assert torch.equal(out, torch.zeros_like(out))


def test_dropout_acts_in_training_only() -> None:
    layer = Attention(width=12, heads=3, dropout=0.5)
    x = torch.randn(1, 5, 12)
    first, second = (layer(x, *layer.keys_values(x))[0] for _ in range(2))
    assert not torch.equal(first, second)
    layer.eval()
    first, second = (layer(x, *layer.keys_values(x))[0] for _ in range(2))
    assert torch.equal(first, second)
