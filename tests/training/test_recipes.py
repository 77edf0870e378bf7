"""Recipes: sets and settings put together, the original's names, the sizes of its models, the table in the docs."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.cli.train import Train
from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig
from tunesmith.convert.jukebox_settings import NAMES
from tunesmith.errors import MissingDependencyError, RequestError
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.models.musicgen import MusicgenDecoderConfig
from tunesmith.training.adversarial import Adversarial
from tunesmith.training.estimate import plan
from tunesmith.training.recipes import OF_THE_CODEC, ORIGINAL, SETS, Recipe, Renamed, compose, flat, locate, parse
from tunesmith.training.runs import Schedule

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
TABLE = PAGE.partition("\n## The original's flags\n")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("| `")]
README = """
mpiexec hps name sample_length bs audio_files_dir labels train test aug_shift aug_blend restore_vqvae prior levels
level weight_decay save_iters restore_prior lr_use_linear_decay lr_start_linear_decay lr_decay labels_v3 y_bins
max_bow_genre_size min_duration max_duration t_bins use_tokens n_tokens n_vocab alignment_layer alignment_head heads
attn_order
"""
HYPERPARAMETERS = """
n_ctx prior_width prior_depth heads blocks attn_order init_scale merged_decoder single_enc_dec labels y_bins
max_bow_genre_size t_bins n_tokens n_vocab prime_loss_fraction prime_width prime_depth prime_heads prime_attn_order
prime_blocks prime_init_scale min_duration max_duration beta1 beta2 fp16_params alignment_layer alignment_head
cond_width cond_depth cond_dilation_growth_rate cond_dilation_cycle cond_res_scale c_res cond_c_res prime_c_res sr
levels downs_t strides_t emb_width l_bins l_mu commit spectral multispectral loss_fn lmix_l1 lmix_l2 lmix_linf
linf_k width depth m_conv dilation_growth_rate dilation_cycle hvqvae_multipliers vqvae_reverse_decoder_dilation
revival_threshold m_attn m_mlp res_scale fp16 fp16_opt fp16_scale_window fp16_loss_scale ema cpu_ema cpu_ema_freq
ema_fused mu epochs lr clip eps weight_decay ignore_grad_norm lr_warmup lr_decay lr_gamma lr_scale
lr_use_linear_decay lr_start_linear_decay iters_before_update bs nworkers train_test_split aug_shift aug_blend
curr_epoch save save_iters log_steps max_len max_log local_logdir channels bucket attn_dropout resid_dropout
emb_dropout zero_out multispec_loss_n_fft multispec_loss_hop_length multispec_loss_window_size
use_nonrelative_specloss c_attn c_mlp spread
"""


def bare(name: str) -> str:
    return re.split(r"[= ]", name.strip("`").removeprefix("--"))[0]


# --------------------------------------------------------------------------------------------------- the table


def test_every_flag_and_hyperparameter_has_a_row() -> None:
    named = {bare(row[0]) for row in ROWS}
    assert {*README.split(), *HYPERPARAMETERS.split()} - named == set()
    assert set(ORIGINAL) - named == set()
    assert len(named) == len(ROWS)  # each once


@pytest.mark.parametrize("row", ROWS, ids=[bare(row[0]) for row in ROWS])
def test_every_row_is_true(row: list[str]) -> None:
    name, default, ours, remark = row
    if ours == "—":
        assert remark
        return
    target = ours.strip("`")
    if target.startswith("torchrun"):
        return  # tests/training/test_processes.py does that
    if target.startswith("--") or target == "RECIPE":
        assert target.lower().lstrip("-") in {"run", "data", "vqvae", "level", "from", "recipe"}
        assert {"run_folder", "data", "vqvae", "level", "origin", "recipe"} <= {f.name for f in fields(Train)}
        return
    record, _, key = target.rpartition(".")
    place = locate(Recipe(kind="prior"), target)
    assert (place.record, place.name) == (record, key)
    entry = ORIGINAL.get(bare(name))
    assert entry is None or (entry.key if isinstance(entry, Renamed) else entry) == target
    if entry is not None and record in ("schedule", "data") and default not in ("", "0", "None"):
        kind = "prior" if record == "schedule" else "vqvae"
        changed = flat(compose("small_prior" if kind == "prior" else "small_vqvae", {bare(name): default}))
        value = entry.value(parse(default)) if isinstance(entry, Renamed) else parse(default)
        assert changed[target] == value


# ------------------------------------------------------------------------------------------------- composition


def test_the_later_is_the_stronger() -> None:
    recipe = compose("small_vqvae,small_prior,all_fp16,cpu_ema", {"bs": "2", "prior_width": "64", "lr": "1e-4"})
    assert (recipe.kind, recipe.vqvae["nb_discrete_codes"], recipe.prior["hidden_size"]) == ("prior", 1024, 64)
    assert recipe.schedule.float16
    assert (recipe.schedule.ema, recipe.schedule.ema_every, recipe.schedule.scale_window) == ("cpu", 100, 250)
    assert (recipe.schedule.batch, recipe.schedule.learning_rate, recipe.schedule.weight_decay) == (2, 1e-4, 0.01)
    assert recipe.data.sample_length is None  # a prior's window says it
    assert compose("small_prior,all_fp16,bf16").schedule.bfloat16


def test_names_belong_to_what_learns() -> None:
    assert compose("small_vqvae", {"res_conv_width": 8}).vqvae["res_conv_width"] == 8
    assert compose("small_upsampler", {"res_conv_width": 8}).prior["res_conv_width"] == 8
    assert compose("small_upsampler", {"width": 8}).vqvae["res_conv_width"] == 8  # the original's, of the VQ-VAE
    assert compose("small_vqvae", {"min_duration": 20}).data.min_duration == 20
    assert compose("small_labelled_prior", {"min_duration": 20}).prior["min_duration"] == 20
    assert compose("musicgen-small", {"hidden_size": 8}).musicgen["hidden_size"] == 8
    sep = compose("small_sep_enc_dec_prior", {"prime_width": 32, "prime_attn_order": 2})
    assert sep.prior["encoder_config"]["hidden_size"] == 32
    assert compose("encodec-32khz", {"windows": [256]}).adversarial["windows"] == [256]


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        ("small_vqva", {}, "no recipe 'small_vqva'.*small_vqvae"),
        ("small_vqvae", {"learning_rat": 1}, "no setting 'learning_rat'.*learning_rate"),
        ("small_vqvae", {"batch": "many"}, "schedule.batch is 'many'; it is of type int"),
        ("small_vqvae", {"batch": 0}, "batch is 0"),
        ("small_vqvae", {"curve": "round"}, "curve"),
        ("small_vqvae", {"train_test_split": 2.0}, "train_test_split is 2"),
        ("all_fp16,bf16", {"float16": True}, "choose one"),
        ("encodec-32khz,all_fp16", {"accumulate": 2}, "without accumulate or float16"),
    ],
)
def test_nonsense_is_refused(names: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        compose(names, settings)


def test_values_are_read_as_typed() -> None:
    typed = ["1", "1e-3", "true", "None", "3,2,2", "[1, 2]", "lmix", "0.5"]
    assert [parse(text) for text in typed] == [1, 1e-3, True, None, [3, 2, 2], [1, 2], "lmix", 0.5]
    assert compose("small_vqvae", {"steps": "1e6"}).schedule.steps == 1_000_000


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(AttributeError):
        compose("small_vqvae").schedule.batch = 3


# ----------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", SETS)
def test_every_set_can_be_built(name: str) -> None:
    recipe = compose(name)
    with torch.device("meta"):
        kinds = {"vqvae": JukeboxVQVAEConfig, "prior": JukeboxPriorConfig, "musicgen": MusicgenDecoderConfig}
        if recipe.kind in kinds:
            config = kinds[recipe.kind](**getattr(recipe, recipe.kind))
            assert config is not None
    assert Adversarial(**recipe.adversarial)


SIZES = {  # what the original's sets have
    ("small_prior", "vqvae", 2): 161_862_656,
    ("small_labelled_prior", "vqvae", 2): 162_170_880,
    ("small_single_enc_dec_prior", "vqvae", 2): 160_547_840,
    ("small_sep_enc_dec_prior", "vqvae", 2): 168_633_280,
    ("small_prior", "small_vqvae", 1): 160_814_080,
    ("small_upsampler", "small_vqvae", 0): 218_015_232,
    ("upsampler_level_0", "vqvae", 0): 981_298_176,
    ("upsampler_level_1", "vqvae", 1): 981_298_176,
    ("1b_lyrics", "vqvae", 2): 942_643_200,
    ("5b", "vqvae", 2): 5_060_452_800,
    ("5b_lyrics", "vqvae", 2): 5_640_506_800,
}


@pytest.mark.parametrize(("name", "codec", "level"), SIZES)
def test_models_are_as_large_as_the_originals(name: str, codec: str, level: int) -> None:
    facts = JukeboxVQVAEConfig(**compose(codec).vqvae)
    own = {key: getattr(facts, key) for key in OF_THE_CODEC if hasattr(facts, key)}
    settings = {**compose(name).prior, **own, "music_vocab_size": facts.nb_discrete_codes}
    with torch.device("meta"):
        model = JukeboxPrior(JukeboxPriorConfig(**settings, level=facts.levels - 1 - level))
    assert sum(p.numel() for p in model.parameters()) == SIZES[name, codec, level]


@pytest.mark.parametrize(("name", "size"), [("vqvae", 1_485_763), ("small_vqvae", 586_050)])
def test_codecs_are_as_large_as_the_originals(name: str, size: int) -> None:
    with torch.device("meta"):
        model = JukeboxVQVAE(JukeboxVQVAEConfig(**compose(name).vqvae))
    assert sum(p.numel() for p in model.parameters()) == size


def test_what_the_5b_prior_needs_is_planned_without_it() -> None:
    recipe = compose("5b")
    with torch.device("meta"):
        model = JukeboxPrior(JukeboxPriorConfig(**recipe.prior))
    alone, shared = (plan(model, recipe.schedule, processes) for processes in (1, 8))
    assert sum(alone.values()) == 5_060_452_800 * (4 + 4 + 8 + 4)
    assert all(shared[name] == -(-size // 8) for name, size in alone.items())
    assert f"{sum(shared.values()) / 1e9:.1f} GB" in PAGE


def test_defaults_of_the_original() -> None:
    """What its DEFAULTS say of optimisation, in a recipe that changes none of it."""
    found = compose("small_vqvae").schedule
    wanted = Schedule(
        learning_rate=3e-4, beta1=0.9, beta2=0.999, weight_decay=0.0, warmup=100, clip=1.0, curve="exponential"
    )
    for name in ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "warmup", "clip", "curve", "skip_above"):
        assert getattr(found, name) == getattr(wanted, name)
    assert compose("5b").schedule.beta2 == 0.925
    assert compose("upsampler_level_0").schedule.beta2 == 0.95


def test_names_of_converted_settings_are_known() -> None:
    """What a checkpoint's settings are called, a recipe knows as well."""
    for part in ("vqvae", "prior", "encoder"):
        assert {name for ours, name in NAMES[part].items() if ours not in ("bandwidth",)} <= set(ORIGINAL)


def test_eight_bits_are_an_option() -> None:
    assert compose("small_vqvae", {"schedule.ema": "none"}).schedule.ema == "none"  # the word, not nothing
    assert compose("small_prior", {"optimizer": "adamw8bit"}).schedule.optimizer == "adamw8bit"
    assert issubclass(MissingDependencyError, Exception)
