"""Tensor names and shapes: audiocraft's beside ours, which are Hugging Face's.

One table serves both directions and checks what it moves: each `Row` says what a tensor is called there, what it is
called here (several names where audiocraft stacks query, key and value in one tensor) and which shape it has there.
Tables are enumerated from a configuration, so a checkpoint that lacks a tensor, has one too many or one of another
shape is refused with the tensor's name.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.models.musicgen import MusicgenDecoderConfig
from tunesmith.nn.pretrained import refuse_misfits

STACK = "decoder.model.decoder"
TEXT_PROJECTION = "condition_provider.conditioners.description.output_proj"
WAVE_PROJECTION = "condition_provider.conditioners.self_wav.output_proj"
CHROMA_WINDOW = "condition_provider.conditioners.self_wav.chroma.spec.window"

# Saved by some versions, computed by all: T5's tied embedding, sinusoidal positions.
_DERIVED = ("text_encoder.encoder.embed_tokens.weight", f"{STACK}.embed_positions.weights")


class Row(NamedTuple):
    """One tensor of audiocraft's."""

    theirs: str
    ours: tuple[str, ...]  # stacked along dimension 0 in this order
    shape: tuple[int, ...]  # of theirs


def to_ours(rows: Iterable[Row], tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Rename and split audiocraft's tensors; raises `CheckpointError` unless exactly the rows' tensors are there."""
    rows = list(rows)
    refuse_misshapen({row.theirs: row.shape for row in rows}, tensors, source)
    return {name: part for row in rows for name, part in _unstack(row, tensors[row.theirs])}


def to_theirs(rows: Iterable[Row], tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Rename and stack our tensors, into fresh ones; raises `CheckpointError` unless exactly the rows' are there."""
    rows = list(rows)
    shapes = {name: (row.shape[0] // len(row.ours), *row.shape[1:]) for row in rows for name in row.ours}
    refuse_misshapen(shapes, tensors, source)
    # Fresh, because torch.save writes whole storages, and a tensor may be a view of a mapped file.
    return {row.theirs: torch.cat([tensors[name] for name in row.ours]) for row in rows}


def refuse_misshapen(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise `CheckpointError` naming tensors, unless there are exactly those of the given names and shapes."""
    both = shapes.keys() & tensors.keys()
    refuse_misfits(
        source,
        missing=shapes.keys() - both,
        unexpected=tensors.keys() - both,
        misshapen=[(name, tensors[name].shape, shapes[name]) for name in both if tensors[name].shape != shapes[name]],
    )


def modern_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under today's names: weight norm's `original0/1` for `weight_g/v`, without derived tensors."""
    kept = {name: tensor for name, tensor in tensors.items() if name not in _DERIVED}
    renamed = {}
    for name, tensor in kept.items():
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            name = f"{name.removesuffix(old)}parametrizations.weight.{new}" if name.endswith(f".{old}") else name
        renamed[name] = tensor
    return renamed


def language_model_rows(decoder: MusicgenDecoderConfig, text_width: int, chroma: int | None) -> Iterator[Row]:
    """Decoder and projections; a model with chroma bins (melody) has another projection and no cross-attention."""
    width, codes = decoder.hidden_size, decoder.vocab_size
    yield from _affine(TEXT_PROJECTION, "enc_to_dec_proj", (width, text_width))
    if chroma is not None:
        yield from _affine(WAVE_PROJECTION, "audio_enc_to_dec_proj", (width, chroma))
    for k in range(decoder.num_codebooks):
        yield Row(f"emb.{k}.weight", (f"{STACK}.embed_tokens.{k}.weight",), (codes + 1, width))
        yield Row(f"linears.{k}.weight", (f"decoder.lm_heads.{k}.weight",), (codes, width))
    for i in range(decoder.num_hidden_layers):
        yield from _layer(f"transformer.layers.{i}", f"{STACK}.layers.{i}", decoder, cross=chroma is None)
    yield from _affine("out_norm", f"{STACK}.layer_norm", (width,))


def codec_rows(config: EncodecConfig) -> Iterator[Row]:
    """Encoder, decoder and quantizer."""
    yield from _encoder(config)
    yield from _decoder(config)
    books, width = config.codebook_size, config.hidden_size
    shapes = {"inited": (1,), "cluster_size": (books,), "embed": (books, width), "embed_avg": (books, width)}
    for k in range(config.num_quantizers):
        for name, shape in shapes.items():
            yield Row(f"quantizer.vq.layers.{k}._codebook.{name}", (f"quantizer.layers.{k}.codebook.{name}",), shape)


def _unstack(row: Row, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    return zip(row.ours, tensor.chunk(len(row.ours)), strict=True)


def _affine(theirs: str, ours: str, shape: tuple[int, ...]) -> Iterator[Row]:
    yield Row(f"{theirs}.weight", (f"{ours}.weight",), shape)
    yield Row(f"{theirs}.bias", (f"{ours}.bias",), shape[:1])


def _layer(theirs: str, ours: str, decoder: MusicgenDecoderConfig, *, cross: bool) -> Iterator[Row]:
    width, inner = decoder.hidden_size, decoder.ffn_dim
    attentions = [("self_attn", "self_attn")] + [("cross_attention", "encoder_attn")] * cross
    norms = [("norm1", "self_attn"), ("norm2", "final")] + [("norm_cross", "encoder_attn")] * cross
    for there, here in attentions:
        split = tuple(f"{ours}.{here}.{part}_proj.weight" for part in "qkv")
        yield Row(f"{theirs}.{there}.in_proj_weight", split, (3 * width, width))
        yield Row(f"{theirs}.{there}.out_proj.weight", (f"{ours}.{here}.out_proj.weight",), (width, width))
    for there, here in norms:
        yield from _affine(f"{theirs}.{there}", f"{ours}.{here}_layer_norm", (width,))
    yield Row(f"{theirs}.linear1.weight", (f"{ours}.fc1.weight",), (inner, width))
    yield Row(f"{theirs}.linear2.weight", (f"{ours}.fc2.weight",), (width, inner))


def _encoder(config: EncodecConfig) -> Iterator[Row]:
    width, place = config.num_filters, 1
    yield from _conv(config, "encoder", "0", width, config.audio_channels, config.kernel_size)
    for ratio in reversed(config.upsampling_ratios):
        for _ in range(config.num_residual_layers):
            yield from _block(config, "encoder", place, width)
            place += 1
        yield from _conv(config, "encoder", str(place + 1), 2 * width, width, 2 * ratio)
        width, place = 2 * width, place + 2
    yield from _lstm(config, "encoder", place, width)
    place += config.num_lstm_layers > 0
    yield from _conv(config, "encoder", str(place + 1), config.hidden_size, width, config.last_kernel_size)


def _decoder(config: EncodecConfig) -> Iterator[Row]:
    width = config.num_filters * 2 ** len(config.upsampling_ratios)
    yield from _conv(config, "decoder", "0", width, config.hidden_size, config.kernel_size)
    yield from _lstm(config, "decoder", 1, width)
    place = 1 + (config.num_lstm_layers > 0)
    for ratio in config.upsampling_ratios:
        width //= 2
        yield from _conv(config, "decoder", str(place + 1), width, 2 * width, 2 * ratio, transposed=True)
        place += 2
        for _ in range(config.num_residual_layers):
            yield from _block(config, "decoder", place, width)
            place += 1
    yield from _conv(config, "decoder", str(place + 1), config.audio_channels, width, config.last_kernel_size)


def _block(config: EncodecConfig, side: str, place: int, width: int) -> Iterator[Row]:
    inner = width // config.compress
    yield from _conv(config, side, f"{place}.block.1", inner, width, config.residual_kernel_size)
    yield from _conv(config, side, f"{place}.block.3", width, inner, 1)
    if config.use_conv_shortcut:
        yield from _conv(config, side, f"{place}.shortcut", width, width, 1)


def _conv(
    config: EncodecConfig, side: str, place: str, out: int, into: int, kernel: int, *, transposed: bool = False
) -> Iterator[Row]:
    """A convolution with its norm; weight norm runs over dimension 0, which is the input's for a transposed one."""
    kind = "convtr" if transposed else "conv"
    theirs, ours = f"{side}.model.{place}.{kind}", f"{side}.layers.{place}"
    shape = (into, out, kernel) if transposed else (out, into, kernel)
    yield Row(f"{theirs}.{kind}.bias", (f"{ours}.conv.bias",), (out,))
    if config.norm_type == "weight_norm":
        weight = f"{ours}.conv.parametrizations.weight.original"
        yield Row(f"{theirs}.{kind}.weight_g", (f"{weight}0",), (shape[0], 1, 1))
        yield Row(f"{theirs}.{kind}.weight_v", (f"{weight}1",), shape)
        return
    yield Row(f"{theirs}.{kind}.weight", (f"{ours}.conv.weight",), shape)
    yield from _affine(f"{theirs}.norm", f"{ours}.norm", (out,))


def _lstm(config: EncodecConfig, side: str, place: int, width: int) -> Iterator[Row]:
    for layer in range(config.num_lstm_layers):
        for part in ("ih", "hh"):
            for name, shape in (
                (f"weight_{part}_l{layer}", (4 * width, width)),
                (f"bias_{part}_l{layer}", (4 * width,)),
            ):
                yield Row(f"{side}.model.{place}.lstm.{name}", (f"{side}.layers.{place}.lstm.{name}",), shape)
