"""MusicGen's decoder stack: embeddings of K streams of codes, layers that also look at text, a final norm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.models.musicgen_config import MusicgenDecoderConfig, check_config
from tunesmith.nn.cache import DecoderCache, additive
from tunesmith.nn.transformer import ACTIVATIONS, DecoderLayer, sinusoid, survives


class Text(NamedTuple):
    """Text as the decoder sees it: states of its width, and 1 where they may be attended to."""

    states: Float[Tensor, "B L D"]
    mask: Shaped[Tensor, "B L"]

    @classmethod
    def of(cls, states: Float[Tensor, "B L D"], mask: Shaped[Tensor, "B L"] | None) -> "Text":
        """Without a mask all of it is text."""
        return Text(states, states.new_ones(states.shape[:2]) if mask is None else mask.to(states))

    def null(self) -> "Text":
        """No text, in the same shape."""
        return Text(torch.zeros_like(self.states), torch.zeros_like(self.mask))

    def repeat(self, times: int) -> "Text":
        """Each sample several times, one after the other."""
        return Text(self.states.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0))

    def rows(self, start: int, step: int) -> "Text":
        """Every so manieth row: of a batch above another, a sample's own of each."""
        return Text(self.states[start::step], self.mask[start::step])

    def above(self, other: "Text") -> "Text":
        """Both batches as one, the shorter texts padded."""
        more = other.states.shape[1] - self.states.shape[1]
        first, second = self._padded(more), other._padded(-more)
        return Text(torch.cat([first.states, second.states]), torch.cat([first.mask, second.mask]))

    def _padded(self, more: int) -> "Text":
        more = max(more, 0)
        return Text(F.pad(self.states, (0, 0, 0, more)), F.pad(self.mask, (0, more)))


class DecoderOutput(NamedTuple):
    """What the stack computes; the tuples are None unless they were asked for."""

    hidden: Float[Tensor, "B S D"]
    states: tuple[Tensor, ...] | None
    weights: tuple[Tensor, ...] | None
    cross_weights: tuple[Tensor, ...] | None


class MusicgenDecoder(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, config: MusicgenDecoderConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        width, function = config.hidden_size, config.activation_function
        self.embed_scale = width**-0.5 if config.scale_embedding else 1.0
        self.embed_tokens = nn.ModuleList(
            nn.Embedding(config.vocab_size + 1, width) for _ in range(config.num_codebooks)
        )
        self.layers = nn.ModuleList(
            DecoderLayer(
                width,
                config.num_attention_heads,
                config.ffn_dim,
                ACTIVATIONS[function] if isinstance(function, str) else function,
                config.dropout,
                config.attention_dropout,
                config.activation_dropout,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.layer_norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def tables(self) -> list[nn.Embedding]:
        """One a codebook."""
        return [table for table in self.embed_tokens if isinstance(table, nn.Embedding)]

    def embed(self, ids: Int[Tensor, "B K S"]) -> Float[Tensor, "B S D"]:
        """The sum of the codebooks' embeddings."""
        total: Tensor = self.embed_tokens[0](ids[:, 0])
        for k, table in enumerate(self.embed_tokens[1:], start=1):
            total = total + table(ids[:, k])
        return total if self.embed_scale == 1.0 else total * self.embed_scale

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        mask: Shaped[Tensor, "B M"] | None = None,
        memory: Float[Tensor, "B L D"] | None = None,
        memory_bias: Float[Tensor, "B 1 1 L"] | None = None,
        cache: DecoderCache | None = None,
        need_states: bool = False,
        need_weights: bool = False,
    ) -> DecoderOutput:
        """Embeddings x (of codes, or of a prefix); masks are 1 where something may be looked at.

        With a cache, x continues at `cache.position`, which moves on.
        """
        position = 0 if cache is None else cache.position
        own_mask = _causal_mask(mask, position, x)
        places = sinusoid(position, x.shape[1], x.shape[2], x.device).to(x.dtype)
        x = F.dropout(x + places, self.config.dropout, self.training)
        states: list[Tensor] = []
        weights: list[Tensor] = []
        cross: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            states.append(x)
            if not survives(self.config.layerdrop, self.training):
                continue
            past = None if cache is None else cache.layers[i]
            x, own, other = self._run(layer, x, own_mask, memory, memory_bias, past, position, need_weights)
            weights += [] if own is None else [own]
            cross += [] if other is None else [other]
        if cache is not None:
            cache.position = position + x.shape[1]
        x = self.layer_norm(x)
        return DecoderOutput(
            x,
            (*states, x) if need_states else None,
            tuple(weights) if need_weights else None,
            tuple(cross) if need_weights and memory is not None else None,
        )

    def _run(self, layer: nn.Module, *inputs: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            assert self._gradient_checkpointing_func is not None, "set by gradient_checkpointing_enable()"
            return self._gradient_checkpointing_func(layer.__call__, *inputs)
        return layer(*inputs)


def bias_of(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask [B, L] as what to add to scores [B, 1, 1, L]."""
    return None if mask is None else additive(mask, dtype)[:, None, None, :]


def _causal_mask(mask: Tensor | None, position: int | Tensor, x: Tensor) -> Tensor | None:
    """None where plain causality or the cache says it all, else what to add to scores [B or 1, 1, S, M]."""
    count = x.shape[1]
    if isinstance(position, Tensor) or (mask is None and (position == 0 or count == 1)):
        return None
    rows = position + torch.arange(count, device=x.device)
    visible = torch.arange(position + count, device=x.device) <= rows[:, None]
    visible = visible[None, None] if mask is None else visible & mask.bool()[:, None, None, :]
    return additive(visible, x.dtype)
