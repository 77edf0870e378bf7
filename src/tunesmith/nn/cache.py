"""What a decoder remembers of the columns that it was fed: keys and values, so that a step costs one column.

One layer's memory has a single operation, `update(keys, values, position)`: store what is new, get all that the new
queries may see. Dense attention keeps every position (`DenseCache`); patterns that forget keep less and implement the
same protocol. Keys and values of the text never change: they are computed once and kept beside (`LayerCache.memory`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


class View(NamedTuple):
    """The keys and values that new queries attend to.  Without a mask a single query sees all of them, several see
    them causally.
    """

    keys: Float[Tensor, "B N M H"]
    values: Float[Tensor, "B N M H"]
    mask: Float[Tensor, "S M"] | None = None


@runtime_checkable
class Cache(Protocol):
    """The memory of one attention layer."""

    def update(
        self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int | Int[Tensor, ""]
    ) -> View:
        """Store S columns that begin at `position`; return what they may see, themselves included."""
        ...


class DenseCache:
    """Keys and values of every position, in memory that is allocated once.

    With an int as position the view is the filled part (cheap on a CPU).  With a tensor it is the whole memory and a
    mask, so that shapes never change and nothing is read back from the device (what a captured graph needs).
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, heads, capacity, head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def update(
        self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int | Int[Tensor, ""]
    ) -> View:
        """See `Cache.update`."""
        if isinstance(position, Tensor):
            return self._update_whole(keys, values, position)
        end = position + keys.shape[2]
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return View(self.keys[:, :, :end], self.values[:, :, :end])

    def _update_whole(self, keys: Tensor, values: Tensor, position: Tensor) -> View:
        rows = position + torch.arange(keys.shape[2], device=keys.device)
        self.keys.index_copy_(2, rows, keys)
        self.values.index_copy_(2, rows, values)
        hidden = torch.arange(self.keys.shape[2], device=keys.device) > rows[:, None]
        return View(self.keys, self.values, additive(~hidden, keys.dtype))


class GrowingCache:
    """Keys and values of every position, copied into a longer tensor at each step: the obvious version.

    It needs no capacity and gradients flow through it, so it serves callers who drive `forward` by hand.
    """

    def __init__(self) -> None:
        self.seen: View | None = None

    def update(
        self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int | Int[Tensor, ""]
    ) -> View:
        """See `Cache.update`.  Positions follow one another."""
        if self.seen is not None:
            assert self.seen.keys.shape[2] == position, "positions follow one another"
            keys, values = torch.cat([self.seen.keys, keys], 2), torch.cat([self.seen.values, values], 2)
        self.seen = View(keys, values)
        return self.seen


@dataclass
class LayerCache:
    """The memory of one decoder layer."""

    own: Cache
    memory: View | None = None
    """Keys and values of what cross-attention looks at, once they are known."""


@dataclass
class DecoderCache:
    """The memory of a whole decoder; what `forward` takes and returns as `past_key_values`."""

    layers: list[LayerCache]
    position: int = field(default=0)
    """Columns fed so far."""

    @classmethod
    def build(cls, layers: int, make: Callable[[], Cache]) -> "DecoderCache":
        """One cache a layer."""
        return cls([LayerCache(make()) for _ in range(layers)])

    def get_seq_length(self) -> int:
        """Columns fed so far, under the name that transformers gives it."""
        return self.position


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of what is visible (true or 1) -> zeros and the dtype's lowest number, to be added to attention scores.

    The lowest number instead of -inf: a query that sees nothing gets an average, not NaN.
    """
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        visible.logical_not(), torch.finfo(dtype).min
    )
