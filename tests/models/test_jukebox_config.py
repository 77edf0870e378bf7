"""Configurations of Jukebox's priors: the released ones, the hub's, and those that can't be."""

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_prior import config
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


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
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
