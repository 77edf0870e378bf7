"""MusicGen's decode step for the CPU's kernels: what nn/engine.py runs when `MusicgenForCausalLM` generates there.

The same numbers as the modules' own forward to within rounding, bit by bit independent of the batch.  The null branch
of guidance looks at no text: its cross-attention is zero, for there are no biases.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
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


class EngineSession:
    """A piece in the making (generation/decode.py): `samples` of them, with one or two guidance branches."""

    @torch.no_grad()
    def __init__(
        self, model: "MusicgenForCausalLM", samples: int, capacity: int, text: "Text | None", branches: int
    ) -> None:
        config = model.config
        self.decoder, self.branches, self.sequences = model.model.decoder, branches, samples * branches
        self.position, self.width, self.vocabulary = 0, config.hidden_size, config.vocab_size
        self.positions = sinusoid(0, capacity, self.width, model.device).to(model.dtype)
        self.columns = max(engine.ROWS // self.sequences, 1)
        self.rows = self.columns * self.sequences
        self.own, self.text = Places(self.rows), Places(self.rows)
        self.seen = None if text is None else _seen(text)
        self.kept = [*self._memories(model, capacity)]
        self._write(model, capacity)
        self._write_heads(model)

    def _memories(self, model: "MusicgenForCausalLM", capacity: int) -> Any:
        """For each layer, memory for what is to come and of the text."""
        heads, dtype = model.config.num_attention_heads, engine.memory_dtype(self.decoder)
        for layer in self.decoder.layers:
            own = Memory.allocate(self.sequences, heads, self.width // heads, capacity, dtype)
            yield own, None if self.seen is None else self._read(layer, heads)

    def _read(self, layer: Any, heads: int) -> Memory:
        """What a layer's cross-attention looks at: the visible text alone, of all sequences in one go."""
        assert self.seen is not None, "there is a text"
        states, visible = self.seen
        lengths = visible.sum(1).tolist()
        memory = Memory.allocate(
            self.sequences, heads, self.width // heads, max(*lengths, 1), engine.float_dtype(states)
        )
        rows = [(s, place, 0, 0) for s, length in enumerate(lengths) for place in range(length)]
        if rows:
            x, attention = states[visible].float(), layer.encoder_attn
            keys, values = (engine.product(x, weight_of(part)) for part in (attention.k_proj, attention.v_proj))
            engine.write(memory, keys, values, rows)
        return memory

    def _write(self, model: "MusicgenForCausalLM", capacity: int) -> None:
        config, width = model.config, self.width
        longest = max([capacity, *(text.capacity for _, text in self.kept if text is not None)])
        p = self.program = Program(self.rows, max(width, config.ffn_dim), longest, [self.own, self.text])
        self.x, self.normed = p.buffer(width), p.buffer(width)
        parts = [p.buffer(width) for _ in range(4)]
        inner, kind = p.buffer(config.ffn_dim), engine.ACTIVATIONS[config.activation_function]
        for layer, (own, text) in zip(self.decoder.layers, self.kept, strict=True):
            self._attend(layer.self_attn, layer.self_attn_layer_norm, own, OWN, parts)
            if text is not None:
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
            p.remember(keys, values, memory, view, self.width)
        p.attend(queries, memory, view, self.width, out)
        p.linear(out, weight_of(attention.out_proj), self.x, first=(self.x, 1.0))

    def _write_heads(self, model: "MusicgenForCausalLM") -> None:
        self.heads = Program(self.rows, max(self.width, self.vocabulary), 0)
        weights = _heads(model)
        self.logits = torch.zeros(len(weights), self.rows, self.vocabulary)
        for weight, logits in zip(weights, self.logits, strict=True):
            self.heads.linear(self.normed, weight, logits)

    def prefill(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        for piece in ids.split(self.columns, 2):
            count = self._feed(piece)
        if count > self.sequences:  # only the last column is read
            self.normed[: self.sequences] = self.normed[count - self.sequences : count].clone()
        self.heads.run(self.sequences)
        logits = self.logits[:, : self.sequences].transpose(0, 1)  # [G·B, K, V]
        return logits.unflatten(0, (self.branches, -1)).clone()

    def step(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return self.prefill(ids[:, :, None])

    def _feed(self, ids: Int[Tensor, "B K S"]) -> int:
        """Some columns, one after the other; how many rows that is."""
        columns, end = ids.shape[2], self.position + ids.shape[2]
        assert end <= len(self.positions), "a piece has as many columns as it was begun with, at most"
        x = self.decoder.embed(ids).transpose(0, 1).repeat(1, self.branches, 1)  # [S, G·B, D]
        x = x + self.positions[self.position : end, None]
        count = columns * self.sequences
        self.x[:count] = x.flatten(0, 1)
        sequences = range(self.sequences)
        self.own.set([(s, place, 0, place + 1) for place in range(self.position, end) for s in sequences])
        if self.seen is not None and (self.position == 0 or columns > 1):
            lengths = self.seen[1].sum(1).tolist()
            self.text.set([(s, -1, 0, lengths[s]) for _ in range(self.columns) for s in sequences])
        self.program.run(count)
        self.position = end
        return count


def _seen(text: "Text") -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
    """The text and which of it is visible; none of a text of zeros, which adds nothing."""
    says = (text.states != 0).flatten(1).any(1)
    return text.states, text.mask.bool() & says[:, None]
