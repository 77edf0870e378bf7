"""MusicGen's decode step for the CPU's kernels: what nn/engine.py runs when `MusicgenForCausalLM` generates there.

The same numbers as the modules' own forward to within rounding, bit by bit independent of the batch.  The null branch
of guidance looks at no text: its cross-attention is zero, for there are no biases.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tunesmith.nn import engine
from tunesmith.nn.attention import Attention
from tunesmith.nn.engine import Memory, Places, Program, Weight, weight_of
from tunesmith.nn.transformer import DecoderLayer, sinusoid

if TYPE_CHECKING:
    from tunesmith.models.musicgen import MusicgenForCausalLM, Text

OWN, TEXT = 0, 1
"""Views: of what came before, and of the text."""


def fits(model: "MusicgenForCausalLM", text: "Text | None") -> bool:
    """Can the kernels run this model, as it is now, on this text?"""
    if engine.library() is None or model.training or model.device.type != "cpu":
        return False
    if model.config.activation_function not in engine.ACTIVATIONS or torch.is_autocast_enabled("cpu"):
        return False
    layers = [part for layer in model.model.decoder.layers for part in layer.modules()]
    if not all(map(_is_known, layers)) or None in _heads(model):
        return False
    # Text that may not be attended to at all is averaged by torch's attention, whatever it says.
    return text is None or bool((text.mask.bool().any(1) | (text.states == 0).flatten(1).all(1)).all())


def _is_known(part: nn.Module) -> bool:
    """Not an adapter, a hooked module or one of another kind."""
    return weight_of(part) is not None or (engine.is_plain(part) and type(part) in _OURS)


_OURS = (DecoderLayer, Attention, nn.LayerNorm)


def _heads(model: "MusicgenForCausalLM") -> list[Weight | None]:
    rows, tied = model.config.vocab_size, model.config.tie_word_embeddings
    if not tied and any(weight_of(head) is None for head in model.lm_heads):
        return [None]
    packed = engine.is_packed(model.model.decoder.layers)
    tables = model.model.decoder.tables() if tied else model.lm_heads
    return [engine.head_weight(table.get_parameter("weight").detach()[:rows], packed) for table in tables]


class EngineSlots:
    """Several pieces in the making, each at a place of its own (generation/batching.py).

    Slot s has the sequences s and, of guidance's second branch, count + s.
    """

    on_kernels = True

    @torch.no_grad()
    def __init__(
        self, model: "MusicgenForCausalLM", count: int, capacity: int, text_places: int, branches: int
    ) -> None:
        """text_places: tokens of the longest text; 0 where none will come."""
        config = model.config
        self.decoder, self.count, self.capacity = model.model.decoder, count, capacity
        self.width, self.vocabulary = config.hidden_size, config.vocab_size
        self.positions = sinusoid(0, capacity, self.width, model.device).to(model.dtype)
        self.sequences = count * branches
        self.rows = max(engine.ROWS, self.sequences)
        self.own, self.text = Places(self.rows), Places(self.rows)
        self.fed, self.branches = [0] * count, [1] * count
        self.lengths = [0] * self.sequences
        """Of each sequence's text."""
        self.kept = [*self._memories(model, text_places)]
        self._write(model)
        self._write_heads(model)

    def _memories(self, model: "MusicgenForCausalLM", text_places: int) -> Any:
        """For each layer, memory for what is to come and of the text."""
        heads, dtype = model.config.num_attention_heads, engine.memory_dtype(self.decoder)
        for _ in self.decoder.layers:
            own = Memory.allocate(self.sequences, heads, self.width // heads, self.capacity, dtype)
            kind = engine.float_dtype(self.positions)
            text = Memory.allocate(self.sequences, heads, self.width // heads, text_places, kind)
            yield own, text if text_places else None

    def _write(self, model: "MusicgenForCausalLM") -> None:
        config, width = model.config, self.width
        p = self.program = Program(self.rows, max(width, config.ffn_dim), [self.own, self.text])
        self.x, self.normed = p.buffer(width), p.buffer(width)
        parts = [p.buffer(width) for _ in range(4)]
        inner, kind = p.buffer(config.ffn_dim), engine.ACTIVATIONS[config.activation_function]
        for layer, (own, text) in zip(self.decoder.layers, self.kept, strict=True):
            self._attend(layer.self_attn, layer.self_attn_layer_norm, own, OWN, parts)
            if text is not None:
                with p.only(TEXT):
                    self._attend(layer.encoder_attn, layer.encoder_attn_layer_norm, text, TEXT, parts)
            p.norm(self.x, layer.final_layer_norm, self.normed)
            p.linear(self.normed, weight_of(layer.fc1), inner, kind)
            p.linear(inner, weight_of(layer.fc2), self.x, first=(self.x, 1.0))
        p.norm(self.x, self.decoder.layer_norm, self.normed)

    def _attend(self, attention: Attention, norm: nn.LayerNorm, memory: Memory, view: int, parts: list[Tensor]) -> None:
        """X += attention(norm x), to itself or to the text."""
        p, (queries, keys, values, out) = self.program, parts
        p.norm(self.x, norm, self.normed)
        p.linear(self.normed, weight_of(attention.q_proj), queries, barrier=view == TEXT)
        if view == OWN:
            p.linear(self.normed, weight_of(attention.k_proj), keys, barrier=False)
            p.linear(self.normed, weight_of(attention.v_proj), values)
        p.attend(queries, memory, view, self.width, out, (keys, values) if view == OWN else None)
        p.linear(out, weight_of(attention.out_proj), self.x, first=(self.x, 1.0))

    def _write_heads(self, model: "MusicgenForCausalLM") -> None:
        self.heads = Program(self.sequences, max(self.width, self.vocabulary))
        weights = _heads(model)
        self.last = self.heads.buffer(self.width)
        self.logits = torch.zeros(len(weights), self.sequences, self.vocabulary)
        for weight, logits in zip(weights, self.logits, strict=True):
            self.heads.linear(self.last, weight, logits)

    @torch.no_grad()
    def begin(self, conditions: "Mapping[int, Text | None]") -> None:
        """See generation/batching.py.  A text has a row for each guidance branch."""
        rows, states = list[tuple[int, int, int, int]](), list[Tensor]()
        for slot, text in conditions.items():
            self.fed[slot], self.branches[slot] = 0, 1 if text is None else len(text.states)
            for branch in range(self.sequences // self.count):
                sequence, seen = branch * self.count + slot, _seen(text, branch)
                self.lengths[sequence] = 0 if seen is None else len(seen)
                rows += [(sequence, place, 0, 0) for place in range(self.lengths[sequence])]
                states += [] if seen is None else [seen]
        if not rows:
            return
        x = torch.cat(states).float()
        for layer, (_, memory) in zip(self.decoder.layers, self.kept, strict=True):
            assert memory is not None, "there is room for text"
            attention = layer.encoder_attn
            keys, values = (engine.product(x, weight_of(part)) for part in (attention.k_proj, attention.v_proj))
            engine.write(memory, keys, values, rows)

    def feed(self, columns: "Mapping[int, Int[Tensor, 'K _']]") -> dict[int, Float[Tensor, "G K V"]]:
        """See generation/batching.py."""
        rows, inputs, last = self._rows(columns)
        ends = sorted(last.values())
        at = 0
        for start in range(0, len(rows), self.rows):
            piece = rows[start : start + self.rows]
            self._run(piece, inputs[start : start + self.rows])
            here = [end - start for end in ends if start <= end < start + self.rows]
            self.last[at : at + len(here)] = self.normed[here]
            at += len(here)
        self.heads.run(len(ends))
        order = [[ends.index(last[slot, branch]) for branch in range(self.branches[slot])] for slot in columns]
        return {slot: self.logits[:, found].transpose(0, 1) for slot, found in zip(columns, order, strict=True)}

    def _rows(
        self, columns: "Mapping[int, Tensor]"
    ) -> tuple[list[tuple[int, int]], Tensor, dict[tuple[int, int], int]]:
        """(sequence, place) of each row, what goes in, and which row is the last of each (slot, branch).

        Rows that look at a text come first.
        """
        x = self.decoder.embed(torch.cat([ids[None] for ids in columns.values()], 2))[0]  # [all columns, D]
        parts, start = list[tuple[bool, int, int, range]](), 0
        for slot, ids in columns.items():
            end = start + ids.shape[1]
            parts += [
                (not self.lengths[branch * self.count + slot], slot, branch, range(start, end))
                for branch in range(self.branches[slot])
            ]
            start = end
        rows, index, last = list[tuple[int, int]](), list[int](), dict[tuple[int, int], int]()
        for _, slot, branch, here in sorted(parts, key=itemgetter(0)):
            fed = self.fed[slot]
            assert fed + len(here) <= self.capacity, "a piece has as many columns as its slot, at most"
            rows += [(branch * self.count + slot, place) for place in range(fed, fed + len(here))]
            index += here
            last[slot, branch] = len(rows) - 1
        for slot, ids in columns.items():
            self.fed[slot] += ids.shape[1]
        return rows, x[index] + self.positions[[place for _, place in rows]], last

    def _run(self, rows: list[tuple[int, int]], inputs: Float[Tensor, "R D"]) -> None:
        self.x[: len(rows)] = inputs
        self.own.set([(sequence, place, 0, place + 1) for sequence, place in rows])
        self.text.set([(sequence, -1, 0, self.lengths[sequence]) for sequence, _ in rows])
        self.text.leading.fill_(sum(self.lengths[sequence] > 0 for sequence, _ in rows))
        self.program.run(len(rows))


class EngineSession:
    """A piece in the making (generation/decode.py): `samples` of them, with one or two guidance branches."""

    on_kernels = True

    def __init__(
        self, model: "MusicgenForCausalLM", samples: int, capacity: int, text: "Text | None", branches: int
    ) -> None:
        places = 0 if text is None else text.states.shape[1]
        self.slots = EngineSlots(model, samples, capacity, places, branches)
        self.slots.begin({i: None if text is None else text.rows(i, samples) for i in range(samples)})

    def prefill(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return torch.stack([*self.slots.feed(dict(enumerate(ids))).values()], 1)

    def step(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return self.prefill(ids[:, :, None])


def _seen(text: "Text | None", branch: int) -> Float[Tensor, "L D"] | None:
    """The visible text of a branch; none of a text of zeros, which adds nothing."""
    if text is None or branch >= len(text.states) or not bool(text.states[branch].any()):
        return None
    return text.states[branch][text.mask[branch].bool()]
