"""What a decoder remembers of the columns that it was fed: keys and values, so that a step costs one column.

One layer's memory has a single operation, `update(keys, values, position)`: store what is new, get all that the new
queries may see. Dense attention keeps every position (`DenseCache`); patterns that forget keep less and implement the
same protocol. Keys and values of the text never change: they are computed once and kept beside (`LayerCache.memory`).

A sequence cut into rows (nn/factored.py) is fed in pieces that stay within a row, and then needs no more than this:

    RowCache           a ring of one row           what came before in the same row
    PreviousRowCache   a ring of two rows          the row before, while this one is being filled
    ColumnCache        a slab of columns           the same place in all earlier rows: one contiguous piece
    PrefixCache        the first places            lyrics that stand before the music
    SummaryCache       the last places of rows     and as many zeros before the first
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


class View(NamedTuple):
    """The keys and values that new queries attend to.  Without a mask a single query sees all of them; several see
    them causally (the last one all, each before it one less), or all where `causal` is false.
    """

    keys: Float[Tensor, "B N M H"] | Float[Tensor, "B N S M H"]
    values: Float[Tensor, "B N M H"] | Float[Tensor, "B N S M H"]
    mask: Float[Tensor, "S M"] | Float[Tensor, "B 1 S M"] | None = None
    causal: bool = True


@runtime_checkable
class Cache(Protocol):
    """The memory of one attention layer."""

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """Store S columns that begin at `position`; return what they may see, themselves included."""
        ...


class DenseCache:
    """Keys and values of every position, in memory that is allocated once.

    The view is the filled part, which is cheap on a CPU.
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

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """See `Cache.update`."""
        end = position + keys.shape[2]
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return View(self.keys[:, :, :end], self.values[:, :, :end])


class GrowingCache:
    """Keys and values of every position, copied into a longer tensor at each step: the obvious version.

    It needs no capacity and gradients flow through it, so it serves callers who drive `forward` by hand.
    """

    def __init__(self) -> None:
        self.seen: View | None = None

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """See `Cache.update`.  Positions follow one another."""
        if self.seen is not None:
            assert self.seen.keys.shape[2] == position, "positions follow one another"
            keys, values = torch.cat([self.seen.keys, keys], 2), torch.cat([self.seen.values, values], 2)
        self.seen = View(keys, values)
        return self.seen


class Places(NamedTuple):
    """Where sequences go on that each stand at a position of their own: worked out once for all layers."""

    rows: Int[Tensor, "B 1"]
    columns: Int[Tensor, "B S"]
    mask: Float[Tensor, "B 1 S M"]

    @classmethod
    def of(cls, position: Int[Tensor, "B 1"], count: int, seen: int, dtype: torch.dtype) -> "Places":
        """For `count` columns each, in the first `seen` columns of the memory."""
        columns = position + torch.arange(count, device=position.device)
        visible = torch.arange(seen, device=position.device) <= columns[..., None]
        rows = torch.arange(len(position), device=position.device)[:, None]
        return cls(rows, columns, additive(visible, dtype)[:, None])


class ManyCache:
    """Keys and values of sequences that each stand at a position of their own, in memory that is given."""

    def __init__(self, keys: Float[Tensor, "B N C H"], values: Float[Tensor, "B N C H"], places: Places) -> None:
        self.keys, self.values, self.places = keys, values, places

    def update(
        self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: Int[Tensor, "B 1"]
    ) -> View:
        """Store S columns of each sequence; what is seen of the memory comes back, with its mask."""
        rows, columns, mask = self.places
        self.keys[rows, :, columns] = keys.transpose(1, 2)
        self.values[rows, :, columns] = values.transpose(1, 2)
        seen = mask.shape[-1]
        return View(self.keys[:, :, :seen], self.values[:, :, :seen], mask)


@dataclass(frozen=True)
class Room:
    """What the memory of one layer is made of: for how many samples and heads, of what."""

    batch: int
    heads: int
    head_width: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def allocate(self, *places: int) -> tuple[Float[Tensor, "B N *P H"], Float[Tensor, "B N *P H"]]:
        """Keys and values for so many places, all zeros."""
        shape = (self.batch, self.heads, *places, self.head_width)
        keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return keys, torch.zeros_like(keys)


@runtime_checkable
class PieceCache(Protocol):
    """The memory of one layer over a sequence cut into rows; what is new stays within a row."""

    keys: Tensor
    values: Tensor

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """Store S columns that begin at `position`; return what they may see."""
        ...


class RowCache:
    """The row that is being filled."""

    def __init__(self, room: Room, row: int) -> None:
        self.row = row
        self.keys, self.values = room.allocate(row)

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """See `PieceCache.update`."""
        start, end = _within_row(position, keys.shape[2], self.row)
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return View(self.keys[:, :, :end], self.values[:, :, :end])


class PreviousRowCache:
    """The row that is being filled and the one before, which is all zeros before the first."""

    def __init__(self, room: Room, row: int) -> None:
        self.row = row
        self.keys, self.values = room.allocate(2 * row)

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """See `PieceCache.update`.  Columns see the row before, not themselves."""
        start, end = _within_row(position, keys.shape[2], self.row)
        own = position // self.row % 2 * self.row
        other = self.row - own
        self.keys[:, :, own + start : own + end] = keys
        self.values[:, :, own + start : own + end] = values
        seen = slice(other, other + self.row)
        return View(self.keys[:, :, seen], self.values[:, :, seen], causal=False)


class ColumnCache:
    """All positions, those of one column side by side."""

    def __init__(self, room: Room, row: int, rows: int) -> None:
        self.row = row
        self.keys, self.values = room.allocate(row, rows)

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """See `PieceCache.update`.  Each query has keys of its own: [B, N, S, M, H]."""
        start, end = _within_row(position, keys.shape[2], self.row)
        now = position // self.row
        self.keys[:, :, start:end, now] = keys
        self.values[:, :, start:end, now] = values
        return View(self.keys[:, :, start:end, : now + 1], self.values[:, :, start:end, : now + 1], causal=False)


class PrefixCache:
    """The first `length` positions; what comes later sees them and isn't kept.  The place behind them is for that."""

    def __init__(self, room: Room, length: int) -> None:
        self.length = length
        self.keys, self.values = room.allocate(length + 1)

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """See `PieceCache.update`."""
        count = keys.shape[2]
        end = min(position + count, self.length)
        kept = max(end - position, 0)
        if kept:
            self.keys[:, :, position:end] = keys[:, :, :kept]
            self.values[:, :, position:end] = values[:, :, :kept]
        mask = None
        if 0 < kept < count:
            rows = torch.arange(position, position + count, device=keys.device)
            mask = additive(torch.arange(end, device=keys.device) <= rows[:, None], keys.dtype)
        return View(self.keys[:, :, :end], self.values[:, :, :end], mask, causal=kept == count)


class SummaryCache:
    """The last `spread` places of every row but the last row, after `spread` zeros that everybody sees; and a place for
    what isn't kept.
    """

    def __init__(self, room: Room, row: int, rows: int, spread: int) -> None:
        self.row, self.rows, self.spread = row, rows, spread
        self.keys, self.values = room.allocate(spread * rows + 1)

    def update(self, keys: Float[Tensor, "B N S H"], values: Float[Tensor, "B N S H"], position: int) -> View:
        """See `PieceCache.update`.  The last places of a row see themselves."""
        start, end = _within_row(position, keys.shape[2], self.row)
        before = (position // self.row + 1) * self.spread  # zeros, and what earlier rows left
        first = self.row - self.spread
        kept = max(end - max(start, first), 0) if position // self.row < self.rows - 1 else 0
        seen = before + max(end - first, 0) if kept else before
        if kept:
            self.keys[:, :, seen - kept : seen] = keys[:, :, -kept:]
            self.values[:, :, seen - kept : seen] = values[:, :, -kept:]
        mask = None
        if kept and end - start > 1:
            own = (torch.arange(start, end, device=keys.device)[:, None] - first + 1).clamp(min=0)  # that a query adds
            mask = additive(torch.arange(seen, device=keys.device) < before + own, keys.dtype)
        return View(self.keys[:, :, :seen], self.values[:, :, :seen], mask, causal=False)


class Spot(NamedTuple):
    """Where a column is written and what it sees, as the device alone knows it; worked out once for layers alike."""

    write: Int[Tensor, "1"]
    mask: Float[Tensor, "1 M"]
    """Added to scores."""
    read: Int[Tensor, " M"] | None = None
    """The places that are seen; None is the first ones."""


class SpotCache:
    """The memory of another cache, for steps of one column: shapes never change, and nothing is read back from the
    device, which is what a recording needs (generation/capture.py).
    """

    def __init__(self, cache: PieceCache, spot: Spot) -> None:
        self.keys, self.values = (x.flatten(2, -2) for x in (cache.keys, cache.values))
        self.spot = spot

    def update(
        self, keys: Float[Tensor, "B N 1 H"], values: Float[Tensor, "B N 1 H"], position: Int[Tensor, "1"]
    ) -> View:
        """Store a column; `Spot` says the rest."""
        write, mask, read = self.spot
        self.keys.index_copy_(2, write, keys)
        self.values.index_copy_(2, write, values)
        if read is not None:
            return View(self.keys.index_select(2, read), self.values.index_select(2, read), mask)
        seen = mask.shape[1]
        return View(self.keys[:, :, :seen], self.values[:, :, :seen], mask)


@dataclass
class LayerCache:
    """The memory of one decoder layer."""

    own: Cache | ManyCache
    memory: View | None = None
    """Keys and values of what cross-attention looks at, once they are known."""


@dataclass
class DecoderCache:
    """The memory of a whole decoder; what `forward` takes and returns as `past_key_values`."""

    layers: list[LayerCache]
    position: int | Int[Tensor, "B 1"] = field(default=0)
    """Columns fed so far, of all sequences or of each."""

    @classmethod
    def build(cls, layers: int, make: Callable[[], Cache]) -> "DecoderCache":
        """One cache a layer."""
        return cls([LayerCache(make()) for _ in range(layers)])

    def get_seq_length(self) -> int:
        """Columns fed so far, under the name that transformers gives it."""
        return int(self.position)


def _within_row(position: int, count: int, row: int) -> tuple[int, int]:
    start = position % row
    assert start + count <= row, "pieces stay within a row"
    return start, start + count


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of what is visible (true or 1) -> zeros and the dtype's lowest number, to be added to attention scores.

    The lowest number instead of -inf: a query that sees nothing gets an average, not NaN.
    """
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        visible.logical_not(), torch.finfo(dtype).min
    )
