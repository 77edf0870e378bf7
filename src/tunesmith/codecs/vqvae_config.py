"""What a Jukebox VQ-VAE is made of and trained for: its settings, their ranges, and those of the original by name."""

import itertools
import typing
from typing import Any

from tunesmith.errors import RequestError
from tunesmith.nn.pretrained import BundledConfig
from tunesmith.nn.ranges import COUNT, COUNTS, POSITIVE, SHARE, WEIGHT, Range, check_ranges

LOSSES = ("l1", "l2", "linf", "lmix")


@typing.no_type_check
class JukeboxVQVAEConfig(BundledConfig):
    """What a VQ-VAE is made of and trained for; the defaults are those of the released model.

    Lists have an entry a level, finest first.  Level l's width and depth are `res_conv_width` and `res_conv_depth`
    times `multipliers[l]`, and its encoder chains the down-sampling blocks 0 to l.
    """

    model_type = "jukebox_vqvae"
    base_config_key = "vqvae_config"

    sampling_rate: int = 44_100  # Hz
    conv_input_shape: int = 1  # audio channels
    sample_length: int = 1_058_304  # samples that the whole model was made for; nothing here depends on it
    levels: int = 3
    nb_discrete_codes: int = 2048  # codes in a codebook
    embed_dim: int = 64  # width of the latents and of the code vectors
    res_downs_t: list[int] | tuple[int, ...] = (3, 2, 2)  # strided convolutions of a block ...
    res_strides_t: list[int] | tuple[int, ...] = (2, 2, 2)  # ... and the stride of each, even
    multipliers: list[int] | tuple[int, ...] = (2, 1, 1)  # None becomes 1 everywhere
    res_conv_width: int = 32
    res_conv_depth: int = 4  # residual blocks in a stack
    res_convolution_multiplier: int | float = 1  # inner width of a residual block over its outer width
    res_dilation_growth_rate: int = 3
    res_dilation_cycle: int | None = None
    conv_res_scale: bool = False  # divide what residual blocks add by √depth
    reverse_decoder_dilation: bool = True
    act_fn: str = "relu"  # the only one
    zero_out: bool = False  # begin with residual blocks that add nothing
    init_scale: float = 0.2  # kept for old files; convolutions begin as torch makes them
    hop_fraction: list[float] | tuple[float, ...] = (0.125, 0.5, 0.5)  # kept for old files; sampling has its own

    lmu: float = 0.99  # decay of the codebooks' moving averages, per step
    revival_threshold: float = 1.0  # vectors per step below which a code is put elsewhere
    commit: float = 0.02  # weights of the terms of the loss
    spectral: float = 0.0
    multispectral: float = 1.0
    loss_fn: str = "lmix"  # or "l1", "l2", "linf"; lmix is their sum with the next three weights
    lmix_l1: float = 0.0
    lmix_l2: float = 1.0
    lmix_linf: float = 0.02
    linf_k: int = 2048  # how many of an item's largest squared errors linf averages
    use_nonrelative_specloss: bool = True  # False: the spectral loss is relative to the item's own spectrum
    multispec_loss_n_fft: list[int] | tuple[int, ...] = (2048, 1024, 512)
    multispec_loss_hop_length: list[int] | tuple[int, ...] = (240, 120, 50)
    multispec_loss_window_size: list[int] | tuple[int, ...] = (1200, 600, 240)
    bandwidth: dict[str, float] | None = None  # what errors are divided by, see `measure_bandwidth`; None: 1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.multipliers is None:
            self.multipliers = [1] * self.levels
        super().__post_init__(**kwargs)

    @property
    def hop_lengths(self) -> list[int]:
        """Samples per code of each level, finest first."""
        factors = (stride**downs for stride, downs in zip(self.res_strides_t, self.res_downs_t, strict=True))
        return list(itertools.accumulate(factors, lambda total, factor: total * factor))


# By the original's names.  "vqvae" is the released one, "small_vqvae" its recipe for own training.
PRESETS: dict[str, dict[str, Any]] = {
    "vqvae": {},
    "small_vqvae": {
        "sampling_rate": 22_050,
        "levels": 2,
        "nb_discrete_codes": 1024,
        "res_downs_t": [5, 3],
        "res_strides_t": [2, 2],
        "multipliers": None,
        "loss_fn": "l2",
        "lmix_l2": 0.0,
        "lmix_linf": 0.0,
    },
    "DEFAULTS": {
        "levels": 2,
        "nb_discrete_codes": 512,
        "res_downs_t": [1, 1],
        "res_strides_t": [2, 2],
        "multipliers": None,
        "res_conv_width": 128,
        "res_conv_depth": 3,
        "res_dilation_growth_rate": 1,
        "commit": 1.0,
        "loss_fn": "l2",
        "lmix_l2": 0.0,
        "lmix_linf": 0.0,
    },
}


_RANGES: dict[str, Range] = {
    **dict.fromkeys(("sampling_rate", "conv_input_shape", "levels", "nb_discrete_codes", "embed_dim"), COUNT),
    **dict.fromkeys(("res_conv_width", "res_conv_depth", "res_dilation_growth_rate", "linf_k"), COUNT),
    **dict.fromkeys(("res_downs_t", "res_strides_t", "multipliers"), COUNTS),
    **dict.fromkeys(("multispec_loss_n_fft", "multispec_loss_hop_length", "multispec_loss_window_size"), COUNTS),
    **dict.fromkeys(("commit", "spectral", "multispectral", "lmix_l1", "lmix_l2", "lmix_linf"), WEIGHT),
    "res_dilation_cycle": Range(low=1, whole=True, optional=True),
    "res_convolution_multiplier": POSITIVE,
    "revival_threshold": POSITIVE,
}


def check_config(config: JukeboxVQVAEConfig) -> None:
    """Raise RequestError for a configuration that no VQ-VAE can have."""
    check_ranges(config, _RANGES)
    if int(config.res_convolution_multiplier * config.res_conv_width) < 1:
        raise RequestError(
            f"res_convolution_multiplier {config.res_convolution_multiplier} of res_conv_width {config.res_conv_width} "
            "leaves no width; give more."
        )
    lists = (config.res_downs_t, config.res_strides_t, config.multipliers)
    if any(len(each) != config.levels for each in lists):
        raise RequestError(
            f"levels is {config.levels}, but res_downs_t, res_strides_t and multipliers have "
            f"{', '.join(str(len(each)) for each in lists)} entries; each must have one a level."
        )
    strides, downs = list(config.res_strides_t), list(config.res_downs_t)
    if any(stride % 2 for stride in strides):
        raise RequestError(
            f"res_strides_t is {strides} and res_downs_t {downs}; strides are even, so that decoders undo what "
            "encoders do, and a level has at least one of them."
        )
    spectra = [config.multispec_loss_n_fft, config.multispec_loss_hop_length, config.multispec_loss_window_size]
    if len({len(each) for each in spectra}) > 1 or any(w > n for n, _, w in zip(*spectra, strict=True)):
        raise RequestError(
            f"multispec_loss_n_fft is {list(spectra[0])}, multispec_loss_hop_length {list(spectra[1])} and "
            f"multispec_loss_window_size {list(spectra[2])}; they have an entry a spectrogram, and no window is longer "
            "than its n_fft."
        )
    if config.act_fn != "relu":
        raise RequestError(f"act_fn is {config.act_fn!r}; a Jukebox VQ-VAE knows 'relu' alone.")
    if config.loss_fn not in LOSSES:
        raise RequestError(f"loss_fn is {config.loss_fn!r}; choose from {', '.join(LOSSES)}.")
    if not (SHARE.allows(config.lmu) and 0 < config.lmu < 1):
        raise RequestError(f"lmu is {config.lmu!r}; it lies between 0 and 1, both left out.")
