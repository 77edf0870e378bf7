"""A prior's decode step for the CPU's kernels: what nn/engine.py runs when a window is sampled there.

The same numbers as the modules' own forward to within rounding, bit by bit independent of the batch.  Where a pattern
of nn/factored.py writes and looks is here `Place`s in one memory a layer.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.models.jukebox_config import JukeboxPriorConfig
from tunesmith.models.jukebox_layers import Autoregressive
from tunesmith.models.jukebox_sessions import Window
from tunesmith.nn import engine
from tunesmith.nn.engine import LANES, Memory, Places, Program, weight_of
from tunesmith.nn.factored import (
    Column,
    Cross,
    FactoredAttention,
    FactoredLayer,
    FeedForward,
    Pattern,
    PreviousRow,
    Prime,
    Row,
    Summary,
)
from tunesmith.nn.precision import Float32LayerNorm

Place = tuple[int, int, int]
"""Where a position is written (-1: nowhere), from where on it sees, and how many."""


def fits(model: Autoregressive, config: JukeboxPriorConfig) -> bool:
    """Can the kernels run this model as it is now?"""
    stack = model.transformer
    if engine.library() is None or model.training or model.pos_emb.pos_emb.device.type != "cpu":
        return False
    if config.act_fn not in engine.ACTIVATIONS or torch.is_autocast_enabled("cpu"):
        return False
    return all(_is_known(part) for layer in stack.layers for part in layer.modules())


def _is_known(part: nn.Module) -> bool:
    """Not an adapter, a hooked module or one of another kind."""
    ours = (FactoredLayer, FactoredAttention, FeedForward, Float32LayerNorm)
    return weight_of(part) is not None or (engine.is_plain(part) and type(part) in ours)


def places(pattern: Pattern, positions: int, seen: int) -> tuple[int, Callable[[int], Place]]:
    """Of a layer's memory: how much room it takes, and the place of each of so many positions.

    seen: of the sequence that cross-attention looks at.
    """
    cut = pattern.cut
    row, rows = cut.row, math.ceil(positions / cut.row)
    if isinstance(pattern, Row):
        return row, lambda p: (p % row, 0, p % row + 1)
    if isinstance(pattern, Column):
        slab = _whole(rows)
        return row * slab, lambda p: (p % row * slab + p // row, p % row * slab, p // row + 1)
    if isinstance(pattern, PreviousRow):
        slab = _whole(row)
        return 2 * slab, lambda p: (
            p // row % 2 * slab + p % row,
            (p // row + 1) % 2 * slab,
            row if p >= row else 0,
        )
    if isinstance(pattern, Summary):
        return cut.spread * cut.blocks, lambda p: _summary(pattern, p)
    if isinstance(pattern, Cross):
        return seen, lambda _: (-1, 0, seen)
    if isinstance(pattern, Prime):
        reach = pattern.reach
        return min(reach, positions), lambda p: (p if p < reach else -1, 0, min(p + 1, reach))
    return positions, lambda p: (p, 0, p + 1)


def _whole(count: int) -> int:
    """What is seen begins at a multiple of 16."""
    return math.ceil(count / LANES) * LANES


def _summary(pattern: Pattern, position: int) -> Place:
    """The last places of each row but the last, after `spread` zeros that nobody writes to."""
    row, spread, blocks = pattern.cut.row, pattern.cut.spread, pattern.cut.blocks
    before, place = (position // row + 1) * spread, position % row - (row - spread)
    if place < 0 or position // row == blocks - 1:
        return -1, 0, before
    return before + place, 0, before + place + 1


class EngineSession(Window):
    """Through the kernels, with caches of the smallest size."""

    on_kernels = True

    @torch.no_grad()
    def _begin(self, positions: int, chunk_size: int | None) -> None:
        model, config, condition, samples = self.model, self.config, self.condition, self.samples
        width, layers = config.hidden_size, model.transformer.layers
        self.chunk = max(min(self.chunk, engine.ROWS // samples), 1)
        self.room = self.chunk * samples
        self.end = positions
        seen = 0 if condition.memory is None else condition.memory.shape[1]
        self.kinds = {type(layer.attn.pattern): places(layer.attn.pattern, positions, seen) for layer in layers}
        self.places = {kind: Places(self.room) for kind in self.kinds}
        self._write(config, [self._memory(layer, config) for layer in layers])
        self.hidden = torch.zeros(samples, width)
        head = model.fc_proj_out.weight.detach()
        self.head = Program(samples, max(head.shape))
        self.logits = self.head.buffer(len(head))
        self.head.linear(self.hidden, engine.head_weight(head, engine.is_packed(model.transformer)), self.logits)

    def _memory(self, layer: FactoredLayer, config: JukeboxPriorConfig) -> Memory:
        """Of one layer; that of cross-attention is filled at once, in full precision."""
        attention, given = layer.attn, self.condition.memory
        capacity, width = self.kinds[type(attention.pattern)][0], config.attention_multiplier * config.hidden_size
        dtype = torch.float32 if attention.crosses else engine.memory_dtype(self.model.transformer)
        memory = Memory.allocate(self.samples, config.n_heads, int(width) // config.n_heads, capacity, dtype)
        if attention.crosses:
            assert given is not None, "cross-attention needs a memory"
            both = engine.product(given.flatten(0, 1).float(), weight_of(attention.c_enc_kv))
            keys, values = (x.contiguous() for x in both.chunk(2, 1))
            spots = [(sample, place, 0, 0) for sample in range(len(given)) for place in range(given.shape[1])]
            engine.write(memory, keys, values, spots)
        return memory

    def _write(self, config: JukeboxPriorConfig, memories: list[Memory]) -> None:
        width, inner = config.hidden_size, int(config.attention_multiplier * config.hidden_size)
        wide, scale = int(config.mlp_multiplier * width), self.model.transformer.layers[0].residual_scale
        views = list(self.kinds)
        p = self.program = Program(self.room, max(width, 3 * inner, wide), list(self.places.values()))
        self.x, attended, normed = (p.buffer(width) for _ in range(3))
        both, out, fed = p.buffer(3 * inner), p.buffer(inner), p.buffer(wide)
        queries = p.buffer(inner)
        for layer, memory in zip(self.model.transformer.layers, memories, strict=True):
            view = views.index(type(layer.attn.pattern))
            p.norm(self.x, layer.layer_norm_0, normed)
            if layer.attn.crosses:
                p.linear(normed, weight_of(layer.attn.c_attn), queries)
                p.attend(queries, memory, view, inner, out)
            else:
                p.linear(normed, weight_of(layer.attn.c_attn), both)
                p.attend(both, memory, view, 3 * inner, out, (both[:, inner:], both[:, 2 * inner :]))
            p.linear(out, weight_of(layer.attn.c_proj), attended, first=(self.x, 1.0))
            p.norm(attended, layer.layer_norm_1, normed)
            p.linear(normed, weight_of(layer.mlp.c_fc), fed, engine.ACTIVATIONS[config.act_fn])
            first = None if scale == 1.0 else (self.x, 1.0 - scale)  # x + scale · (attention + fed)
            p.linear(fed, weight_of(layer.mlp.c_proj), self.x, own=scale, first=first, second=(attended, scale))

    def _hidden(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        start, columns = self.position, x.shape[1]
        end, count = start + columns, columns * self.samples
        assert end <= self.end, "a window has as many codes as it was begun with, at most"
        x = x + self.model.pos_emb.pos_emb[start:end]
        if self.condition.added is not None:
            x = x + self.condition.added[:, start:end]
        self.x[:count] = x.flatten(0, 1)
        for kind, (_, place) in self.kinds.items():
            spots = [place(position) for position in range(start, end)]
            self.places[kind].set([(sample, *spot) for sample in range(self.samples) for spot in spots])
        self.program.run(count)
        self.position = end
        return self.x[:count].clone().unflatten(0, (self.samples, columns))

    def _next(self, hidden: Float[Tensor, "B P D"]) -> Float[Tensor, "1 B 1 V"]:
        self.hidden.copy_(hidden[:, -1])
        if self.condition.added is not None and not self.model.merged:
            self.hidden += self.condition.added[:, self.position - 1]
        self.head.run(self.samples)
        return self.logits[None, :, None].clone()
