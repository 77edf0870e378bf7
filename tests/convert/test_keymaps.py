"""The tables at the sizes of released checkpoints, on the meta device; test_checkpoints.py compares values."""

import pytest
import torch

from tunesmith.codecs.encodec import PRESETS as CODECS
from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.convert import keymaps
from tunesmith.errors import CheckpointError
from tunesmith.models.musicgen import PRESETS, MusicgenDecoderConfig, MusicgenForCausalLM


def audiocraft_shapes(width: int, layers: int, books: int) -> dict[str, tuple[int, ...]]:
    """The published tensors of a text model's `state_dict.bin`."""
    shapes: dict[str, tuple[int, ...]] = {
        "condition_provider.conditioners.description.output_proj.weight": (width, 768),
        "condition_provider.conditioners.description.output_proj.bias": (width,),
        "out_norm.weight": (width,),
        "out_norm.bias": (width,),
    }
    for q in range(books):
        shapes |= {f"emb.{q}.weight": (2049, width), f"linears.{q}.weight": (2048, width)}
    for layer in (f"transformer.layers.{i}." for i in range(layers)):
        for attention in ("self_attn", "cross_attention"):
            shapes[f"{layer}{attention}.in_proj_weight"] = (3 * width, width)
            shapes[f"{layer}{attention}.out_proj.weight"] = (width, width)
        for norm in ("norm1", "norm_cross", "norm2"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
        shapes |= {f"{layer}linear1.weight": (4 * width, width), f"{layer}linear2.weight": (width, 4 * width)}
    return shapes


@pytest.mark.parametrize("name", PRESETS)
def test_released_language_models_fit_our_model(name: str):
    config = MusicgenDecoderConfig(**PRESETS[name])
    rows = list(keymaps.language_model_rows(config, 768, None))
    theirs = audiocraft_shapes(config.hidden_size, config.num_hidden_layers, config.num_codebooks)
    assert {row.theirs: row.shape for row in rows} == theirs
    tensors = {key: torch.empty(shape, dtype=torch.float16, device="meta") for key, shape in theirs.items()}
    ours = keymaps.to_ours(rows, tensors, name)
    with torch.device("meta"):
        state = MusicgenForCausalLM(config).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items() if key.startswith("decoder.")} == {
        f"decoder.{key}": tensor.shape for key, tensor in state.items()
    }
    assert {key: tuple(tensor.shape) for key, tensor in ours.items() if not key.startswith("decoder.")} == {
        "enc_to_dec_proj.weight": (config.hidden_size, 768),
        "enc_to_dec_proj.bias": (config.hidden_size,),
    }


def test_melody_models_have_chroma_and_no_cross_attention():
    config = MusicgenDecoderConfig(hidden_size=1536, num_hidden_layers=48, num_attention_heads=24, ffn_dim=6144)
    rows = {name: row.shape for row in keymaps.language_model_rows(config, 768, 12) for name in row.ours}
    assert rows["audio_enc_to_dec_proj.weight"] == (1536, 12)
    assert not any("encoder_attn" in name for name in rows)


@pytest.mark.parametrize("name", CODECS)
def test_released_codecs_fit_our_model(name: str):
    config = EncodecConfig(**CODECS[name])
    rows = list(keymaps.codec_rows(config))
    with torch.device("meta"):
        state = EncodecModel(config).state_dict()
    assert {row.ours[0]: row.shape for row in rows} == {key: tuple(tensor.shape) for key, tensor in state.items()}
    theirs = [row.theirs for row in rows]
    assert all(
        part in " ".join(theirs) for part in ("encoder.model.0.conv.conv.bias", "decoder.model.3.convtr.convtr.")
    )
    assert ("encoder.model.1.shortcut.conv.conv.bias" in theirs) == config.use_conv_shortcut
    assert ("decoder.model.3.convtr.norm.weight" in theirs) == (config.norm_type == "time_group_norm")


def test_query_key_and_value_are_thirds():
    row = keymaps.Row("in_proj_weight", ("q", "k", "v"), (6, 2))
    stacked = torch.arange(12).reshape(6, 2)
    split = keymaps.to_ours([row], {"in_proj_weight": stacked}, "x")
    assert {name: tensor.tolist() for name, tensor in split.items()} == {
        "q": [[0, 1], [2, 3]],
        "k": [[4, 5], [6, 7]],
        "v": [[8, 9], [10, 11]],
    }
    assert torch.equal(keymaps.to_theirs([row], split, "x")["in_proj_weight"], stacked)


def test_misfits_are_named():
    rows = [keymaps.Row("a", ("A",), (2,)), keymaps.Row("b", ("B",), (3,))]
    with pytest.raises(
        CheckpointError, match=r"old\.bin.*lacks b.*unexpected c.*misshapen a \(\[4\] instead of \[2\]\)"
    ):
        keymaps.to_ours(rows, {"a": torch.zeros(4), "c": torch.zeros(1)}, "old.bin")
    with pytest.raises(CheckpointError, match="lacks B"):
        keymaps.to_theirs(rows, {"A": torch.zeros(2)}, "new")


def test_old_spellings_become_todays():
    zero = torch.zeros(1)
    names = ("encoder.layers.0.conv.weight_g", "encoder.layers.0.conv.weight_v", "encoder.layers.0.conv.bias")
    derived = ("text_encoder.encoder.embed_tokens.weight", "decoder.model.decoder.embed_positions.weights")
    assert list(keymaps.modern_names(dict.fromkeys((*names, *derived), zero))) == [
        "encoder.layers.0.conv.parametrizations.weight.original0",
        "encoder.layers.0.conv.parametrizations.weight.original1",
        "encoder.layers.0.conv.bias",
    ]
