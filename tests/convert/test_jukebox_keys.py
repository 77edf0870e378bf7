"""Jukebox's presets against what is known of the released checkpoints: every tensor's name, shape and type.

The lists are written from the published tables, not from our classes, which are built on the meta device.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tunesmith.codecs.vqvae import PRESETS as VQVAES
from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig
from tunesmith.convert.jukebox_hub import RELEASED
from tunesmith.convert.jukebox_keys import TRAINING, plain_name, prior_rows, vqvae_rows
from tunesmith.models.jukebox import PRESETS, JukeboxPrior

Shapes = Iterator[tuple[str, tuple[int, ...]]]

# Parameters and values in codebooks, where they are known.
VQVAE = {"vqvae": (1_485_763, 393_216), "small_vqvae": (586_050, 131_072), "DEFAULTS": None}
# Width, layers, cross-attention layers; codes, places, (genres, artists), timing bins; conditioner's width; lyric
# encoder's width, layers, characters, places; parameters (tied ones once).
PRIOR = {
    "upsampler_level_0": (1920, 72, (), 2048, 8192, (120, 4111), 0, 1024, None, 981_298_176),
    "upsampler_level_1": (1920, 72, (), 2048, 8192, (120, 4111), 0, 1024, None, 981_298_176),
    "prior_5b": (4800, 72, (), 2048, 8192, (120, 4111), 128, 0, None, 5_060_452_800),
    "prior_5b_lyrics": (
        *(4800, 79, range(18, 79, 10), 2048, 8192, (120, 4111), 128, 0),
        (1280, 18, 80, 512),
        5_640_506_800,
    ),
    "prior_1b_lyrics": (2048, 72, (), 2127, 6528, (604, 7898), 64, 0, None, 942_643_200),
    "small_prior": (1024, 48, (), 1024, 8192, None, 0, 0, None, 160_814_080),
    "small_labelled_prior": (1024, 48, (), 2048, 8192, (10, 100), 64, 0, None, 162_170_880),
    "small_single_enc_dec_prior": (1024, 48, (), 2127, 6528, (10, 100), 64, 0, None, 160_547_840),
    "small_sep_enc_dec_prior": (
        *(1024, 50, range(9, 50, 10), 2048, 6144, (10, 100), 64, 0),
        (256, 9, 79, 384),
        168_633_280,
    ),
    "small_upsampler": (1024, 48, (), 1024, 8192, None, 0, 512, None, 218_015_232),
}
ENTRIES = {
    "vqvae": 669,
    "upsampler_level_0": 1006,
    "upsampler_level_1": 1006,
    "prior_5b": 872,
    "prior_5b_lyrics": 1194,
    "prior_1b_lyrics": 872,
}


def affine(name: str, *shape: int) -> Shapes:
    yield from ((f"{name}.weight", shape), (f"{name}.bias", shape[:1]))


def linear(name: str, into: int, out: int) -> Shapes:
    yield from ((f"{name}.w", (into, out)), (f"{name}.b", (out,)))


def residual(name: str, width: int, depth: int) -> Shapes:
    for r in range(depth):
        yield from affine(f"{name}.{r}.model.1", width, width, 3)
        yield from affine(f"{name}.{r}.model.3", width, width, 1)


def upwards(name: str, blocks: str, channels: int, width: int, depth: int, stages: int) -> Shapes:
    yield from affine(f"{name}.model.0", width, channels, 3)
    for i in range(1, stages + 1):
        yield from residual(f"{name}.model.{i}.0.{blocks}", width, depth)
        out = channels if i == stages else width
        yield from ((f"{name}.model.{i}.1.weight", (width, out, 4)), (f"{name}.model.{i}.1.bias", (out,)))


def vqvae(downs: tuple[int, ...], widths: tuple[int, ...], depths: tuple[int, ...], codes: int) -> Shapes:
    for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for b, down in enumerate(downs[: level + 1]):
            block = f"encoders.{level}.level_blocks.{b}.model"
            for i in range(down):
                yield from affine(f"{block}.{i}.0", width, width if i else 64 if b else 1, 4)
                yield from residual(f"{block}.{i}.1.model", width, depth)
            yield from affine(f"{block}.{down}", 64, width, 3)
            yield from upwards(f"decoders.{level}.level_blocks.{b}", "model", 64, width, depth, down)
        yield from affine(f"decoders.{level}.out", 1, 64, 3)
        yield f"bottleneck.level_blocks.{level}.k", (codes, 64)


VQVAE_SHAPES = {
    "vqvae": vqvae((3, 2, 2), (64, 32, 32), (8, 4, 4), 2048),
    "small_vqvae": vqvae((5, 3), (32, 32), (4, 4), 1024),
    "DEFAULTS": vqvae((1, 1), (128, 128), (3, 3), 512),
}


def stack(name: str, width: int, layers: int, cross: object, codes: int, places: int) -> Shapes:
    yield from ((f"{name}.x_emb.weight", (codes, width)), (f"{name}.pos_emb.pos_emb", (places, width)))
    for i in range(layers):
        layer, inner = f"{name}.transformer._attn_mods.{i}", width // 4
        crossed = i in cross
        yield from linear(f"{layer}.attn.c_attn", width, inner if crossed else 3 * inner)
        if crossed:
            yield from linear(f"{layer}.attn.c_enc_kv", width, 2 * inner)
        yield from linear(f"{layer}.attn.c_proj", inner, width)
        yield from (*linear(f"{layer}.mlp.c_fc", width, width), *linear(f"{layer}.mlp.c_proj", width, width))
        yield from (*affine(f"{layer}.ln_0", width), *affine(f"{layer}.ln_1", width))


def prior(name: str) -> Shapes:
    width, layers, cross, codes, places, labels, bins, conditioner, encoder, _ = PRIOR[name]
    yield from stack("prior", width, layers, cross, codes, places)
    yield "prior.x_out.weight", (codes, width)
    if labels is None:
        yield "prior.start_token", (1, width)
    else:
        yield "y_emb.bow_genre_emb.emb.weight", (labels[0], width)
        yield "y_emb.artist_emb.emb.weight", (labels[1], width)
    for part in ("total_length", "absolute_pos", "relative_pos") if bins else ():
        yield f"y_emb.{part}_emb.emb.weight", (bins, width)
    if conditioner:
        stages = 3 if name == "small_upsampler" else 2
        yield "conditioner_blocks.0.x_emb.weight", (codes, width)
        yield from affine("conditioner_blocks.0.ln", width)
        yield from upwards("conditioner_blocks.0.cond", "blocks", width, conditioner, 16, stages)
    if encoder is not None:
        small, depth, letters, room = encoder
        yield from stack("prime_prior", small, depth, (), letters, room)
        yield "prime_prior.start_token", (1, small)
        yield from linear("prime_state_proj", small, width)
        yield from affine("prime_state_ln", width)
        yield "prime_x_out.weight", (letters, width)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of what OpenAI's files hold too; all must be float32."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not TRAINING.search(name)}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_every_preset_is_tested():
    assert VQVAE.keys() == VQVAE_SHAPES.keys() == VQVAES.keys()
    assert PRIOR.keys() == PRESETS.keys()
    assert {part for parts in RELEASED.values() for part in parts} == ENTRIES.keys()


@pytest.mark.parametrize("name", VQVAE)
def test_vqvae_presets_have_exactly_the_released_tensors(name: str):
    config = JukeboxVQVAEConfig(**VQVAES[name])
    rows = list(vqvae_rows(config))
    wanted = dict(VQVAE_SHAPES[name])
    assert {row.theirs: row.shape for row in rows} == wanted
    with torch.device("meta"):
        model = JukeboxVQVAE(config)
    assert {row.ours[0]: row.shape for row in rows} == shapes(model)
    books = sum(row.shape[0] * row.shape[1] for row in rows if row.theirs.endswith(".k"))
    assert VQVAE[name] in (None, (sum(parameter.numel() for parameter in model.parameters()), books))
    assert len(rows) == ENTRIES.get(name, len(rows))


@pytest.mark.parametrize("name", PRIOR)
def test_prior_presets_have_exactly_the_released_tensors(name: str):
    config = PRESETS[name]()
    rows = list(prior_rows(config))
    assert {row.theirs: row.shape for row in rows} == dict(prior(name))
    assert len(rows) == ENTRIES.get(name, len(rows))
    with torch.device("meta"):
        model = JukeboxPrior(config)
    assert {row.ours[0]: row.shape for row in rows} == shapes(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == PRIOR[name][-1]


def test_names_are_those_of_one_rank_that_checkpoints():
    block = "conditioner_blocks.0.cond.model.2.0"
    assert plain_name(f"module.{block}.model.3.model.1.weight") == f"{block}.blocks.3.model.1.weight"
    assert plain_name(f"{block}.blocks.3.model.1.weight") == f"{block}.blocks.3.model.1.weight"
    assert plain_name("conditioner_blocks.0.cond.model.2.1.weight") == "conditioner_blocks.0.cond.model.2.1.weight"
    encoder = "encoders.0.level_blocks.0.model.2.1.model.3.model.1.weight"
    assert plain_name(encoder) == encoder
