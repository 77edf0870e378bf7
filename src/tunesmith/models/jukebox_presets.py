"""Settings of the priors that the original implementation describes; `PRESETS` makes configurations of them."""

from typing import Any

_UPSAMPLER: dict[str, Any] = {
    "n_ctx": 8192,
    "hidden_size": 1920,
    "num_layers": 72,
    "n_heads": 1,
    "blocks": 128,
    "attention_pattern": "raw_column_previous_row_attention",
    "init_scale": 0.4,
    "merged_decoder": False,
    "is_encoder_decoder": False,
    "nb_relevant_lyric_tokens": 0,
    "lyric_vocab_size": 0,
    "encoder_loss_fraction": 0.0,
    "metadata_dims": [120, 4111],
    "max_nb_genres": 5,
    "timing_dims": 128,
    "alignment_layer": None,
    "alignment_head": None,
    "res_conv_width": 1024,
    "res_conv_depth": 16,
    "res_dilation_growth_rate": 3,
    "res_dilation_cycle": 8,
}
_LARGE: dict[str, Any] = {
    **{name: value for name, value in _UPSAMPLER.items() if not name.startswith("res_")},
    "level": 0,
    "hidden_size": 4800,
    "n_heads": 8,
    "init_scale": 0.1,
    "merged_decoder": True,
    "min_duration": 60,
    "max_duration": 600,
}
_LYRICS: dict[str, Any] = {"encoder_loss_fraction": 0.4}
_SMALL: dict[str, Any] = {
    "level": 0,
    "n_ctx": 8192,
    "hidden_size": 1024,
    "num_layers": 48,
    "n_heads": 1,
    "blocks": 64,
    "attention_pattern": "raw_column_previous_row_attention",
    "init_scale": 0.7,
    "merged_decoder": False,
    "is_encoder_decoder": False,
    "nb_relevant_lyric_tokens": 0,
    "lyric_vocab_size": 0,
    "encoder_loss_fraction": 0.0,
    "alignment_layer": None,
    "alignment_head": None,
}
_SMALL_CODEC: dict[str, Any] = {
    "metadata_conditioning": False,
    "sampling_rate": 22_050,
    "music_vocab_size": 1024,
    "res_downs_t": [5, 3],
    "res_strides_t": [2, 2],
}
_SMALL_LABELS: dict[str, Any] = {
    "metadata_dims": [10, 100],
    "max_nb_genres": 1,
    "timing_dims": 64,
    "min_duration": 60,
    "max_duration": 600,
}
_SMALL_LYRICS: dict[str, Any] = {
    **_SMALL,
    **_SMALL_LABELS,
    **_LYRICS,
    "n_ctx": 6144,
    "n_heads": 2,
    "nb_relevant_lyric_tokens": 384,
    "lyric_vocab_size": 79,
}


def _lyric_encoder(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_layers": layers,
        "n_heads": heads,
        "blocks": 32,
        "attention_pattern": "raw_column_previous_row_attention",
        "init_scale": 0.7,
        "merged_decoder": False,
        "is_encoder_decoder": False,
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "upsampler_level_0": {**_UPSAMPLER, "level": 2, "conv_res_scale": False},
    "upsampler_level_1": {**_UPSAMPLER, "level": 1, "conv_res_scale": True},
    "prior_5b": _LARGE,
    "prior_5b_lyrics": {
        **_LARGE,
        **_LYRICS,
        "num_layers": 79,
        "attention_pattern": "large_separated_enc_dec_w_lyrics",
        "nb_relevant_lyric_tokens": 512,
        "lyric_vocab_size": 80,
        "min_duration": 23.8,
        "alignment_layer": 68,
        "alignment_head": 2,
        "encoder_config": _lyric_encoder(1280, 18, 4),
    },
    "prior_1b_lyrics": {
        **_LYRICS,
        "level": 0,
        "n_ctx": 6144,
        "hidden_size": 2048,
        "num_layers": 72,
        "n_heads": 2,
        "blocks": 64,
        "attention_pattern": "enc_dec_with_lyrics",
        "init_scale": 0.2,
        "merged_decoder": False,
        "is_encoder_decoder": True,
        "nb_relevant_lyric_tokens": 384,
        "lyric_vocab_size": 79,
        "metadata_dims": [604, 7898],
        "max_nb_genres": 1,
        "timing_dims": 64,
        "min_duration": 17.84,
        "max_duration": 600,
        "alignment_layer": 63,
        "alignment_head": 0,
    },
    "small_prior": {**_SMALL, **_SMALL_CODEC},
    "small_labelled_prior": {**_SMALL, **_SMALL_LABELS},
    "small_single_enc_dec_prior": {
        **_SMALL_LYRICS,
        "attention_pattern": "enc_dec_with_lyrics",
        "is_encoder_decoder": True,
    },
    "small_sep_enc_dec_prior": {
        **_SMALL_LYRICS,
        "num_layers": 50,
        "attention_pattern": "attn_order_8",
        "encoder_config": _lyric_encoder(256, 9, 2),
    },
    "small_upsampler": {
        **_SMALL,
        **_SMALL_CODEC,
        "level": 1,
        "res_conv_width": 512,
        "res_conv_depth": 16,
        "res_dilation_growth_rate": 3,
        "res_dilation_cycle": 8,
        "conv_res_scale": False,
    },
}
"""By the original's names.

The small ones were trained, not released: `small_prior` and `small_upsampler` over the small VQ-VAE, the others over
the released one.
"""
