"""Where a small decoder begins, so that minutes of training suffice for what random weights take hours to find.

Nothing here outlasts training: the result is an ordinary checkpoint.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from tunesmith.codecs.encodec import EncodecModel
from tunesmith.models.musicgen import MusicgenForCausalLM
from tunesmith.nn.attention import Attention
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration

LAGS = (1, 2, 3, 4, 6, 8, 11, 14, 18, 22, 26, 30, 34, 38, 42, 46, 52, 58, 66, 76, 88, 100, 120, 150)
"""Frames back at which heads look at first: the last few, and then, at 50 a second, beats of 20 to 140 a minute."""
_PERIODS = (6, 600)  # of the sinusoids that lags are told by, in frames
_SHARP = 1.2  # of a lag: with it about two thirds of a head's attention goes to the lag and its neighbours


def begin_well(model: MusicgenForConditionalGeneration, codec: EncodecModel) -> None:
    """All of the below, for a new model; blocks are silent at first, but for a whisper of the text."""
    embed_codebooks(model.decoder, codec)
    attend_to_lags(model.decoder)
    open_text_path(model, gain=0.1)
    with torch.no_grad():
        for layer in model.decoder.model.decoder.layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.fc2.weight.zero_()


@torch.no_grad()
def embed_codebooks(decoder: MusicgenForCausalLM, codec: EncodecModel) -> None:
    """Begin with embeddings and heads in which codes are as near each other as they are in the codec.

    Each codebook is centred, turned by a random rotation into the decoder's width, and scaled: sums of embeddings are
    about as large as positions are, logits small.
    """
    books, width = codec.quantizer.books, decoder.config.hidden_size
    embeddings = decoder.model.decoder.embed_tokens
    for book, embedding, head in zip(books, embeddings, decoder.lm_heads, strict=True):
        vectors = (codes := book.get_buffer("embed")) - codes.mean(0)
        placed = vectors @ nn.init.orthogonal_(torch.empty(vectors.shape[1], width))
        placed /= placed.square().sum(1).mean().sqrt()
        embedding.weight[: len(placed)] = placed * width**0.5 / len(books)
        head.get_parameter("weight").copy_(placed * 0.3)


@torch.no_grad()
def attend_to_lags(decoder: MusicgenForCausalLM, lags: Sequence[int] = LAGS) -> None:
    """Begin with two thirds of each layer's heads looking so many frames back.

    With sinusoidal positions, queries that are keys turned by ω·lag in the plane of each frequency ω have the greatest
    product with the key that far back.
    """
    layers = [layer.self_attn for layer in decoder.model.decoder.layers]
    heads = [(attention, head) for attention in layers for head in range(attention.heads * 2 // 3)]
    for (attention, head), lag in zip(heads, lags, strict=False):
        _look_back(attention, head, lag)


def _look_back(attention: Attention, head: int, lag: int) -> None:
    width = attention.q_proj.in_features
    half, size = width // 2, attention.q_proj.out_features // attention.heads
    rates = torch.exp(torch.arange(half) * -(math.log(10_000) / max(half - 1, 1)))
    fitting = [i for i, rate in enumerate(rates.tolist()) if _PERIODS[0] <= 2 * math.pi / rate <= _PERIODS[1]]
    chosen = torch.tensor(fitting)[torch.linspace(0, len(fitting) - 1, size // 2).round().long()]
    queries, keys = torch.zeros(size, width), torch.zeros(size, width)
    cosines, sines = torch.arange(0, size, 2), torch.arange(1, size, 2)
    turn = rates[chosen] * lag
    keys[cosines, chosen] = keys[sines, half + chosen] = _SHARP
    queries[cosines, chosen] = queries[sines, half + chosen] = _SHARP * turn.cos()
    queries[cosines, half + chosen], queries[sines, chosen] = _SHARP * turn.sin(), -_SHARP * turn.sin()
    rows = slice(head * size, (head + 1) * size)
    attention.q_proj.weight[rows], attention.k_proj.weight[rows] = queries, keys


@torch.no_grad()
def open_text_path(model: MusicgenForConditionalGeneration, gain: float = 1.0) -> None:
    """Begin with cross-attention that keeps the size of what it hears, times `gain`.

    From the usual deviation of 0.02 what the words contribute is so small beside the codes that a narrow decoder learns
    to do without them (LOG.md, 2026-11-21).
    """
    attentions = [layer.encoder_attn for layer in model.decoder.model.decoder.layers]
    projections = [p for a in attentions for p in (a.q_proj, a.k_proj, a.v_proj, a.out_proj)]
    for projection in (model.enc_to_dec_proj, *projections):
        projection.weight.normal_(0.0, projection.in_features**-0.5)
    for attention in attentions:
        attention.out_proj.weight.mul_(gain)
