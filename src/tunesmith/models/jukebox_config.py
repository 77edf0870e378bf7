"""What Jukebox's priors are made of."""

import math
import typing
from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any

import torch

from tunesmith.errors import CheckpointError, RequestError
from tunesmith.models.jukebox_presets import SETTINGS
from tunesmith.nn import factored
from tunesmith.nn.pretrained import BundledConfig, configured
from tunesmith.nn.ranges import COUNT, COUNTS, POSITIVE, SHARE, WEIGHT, Range, check_ranges
from tunesmith.nn.transformer import ACTIVATIONS as COMMON_ACTIVATIONS

_ORDERS = {
    "full_dense_attention": 0,
    "raw_column_previous_row_attention": 2,
    "large_separated_enc_dec_w_lyrics": 10,
    "enc_dec_with_lyrics": 12,
}
_PREFIX = "attn_order_"

SHARED = ("sampling_rate", "timing_dims", "min_duration", "max_duration", "max_nb_genres", "metadata_conditioning")
"""Settings of priors that a whole model's configuration has too.  What a prior says of itself rules."""

_RELEASED = ("prior_1b_lyrics", "prior_5b", "prior_5b_lyrics", "upsampler_level_0", "upsampler_level_1")
_KNOWN_BY = ("level", "hidden_size", "num_layers", "n_ctx", "music_vocab_size")

ACTIVATIONS = {**COMMON_ACTIVATIONS, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


def attention_pattern(order: int) -> str:
    """The config's name of one of the original's attention orders: transformers' where it has one."""
    names = {number: name for name, number in _ORDERS.items()}
    return names.get(order, f"{_PREFIX}{order}")


def attention_order(pattern: str) -> int:
    """The original's number of an attention pattern; the inverse of `attention_pattern`.  Raises RequestError."""
    known = {attention_pattern(order): order for order in factored.ORDERS}
    if not isinstance(pattern, str) or pattern not in known:
        raise RequestError(f"attention_pattern is {pattern!r}; known are {', '.join(known)}.")
    return known[pattern]


@typing.no_type_check
class JukeboxPriorConfig(BundledConfig):
    """What a prior is made of, under transformers 4.40.2's names and defaults.

    The defaults are nearly those of the 1b_lyrics top prior, but not quite (it has `merged_decoder` False): take the
    released models' from `PRESETS`.
    """

    model_type = "jukebox_prior"
    base_config_key = "prior_config"

    act_fn: str = "quick_gelu"  # or "gelu", "relu", "silu", "gelu_new"
    level: int = 0  # 0 is the top; others are upsamplers
    alignment_head: int | None = 2  # head and layer that show which lyrics are sung
    alignment_layer: int | None = 68
    attention_multiplier: float = 0.25  # width of all heads together over hidden_size
    attention_pattern: str = "enc_dec_with_lyrics"  # see `attention_pattern` above
    attn_dropout: float = 0
    attn_res_scale: bool = False  # divide what layers add by num_layers
    blocks: int | None = 64  # rows that the sequence (lyric prefix included) is cut into
    conv_res_scale: bool | int | None = None  # divide what the conditioner's blocks add by sqrt(res_conv_depth)
    num_layers: int = 72
    emb_dropout: float = 0
    encoder_config: Any = None  # of the lyric encoder: a JukeboxPriorConfig or its dictionary
    encoder_loss_fraction: float = 0.4  # weight of the lyrics' loss
    hidden_size: int = 2048
    init_scale: float = 0.2
    is_encoder_decoder: bool = True  # with lyric tokens: they are a prefix of the same sequence
    lyric_vocab_size: int = 80
    mask: bool = True  # ignored; True is what transformers 4.40.2 must find to be causal
    max_duration: float = 600  # seconds
    max_nb_genres: int = 1
    merged_decoder: bool = True  # own output weights, and the condition isn't added again after the stack
    metadata_conditioning: bool = True
    metadata_dims: list[int] | tuple[int, ...] = (604, 7898)  # genres, artists
    min_duration: float = 0  # seconds
    mlp_multiplier: float = 1.0
    music_vocab_size: int = 2048
    n_ctx: int = 6144  # codes in a window
    n_heads: int = 2
    nb_relevant_lyric_tokens: int = 384  # in a window; 0 is a prior without lyrics
    res_conv_depth: int = 3  # of the conditioner
    res_conv_width: int = 128
    res_convolution_multiplier: float = 1
    res_dilation_cycle: int | None = None
    res_dilation_growth_rate: int = 1
    res_downs_t: list[int] | tuple[int, ...] = (3, 2, 2)  # of the VQ-VAE, finest level first
    res_strides_t: list[int] | tuple[int, ...] = (2, 2, 2)
    resid_dropout: float = 0
    sampling_rate: int = 44100
    spread: int | None = None  # positions of each row that attention kind 5 keeps
    timing_dims: int = 64  # bins of each timing embedding
    zero_out: bool = False  # fresh layers begin as the identity
    tie_word_embeddings: bool = False  # set from merged_decoder

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, dict):
            self.encoder_config = JukeboxPriorConfig(**self.encoder_config)
        self.tie_word_embeddings = not self.merged_decoder
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers names each keyword
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> "JukeboxPriorConfig":
        """Of a prior's folder, or prior number `level` (a keyword; 0, the top, by default) of a whole model's."""
        level = kwargs.pop("level", 0)
        with configured(pretrained_model_name_or_path, kwargs.get("subfolder", "")) as source:
            found, rest = cls.get_config_dict(source, **kwargs)
        own = _of_whole(found, level) if found.get("model_type") == "jukebox" else found
        return cls.from_dict(as_released(own) if written_by_port(found) else own, **rest)

    @property
    def hop_length(self) -> int:
        """Audio samples per code."""
        stages = zip(self.res_strides_t, self.res_downs_t, strict=True)
        return math.prod(stride**down for stride, down in list(stages)[: len(self.res_downs_t) - self.level])

    @property
    def upsampling(self) -> tuple[int, int]:
        """Stages and stride from the level above to this one: as many as the VQ-VAE has between them."""
        above = len(self.res_downs_t) - self.level
        return self.res_downs_t[above], self.res_strides_t[above]

    @property
    def upper_ratio(self) -> int:
        """Codes per code of the level above; 1 at the top."""
        stages, stride = self.upsampling if self.level else (0, 1)
        return stride**stages

    @property
    def window_length(self) -> int:
        """Audio samples in a window."""
        return self.n_ctx * self.hop_length

    @property
    def label_width(self) -> int:
        """Columns of a row of labels."""
        return 4 + self.max_nb_genres + self.nb_relevant_lyric_tokens

    @property
    def joined(self) -> bool:
        """Are lyrics a prefix of the same sequence?"""
        return self.is_encoder_decoder and self.nb_relevant_lyric_tokens > 0


def _of_whole(config: dict[str, Any], level: int) -> dict[str, Any]:
    """One prior's part of a whole model's config, in either of transformers' spellings."""
    listed = config.get("prior_config_list") or []
    found = listed[level] if 0 <= level < len(listed) else config.get(f"prior_{level}")
    if found is None:
        raise CheckpointError(f"The model's config.json describes no prior number {level} (0 is the top).")
    shared = {name: config[name] for name in SHARED if config.get(name) is not None}
    return {**shared, **found, "level": level}


def written_by_port(config: dict[str, Any]) -> bool:
    """Whether a config.json is from Hugging Face's port, which ended with transformers 4."""
    version = str(config.get("transformers_version") or "4").partition(".")[0]
    return not version.isdecimal() or int(version) < 5


def as_released(config: dict[str, Any]) -> dict[str, Any]:
    """A prior's config.json, with the presets' settings where it is a released one's.

    The hub's files say wrong things of those (64 blocks for 5b-lyrics, which has 128; the top's one genre for the
    upsamplers of 1b-lyrics, which take five), load without complaint and attend to the wrong places.
    """
    whole = JukeboxPriorConfig(**config).to_dict()
    for name in _RELEASED:
        released = PRESETS[name]().to_dict()
        if all(whole[key] == released[key] for key in _KNOWN_BY):
            return {**whole, **released, "model_type": "jukebox_prior"}
    return {**whole, "model_type": "jukebox_prior"}


_STACK: dict[str, Range] = {
    **dict.fromkeys(("hidden_size", "num_layers", "n_heads"), COUNT),
    **dict.fromkeys(("attention_multiplier", "mlp_multiplier"), POSITIVE),
    **dict.fromkeys(("attn_dropout", "emb_dropout", "resid_dropout"), SHARE),
    **dict.fromkeys(("blocks", "spread"), Range(low=1, whole=True, optional=True)),
    "init_scale": WEIGHT,
}
_PRIOR: dict[str, Range] = {
    **dict.fromkeys(("n_ctx", "music_vocab_size", "sampling_rate"), COUNT),
    **dict.fromkeys(("level", "nb_relevant_lyric_tokens"), Range(low=0, whole=True)),
    **dict.fromkeys(("res_downs_t", "res_strides_t"), COUNTS),
    "encoder_loss_fraction": WEIGHT,
}
_CONDITIONER: dict[str, Range] = {
    **dict.fromkeys(("res_conv_depth", "res_conv_width", "res_dilation_growth_rate"), COUNT),
    "res_dilation_cycle": Range(low=1, whole=True, optional=True),
    "res_convolution_multiplier": POSITIVE,
}
_LABELS: dict[str, Range] = {"metadata_dims": COUNTS, "max_nb_genres": Range(low=0, whole=True)}
_TIMING: dict[str, Range] = {"timing_dims": COUNT, "min_duration": WEIGHT, "max_duration": POSITIVE}


def check_config(config: JukeboxPriorConfig) -> None:
    """Raise RequestError for a prior that can't be built."""
    check_ranges(config, _PRIOR)
    _check_levels(config)
    if config.metadata_conditioning:
        _check_labels(config)
    prefix = config.nb_relevant_lyric_tokens if config.joined else 0
    _check_stack("", config, prefix + config.n_ctx)
    separate = bool(config.nb_relevant_lyric_tokens) and not config.joined
    if config.nb_relevant_lyric_tokens:
        check_ranges(config, {"lyric_vocab_size": COUNT})
    if separate and not isinstance(config.encoder_config, JukeboxPriorConfig):
        raise RequestError(
            f"This prior has {config.nb_relevant_lyric_tokens} lyric tokens, so it needs an encoder_config or "
            "is_encoder_decoder=True."
        )
    if separate:
        _check_stack("encoder_config: ", config.encoder_config, config.nb_relevant_lyric_tokens)
        _refuse_cross("encoder_config: ", config.encoder_config)
    else:
        _refuse_cross("", config)


def _check_levels(config: JukeboxPriorConfig) -> None:
    if not config.level < len(config.res_downs_t) == len(config.res_strides_t):
        raise RequestError(
            f"level {config.level} doesn't fit res_downs_t {list(config.res_downs_t)} and res_strides_t "
            f"{list(config.res_strides_t)}: both have an entry a level, and levels count from 0 (top)."
        )
    if not config.level:
        return
    check_ranges(config, _CONDITIONER)
    if config.n_ctx % config.upper_ratio or config.upsampling[1] % 2:
        raise RequestError(
            f"n_ctx is {config.n_ctx}, and the level above has a code for {config.upper_ratio} of these, by strides of "
            f"{config.upsampling[1]}; n_ctx must be a multiple of {config.upper_ratio}, and strides even."
        )


def _check_labels(config: JukeboxPriorConfig) -> None:
    check_ranges(config, _LABELS)
    if len(config.metadata_dims) != 2:
        raise RequestError(f"metadata_dims is {config.metadata_dims}; it has two numbers, of genres and of artists.")
    if config.level:
        return
    check_ranges(config, _TIMING)
    if config.min_duration >= config.max_duration:
        raise RequestError(
            f"min_duration is {config.min_duration} and max_duration {config.max_duration}; songs last from the one to "
            "below the other, in seconds."
        )


def _check_stack(where: str, config: JukeboxPriorConfig, length: int) -> None:
    check_ranges(config, _STACK, where)
    if length % (config.blocks or 1):
        raise RequestError(f"{where}{length} positions can't be cut into {config.blocks} blocks of the same length.")
    if (config.spread or 1) > (row := length // (config.blocks or 1)):
        raise RequestError(f"{where}spread is {config.spread}, but a block has {row} positions; give at most that.")
    width = int(config.attention_multiplier * config.hidden_size)
    if width < 1 or width % config.n_heads:
        raise RequestError(f"{where}an attention width of {width} can't be divided among {config.n_heads} heads.")
    if int(config.mlp_multiplier * config.hidden_size) < 1:
        raise RequestError(
            f"{where}mlp_multiplier {config.mlp_multiplier} of hidden_size {config.hidden_size} leaves no width; give "
            "more."
        )
    if not isinstance(config.act_fn, str) or config.act_fn not in ACTIVATIONS:
        raise RequestError(f"{where}act_fn is {config.act_fn!r}; known are {', '.join(ACTIVATIONS)}.")
    attention_order(config.attention_pattern)


def _refuse_cross(where: str, config: JukeboxPriorConfig) -> None:
    kinds = factored.attention_kinds(attention_order(config.attention_pattern), config.num_layers)
    if factored.CROSS in kinds:
        raise RequestError(
            f"{where}attention_pattern {config.attention_pattern!r} has layers that attend to lyrics; it needs "
            "nb_relevant_lyric_tokens and an encoder_config."
        )


PRESETS: dict[str, Callable[..., JukeboxPriorConfig]] = {
    name: partial(JukeboxPriorConfig, **settings) for name, settings in SETTINGS.items()
}
"""Configs of the original's priors, by its names; keywords change a setting: `PRESETS["prior_5b"](blocks=64)`."""
