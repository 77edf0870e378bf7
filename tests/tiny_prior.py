"""Small random priors of Jukebox for tests, one of each kind, and something to feed them.

prior("single", blocks=2)       in eval mode, the same weights every time; keywords change its configuration
inputs(model)                   codes, labels, upper codes: a window, a batch of three
"""

from typing import Any

import torch
from torch import Tensor

from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 4,
    "n_heads": 2,
    "blocks": 4,
    "n_ctx": 24,
    "music_vocab_size": 12,
    "lyric_vocab_size": 7,
    "metadata_dims": [5, 9],
    "max_nb_genres": 2,
    "timing_dims": 8,
    "sampling_rate": 1000,
    "max_duration": 10,
    "min_duration": 0.5,
    "init_scale": 20.0,
    "merged_decoder": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {
        "attention_pattern": "raw_column_previous_row_attention",
        "nb_relevant_lyric_tokens": 0,
        "merged_decoder": True,
    },
    "single": {"attention_pattern": "enc_dec_with_lyrics", "num_layers": 16, "nb_relevant_lyric_tokens": 8},
    "separate": {
        "attention_pattern": "attn_order_6",
        "nb_relevant_lyric_tokens": 6,
        "is_encoder_decoder": False,
        "encoder_config": {
            "hidden_size": 8,
            "num_layers": 3,
            "n_heads": 1,
            "blocks": 3,
            "init_scale": 20.0,
            "attention_pattern": "raw_column_previous_row_attention",
        },
    },
    "upsampler": {
        "attention_pattern": "attn_order_3",
        "nb_relevant_lyric_tokens": 0,
        "level": 1,
        "res_conv_width": 8,
        "res_conv_depth": 2,
        "conv_res_scale": True,
    },
}


def config(kind: str, **changes: Any) -> JukeboxPriorConfig:
    return JukeboxPriorConfig(**SIZES | KINDS[kind] | changes)


def prior(kind: str, **changes: Any) -> JukeboxPrior:
    torch.manual_seed(0)
    model = JukeboxPrior(config(kind, **changes)).eval()
    for layer in model.prior.transformer.layers:
        torch.nn.init.normal_(layer.attn.c_proj.weight, std=0.2)  # cross layers begin as the identity
    return model


def inputs(model: JukeboxPrior, batch: int = 3) -> dict[str, Tensor]:
    """Codes, labels and upper codes of a window, different for each item."""
    made, settings = torch.Generator().manual_seed(1), model.config

    def draw(low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high, (batch, count), generator=made)

    genres, artists = settings.metadata_dims
    columns = [draw(2000, 9000, 1), draw(0, 1000, 1), torch.full((batch, 1), 1000), draw(0, artists, 1)]
    columns += [draw(-1, genres, settings.max_nb_genres)]
    columns += [draw(0, settings.lyric_vocab_size, settings.nb_relevant_lyric_tokens)]
    found = {"codes": draw(0, settings.music_vocab_size, settings.n_ctx), "labels": torch.cat(columns, 1)}
    if settings.level:
        found["upper_codes"] = draw(0, settings.music_vocab_size, settings.n_ctx // settings.upper_ratio)
    return found


def conditions(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in given.items() if name != "codes"}
