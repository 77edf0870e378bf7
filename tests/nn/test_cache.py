"""Static caches against the obvious growing one."""

import pytest
import torch

from tunesmith.nn.attention import Attention
from tunesmith.nn.cache import Cache, DecoderCache, DenseCache, GrowingCache

PIECES = [3, 1, 1, 2, 1]


@pytest.mark.parametrize("whole", [False, True], ids=["filled part", "whole memory"])
def test_dense_equals_growing(whole: bool) -> None:
    """The whole memory with its mask gives what the filled part gives without one."""
    torch.manual_seed(0)
    layer = Attention(width=8, heads=2)
    dense, growing, position = DenseCache(2, 2, 10, 4), GrowingCache(), 0
    for count in PIECES:
        x = torch.randn(2, count, 8)
        keys, values = layer.keys_values(x)
        found = dense.update(keys, values, torch.tensor(position) if whole else position)
        wanted = growing.update(keys, values, position)
        causal = torch.ones(count, wanted.keys.shape[2]).tril(wanted.keys.shape[2] - count).bool()
        bias = torch.zeros(causal.shape).masked_fill(~causal, -torch.inf)
        mask = found.mask if whole else bias
        torch.testing.assert_close(layer(x, found.keys, found.values, mask), layer(x, wanted.keys, wanted.values, bias))
        position += count


@pytest.mark.parametrize("whole", [False, True])
def test_dense_never_reallocates(whole: bool) -> None:
    cache = DenseCache(1, 2, 8, 4)
    before = (cache.keys.data_ptr(), cache.values.data_ptr())
    for position in range(8):
        view = cache.update(*torch.randn(2, 1, 2, 1, 4), torch.tensor(position) if whole else position)
        assert view.keys.data_ptr() == before[0]
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == before


def test_growing_is_differentiable_and_in_order() -> None:
    cache = GrowingCache()
    keys = torch.randn(1, 2, 1, 4, requires_grad=True)
    cache.update(keys, keys, 0)
    cache.update(keys, keys, 1).keys.sum().backward()
    assert keys.grad is not None
    assert (keys.grad == 2).all()
    with pytest.raises(AssertionError):
        cache.update(keys, keys, 5)


def test_decoder_cache() -> None:
    cache = DecoderCache.build(3, GrowingCache)
    assert len({id(layer.own) for layer in cache.layers}) == 3
    assert all(isinstance(layer.own, Cache) for layer in cache.layers)
    assert cache.get_seq_length() == 0
