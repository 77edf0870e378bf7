"""A small random Jukebox, complete in every part, for tests: three levels, labels, lyrics; a song in a blink.

    tiny_jukebox()                  JukeboxModel in eval mode, the same weights every time
    tiny_jukebox(joined=True)       lyrics as a prefix of the same sequence (1b style), else with their own encoder
    tiny_labels(["la la", "oh"])    labels by level, a song each
    save_tiny_jukebox(path)         config, weights, tables of artists and genres, tokenizer

1000 Hz; a code is 8 samples at the top, 4 in the middle, 2 at the bottom; a window is 16 codes on each level.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig
from tunesmith.conditioning.tables import Tables, join_tables, write_tables
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.models.jukebox import JukeboxPriorConfig
from tunesmith.pipelines.jukebox import JukeboxConfig, JukeboxModel

CODES = 24
HOPS = (8, 4, 2)  # top first
RATE = 1000
WINDOW = 16
V3_ARTISTS, V2_ARTISTS = ("unknown", "the mint", "salt", "zac brown band"), ("unknown", "zac_brown_band", "salt")
V3_GENRES, V2_GENRES = ("unknown", "folk rock", "country"), ("unknown", "folk", "rock", "country")
PRIOR: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 4,
    "n_heads": 2,
    "blocks": 4,
    "n_ctx": WINDOW,
    "music_vocab_size": CODES,
    "metadata_dims": [4, 5],
    "timing_dims": 8,
    "sampling_rate": RATE,
    "min_duration": 0.02,
    "max_duration": 10.0,
    "init_scale": 15.0,
    "merged_decoder": False,
    "is_encoder_decoder": False,
    "res_downs_t": [1, 1, 1],
    "res_strides_t": [2, 2, 2],
    "alignment_layer": None,
    "alignment_head": None,
}
ROWS: dict[str, Any] = {"attention_pattern": "raw_column_previous_row_attention"}
UPSAMPLER: dict[str, Any] = {
    **PRIOR,
    **ROWS,
    "num_layers": 3,
    "nb_relevant_lyric_tokens": 0,
    "lyric_vocab_size": 0,
    "max_nb_genres": 5,
    "res_conv_width": 8,
    "res_conv_depth": 2,
    "res_dilation_growth_rate": 3,
    "conv_res_scale": True,
}
LYRICS: dict[str, Any] = {**PRIOR, "nb_relevant_lyric_tokens": 8, "lyric_vocab_size": 79, "max_nb_genres": 1}
SEPARATE: dict[str, Any] = {
    **LYRICS,
    "attention_pattern": "attn_order_6",
    "alignment_layer": 3,
    "alignment_head": 1,
    "encoder_config": {**ROWS, "hidden_size": 8, "num_layers": 3, "n_heads": 1, "blocks": 2, "init_scale": 15.0},
}
JOINED: dict[str, Any] = {
    **LYRICS,
    "attention_pattern": "enc_dec_with_lyrics",
    "num_layers": 16,
    "is_encoder_decoder": True,
    "alignment_layer": 15,
    "alignment_head": 0,
}


def tiny_config(joined: bool = False, **top: Any) -> JukeboxConfig:
    """Keywords are settings of the top prior."""
    codec = JukeboxVQVAEConfig(
        sampling_rate=RATE,
        nb_discrete_codes=CODES,
        embed_dim=8,
        res_downs_t=[1, 1, 1],
        res_conv_width=4,
        res_conv_depth=1,
    )
    priors = [{**(JOINED if joined else SEPARATE), **top}, {**UPSAMPLER, "level": 1}, {**UPSAMPLER, "level": 2}]
    return JukeboxConfig.from_configs([JukeboxPriorConfig(**prior) for prior in priors], codec)


def tiny_jukebox(joined: bool = False, **top: Any) -> JukeboxModel:
    """A model with the weights of seed 0; the caller's random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JukeboxModel(tiny_config(joined, **top))
        _fill_codebooks(model.vqvae)
        for prior in model.priors:
            for layer in prior.prior.transformer.layers:  # layers that attend to lyrics begin as the identity
                torch.nn.init.normal_(layer.attn.c_proj.weight, std=0.2)
    return model.eval()


@torch.no_grad()
def _fill_codebooks(vqvae: JukeboxVQVAE) -> None:
    """With latents of noise; they are all zeros until they are trained."""
    noise = torch.randn(1, 1, 64 * CODES)
    for encoder, book in zip(vqvae.encoders, vqvae.bottleneck.level_blocks, strict=True):
        latents = encoder(noise)[0].T
        book.codebook.copy_(latents[:: len(latents) // CODES][:CODES])


def tiny_tables() -> Tables:
    artists, genres = ({name: i for i, name in enumerate(names)} for names in (V3_ARTISTS, V3_GENRES))
    artists |= {f"{name}.v2": i for i, name in enumerate(V2_ARTISTS)}
    return join_tables(artists, genres | {f"{name}.v2": i for i, name in enumerate(V2_GENRES)})


def tiny_tokenizer() -> JukeboxTokenizer:
    tokenizer = JukeboxTokenizer(version=["v3", "v2", "v2"], max_n_lyric_tokens=8)
    tokenizer.tables = tiny_tables()
    return tokenizer


def tiny_labels(lyrics: str | list[str] = "la la la, oh so blue", artist: Any = "Salt", **timing: Any) -> list[Tensor]:
    """Labels by level; one song a text."""
    labels: list[Tensor] = tiny_tokenizer()(artist, "Folk Rock", lyrics, **timing)["input_ids"]
    return labels


def tiny_prompt(songs: int = 1, samples: int = 64) -> Tensor:
    """Noise [B, T, 1]."""
    return torch.rand(songs, samples, 1, generator=torch.Generator().manual_seed(5)) * 2 - 1


def save_tiny_jukebox(path: Path, joined: bool = False, **options: Any) -> Path:
    """A complete checkpoint folder; options are those of save_pretrained."""
    tiny_jukebox(joined).save_pretrained(path, **options)
    write_tables(tiny_tables(), path)
    tiny_tokenizer().save_pretrained(path)
    return path
