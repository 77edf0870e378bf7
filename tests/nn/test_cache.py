"""Static caches against the obvious growing one."""

import pytest
import torch

from tunesmith.nn.attention import Attention
from tunesmith.nn.cache import Cache, DecoderCache, DenseCache, GrowingCache, ManyCache, Places

PIECES = [3, 1, 1, 2, 1]


def causal(count: int, seen: int) -> torch.Tensor:
    shown = torch.ones(count, seen).tril(seen - count).bool()
    return torch.zeros(shown.shape).masked_fill(~shown, -torch.inf)


def test_dense_equals_growing() -> None:
    torch.manual_seed(0)
    layer = Attention(width=8, heads=2)
    dense, growing, position = DenseCache(2, 2, 10, 4), GrowingCache(), 0
    for count in PIECES:
        x = torch.randn(2, count, 8)
        keys, values = layer.keys_values(x)
        found, wanted = dense.update(keys, values, position), growing.update(keys, values, position)
        bias = causal(count, wanted.keys.shape[2])
        torch.testing.assert_close(layer(x, found.keys, found.values, bias), layer(x, wanted.keys, wanted.values, bias))
        position += count


@torch.no_grad()
def test_many_sequences_at_places_of_their_own() -> None:
    """Each sees what it would see alone; what lies behind doesn't matter."""
    torch.manual_seed(0)
    layer, memory, at = Attention(width=8, heads=2), torch.randn(2, 2, 2, 12, 4) * 9, torch.tensor([[0], [3]])
    alone = [GrowingCache(), GrowingCache()]
    alone[1].update(memory[0, 1:, :, :3].clone(), memory[1, 1:, :, :3].clone(), 0)
    for count in PIECES:
        x = torch.randn(2, count, 8)
        many = ManyCache(memory[0], memory[1], Places.of(at, count, 11, torch.float32))
        view = many.update(*layer.keys_values(x), at)
        assert view.keys.shape[2] == 11
        found = layer(x, view.keys, view.values, view.mask)[0]
        for i, cache in enumerate(alone):
            own = cache.update(*layer.keys_values(x[i : i + 1]), int(at[i]))
            wanted = layer(x[i : i + 1], own.keys, own.values, causal(count, own.keys.shape[2]))[0]
            torch.testing.assert_close(found[i : i + 1], wanted)
        at = at + count


def test_dense_never_reallocates() -> None:
    cache = DenseCache(1, 2, 8, 4)
    before = (cache.keys.data_ptr(), cache.values.data_ptr())
    for position in range(8):
        view = cache.update(*torch.randn(2, 1, 2, 1, 4), position)
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
