"""The original's priors by name: sizes and windows."""

import pytest
import torch

from tunesmith.models.jukebox import PRESETS, JukeboxPrior
from tunesmith.nn.factored import Projection

# parameters in all (tied ones once) | of the stack | of labels | of the conditioner | of the lyric encoder
PARAMETERS = {
    "upsampler_level_0": (981_298_176, 797_333_760, 8_123_520, 156_180_352),
    "upsampler_level_1": (981_298_176, 797_333_760, 8_123_520, 156_180_352),
    "prior_5b": (5_060_452_800, 4_979_318_400),
    "prior_5b_lyrics": (5_640_506_800, 5_463_418_800),
    "prior_1b_lyrics": (942_643_200, 907_112_448),
    "small_prior": (160_814_080,),
    "small_labelled_prior": (162_170_880,),
    "small_single_enc_dec_prior": (160_547_840,),
    "small_sep_enc_dec_prior": (168_633_280,),
    "small_upsampler": (218_015_232,),
}


def counted(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = JukeboxPrior(PRESETS[name]())
    parts = [model, model.prior.transformer, model.metadata_embedding, model.conditioner_blocks]
    wanted = PARAMETERS[name]
    assert [counted(part) for part in parts[: len(wanted)] if part is not None][:2] == list(wanted)[:2]


def test_presets_that_depend_on_the_codec() -> None:
    with torch.device("meta"):
        over_released = JukeboxPrior(PRESETS["small_labelled_prior"](metadata_conditioning=False))
    assert counted(over_released) == 161_862_656


def test_windows_of_presets() -> None:
    seconds = {name: make().window_length / make().sampling_rate for name, make in PRESETS.items()}
    for name, wanted in (
        ("upsampler_level_0", 1.486),
        ("upsampler_level_1", 5.944),
        ("prior_5b", 23.777),
        ("prior_1b_lyrics", 17.833),
    ):
        assert seconds[name] == pytest.approx(wanted, abs=1e-3)
    ratios = {name: make().upper_ratio for name, make in PRESETS.items()}
    assert {name: ratio for name, ratio in ratios.items() if ratio != 1} == {
        "upsampler_level_0": 4,
        "upsampler_level_1": 4,
        "small_upsampler": 8,
    }
    assert PRESETS["small_upsampler"]().hop_length == 32


def test_released_lyric_encoder_has_rows_of_sixteen() -> None:
    with torch.device("meta"):
        model = JukeboxPrior(PRESETS["prior_5b_lyrics"]())
    assert model.encoder is not None
    assert model.encoder.transformer.row == 16
    assert model.prior.transformer.row == 64
    assert {type(part) for part in model.prior.transformer.modules()} >= {Projection}
