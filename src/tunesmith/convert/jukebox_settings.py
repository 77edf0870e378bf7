"""Jukebox's settings: the dictionary `hps` of OpenAI's checkpoints beside our layout's `config.json`.

`hps` is flat: one dictionary describes a prior, its lyric encoder (`prime_...`), its conditioner (`cond_...`) and,
where both were configured together, the VQ-VAE.  What it leaves out has the original's defaults.  What it says of the
VQ-VAE is believed in a prior's file only where the prior's tensors agree.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tunesmith.errors import CheckpointError
from tunesmith.models.jukebox import attention_order, attention_pattern
from tunesmith.nn.factored import ORDERS

Json = dict[str, Any]
Hps = Mapping[str, Any]


class Setting(NamedTuple):
    """OpenAI's name of a setting and its default there."""

    name: str
    default: Any


class Hops(NamedTuple):
    """How a VQ-VAE shortens: stages of each level and their stride, finest first."""

    downs: list[int]
    strides: list[int]


RELEASED = Hops([3, 2, 2], [2, 2, 2])

_VQVAE: Mapping[str, Setting] = {
    "sampling_rate": Setting("sr", 44_100),
    "sample_length": Setting("sample_length", 0),
    "levels": Setting("levels", 2),
    "nb_discrete_codes": Setting("l_bins", 512),
    "embed_dim": Setting("emb_width", 64),
    "res_downs_t": Setting("downs_t", (1, 1)),
    "res_strides_t": Setting("strides_t", (2, 2)),
    "multipliers": Setting("hvqvae_multipliers", None),
    "res_conv_width": Setting("width", 128),
    "res_conv_depth": Setting("depth", 3),
    "res_convolution_multiplier": Setting("m_conv", 1.0),
    "res_dilation_growth_rate": Setting("dilation_growth_rate", 1),
    "res_dilation_cycle": Setting("dilation_cycle", None),
    "reverse_decoder_dilation": Setting("vqvae_reverse_decoder_dilation", True),
    "lmu": Setting("l_mu", 0.99),
    "revival_threshold": Setting("revival_threshold", 1.0),
    "commit": Setting("commit", 1.0),
    "spectral": Setting("spectral", 0.0),
    "multispectral": Setting("multispectral", 1.0),
    "loss_fn": Setting("loss_fn", "l2"),
    "lmix_l1": Setting("lmix_l1", 0.0),
    "lmix_l2": Setting("lmix_l2", 0.0),
    "lmix_linf": Setting("lmix_linf", 0.0),
    "linf_k": Setting("linf_k", 2048),
    "use_nonrelative_specloss": Setting("use_nonrelative_specloss", True),
    "multispec_loss_n_fft": Setting("multispec_loss_n_fft", (2048, 1024, 512)),
    "multispec_loss_hop_length": Setting("multispec_loss_hop_length", (240, 120, 50)),
    "multispec_loss_window_size": Setting("multispec_loss_window_size", (1200, 600, 240)),
    "bandwidth": Setting("bandwidth", None),
}
# Of a transformer; a lyric encoder's begin with `prime_`.
_STACK: Mapping[str, Setting] = {
    "n_heads": Setting("heads", 1),
    "blocks": Setting("blocks", None),
    "spread": Setting("spread", None),
    "attention_multiplier": Setting("m_attn", 0.25),
    "mlp_multiplier": Setting("m_mlp", 1.0),
    "attn_res_scale": Setting("res_scale", False),
    "attn_dropout": Setting("attn_dropout", 0.0),
    "resid_dropout": Setting("resid_dropout", 0.0),
    "emb_dropout": Setting("emb_dropout", 0.0),
    "init_scale": Setting("init_scale", 1.0),
    "zero_out": Setting("zero_out", False),
}
_WIDTH: Mapping[str, Setting] = {"hidden_size": Setting("width", 128), "num_layers": Setting("depth", 3)}
_PRIOR: Mapping[str, Setting] = {
    **_STACK,
    **{ours: Setting(f"prior_{name}", default) for ours, (name, default) in _WIDTH.items()},
    "n_ctx": Setting("n_ctx", 1024),
    "sampling_rate": Setting("sr", 44_100),
    "metadata_conditioning": Setting("labels", True),
    "metadata_dims": Setting("y_bins", 0),
    "max_nb_genres": Setting("max_bow_genre_size", None),
    "timing_dims": Setting("t_bins", 64),
    "min_duration": Setting("min_duration", None),
    "max_duration": Setting("max_duration", None),
    "nb_relevant_lyric_tokens": Setting("n_tokens", 0),
    "lyric_vocab_size": Setting("n_vocab", 0),
    "encoder_loss_fraction": Setting("prime_loss_fraction", 0.1),
    "merged_decoder": Setting("merged_decoder", False),
    "is_encoder_decoder": Setting("single_enc_dec", False),
    "alignment_layer": Setting("alignment_layer", None),
    "alignment_head": Setting("alignment_head", None),
    "res_conv_width": Setting("cond_width", 128),
    "res_conv_depth": Setting("cond_depth", 3),
    "res_convolution_multiplier": Setting("cond_m_conv", 1.0),
    "res_dilation_growth_rate": Setting("cond_dilation_growth_rate", 1),
    "res_dilation_cycle": Setting("cond_dilation_cycle", None),
    "conv_res_scale": Setting("cond_res_scale", False),
}
_ENCODER = {ours: Setting(f"prime_{name}", default) for ours, (name, default) in {**_STACK, **_WIDTH}.items()}

NAMES: Mapping[str, Mapping[str, str]] = {
    part: {ours: setting.name for ours, setting in table.items()}
    for part, table in (("vqvae", _VQVAE), ("prior", _PRIOR), ("encoder", _ENCODER))
}
"""Our settings of each part -> OpenAI's names."""

_OPEN = ("sample_length", "min_duration", "max_duration", "max_nb_genres", "metadata_dims")

# What our models always do: the setting and the values that mean it.
_ALWAYS: Mapping[str, tuple[Any, ...]] = {
    "use_bottleneck": (True,),
    "copy_input": (False,),
    "pos_init": (False,),
    "prime_pos_init": (False,),
}


def read_vqvae(hps: Hps, source: object) -> Json:
    """A VQ-VAE's `config.json`; raises `CheckpointError` for settings that make no sense or can't be played."""
    _demand(hps, source)
    config = _read(_VQVAE, hps, source)
    if not len(config["res_downs_t"]) == len(config["res_strides_t"]) == config["levels"]:
        raise CheckpointError(f"The settings inside {source} don't have {config['levels']} downs_t and strides_t.")
    return {"architectures": ["JukeboxVQVAE"], "model_type": "jukebox_vqvae", **config}


def read_prior(hps: Hps, tensors: Mapping[str, Tensor], hops: Hops | None, level: int, source: object) -> Json:
    """A prior's `config.json`.

    tensors: its tensors under OpenAI's names, of which shapes are used.  hops: of its VQ-VAE, where that is known.
    level: 0 is the finest.  Raises `CheckpointError` as `read_vqvae`.
    """
    _demand(hps, source)
    config = _read(_PRIOR, hps, source)
    hops = hops or _own_hops(hps, tensors, level, source)
    lyrics = config["nb_relevant_lyric_tokens"] > 0
    separate = lyrics and not config["is_encoder_decoder"]
    if not lyrics:
        config |= {"lyric_vocab_size": 0, "encoder_loss_fraction": 0.0, "is_encoder_decoder": False}
    shifted = config["lyric_vocab_size"] if config["is_encoder_decoder"] else 0
    table = tensors.get("prior.x_emb.weight")
    if table is None:
        raise CheckpointError(f"{source} lacks prior.x_emb.weight, so it isn't a whole prior.")
    return {
        "architectures": ["JukeboxPrior"],
        "model_type": "jukebox_prior",
        **config,
        "level": len(hops.downs) - 1 - level,
        "mask": True,
        "attention_pattern": _pattern(hps, "attn_order", source),
        "music_vocab_size": table.shape[0] - shifted,
        "res_downs_t": hops.downs,
        "res_strides_t": hops.strides,
        "encoder_config": _read_encoder(hps, config, source) if separate else None,
    }


def write_vqvae(config: Json) -> Json:
    """The `hps` of a VQ-VAE."""
    return {"prior": False, "use_bottleneck": True, **_write(_VQVAE, config)}


def write_prior(config: Json) -> Json:
    """The `hps` of a prior."""
    encoder = config.get("encoder_config")
    hps = {
        "prior": True,
        **_write(_PRIOR, config),
        "attn_order": attention_order(config["attention_pattern"]),
        "level": len(config["res_downs_t"]) - 1 - config["level"],
        "levels": len(config["res_downs_t"]),
        "downs_t": tuple(config["res_downs_t"]),
        "strides_t": tuple(config["res_strides_t"]),
        "l_bins": config["music_vocab_size"],
        "use_tokens": config["nb_relevant_lyric_tokens"] > 0,
        "cond_c_res": 1,  # the original's code then finds the conditioner's blocks under the names that we write
    }
    if encoder is not None:
        hps |= {**_write(_ENCODER, encoder), "prime_attn_order": attention_order(encoder["attention_pattern"])}
    return hps


def _read_encoder(hps: Hps, prior: Json, source: object) -> Json:
    """The nested configuration of a lyric encoder, which is a prior without music."""
    return {
        "model_type": "jukebox_prior",
        **_read(_ENCODER, hps, source),
        "attention_pattern": _pattern(hps, "prime_attn_order", source),
        "n_ctx": prior["nb_relevant_lyric_tokens"],
        "nb_relevant_lyric_tokens": prior["nb_relevant_lyric_tokens"],
        "lyric_vocab_size": prior["lyric_vocab_size"],
        "is_encoder_decoder": False,
        "merged_decoder": False,
        "mask": True,
    }


def _own_hops(hps: Hps, tensors: Mapping[str, Tensor], level: int, source: object) -> Hops:
    """Those in the prior's own settings if its tensors agree, else the released model's if they agree with that."""
    own = Hops(*(list(_value(hps, _VQVAE[name], source)) for name in ("res_downs_t", "res_strides_t")))
    for hops in (own, RELEASED):
        if _agree(hops, tensors, level):
            return hops
    raise CheckpointError(f"{source} doesn't say which VQ-VAE it belongs to; put that into the same folder.")


def _agree(hops: Hops, tensors: Mapping[str, Tensor], level: int) -> bool:
    """Whether a prior of that level would have just this conditioner; the top has none."""
    block = "conditioner_blocks.0.cond.model"
    stages = 0
    while f"{block}.{stages + 1}.1.weight" in tensors:
        stages += 1
    if not stages:
        return level == len(hops.downs) - 1
    stride = tensors[f"{block}.1.1.weight"].shape[-1] // 2
    return level + 1 < len(hops.downs) and (hops.downs[level + 1], hops.strides[level + 1]) == (stages, stride)


def _read(table: Mapping[str, Setting], hps: Hps, source: object) -> Json:
    """What the table names; lengths and label sizes that hps leaves open are left to our configurations."""
    values = {ours: _value(hps, setting, source) for ours, setting in table.items()}
    return {ours: value for ours, value in values.items() if ours not in _OPEN or value}


def _write(table: Mapping[str, Setting], config: Json) -> Json:
    values = {setting.name: config.get(ours, setting.default) for ours, setting in table.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _value(hps: Hps, setting: Setting, source: object) -> Any:
    """A setting of its default's type; whole numbers will do for fractions, and None for anything."""
    name, default = setting
    value = hps.get(name, default)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _integers(value, name, source)
    whole_for_fraction = type(value) is int and type(default) is float
    if value is None or default is None or type(value) is type(default) or whole_for_fraction:
        return value
    raise CheckpointError(f"The settings inside {source} have {value!r} for {name!r}, which makes no sense.")


def _integers(values: Sequence[Any], name: str, source: object) -> list[int]:
    if not all(type(value) is int for value in values):
        raise CheckpointError(f"The settings inside {source} have {values!r} for {name!r}; whole numbers are needed.")
    return list(values)


def _pattern(hps: Hps, name: str, source: object) -> str:
    """Our name of an order of attention."""
    order = hps.get(name, 0)
    if order not in ORDERS:
        raise CheckpointError(
            f"{source} has {name} = {order!r}, which can't be played; only {min(ORDERS)} to {max(ORDERS)} can."
        )
    return attention_pattern(order)


def _demand(hps: Hps, source: object) -> None:
    for name, allowed in _ALWAYS.items():
        if hps.get(name, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{source} has {name} = {hps[name]!r}, which can't be played; only {allowed[0]!r} can."
            )
