"""Attention over a sequence that is cut into rows (Child et al. 2019; Jukebox: Dhariwal et al. 2020, appendix B.2).

With rows of c positions, the query at position q may see the key at position k if

    0  dense          k <= q
    1  row            k <= q, in the same row
    2  column         k <= q, at the same place of its row
    3  previous row   k is in the row before; queries of the first row see nothing, their output is 0
    4  summary        k <= q, last of its row, and the row is not the last one; besides, a key and a value of zero
    5  spread         as 4, with the last `spread` positions of each row and as many zeros
    6  cross          everything of another sequence
    7  prime          k <= q and k < P, P = (prime // blocks + 1) · blocks for a prefix of `prime` positions

`Pattern.visible` says this sentence, and `attend_masked` is attention by it, with a mask over all pairs: the obvious
version.  `Pattern.attend` gives the same for a whole sequence at a fraction of the cost, `Pattern.cache` and
`Pattern.look` for a few positions more, `Pattern.spot` for one whose place the device alone knows.  P is as it is
because released checkpoints were trained with it: queries see a few positions behind the prefix.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tunesmith.nn.attention import attend_alone
from tunesmith.nn.cache import (
    ColumnCache,
    DenseCache,
    PieceCache,
    PrefixCache,
    PreviousRowCache,
    Room,
    RowCache,
    Spot,
    SpotCache,
    SummaryCache,
    View,
    additive,
)
from tunesmith.nn.engine import Weight, plain_weight
from tunesmith.nn.lowbit import QuantizedLinear
from tunesmith.nn.precision import Float32LayerNorm

DENSE, ROW, COLUMN, PREVIOUS_ROW, SUMMARY, SPREAD, CROSS, PRIME = range(8)
"""The kinds, under the original's numbers."""

_ROWS = (ROW, COLUMN, PREVIOUS_ROW)


@dataclass(frozen=True, kw_only=True)
class Factoring:
    """How a sequence is cut."""

    length: int
    blocks: int = 1
    """Rows; they divide the length."""
    prime: int = 0
    """Positions before the music (lyrics)."""
    spread: int = 1

    @property
    def row(self) -> int:
        """Positions in a row."""
        return self.length // self.blocks


def attention_kinds(order: int, layers: int) -> list[int]:
    """The kind of each layer in one of the original's thirteen attention orders."""
    return [_kind(order, layer) for layer in range(layers)]


_CYCLES: dict[int, list[int]] = {
    0: [DENSE],
    1: [ROW, COLUMN],
    2: [*_ROWS],
    3: [ROW, SUMMARY],
    4: [ROW, SPREAD],
    5: [ROW, SUMMARY, ROW, ROW],
    6: [*_ROWS, CROSS],
    7: [*_ROWS * 5, CROSS],
    8: [*_ROWS * 3, CROSS],
    9: [*_ROWS, DENSE],
    10: [*_ROWS * 3, *(*_ROWS * 3, CROSS) * 7],
}
_SIXTEENTH = {11: (CROSS, CROSS, DENSE), 12: (PRIME, PRIME, DENSE)}
ORDERS = (*_CYCLES, *_SIXTEENTH)


def _kind(order: int, layer: int) -> int:
    if order in _SIXTEENTH:
        return (_SIXTEENTH[order] if layer % 16 == 15 else _ROWS)[layer % 3]
    return _CYCLES[order][layer % len(_CYCLES[order])]


class Pattern:
    """Who sees whom.  Dense attention; the other kinds override what differs."""

    zeros = 0
    """Keys and values of zero that every query sees besides."""

    def __init__(self, cut: Factoring) -> None:
        self.cut = cut

    def visible(self, queries: Int[Tensor, " S"], keys: Int[Tensor, " M"]) -> Bool[Tensor, "S M"]:
        """For positions of queries and keys."""
        return keys <= queries[:, None]

    def attend(
        self,
        queries: Float[Tensor, "B N S H"],
        keys: Float[Tensor, "B N M H"],
        values: Float[Tensor, "B N M H"],
        dropout: float = 0.0,
    ) -> Float[Tensor, "B N S H"]:
        """A whole sequence, from position 0 on; it may be shorter than the factoring."""
        return _sdpa(queries, keys, values, dropout, causal=True)

    def look(self, queries: Float[Tensor, "B N S H"], view: View) -> Float[Tensor, "B N S H"]:
        """What a cache shows."""
        return look(queries, view)

    def cache(self, room: Room, positions: int) -> PieceCache:
        """Memory for a sequence of so many positions; no larger than needed."""
        return DenseCache(room.batch, room.heads, positions, room.head_width, room.dtype, room.device)

    def spot(self, position: Int[Tensor, "1"], positions: int, seen: int, dtype: torch.dtype) -> Spot:
        """Of one position, in the memory that `cache` makes for so many positions; it is one of the first `seen`."""
        return Spot(position, _first(position + 1, seen, dtype))


class Row(Pattern):
    """Earlier positions of the same row."""

    def visible(self, queries: Int[Tensor, " S"], keys: Int[Tensor, " M"]) -> Bool[Tensor, "S M"]:
        """See `Pattern.visible`."""
        row = self.cut.row
        return (keys <= queries[:, None]) & (keys // row == queries[:, None] // row)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
        """See `Pattern.attend`."""
        q, k, v = (_to_rows(x, self.cut.row) for x in (queries, keys, values))
        return _from_rows(_sdpa(q, k, v, dropout, causal=True), queries)

    def cache(self, room: Room, positions: int) -> PieceCache:
        """See `Pattern.cache`."""
        return RowCache(room, self.cut.row)

    def spot(self, position: Tensor, positions: int, seen: int, dtype: torch.dtype) -> Spot:
        """See `Pattern.spot`."""
        place = position % self.cut.row
        return Spot(place, _first(place + 1, self.cut.row, dtype))


class Column(Pattern):
    """The same place in this and all earlier rows."""

    def visible(self, queries: Int[Tensor, " S"], keys: Int[Tensor, " M"]) -> Bool[Tensor, "S M"]:
        """See `Pattern.visible`."""
        row = self.cut.row
        return (keys <= queries[:, None]) & (keys % row == queries[:, None] % row)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
        """See `Pattern.attend`."""
        q, k, v = (_to_columns(x, self.cut.row) for x in (queries, keys, values))
        return _from_columns(_sdpa(q, k, v, dropout, causal=True), queries)

    def look(self, queries: Tensor, view: View) -> Tensor:
        """Each query has keys of its own; samples and heads become one dimension, queries the next."""
        if view.keys.ndim == 4:  # by a spot
            return look(queries, view)
        if queries.shape[2] == 1:
            return look(queries, View(view.keys[:, :, 0], view.values[:, :, 0]))
        keys, values = view.keys.flatten(0, 1), view.values.flatten(0, 1)  # [B·N, S, M, H]
        return _sdpa(queries.flatten(0, 1)[:, :, None], keys, values).view(queries.shape)

    def cache(self, room: Room, positions: int) -> PieceCache:
        """See `Pattern.cache`."""
        return ColumnCache(room, self.cut.row, math.ceil(positions / self.cut.row))

    def spot(self, position: Tensor, positions: int, seen: int, dtype: torch.dtype) -> Spot:
        """See `Pattern.spot`."""
        place, now, rows = position % self.cut.row, position // self.cut.row, math.ceil(positions / self.cut.row)
        slab = place * rows + torch.arange(rows, device=position.device)
        return Spot(place * rows + now, _first(now + 1, rows, dtype), slab)


class PreviousRow(Pattern):
    """All of the row before."""

    def visible(self, queries: Int[Tensor, " S"], keys: Int[Tensor, " M"]) -> Bool[Tensor, "S M"]:
        """See `Pattern.visible`."""
        row = self.cut.row
        return keys // row == queries[:, None] // row - 1

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
        """See `Pattern.attend`."""
        k, v = (_to_rows(_one_row_later(x, self.cut.row), self.cut.row) for x in (keys, values))
        return _from_rows(_sdpa(_to_rows(queries, self.cut.row), k, v, dropout), queries)

    def cache(self, room: Room, positions: int) -> PieceCache:
        """See `Pattern.cache`."""
        return PreviousRowCache(room, self.cut.row)

    def spot(self, position: Tensor, positions: int, seen: int, dtype: torch.dtype) -> Spot:
        """See `Pattern.spot`."""
        row, own = self.cut.row, position // self.cut.row % 2
        other = torch.arange(2 * row, device=position.device) // row != own
        return Spot(own * row + position % row, additive(other, dtype)[None])


class Summary(Pattern):
    """The last `spread` places of earlier rows, and as many zeros."""

    def __init__(self, cut: Factoring) -> None:
        super().__init__(cut)
        self.zeros = cut.spread

    def visible(self, queries: Int[Tensor, " S"], keys: Int[Tensor, " M"]) -> Bool[Tensor, "S M"]:
        """See `Pattern.visible`."""
        cut = self.cut
        summarises = (keys % cut.row >= cut.row - cut.spread) & (keys // cut.row < cut.blocks - 1)
        return (keys <= queries[:, None]) & summarises

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
        """See `Pattern.attend`."""
        positions = torch.arange(keys.shape[2], device=keys.device)
        chosen = positions[self.visible(positions[-1:], positions)[0]]
        keys, values = (F.pad(x[:, :, chosen], (0, 0, self.zeros, 0)) for x in (keys, values))
        seen = F.pad(chosen <= positions[:, None], (self.zeros, 0), value=True)
        return _sdpa(queries, keys, values, dropout, mask=additive(seen, queries.dtype))

    def cache(self, room: Room, positions: int) -> PieceCache:
        """See `Pattern.cache`."""
        return SummaryCache(room, self.cut.row, self.cut.blocks, self.cut.spread)

    def spot(self, position: Tensor, positions: int, seen: int, dtype: torch.dtype) -> Spot:
        """See `Pattern.spot`."""
        row, spread, places = self.cut.row, self.cut.spread, self.cut.spread * self.cut.blocks
        own, before = position % row - (row - spread), (position // row + 1) * spread
        kept = (own >= 0) & (position // row < self.cut.blocks - 1)
        count = torch.where(kept, before + own + 1, before)
        return Spot(torch.where(kept, before + own, places), _first(count, places, dtype))


class Cross(Pattern):
    """All of another sequence; its keys and values stay in `LayerMemory.cross`."""

    def visible(self, queries: Int[Tensor, " S"], keys: Int[Tensor, " M"]) -> Bool[Tensor, "S M"]:
        """See `Pattern.visible`."""
        return torch.ones(len(queries), len(keys), dtype=torch.bool, device=keys.device)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
        """See `Pattern.attend`."""
        return _sdpa(queries, keys, values, dropout)

    def cache(self, room: Room, positions: int) -> PieceCache:
        """See `Pattern.cache`."""
        return PrefixCache(room, 0)


class Prime(Pattern):
    """The prefix, causally."""

    @property
    def reach(self) -> int:
        """P: how many leading positions can be seen."""
        return (self.cut.prime // self.cut.blocks + 1) * self.cut.blocks

    def visible(self, queries: Int[Tensor, " S"], keys: Int[Tensor, " M"]) -> Bool[Tensor, "S M"]:
        """See `Pattern.visible`."""
        return (keys <= queries[:, None]) & (keys < self.reach)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
        """See `Pattern.attend`."""
        seen = slice(None, self.reach)
        keys, values = keys[:, :, seen], values[:, :, seen]
        inside = _sdpa(queries[:, :, seen], keys, values, dropout, causal=True)
        if queries.shape[2] <= self.reach:
            return inside
        return torch.cat([inside, _sdpa(queries[:, :, self.reach :], keys, values, dropout)], 2)

    def cache(self, room: Room, positions: int) -> PieceCache:
        """See `Pattern.cache`."""
        return PrefixCache(room, min(self.reach, positions))

    def spot(self, position: Tensor, positions: int, seen: int, dtype: torch.dtype) -> Spot:
        """See `Pattern.spot`."""
        length = min(self.reach, positions)
        return Spot(position.clamp(max=length), _first(position + 1, length, dtype))


_PATTERNS: dict[int, type[Pattern]] = {
    DENSE: Pattern,
    ROW: Row,
    COLUMN: Column,
    PREVIOUS_ROW: PreviousRow,
    SUMMARY: Summary,
    SPREAD: Summary,
    CROSS: Cross,
    PRIME: Prime,
}


def make_pattern(kind: int, cut: Factoring) -> Pattern:
    """The pattern of a kind; `spread` counts for kind 5 alone."""
    spread = cut.spread if kind == SPREAD else 1
    return _PATTERNS[kind](Factoring(length=cut.length, blocks=cut.blocks, prime=cut.prime, spread=spread))


def attend_masked(
    pattern: Pattern,
    queries: Float[Tensor, "B N S H"],
    keys: Float[Tensor, "B N M H"],
    values: Float[Tensor, "B N M H"],
) -> Float[Tensor, "B N S H"]:
    """The obvious version of `Pattern.attend`: every pair of positions, then a mask."""
    return attention_weights(pattern, queries, keys).to(values.dtype) @ values


def attention_weights(
    pattern: Pattern, queries: Float[Tensor, "B N S H"], keys: Float[Tensor, "B N M H"]
) -> Float[Tensor, "B N S M"]:
    """Softmax of the scores in float32; rows don't sum to 1 where zeros are seen, and are 0 where nothing is."""
    scores = (queries @ keys.transpose(2, 3)).float() * queries.shape[-1] ** -0.5
    places = (torch.arange(x.shape[2], device=x.device) for x in (queries, keys))
    visible = F.pad(pattern.visible(*places), (0, pattern.zeros), value=True)
    scores = F.pad(scores, (0, pattern.zeros)).masked_fill(~visible, torch.finfo(torch.float32).min)
    weights = scores.softmax(-1) * visible
    return weights[..., : keys.shape[2]]


def look(queries: Float[Tensor, "B N S H"], view: View) -> Float[Tensor, "B N S H"]:
    """Attend to what a cache shows."""
    count = queries.shape[2]
    if count == 1:
        return attend_alone(queries, view.keys, view.values, view.mask)
    mask = view.mask
    if mask is None and view.causal:
        seen = view.keys.shape[2]
        mask = additive(torch.ones(count, seen, device=queries.device).tril(seen - count), queries.dtype)
    return _sdpa(queries, view.keys, view.values, mask=mask)


def _first(count: Int[Tensor, "1"], places: int, dtype: torch.dtype) -> Float[Tensor, "1 M"]:
    """The mask that shows so many of the places."""
    return additive(torch.arange(places, device=count.device) < count, dtype)[None]


def _sdpa(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal=causal)


def _to_grid(x: Tensor, row: int) -> Tensor:
    """[B, N, S, H] -> [B, rows, row, N, H]; the last row is filled up with zeros."""
    x = x.transpose(1, 2)
    lacking = -x.shape[1] % row
    return (F.pad(x, (0, 0, 0, 0, 0, lacking)) if lacking else x).unflatten(1, (-1, row))


def _to_rows(x: Tensor, row: int) -> Tensor:
    return _to_grid(x, row).flatten(0, 1).transpose(1, 2)  # [B·rows, N, row, H]


def _from_rows(x: Tensor, like: Tensor) -> Tensor:
    x = x.transpose(1, 2).unflatten(0, (len(like), -1)).flatten(1, 2)  # [B, S, N, H]
    return x[:, : like.shape[2]].transpose(1, 2)


def _to_columns(x: Tensor, row: int) -> Tensor:
    return _to_grid(x, row).permute(0, 2, 3, 1, 4).flatten(0, 1)  # [B·row, N, rows, H]


def _from_columns(x: Tensor, like: Tensor) -> Tensor:
    x = x.unflatten(0, (len(like), -1)).permute(0, 3, 1, 2, 4).flatten(1, 2)  # [B, S, N, H]
    return x[:, : like.shape[2]].transpose(1, 2)


def _one_row_later(x: Tensor, row: int) -> Tensor:
    """A row of zeros before the first; of the last row only what fills the queries' rows."""
    length = math.ceil(x.shape[2] / row) * row
    return F.pad(x, (0, 0, row, 0))[:, :, :length]


class Projection(Conv1D):
    """y = x W + b, with W stored [in, out] as released checkpoints have it.

    Empty until `reset_parameters`: W normal with the given deviation, b zero.  It is a kind of transformers' layer of
    the same form, so that peft and quantizers know what it is.
    """

    def __init__(self, inputs: int, outputs: int, deviation: float, dtype: torch.dtype | None = None) -> None:
        nn.Module.__init__(self)  # not Conv1D's, which draws weights
        self.nx, self.nf, self.deviation = inputs, outputs, deviation
        self.weight = nn.Parameter(torch.empty(inputs, outputs, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype))

    def reset_parameters(self) -> None:
        """Fresh weights."""
        nn.init.normal_(self.weight, std=self.deviation)
        nn.init.zeros_(self.bias)

    def engine_weight(self) -> Weight | None:
        """What the CPU's kernels read; subclasses compute something else."""
        plain = type(self) is Projection
        return plain_weight(self.weight.detach(), self.bias.detach(), by_input=True) if plain else None

    def forward(self, x: Float[Tensor, "*A I"]) -> Float[Tensor, "*A O"]:
        """One product."""
        rows = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return rows.view(*x.shape[:-1], -1)


@dataclass(frozen=True, kw_only=True)
class LayerStyle:
    """What the layers of a stack share."""

    width: int
    heads: int
    attention_width: int
    ffn_width: int
    activation: Callable[[Tensor], Tensor]
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    residual_scale: float = 1.0
    deviation: float = 0.02
    """Of fresh weights."""
    zero_out: bool = False
    """Do fresh layers begin as the identity?"""


@dataclass
class LayerMemory:
    """What one layer remembers of the sequence so far."""

    own: PieceCache | SpotCache
    cross: View | None = None
    """Keys and values of what cross-attention looks at, once they are known."""


class FactoredAttention(nn.Module):
    """Multi-head attention in one pattern: to itself, or (kind 6) to a memory."""

    def __init__(self, style: LayerStyle, pattern: Pattern) -> None:
        super().__init__()
        self.pattern, self.heads = pattern, style.heads
        self.crosses, self.reads_prefix = isinstance(pattern, Cross), isinstance(pattern, Prime)
        self.attention_dropout, self.residual_dropout = style.attention_dropout, style.residual_dropout
        width, inner, deviation = style.width, style.attention_width, style.deviation
        self.c_attn = Projection(width, inner if self.crosses else 3 * inner, deviation)
        self.c_proj = Projection(inner, width, 0.0 if style.zero_out else deviation)
        if self.crosses:
            self.c_enc_kv = Projection(width, 2 * inner, deviation)

    def project(
        self, x: Float[Tensor, "B S D"], memory: Float[Tensor, "B L D"] | None = None
    ) -> tuple[Float[Tensor, "B N S H"], Float[Tensor, "B N M H"], Float[Tensor, "B N M H"]]:
        """Queries, keys, values."""
        if not self.crosses:
            queries, keys, values = self.c_attn(x).chunk(3, 2)
            return self._split(queries), self._split(keys), self._split(values)
        assert memory is not None, "cross-attention needs a memory"
        return self._split(self.c_attn(x)), *self.remember(memory)[:2]

    def remember(self, memory: Float[Tensor, "B L D"]) -> View:
        """Keys and values of a memory."""
        keys, values = self.c_enc_kv(memory).chunk(2, 2)
        return View(self._split(keys), self._split(values), causal=False)

    def weights(
        self, x: Float[Tensor, "B S D"], memory: Float[Tensor, "B L D"] | None, head: int | None = None
    ) -> Float[Tensor, "B N S M"]:
        """Attention probabilities of one head or all; keys that no query sees are left out."""
        queries, keys, _ = self.project(x, memory)
        keys = keys[:, :, : self.pattern.reach] if isinstance(self.pattern, Prime) else keys
        heads = slice(None) if head is None else slice(head, head + 1)
        return attention_weights(self.pattern, queries[:, heads], keys[:, heads])

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        memory: Float[Tensor, "B L D"] | None = None,
        cache: LayerMemory | None = None,
        position: int | Int[Tensor, "1"] = 0,
    ) -> Float[Tensor, "B S D"]:
        """Without a cache x begins at position 0; with one it continues at `position`, within a row; or it begins, with
        any number of rows.
        """
        if cache is None:
            dropout = self.attention_dropout if self.training else 0.0
            return self._merge(self.pattern.attend(*self.project(x, memory), dropout))
        if self.crosses:
            if cache.cross is None:
                assert memory is not None, "cross-attention needs a memory"
                cache.cross = self.remember(memory)
            return self._merge(look(self._split(self.c_attn(x)), cache.cross))
        queries, keys, values = self.project(x)
        if x.shape[1] > self.pattern.cut.row:
            assert position == 0, "pieces stay within a row"
            assert not isinstance(cache.own, SpotCache), "a spot is for one column"
            self._fill(cache.own, keys, values)
            return self._merge(self.pattern.attend(queries, keys, values))
        own: Any = cache.own  # its kind is that of the position
        return self._merge(self.pattern.look(queries, own.update(keys, values, position)))

    def _fill(self, cache: PieceCache, keys: Tensor, values: Tensor) -> None:
        """Remember whole rows from the first on; where only the last two are kept, those."""
        row, count = self.pattern.cut.row, keys.shape[2]
        rows = range(0, count, row)
        for start in rows[-2:] if isinstance(self.pattern, Row | PreviousRow) else rows:
            cache.update(keys[:, :, start : start + row], values[:, :, start : start + row], start)

    def _split(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B N S H"]:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _merge(self, x: Float[Tensor, "B N S H"]) -> Float[Tensor, "B S D"]:
        return F.dropout(self.c_proj(x.transpose(1, 2).flatten(2)), self.residual_dropout, self.training)


class FeedForward(nn.Module):
    """Two projections with an activation between."""

    def __init__(self, style: LayerStyle) -> None:
        super().__init__()
        self.activation, self.dropout = style.activation, style.residual_dropout
        self.c_fc = Projection(style.width, style.ffn_width, style.deviation)
        self.c_proj = Projection(style.ffn_width, style.width, 0.0 if style.zero_out else style.deviation)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Position by position."""
        return F.dropout(self.c_proj(self.activation(self.c_fc(x))), self.dropout, self.training)


class FactoredLayer(nn.Module):
    """a = Attention(norm x), m = FeedForward(norm(x + a)); the layer adds a + m, which `residual_scale` may weigh.

    Fresh cross-attention layers are the identity.
    """

    def __init__(self, style: LayerStyle, pattern: Pattern) -> None:
        super().__init__()
        style = replace(style, zero_out=style.zero_out or isinstance(pattern, Cross))
        self.residual_scale = style.residual_scale
        self.attn = FactoredAttention(style, pattern)
        self.layer_norm_0 = Float32LayerNorm(style.width)
        self.mlp = FeedForward(style)
        self.layer_norm_1 = Float32LayerNorm(style.width)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        memory: Float[Tensor, "B L D"] | None = None,
        cache: LayerMemory | None = None,
        position: int | Int[Tensor, "1"] = 0,
    ) -> Float[Tensor, "B S D"]:
        """See `FactoredAttention.forward`."""
        attended = self.attn(self.layer_norm_0(x), memory, cache, position)
        fed: Tensor = self.mlp(self.layer_norm_1(x + attended))  # sees the attention unscaled
        if self.residual_scale == 1.0:
            return x + attended + fed
        return x + self.residual_scale * (attended + fed)


class FactoredStack(nn.Module):
    """Layers of the given kinds, one after the other; there is no norm after the last."""

    def __init__(self, style: LayerStyle, kinds: list[int], cut: Factoring) -> None:
        super().__init__()
        self.row = cut.row
        self._attn_mods = nn.ModuleList(FactoredLayer(style, make_pattern(kind, cut)) for kind in kinds)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] | None = None

    @property
    def layers(self) -> list[FactoredLayer]:
        """In order."""
        return list(self._attn_mods)  # type: ignore[arg-type]  # a ModuleList's items

    @property
    def dtype(self) -> torch.dtype:
        """What the stack computes in."""
        first = self.layers[0].attn.c_attn
        return first.dtype if isinstance(first, QuantizedLinear) else first.weight.dtype

    def caches(self, room: Room, positions: int) -> list[LayerMemory]:
        """Memory for sequences of so many positions, a cache a layer."""
        return [LayerMemory(layer.attn.pattern.cache(room, positions)) for layer in self.layers]

    def at(self, caches: list[LayerMemory], position: Int[Tensor, "1"], positions: int, seen: int) -> list[LayerMemory]:
        """The same memory for one step, at a position that the device alone knows: see `Pattern.spot`."""
        patterns = {type(layer.attn.pattern): layer.attn.pattern for layer in self.layers}
        spots = {kind: pattern.spot(position, positions, seen, self.dtype) for kind, pattern in patterns.items()}
        found = []
        for layer, cache in zip(self.layers, caches, strict=True):
            assert not isinstance(cache.own, SpotCache), "memory comes from `caches`"
            found.append(LayerMemory(SpotCache(cache.own, spots[type(layer.attn.pattern)]), cache.cross))
        return found

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        memory: Float[Tensor, "B L D"] | None = None,
        caches: list[LayerMemory] | None = None,
        position: int | Int[Tensor, "1"] = 0,
        layers: int | None = None,
    ) -> Float[Tensor, "B S D"]:
        """The output of the first `layers` layers (all by default), in float32 whatever the stack computes in."""
        given, x = x.dtype, x.to(self.dtype)
        memory = None if memory is None else memory.to(x.dtype)
        for i, layer in enumerate(self._attn_mods[:layers]):
            x = self._run(layer, x, memory, None if caches is None else caches[i], position)
        return x.to(given)

    def _run(
        self, layer: nn.Module, x: Tensor, memory: Tensor | None, cache: LayerMemory | None, position: int | Tensor
    ) -> Tensor:
        if self.gradient_checkpointing and self.training:
            assert self._gradient_checkpointing_func is not None, "set by gradient_checkpointing_enable()"
            return self._gradient_checkpointing_func(layer.__call__, x, memory, cache, position)
        out: Tensor = layer(x, memory, cache, position)
        return out
