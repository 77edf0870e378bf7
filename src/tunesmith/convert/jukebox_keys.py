"""Jukebox's tensors: OpenAI's names beside ours, which are Hugging Face's, with the shape that both have.

Enumerated from a configuration, as in keymaps.py: a checkpoint that lacks a tensor, has one too many or one of another
shape is refused with the tensor's name.
"""

import re
from collections.abc import Iterator

from tunesmith.codecs.vqvae import JukeboxVQVAEConfig
from tunesmith.convert.keymaps import Row
from tunesmith.models.jukebox import JukeboxPriorConfig, attention_order
from tunesmith.nn.factored import CROSS, attention_kinds

Shape = tuple[int, ...]

TRAINING = re.compile(r"bottleneck\.level_blocks\.\d+\.k_(sum|elem)$")
"""Ends of names of tensors of ours that OpenAI's files haven't: a codebook's running sums and counts."""

_CHECKPOINTED = re.compile(r"^(conditioner_blocks\.0\.cond\.model\.\d+\.0)\.model\.")


def plain_name(name: str) -> str:
    """The name that the rows have for a tensor in a file.

    Training over several ranks puts `module.` in front, and a conditioner's residual blocks are called `model` instead
    of `blocks` where training didn't checkpoint their gradients.
    """
    return _CHECKPOINTED.sub(r"\1.blocks.", name.removeprefix("module."))


def vqvae_rows(config: JukeboxVQVAEConfig) -> Iterator[Row]:
    """Encoders, decoders and codebooks; level 0 is the finest on both sides."""
    stages = list(zip(config.res_downs_t, config.res_strides_t, strict=True))
    for level, multiplier in enumerate(config.multipliers or [1] * config.levels):
        width, depth = config.res_conv_width * multiplier, config.res_conv_depth * multiplier
        hidden, latent = int(config.res_convolution_multiplier * width), config.embed_dim
        for b, (down, stride) in enumerate(stages[: level + 1]):
            block, channels = f"level_blocks.{b}", latent if b else config.conv_input_shape
            yield from _down(f"encoders.{level}.{block}", (channels, width, latent), hidden, depth, down, stride)
            names = (f"decoders.{level}.{block}", f"decoders.{level}.{block}")
            yield from _up(names, "model", (latent, width, latent), hidden, depth, down, stride)
        out = f"decoders.{level}.out"
        yield from _affine(out, out, (config.conv_input_shape, latent, 3))
        book = f"bottleneck.level_blocks.{level}"
        yield Row(f"{book}.k", (f"{book}.codebook",), (config.nb_discrete_codes, latent))


def prior_rows(config: JukeboxPriorConfig) -> Iterator[Row]:
    """A prior: stack, label conditioner, upsampler conditioner (below the top), lyric encoder (if it has its own)."""
    width, merged = config.hidden_size, config.is_encoder_decoder
    codes = config.music_vocab_size + (config.lyric_vocab_size if merged else 0)
    places = config.n_ctx + (config.nb_relevant_lyric_tokens if merged else 0)
    yield from _stack("prior", "prior", config, codes, places)
    yield Row("prior.x_out.weight", ("prior.fc_proj_out.weight",), (codes, width))
    if config.metadata_conditioning:
        yield from _labels(config)
    else:
        yield Row("prior.start_token", ("prior.start_token",), (1, width))
    if config.level > 0:
        yield from _conditioner(config)
    if config.nb_relevant_lyric_tokens and not merged:
        yield from _lyric_encoder(config)


def _labels(config: JukeboxPriorConfig) -> Iterator[Row]:
    genres, artists = config.metadata_dims
    for name, rows in (("bow_genre", genres), ("artist", artists)):
        theirs, ours = f"y_emb.{name}_emb.emb.weight", f"metadata_embedding.{name}_emb.weight"
        yield Row(theirs, (ours,), (rows, config.hidden_size))
    for name in ("total_length", "absolute_pos", "relative_pos") if config.level == 0 else ():
        table = f"{name}_emb.emb.weight"
        yield Row(f"y_emb.{table}", (f"metadata_embedding.{table}",), (config.timing_dims, config.hidden_size))


def _conditioner(config: JukeboxPriorConfig) -> Iterator[Row]:
    """Stages and strides are those of the level above (the lists are finest first, `level` counts from the top)."""
    theirs, ours, width = "conditioner_blocks.0", "conditioner_blocks", config.hidden_size
    above, inner = len(config.res_downs_t) - config.level, config.res_conv_width
    yield Row(f"{theirs}.x_emb.weight", (f"{ours}.embed_tokens.weight",), (config.music_vocab_size, width))
    yield from _affine(f"{theirs}.ln", f"{ours}.layer_norm", (width,))
    yield from _up(
        (f"{theirs}.cond", f"{ours}.upsampler"),
        "blocks",
        (width, inner, width),
        int(config.res_convolution_multiplier * inner),
        config.res_conv_depth,
        config.res_downs_t[above],
        config.res_strides_t[above],
    )


def _lyric_encoder(config: JukeboxPriorConfig) -> Iterator[Row]:
    encoder, width, letters = config.encoder_config, config.hidden_size, config.lyric_vocab_size
    yield from _stack("prime_prior", "encoder", encoder, letters, config.nb_relevant_lyric_tokens)
    yield Row("prime_prior.start_token", ("encoder.start_token",), (1, encoder.hidden_size))
    yield from _linear("prime_state_proj", "encoder.proj_in", (encoder.hidden_size, width))
    yield from _affine("prime_state_ln", "encoder.final_layer_norm", (width,))
    yield Row("prime_x_out.weight", ("encoder.lm_head.weight",), (letters, width))


def _stack(theirs: str, ours: str, config: JukeboxPriorConfig, codes: int, places: int) -> Iterator[Row]:
    """Embeddings and layers."""
    width = config.hidden_size
    yield Row(f"{theirs}.x_emb.weight", (f"{ours}.embed_tokens.weight",), (codes, width))
    yield Row(f"{theirs}.pos_emb.pos_emb", (f"{ours}.pos_emb.pos_emb",), (places, width))
    inner, hidden = int(config.attention_multiplier * width), int(config.mlp_multiplier * width)
    for i, kind in enumerate(attention_kinds(attention_order(config.attention_pattern), config.num_layers)):
        there, here = (f"{name}.transformer._attn_mods.{i}" for name in (theirs, ours))
        queries = inner if kind == CROSS else 3 * inner
        yield from _linear(f"{there}.attn.c_attn", f"{here}.attn.c_attn", (width, queries))
        if kind == CROSS:
            yield from _linear(f"{there}.attn.c_enc_kv", f"{here}.attn.c_enc_kv", (width, 2 * inner))
        yield from _linear(f"{there}.attn.c_proj", f"{here}.attn.c_proj", (inner, width))
        yield from _linear(f"{there}.mlp.c_fc", f"{here}.mlp.c_fc", (width, hidden))
        yield from _linear(f"{there}.mlp.c_proj", f"{here}.mlp.c_proj", (hidden, width))
        for norm in (0, 1):
            yield from _affine(f"{there}.ln_{norm}", f"{here}.layer_norm_{norm}", (width,))


def _down(name: str, widths: tuple[int, int, int], hidden: int, depth: int, stages: int, stride: int) -> Iterator[Row]:
    """A block of nn/dilated.py that goes down; widths: before, inside, after."""
    channels, width, out = widths
    for i in range(stages):
        there, here = f"{name}.model.{i}", f"{name}.downsample_block"
        yield from _affine(f"{there}.0", f"{here}.{2 * i}", (width, width if i else channels, 2 * stride))
        yield from _residual(f"{there}.1.model", f"{here}.{2 * i + 1}", width, hidden, depth)
    yield from _affine(f"{name}.model.{stages}", f"{name}.proj_out", (out, width if stages else channels, 3))


def _up(
    names: tuple[str, str],
    blocks: str,
    widths: tuple[int, int, int],
    hidden: int,
    depth: int,
    stages: int,
    stride: int,
) -> Iterator[Row]:
    """A block of nn/dilated.py that goes up; names: theirs, ours; blocks: what they call its residual blocks."""
    (theirs, ours), (channels, width, out) = names, widths
    yield from _affine(f"{theirs}.model.0", f"{ours}.proj_in", (width, channels, 3))
    for i in range(1, stages + 1):
        there, here = f"{theirs}.model.{i}", f"{ours}.upsample_block"
        yield from _residual(f"{there}.0.{blocks}", f"{here}.{2 * i - 2}", width, hidden, depth)
        wide = out if i == stages else width
        yield Row(f"{there}.1.weight", (f"{here}.{2 * i - 1}.weight",), (width, wide, 2 * stride))
        yield Row(f"{there}.1.bias", (f"{here}.{2 * i - 1}.bias",), (wide,))


def _residual(theirs: str, ours: str, width: int, hidden: int, depth: int) -> Iterator[Row]:
    for r in range(depth):
        there, here = f"{theirs}.{r}.model", f"{ours}.resnet_block.{r}"
        yield from _affine(f"{there}.1", f"{here}.conv1d_1", (hidden, width, 3))
        yield from _affine(f"{there}.3", f"{here}.conv1d_2", (width, hidden, 1))


def _affine(theirs: str, ours: str, shape: Shape) -> Iterator[Row]:
    yield Row(f"{theirs}.weight", (f"{ours}.weight",), shape)
    yield Row(f"{theirs}.bias", (f"{ours}.bias",), shape[:1])


def _linear(theirs: str, ours: str, shape: Shape) -> Iterator[Row]:
    """Weights are (in, out) on both sides."""
    yield Row(f"{theirs}.w", (f"{ours}.weight",), shape)
    yield Row(f"{theirs}.b", (f"{ours}.bias",), shape[1:])
