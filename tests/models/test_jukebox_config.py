"""Configurations of Jukebox's priors: the released ones, the hub's, and those that can't be."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tiny_prior import KINDS, config
from tunesmith.errors import RequestError
from tunesmith.models.jukebox import PRESETS, JukeboxPrior, JukeboxPriorConfig, attention_order, attention_pattern


def test_the_hubs_wrong_settings_are_put_right(tmp_path: Path) -> None:
    """Of a released model, where a prior is read alone too."""
    top, middle = PRESETS["prior_5b_lyrics"]().to_dict(), PRESETS["upsampler_level_1"]().to_dict()
    hub = {"model_type": "jukebox", "prior_0": {**top, "blocks": 64}, "prior_1": {**middle, "max_nb_genres": 1}}
    (tmp_path / "config.json").write_text(json.dumps(hub | {"transformers_version": "4.24.0"}))
    assert JukeboxPriorConfig.from_pretrained(tmp_path).blocks == 128
    assert JukeboxPriorConfig.from_pretrained(tmp_path, level=1).max_nb_genres == 5
    assert JukeboxPriorConfig.from_pretrained(tmp_path, max_duration=300).max_duration == 300
    (tmp_path / "config.json").write_text(json.dumps(hub | {"transformers_version": "5.1.0"}))
    assert JukeboxPriorConfig.from_pretrained(tmp_path).blocks == 64


def test_a_prior_has_what_the_whole_models_configuration_says(tmp_path: Path) -> None:
    own = {name: value for name, value in config("plain").to_dict().items() if name != "sampling_rate"}
    whole = {"model_type": "jukebox", "sampling_rate": 1000, "min_duration": 7, "prior_config_list": [own]}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    found = JukeboxPriorConfig.from_pretrained(tmp_path)
    assert (found.sampling_rate, found.min_duration) == (1000, 0.5)


CROSSING = KINDS["separate"]["encoder_config"] | {"attention_pattern": "attn_order_6", "num_layers": 4}


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("plain", {"num_layers": 0}, "num_layers is 0; it must be a whole number from 1 on"),
        ("plain", {"n_ctx": 0}, "n_ctx is 0"),
        ("plain", {"hidden_size": -16}, "hidden_size is -16"),
        ("plain", {"hidden_size": "16"}, "hidden_size is '16'"),
        ("plain", {"n_heads": 0}, "n_heads is 0"),
        ("plain", {"blocks": -4}, "blocks is -4; it must be a whole number from 1 on, or None"),
        ("plain", {"spread": 7}, "spread is 7, but a block has 6 positions"),
        ("plain", {"mlp_multiplier": 0}, "mlp_multiplier is 0; it must be a number above 0"),
        ("plain", {"mlp_multiplier": 0.01}, "mlp_multiplier 0.01 of hidden_size 16 leaves no width"),
        ("plain", {"attention_multiplier": math.nan}, "attention_multiplier is nan"),
        ("plain", {"emb_dropout": 1.5}, "emb_dropout is 1.5; it must be a number from 0 to 1"),
        ("plain", {"init_scale": -1}, "init_scale is -1"),
        ("plain", {"music_vocab_size": 0}, "music_vocab_size is 0"),
        (
            "plain",
            {"metadata_dims": [5, 0]},
            r"metadata_dims is \[5, 0\]; it must be a list of whole numbers from 1 on",
        ),
        ("plain", {"max_nb_genres": -1}, "max_nb_genres is -1"),
        ("plain", {"min_duration": 10, "max_duration": 10}, "min_duration is 10 and max_duration 10"),
        ("plain", {"sampling_rate": 0}, "sampling_rate is 0"),
        ("plain", {"level": True}, "level is True"),
        ("single", {"lyric_vocab_size": 0}, "lyric_vocab_size is 0"),
        ("separate", {"encoder_config": CROSSING}, "encoder_config: attention_pattern 'attn_order_6' has layers that"),
        ("upsampler", {"res_conv_width": -8}, "res_conv_width is -8"),
        ("upsampler", {"res_downs_t": [3, 0, 2]}, "res_downs_t is"),
        ("plain", {"blocks": 5}, "24 positions can't be cut into 5 blocks"),
        ("single", {"blocks": 3}, "32 positions can't be cut into 3 blocks"),
        ("plain", {"n_heads": 3}, "attention width of 4 can't be divided among 3 heads"),
        ("plain", {"act_fn": "tanhh"}, "act_fn is 'tanhh'; known are .*quick_gelu"),
        ("plain", {"attention_pattern": "all"}, "attention_pattern is 'all'; known are full_dense_attention"),
        ("separate", {"encoder_config": None}, "needs an encoder_config or is_encoder_decoder=True"),
        ("plain", {"attention_pattern": "attn_order_6"}, "layers that attend to lyrics"),
        ("plain", {"level": 3}, "level 3 doesn't fit"),
        ("upsampler", {"n_ctx": 18, "blocks": 3}, "n_ctx must be a multiple of 4"),
        ("upsampler", {"res_strides_t": [3, 3, 3], "n_ctx": 18, "blocks": 3}, "strides even"),
        ("plain", {"metadata_dims": [5]}, "metadata_dims is .* two numbers"),
    ],
)
def test_wrong_configurations_get_a_sentence(kind: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        JukeboxPrior(config(kind, **changes))


def test_names_of_attention_orders() -> None:
    assert [attention_order(attention_pattern(order)) for order in range(13)] == list(range(13))
    assert attention_pattern(10) == "large_separated_enc_dec_w_lyrics"
    assert attention_pattern(8) == "attn_order_8"
