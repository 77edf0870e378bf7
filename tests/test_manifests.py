"""Presets against what is known of the released checkpoints: every tensor's name, shape and dtype, and their numbers.

The lists here are written from the published tables (sizes, layer by layer), not from our classes; models are built on
the meta device, where they cost no memory.  transformers' own classes must agree with both.
"""

from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import nn

from tunesmith.codecs.encodec import PRESETS as CODECS
from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.models.musicgen import PRESETS, MusicgenDecoderConfig
from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration

Shapes = dict[str, tuple[int, ...]]

# width, layers, codebooks; parameters of: decoder, its layers, embeddings, heads, text projection, all with T5, codec
RELEASED = {
    "small": (1024, 24, 4, 419_584_000, 402_800_640, 8_392_704, 8_388_608, 787_456, 586_884_674),
    "medium": (1536, 48, 4, 1_837_556_736, 1_812_381_696, 12_589_056, 12_582_912, 1_181_184, 2_005_251_138),
    "large": (2048, 48, 4, 3_255_382_016, 3_221_815_296, 16_785_408, 16_777_216, 1_574_912, 3_423_470_146),
    "stereo-small": (1024, 24, 8, 436_365_312, 402_800_640, 16_785_408, 16_777_216, 787_456, 603_665_986),
    "stereo-medium": (1536, 48, 8, 1_862_728_704, 1_812_381_696, 25_178_112, 25_165_824, 1_181_184, 2_030_423_106),
    "stereo-large": (2048, 48, 8, 3_288_944_640, 3_221_815_296, 33_570_816, 33_554_432, 1_574_912, 3_457_032_770),
}
T5_BASE_PARAMETERS = 109_628_544
# parameters of encoder | decoder | both: exactly where that is published, else to the published 0.01 million
CODEC_PARAMETERS = {
    "encodec_32khz": (28_440_000, 28_440_000, 56_884_674),
    "encodec_16khz": (28_410_000, 28_410_000, 56_820_000),
    "encodec_24khz": (7_430_000, 7_430_000, 14_850_000),
    "encodec_48khz": (7_430_000, 7_430_000, 14_860_000),
}


def decoder_shapes(width: int, layers: int, books: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    square, norms = (width, width), ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
    for k in range(books):
        yield f"decoder.model.decoder.embed_tokens.{k}.weight", (2049, width)
        yield f"decoder.lm_heads.{k}.weight", (2048, width)
    for layer in (f"decoder.model.decoder.layers.{i}" for i in range(layers)):
        yield from ((f"{layer}.{a}.{p}_proj.weight", square) for a in ("self_attn", "encoder_attn") for p in "qkv")
        yield from ((f"{layer}.{a}.out_proj.weight", square) for a in ("self_attn", "encoder_attn"))
        yield f"{layer}.fc1.weight", (4 * width, width)
        yield f"{layer}.fc2.weight", (width, 4 * width)
        yield from ((f"{layer}.{norm}.{part}", (width,)) for norm in norms for part in ("weight", "bias"))
    yield from ((f"decoder.model.decoder.layer_norm.{part}", (width,)) for part in ("weight", "bias"))
    yield from (("enc_to_dec_proj.weight", (width, 768)), ("enc_to_dec_proj.bias", (width,)))


def t5_base_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "shared.weight", (32128, 768)
    for i in range(12):
        attention, dense = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        yield from ((f"{attention}.SelfAttention.{part}.weight", (768, 768)) for part in "qkvo")
        if i == 0:
            yield f"{attention}.SelfAttention.relative_attention_bias.weight", (32, 12)
        yield f"{dense}.DenseReluDense.wi.weight", (3072, 768)
        yield f"{dense}.DenseReluDense.wo.weight", (768, 3072)
        yield from ((f"{layer}.layer_norm.weight", (768,)) for layer in (attention, dense))
    yield "encoder.final_layer_norm.weight", (768,)


# Place in the encoder: channels in and out, kernel.  In a residual block, parts 1 and 3.
ENCODER_32KHZ = {
    "0": (1, 64, 7),
    "1.block.1": (64, 32, 3),
    "1.block.3": (32, 64, 1),
    "3": (64, 128, 8),
    "4.block.1": (128, 64, 3),
    "4.block.3": (64, 128, 1),
    "6": (128, 256, 8),
    "7.block.1": (256, 128, 3),
    "7.block.3": (128, 256, 1),
    "9": (256, 512, 10),
    "10.block.1": (512, 256, 3),
    "10.block.3": (256, 512, 1),
    "12": (512, 1024, 16),
    "15": (1024, 128, 7),
}
DECODER_32KHZ = {
    "0": (128, 1024, 7),
    "3": (1024, 512, 16),
    "4.block.1": (512, 256, 3),
    "4.block.3": (256, 512, 1),
    "6": (512, 256, 10),
    "7.block.1": (256, 128, 3),
    "7.block.3": (128, 256, 1),
    "9": (256, 128, 8),
    "10.block.1": (128, 64, 3),
    "10.block.3": (64, 128, 1),
    "12": (128, 64, 8),
    "13.block.1": (64, 32, 3),
    "13.block.3": (32, 64, 1),
    "15": (64, 1, 7),
}
TRANSPOSED = ("3", "6", "9", "12")  # in the decoder


def codec_32khz_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    for side, places, lstm in (("encoder", ENCODER_32KHZ, 13), ("decoder", DECODER_32KHZ, 1)):
        for place, (into, out, kernel) in places.items():
            first, second = (into, out) if side == "decoder" and place in TRANSPOSED else (out, into)
            yield f"{side}.layers.{place}.conv.bias", (out,)
            yield f"{side}.layers.{place}.conv.parametrizations.weight.original0", (first, 1, 1)
            yield f"{side}.layers.{place}.conv.parametrizations.weight.original1", (first, second, kernel)
        for gate in ("ih_l0", "hh_l0", "ih_l1", "hh_l1"):
            yield f"{side}.layers.{lstm}.lstm.weight_{gate}", (4096, 1024)
            yield f"{side}.layers.{lstm}.lstm.bias_{gate}", (4096,)
    for book in (f"quantizer.layers.{k}.codebook" for k in range(4)):
        yield from ((f"{book}.inited", (1,)), (f"{book}.cluster_size", (2048,)))
        yield from ((f"{book}.{name}", (2048, 128)) for name in ("embed", "embed_avg"))


def released_shapes(name: str) -> Shapes:
    width, layers, books = RELEASED[name][:3]
    text = {f"text_encoder.{key}": shape for key, shape in t5_base_shapes()}
    codec = {f"audio_encoder.{key}": shape for key, shape in codec_32khz_shapes()}
    return {**dict(decoder_shapes(width, layers, books)), **text, **codec}


def shapes(model: nn.Module) -> Shapes:
    """Of the tensors that a checkpoint holds; all must be float32."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in DERIVED}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


# The same tensor as shared.weight; saved once.
DERIVED = ("text_encoder.encoder.embed_tokens.weight",)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(params=RELEASED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_preset_is_tested():
    assert RELEASED.keys() == PRESETS.keys()
    assert CODEC_PARAMETERS.keys() == CODECS.keys()


def test_preset_has_exactly_the_released_tensors(name: str):
    with torch.device("meta"):
        model = MusicgenForConditionalGeneration(MusicgenConfig.preset(name))
    assert shapes(model) == released_shapes(name)
    decoder = model.decoder.model.decoder
    assert (
        size(model.decoder),
        size(decoder.layers),
        size(decoder.embed_tokens),
        size(model.decoder.lm_heads),
        size(model.enc_to_dec_proj),
        size(model),
    ) == RELEASED[name][3:]
    assert size(model.text_encoder) == T5_BASE_PARAMETERS


def test_preset_from_parts_is_the_preset(name: str):
    preset = MusicgenConfig.preset(name)
    parts = MusicgenConfig.from_sub_models_config(
        preset.text_encoder, EncodecConfig(**CODECS["encodec_32khz"]), MusicgenDecoderConfig(**PRESETS[name])
    )
    with torch.device("meta"):
        model = MusicgenForConditionalGeneration(parts)
    assert shapes(model) == released_shapes(name)
    assert (parts.decoder.audio_channels, parts.audio_encoder.audio_channels) == (2 if "stereo" in name else 1, 1)


def test_transformers_builds_the_same_tensors(name: str):
    config = transformers.MusicgenConfig(**MusicgenConfig.preset(name).to_dict())
    with torch.device("meta"):
        assert shapes(transformers.MusicgenForConditionalGeneration(config)) == released_shapes(name)


def test_half_precision_is_the_decoders(name: str):
    """A dtype means the language model; text encoder and codec stay in float32."""
    with torch.device("meta"):
        model = MusicgenForConditionalGeneration(MusicgenConfig.preset(name)).to(torch.float16)
    dtypes = {key.split(".")[0]: tensor.dtype for key, tensor in model.state_dict().items()}
    assert dtypes == {
        "decoder": torch.float16,
        "enc_to_dec_proj": torch.float16,
        "text_encoder": torch.float32,
        "audio_encoder": torch.float32,
    }


def test_music_codec_has_exactly_the_released_tensors():
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig(**CODECS["encodec_32khz"]))
    assert shapes(model) == dict(codec_32khz_shapes())


@pytest.mark.parametrize("codec", CODEC_PARAMETERS)
def test_codec_presets_have_the_released_sizes(codec: str):
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig(**CODECS[codec]))
    encoder, decoder, both = CODEC_PARAMETERS[codec]
    assert size(model) == size(model.encoder) + size(model.decoder)
    assert size(model.encoder) == pytest.approx(encoder, abs=5_000)
    assert size(model.decoder) == pytest.approx(decoder, abs=5_000)
    assert size(model) == pytest.approx(both, abs=0 if codec == "encodec_32khz" else 5_000)


@pytest.mark.parametrize(
    ("codec", "rate", "hop", "books", "codes", "channels"),
    [
        ("encodec_32khz", 32_000, 640, 4, 2048, 1),
        ("encodec_16khz", 16_000, 320, 4, 2048, 1),
        ("encodec_24khz", 24_000, 320, 32, 1024, 1),
        ("encodec_48khz", 48_000, 320, 16, 1024, 2),
    ],
)
def test_codec_presets_have_the_released_rates(codec: str, rate: int, hop: int, books: int, codes: int, channels: int):
    config = EncodecConfig(**CODECS[codec])
    assert (config.sampling_rate, config.hop_length, config.num_quantizers) == (rate, hop, books)
    assert (config.codebook_size, config.audio_channels, config.pad_mode) == (codes, channels, "reflect")


@pytest.mark.parametrize("codec", CODEC_PARAMETERS)
def test_transformers_builds_the_same_codecs(codec: str):
    with torch.device("meta"):
        ours = EncodecModel(EncodecConfig(**CODECS[codec]))
        theirs = transformers.EncodecModel(transformers.EncodecConfig(**CODECS[codec]))
    assert shapes(ours) == shapes(theirs)
