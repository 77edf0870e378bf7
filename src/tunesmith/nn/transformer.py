"""Decoder layers of MusicGen: pre-norm self-attention, cross-attention to the text, feed-forward; and sinusoidal
positions.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.nn.attention import Attention
from tunesmith.nn.cache import LayerCache, View
from tunesmith.nn.linear import Linear

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
}


class LayerOutput(NamedTuple):
    """What a layer computes; the weights are None unless they were asked for."""

    hidden: Float[Tensor, "B S D"]
    weights: Float[Tensor, "B N S M"] | None
    cross_weights: Float[Tensor, "B N S L"] | None


class DecoderLayer(nn.Module):
    """x + SelfAttention(norm x), x + CrossAttention(norm x, text), x + FeedForward(norm x).

    Without text states the cross-attention is skipped, as in the released models' decoder when nothing conditions it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ffn_width: int,
        activation: Activation = F.gelu,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation, self.dropout, self.activation_dropout = activation, dropout, activation_dropout
        self.self_attn = Attention(width, heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, heads, attention_dropout)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, ffn_width)
        self.fc2 = Linear(ffn_width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        mask: Float[Tensor, "#B 1 S M"] | None = None,
        memory: Float[Tensor, "B L D"] | None = None,
        memory_mask: Float[Tensor, "B 1 1 L"] | None = None,
        cache: LayerCache | None = None,
        position: int | Int[Tensor, ""] | Int[Tensor, "B 1"] = 0,
        need_weights: bool = False,
    ) -> LayerOutput:
        """`mask` None is causal.  With a cache, x continues at `position` and sees what came before."""
        view = self._own(normed := self.self_attn_layer_norm(x), cache, position)
        mask = view.mask if mask is None else mask
        y, weights = self.self_attn(
            normed, view.keys, view.values, mask, causal=mask is None and x.shape[1] > 1, need_weights=need_weights
        )
        x = x + self._drop(y)
        cross_weights = None
        if memory is not None:
            seen = self._memory(memory, cache)
            normed = self.encoder_attn_layer_norm(x)
            y, cross_weights = self.encoder_attn(normed, seen.keys, seen.values, memory_mask, need_weights=need_weights)
            x = x + self._drop(y)
        y = self.activation(self.fc1(self.final_layer_norm(x)))
        y = self.fc2(F.dropout(y, self.activation_dropout, self.training))
        return LayerOutput(x + self._drop(y), weights, cross_weights)

    def _own(self, x: Tensor, cache: LayerCache | None, position: Any) -> View:
        keys, values = self.self_attn.keys_values(x)
        return View(keys, values) if cache is None else cache.own.update(keys, values, position)

    def _memory(self, memory: Tensor, cache: LayerCache | None) -> View:
        if cache is None:
            return View(*self.encoder_attn.keys_values(memory))
        if cache.memory is None:
            cache.memory = View(*self.encoder_attn.keys_values(memory))
        return cache.memory

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def sinusoid(
    position: int | Int[Tensor, "*B"], count: int, width: int, device: torch.device
) -> Float[Tensor, "S D"] | Float[Tensor, "B S D"]:
    """Positions position, position + 1, ...: all cosines, then all sines, of frequencies 10000^(-i / (width/2 - 1)).

    Always float32: in half precision late positions would be noise.  An odd width ends with a zero column.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, device=device).float() * -(math.log(10000) / max(half - 1, 1)))
    angles = (position + torch.arange(count, device=device)).float()[..., None] * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], -1), (0, width % 2))


def survives(drop_probability: float, training: bool) -> bool:
    """LayerDrop (Fan et al. 2019): in training a layer is left out with this probability.

    Drawn from torch's CPU generator, so that nothing waits for the device.
    """
    return not training or drop_probability == 0.0 or bool(torch.rand(()) >= drop_probability)
