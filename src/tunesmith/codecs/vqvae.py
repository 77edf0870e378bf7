"""Jukebox's hierarchical VQ-VAE (Dhariwal et al. 2020, §3): the same sound at several rates, each by itself.

    audio [B, T, 1] --encoder l--> latents [B, D, S] --codebook l--> codes [B, S] --decoder l--> audio [B, S · hop, 1]

Each level has an encoder, a codebook and a decoder of its own; level 0 is the finest (the bottom) and every list here
begins with it.  Any single level gives back the audio, the coarser the rougher.  Names of parameters and arguments are
those of Hugging Face's model, so its checkpoints load as they are; beside them stands what training needs (losses,
codebook statistics), which it left out.  `k_sum` and `k_elem` are saved with the codebooks; the original dropped them
and guessed them on resuming.

`JukeboxVQVAE.level(i)` is a `Codec` with one codebook.
"""

import functools
import itertools
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from tunesmith.errors import RequestError
from tunesmith.nn.codebook import Codebook, Quantized
from tunesmith.nn.dilated import DilatedBlock, DilatedStyle, DownBlock, UpBlock
from tunesmith.nn.pretrained import BundledConfig, StrictLoading
from tunesmith.nn.ranges import COUNT, COUNTS, POSITIVE, SHARE, WEIGHT, Range, check_ranges

__all__ = [
    "PRESETS",
    "JukeboxVQVAE",
    "JukeboxVQVAEConfig",
    "JukeboxVQVAEOutput",
    "VQVAELevel",
    "measure_bandwidth",
]

LOSSES = ("l1", "l2", "linf", "lmix")

SILENT = 2e-3  # Frobenius norm of a spectrogram up to which its spectral convergence counts as 0


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


class Encoder(nn.Module):
    """Audio [B, C, T] to the latents [B, D, S] of one level; S = T // hop."""

    def __init__(self, config: JukeboxVQVAEConfig, level: int) -> None:
        super().__init__()
        self.style = _style(config, level)
        self.level_blocks = _blocks(DownBlock, config, level, self.style)
        self.steps = list(zip(config.res_downs_t, config.res_strides_t, strict=True))[: level + 1]

    @property
    def reach(self) -> int:
        """How many samples beyond its own a code depends on, to either side."""
        reach = 0
        for stages, stride in reversed(self.steps):
            reach += 1
            for _ in range(stages):
                reach = (reach + self.style.reach) * stride + stride // 2
        return reach

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B D S"]:
        """Through all blocks."""
        for block in self.level_blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    """Latents [B, D, S] of one level to audio [B, C, S · hop]: the encoder's mirror image."""

    def __init__(self, config: JukeboxVQVAEConfig, level: int) -> None:
        super().__init__()
        self.style = _style(config, level, reverse=config.reverse_decoder_dilation)
        self.level_blocks = _blocks(UpBlock, config, level, self.style)
        self.out = nn.Conv1d(config.embed_dim, config.conv_input_shape, 3, padding=1)
        self.steps = list(zip(config.res_downs_t, config.res_strides_t, strict=True))[: level + 1]

    @property
    def reach(self) -> int:
        """How many codes beyond its own a sample depends on, to either side; at most two per transposed convolution."""
        reach = 1
        for stages, stride in self.steps:
            for _ in range(stages):
                reach = reach // stride + 2 + self.style.reach
            reach += 1
        return reach

    def forward(self, x: Float[Tensor, "B D S"]) -> Float[Tensor, "B C T"]:
        """Through all blocks, coarsest first."""
        for block in reversed(self.level_blocks):
            x = block(x)
        out: Tensor = self.out(x)
        return out


class Bottleneck(nn.Module):
    """A codebook a level."""

    def __init__(self, config: JukeboxVQVAEConfig) -> None:
        super().__init__()
        self.level_blocks = nn.ModuleList(
            Codebook(config.nb_discrete_codes, config.embed_dim, decay=config.lmu, threshold=config.revival_threshold)
            for _ in range(config.levels)
        )

    def book(self, level: int) -> Codebook:
        """A level's codebook."""
        return typing.cast(Codebook, self.level_blocks[level])

    def forward(
        self, latents: Sequence[Float[Tensor, "B D _"]], generator: torch.Generator | None = None
    ) -> list[Quantized]:
        """Each level by its own codebook."""
        return [book(x, generator) for book, x in zip(self.level_blocks, latents, strict=True)]


@dataclass
class JukeboxVQVAEOutput(ModelOutput):
    """What the model gives.

    loss: what training makes small.
    recon: [B, T, C], the audio as the finest level tells it; recons has those of all levels, finest first.
    metrics: scalars without gradient; `_l1` is the finest level.  Losses are sums over levels, but `l1_loss`,
        `l2_loss`, `linf_loss` and `spectral_convergence` are the finest level's.  Only in training mode, averages over
        levels: `fit` (mean squared distance to the codes), `pn` (spread of the latents), `entropy` of the codes (nats),
        `used_curr` and `usage` (codes in use, in this step and on average), `dk` (how far codes moved).
    """

    loss: Tensor | None = None
    recon: Tensor | None = None
    metrics: dict[str, Tensor] | None = None
    recons: list[Tensor] | None = None


class Stft(NamedTuple):
    """A short-time Fourier transform: Hann windows every `hop` samples, zero-padded to `size`, the ends reflected."""

    size: int
    hop: int
    window: int

    def magnitudes(self, audio: Float[Tensor, "B T C"]) -> Float[Tensor, "B F S"]:
        """Of the mean over channels, in the audio's precision."""
        hann = torch.hann_window(self.window, dtype=audio.dtype, device=audio.device)
        return torch.stft(audio.mean(2), self.size, self.hop, self.window, hann, return_complex=True).abs()


SPECTRUM = Stft(2048, 256, 1536)


def measure_bandwidth(clips: Iterable[Float[Tensor, "B T C"]]) -> dict[str, float]:
    """What losses are divided by so that they don't depend on the loudness of the data, for `config.bandwidth`.

    l2 is the variance of the samples, l1 their mean magnitude, spec the mean over clips of the Frobenius norm of their
    spectrogram, which grows with the clips: give clips as long as those to train on.  Computed in float64.
    Raises `RequestError` for clips of at most 1024 samples, for silence and where there are none.
    """
    count, items, total, magnitude, power, norms = 0, 0, 0.0, 0.0, 0.0, 0.0
    for clip in clips:
        x = clip.double()
        _check_spectrum(x.shape[1], [SPECTRUM.size])
        count, items, total = count + x.numel(), items + len(x), total + x.sum().item()
        magnitude, power = magnitude + x.abs().sum().item(), power + x.square().sum().item()
        norms += _norms(SPECTRUM.magnitudes(x)).sum().item()
    if power == 0.0:
        raise RequestError("There is no sound to measure the bandwidth of; give clips that are not silent.")
    return {"l2": power / count - (total / count) ** 2, "l1": magnitude / count, "spec": norms / items}


@dataclass(frozen=True)
class ReconstructionLoss:
    """How far a reconstruction is from the audio, by every measure of the original."""

    config: JukeboxVQVAEConfig
    bandwidth: Mapping[str, float]

    def __call__(self, target: Float[Tensor, "B T C"], recon: Float[Tensor, "B T C"]) -> dict[str, Tensor]:
        """Scalars, by name: l1, l2, linf, lmix, spectral, multispectral and (relative) convergence."""
        terms = self._residual(target - recon)
        c = self.config
        terms["lmix"] = c.lmix_l1 * terms["l1"] + c.lmix_l2 * terms["l2"] + c.lmix_linf * terms["linf"]
        reference = SPECTRUM.magnitudes(target)
        distance, loudness = _norms(reference - SPECTRUM.magnitudes(recon)), _norms(reference)
        terms["convergence"] = (distance * (loudness > SILENT) / loudness.clamp(min=SILENT)).mean()
        relative = terms["convergence"]
        terms["spectral"] = distance.mean() / self.bandwidth["spec"] if c.use_nonrelative_specloss else relative
        scales = [_norms(stft.magnitudes(target) - stft.magnitudes(recon)).mean() for stft in self._scales()]
        terms["multispectral"] = torch.stack(scales).mean() / self.bandwidth["spec"]
        return terms

    def _residual(self, error: Tensor) -> dict[str, Tensor]:
        squares = error.flatten(1).square()
        worst = squares.topk(min(self.config.linf_k, squares.shape[1]), dim=1, sorted=False).values
        l1, l2 = self.bandwidth["l1"], self.bandwidth["l2"]
        return {"l1": error.abs().mean() / l1, "l2": squares.mean() / l2, "linf": worst.mean() / l2}

    def _scales(self) -> list[Stft]:
        c = self.config
        settings = (c.multispec_loss_n_fft, c.multispec_loss_hop_length, c.multispec_loss_window_size)
        return [Stft(*each) for each in zip(*settings, strict=True)]


Method = TypeVar("Method", bound=Callable[..., Any])


def _also(**names: str) -> Callable[[Method], Method]:
    """Take arguments by Hugging Face's names too: old=new."""

    def wrap(method: Method) -> Method:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, *args, **{names.get(name, name): value for name, value in kwargs.items()})

        return typing.cast(Method, call)

    return wrap


class JukeboxVQVAE(StrictLoading):
    """The codec of Jukebox: `encode`, `decode`, and `forward` to train it.

    `encode` and `decode` take audio of any length: what is longer than `chunk_samples` is worked through in pieces that
    overlap by as much as a code can hear, so the result is the same and memory doesn't grow with the length.
    """

    config: JukeboxVQVAEConfig
    config_class = JukeboxVQVAEConfig
    base_model_prefix = "vqvae"
    main_input_name = "audio"
    default_dtype: ClassVar[torch.dtype | None] = torch.float32  # half precision changes codes
    _keys_to_ignore_on_load_missing = [r"\.k_sum$", r"\.k_elem$"]  # the original saves neither
    _keys_to_ignore_on_load_unexpected = [r"^priors\."]  # of a folder with a whole model

    chunk_samples: int = 2**18  # with the released sizes a piece takes about 1 GB a batch item

    def __init__(self, config: JukeboxVQVAEConfig) -> None:
        """Raise `RequestError` for a configuration that no VQ-VAE can have."""
        super().__init__(config)
        _check(config)
        self.encoders = nn.ModuleList(Encoder(config, level) for level in range(config.levels))
        self.decoders = nn.ModuleList(Decoder(config, level) for level in range(config.levels))
        self.bottleneck = Bottleneck(config)
        self.post_init()
        if config.zero_out:  # here, for transformers doesn't show `_init_weights` modules without tensors of their own
            _silence_blocks(self)

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initial weights, as in the original implementation."""
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | Codebook):
            module.reset_parameters()

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return int(self.config.levels)

    @property
    def sample_rate(self) -> int:
        """Audio samples per second."""
        return int(self.config.sampling_rate)

    @property
    def hop_lengths(self) -> list[int]:
        """Samples per code of each level, finest first."""
        return self.config.hop_lengths

    def level(self, index: int) -> "VQVAELevel":
        """One level (0 is the finest) as a codec by itself.  Raises `RequestError` where there is none."""
        if not 0 <= index < self.levels:
            raise RequestError(f"There is no level {index}; this model has 0 (finest) to {self.levels - 1}.")
        return VQVAELevel(self, index)

    @torch.no_grad()
    @_also(input_audio="audio")
    def encode(
        self, audio: Tensor, start_level: int = 0, end_level: int | None = None, bs_chunks: int = 1
    ) -> list[Tensor]:
        """Audio [B, T, C] in about -1..1 to int64 codes [B, T // hop] of the levels start_level to end_level - 1.

        bs_chunks: how many parts to work through the batch in, for less memory.
        Raises `RequestError` for audio of another shape, shorter than a code, or not finite, and for wrong levels.
        """
        end_level = self._check_levels(start_level, end_level)
        self._check_audio(audio, at_least=self.hop_lengths[end_level - 1])
        parts = audio.transpose(1, 2).chunk(_check_chunks(bs_chunks))  # [B, C, T]
        return [torch.cat([self._encode(level, x) for x in parts]) for level in range(start_level, end_level)]

    @torch.no_grad()
    @_also(music_tokens="codes")
    def decode(
        self, codes: Sequence[Tensor], start_level: int = 0, end_level: int | None = None, bs_chunks: int = 1
    ) -> Tensor:
        """Codes [B, S] of the levels start_level to end_level - 1, finest first, to audio [B, S · hop, C].

        As in the original, the first of them (`codes[0]`, of start_level) is all that is heard.  Without end_level the
        list may end before the top.
        Raises `RequestError` for wrong levels, another number of codes than of levels, and codes that don't exist.
        """
        if end_level is None and start_level + len(codes) <= self.levels:
            end_level = start_level + max(len(codes), 1)
        end_level = self._check_levels(start_level, end_level)
        self._check_codes(codes, end_level - start_level)
        parts = codes[0].chunk(_check_chunks(bs_chunks))
        return torch.cat([self._decode(start_level, x) for x in parts]).transpose(1, 2)

    @_also(raw_audio="audio")
    def forward(
        self, audio: Tensor, bandwidth: Mapping[str, float] | None = None, generator: torch.Generator | None = None
    ) -> JukeboxVQVAEOutput:
        """Reconstruct audio [B, T, C] from each level's codes alone; in training mode the codebooks learn.

        bandwidth: what errors are divided by, as `measure_bandwidth` gives it; by default `config.bandwidth`, else 1.
        generator: for the first codes and for restarts.
        Raises `RequestError` for bad audio, and unless T is a multiple of the top level's hop and above 1024.
        """
        self._check_audio(audio, at_least=self.hop_lengths[-1])
        self._check_training_length(audio.shape[1])
        measure = ReconstructionLoss(self.config, _check_bandwidth(bandwidth or self.config.bandwidth))
        waves = audio.to(self.dtype).transpose(1, 2)
        quantized = self.bottleneck([encoder(waves) for encoder in self.encoders], generator)
        recons = [
            decoder(level.vectors.to(self.dtype)).transpose(1, 2).float()
            for decoder, level in zip(self.decoders, quantized, strict=True)
        ]
        loss, metrics = self._sum_up([measure(audio.float(), recon) for recon in recons], quantized)
        return JukeboxVQVAEOutput(loss, recons[0], metrics, recons)

    def _sum_up(self, terms: list[dict[str, Tensor]], quantized: list[Quantized]) -> tuple[Tensor, dict[str, Tensor]]:
        c, metrics = self.config, dict[str, Tensor]()
        totals = {}
        for name, key in (("recons", c.loss_fn), ("spectral", "spectral"), ("multispectral", "multispectral")):
            metrics |= {f"{name}_loss_l{level + 1}": term[key] for level, term in enumerate(terms)}
            totals[name] = torch.stack([term[key] for term in terms]).sum()
        totals["commit"] = torch.stack([level.commitment for level in quantized]).sum()
        metrics |= {f"{name}_loss": total for name, total in totals.items()}
        metrics |= {f"{name}_loss": terms[0][name] for name in ("l1", "l2", "linf")}
        metrics["spectral_convergence"] = terms[0]["convergence"]
        for name in quantized[0].metrics:
            metrics[name] = torch.stack([level.metrics[name] for level in quantized]).mean()
        loss = totals["recons"] + c.spectral * totals["spectral"] + c.multispectral * totals["multispectral"]
        return loss + c.commit * totals["commit"], {name: value.detach() for name, value in metrics.items()}

    def _encode(self, level: int, audio: Float[Tensor, "B C T"]) -> Int[Tensor, "B S"]:
        encoder, book = typing.cast(Encoder, self.encoders[level]), self.bottleneck.book(level)
        hop, end = self.hop_lengths[level], audio.shape[-1]
        frames = end // hop
        codes = torch.empty(len(audio), frames, dtype=torch.long, device=audio.device)
        for piece in _pieces(frames, self.chunk_samples // hop, math.ceil(encoder.reach / hop)):
            # The last frames also hear what is left over beyond them.
            heard = audio[..., piece.low * hop : end if piece.high == frames else piece.high * hop]
            latents = encoder(heard.to(self.dtype))[..., piece.inside()]
            codes[:, piece.start : piece.stop] = book.encode(latents)
        return codes

    def _decode(self, level: int, codes: Int[Tensor, "B S"]) -> Float[Tensor, "B C T"]:
        decoder, book = typing.cast(Decoder, self.decoders[level]), self.bottleneck.book(level)
        hop, (batch, frames) = self.hop_lengths[level], codes.shape
        channels = self.config.conv_input_shape
        audio = torch.empty(batch, channels, frames * hop, dtype=self.dtype, device=codes.device)
        for piece in _pieces(frames, self.chunk_samples // hop, decoder.reach):
            vectors = book.decode(codes[:, piece.low : piece.high]).to(self.dtype)
            audio[..., piece.start * hop : piece.stop * hop] = decoder(vectors)[..., piece.inside(hop)]
        return audio

    def _check_levels(self, start: int, end: int | None) -> int:
        end = self.levels if end is None else end
        if start not in range(self.levels) or end not in range(start + 1, self.levels + 1):
            raise RequestError(
                f"There are no levels {start} to {end}; levels count from 0 (finest), start_level is below end_level "
                f"and end_level is at most {self.levels}."
            )
        return end

    def _check_audio(self, audio: Tensor, at_least: int) -> None:
        channels = self.config.conv_input_shape
        if not isinstance(audio, Tensor):
            raise RequestError(f"The audio is a {type(audio).__name__}; give a tensor [batch, samples, {channels}].")
        if audio.ndim != 3 or audio.shape[2] != channels or not len(audio) or not audio.is_floating_point():
            raise RequestError(
                f"The audio has the shape {list(audio.shape)} and the type {audio.dtype}; this codec takes "
                f"[batch, samples, {channels}] of floating-point samples. Mix stereo down first."
            )
        if audio.shape[1] < at_least:
            raise RequestError(
                f"The audio has {audio.shape[1]} samples, which is less than one code of the top level asked for; "
                f"give at least {at_least}."
            )
        if not audio.isfinite().all():
            raise RequestError("The audio has samples that are infinite or not a number; give finite samples.")

    def _check_training_length(self, samples: int) -> None:
        hop = self.hop_lengths[-1]
        if samples % hop:
            raise RequestError(
                f"The audio has {samples} samples, which the top level can't code whole; "
                f"to train, give a multiple of {hop}, for example {samples // hop * hop or hop}."
            )
        _check_spectrum(samples, [SPECTRUM.size, *self.config.multispec_loss_n_fft])

    def _check_codes(self, codes: Sequence[Tensor], levels: int) -> None:
        if len(codes) != levels:
            raise RequestError(f"There are codes of {len(codes)} levels where {levels} are wanted, one entry a level.")
        for one in codes:
            if not isinstance(one, Tensor):
                raise RequestError(f"Codes of a level are of type {type(one).__name__}; give tensors [batch, steps].")
            if one.ndim != 2 or 0 in one.shape or one.is_floating_point():
                raise RequestError(
                    f"The codes have the shape {list(one.shape)} and the type {one.dtype}; "
                    "each level's codes are whole numbers [batch, steps] with at least one step."
                )
            low, high = (int(bound) for bound in torch.aminmax(one))
            if low < 0 or high >= self.config.nb_discrete_codes:
                raise RequestError(
                    f"The codes range from {low} to {high}; this codec has 0 to {self.config.nb_discrete_codes - 1}."
                )


@dataclass(frozen=True)
class VQVAELevel:
    """One level of a VQ-VAE as a `Codec` with a single codebook."""

    vqvae: JukeboxVQVAE
    index: int  # 0 is the finest

    @property
    def sample_rate(self) -> int:
        """Audio samples per second."""
        return self.vqvae.sample_rate

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.sample_rate / self.hop_length

    @property
    def hop_length(self) -> int:
        """Audio samples per code."""
        return self.vqvae.hop_lengths[self.index]

    @property
    def channels(self) -> int:
        """Audio channels."""
        return int(self.vqvae.config.conv_input_shape)

    @property
    def codebooks(self) -> int:
        """One."""
        return 1

    @property
    def cardinality(self) -> int:
        """Codes in the codebook."""
        return int(self.vqvae.config.nb_discrete_codes)

    def encode_codes(self, audio: Float[Tensor, "B C T"]) -> Int[Tensor, "B 1 S"]:
        """Codes of all the audio: S = ceil(T / hop_length), the last one's lacking samples are silent."""
        filled = functional.pad(audio, (0, -audio.shape[-1] % self.hop_length))
        return self.vqvae.encode(filled.transpose(1, 2), self.index, self.index + 1)[0][:, None]

    def decode_codes(self, codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B C T"]:
        """S · hop_length samples.  Raises `RequestError` for codes that don't exist and unless K is 1."""
        if codes.ndim != 3 or codes.shape[1] != 1:
            raise RequestError(f"The codes have the shape {list(codes.shape)}; this codec takes [batch, 1, steps].")
        return self.vqvae.decode([codes[:, 0]], self.index, self.index + 1).transpose(1, 2)


class Piece(NamedTuple):
    """Frames start..stop, to be computed from the frames low..high around them."""

    start: int
    stop: int
    low: int
    high: int

    def inside(self, hop: int = 1) -> slice:
        """Where start..stop lie in what low..high became, `hop` values a frame."""
        return slice((self.start - self.low) * hop, (self.stop - self.low) * hop)


def _pieces(frames: int, core: int, reach: int) -> Iterator[Piece]:
    """`core` frames at a time with `reach` more to either side, as far as there are any."""
    core = max(core, 1)
    for start in range(0, frames, core):
        stop = min(start + core, frames)
        yield Piece(start, stop, max(start - reach, 0), min(stop + reach, frames))


def _style(config: JukeboxVQVAEConfig, level: int, reverse: bool = False) -> DilatedStyle:
    return DilatedStyle(
        depth=config.res_conv_depth * config.multipliers[level],
        growth=config.res_dilation_growth_rate,
        cycle=config.res_dilation_cycle,
        reverse=reverse,
        multiplier=config.res_convolution_multiplier,
        scaled=config.conv_res_scale,
    )


def _blocks(
    kind: type[DownBlock] | type[UpBlock], config: JukeboxVQVAEConfig, level: int, style: DilatedStyle
) -> nn.ModuleList:
    """Blocks 0 to `level`; between them run latents, and only the first one down hears audio."""
    width, latent = config.res_conv_width * config.multipliers[level], config.embed_dim
    channels = [config.conv_input_shape if kind is DownBlock else latent] + [latent] * level
    steps = zip(channels, config.res_downs_t, config.res_strides_t, strict=False)
    return nn.ModuleList(
        kind(before, width, latent, stages=stages, stride=stride, style=style) for before, stages, stride in steps
    )


def _silence_blocks(model: nn.Module) -> None:
    """Make residual blocks add nothing."""
    for module in model.modules():
        if isinstance(module, DilatedBlock):
            nn.init.zeros_(module.conv1d_2.weight)
            nn.init.zeros_(module.conv1d_2.bias)  # type: ignore[arg-type]  # it has one


def _norms(spectrogram: Float[Tensor, "B F S"]) -> Float[Tensor, " B"]:
    """Frobenius norms; their gradient is 0 where they are 0."""
    return torch.linalg.vector_norm(spectrogram, dim=(1, 2))


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


def _check(config: JukeboxVQVAEConfig) -> None:
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


def _check_bandwidth(given: Mapping[str, float] | None) -> Mapping[str, float]:
    bandwidth = {"l1": 1.0, "l2": 1.0, "spec": 1.0} if given is None else given
    if not isinstance(bandwidth, Mapping) or any(not POSITIVE.allows(bandwidth.get(n)) for n in ("l1", "l2", "spec")):
        raise RequestError(f"bandwidth is {bandwidth!r}; it needs numbers above 0 for l1, l2 and spec.")
    return bandwidth


def _check_spectrum(samples: int, sizes: Sequence[int]) -> None:
    if samples <= max(sizes) // 2:
        raise RequestError(
            f"The audio has {samples} samples, too few for the spectrograms of the loss; "
            f"give more than {max(sizes) // 2}."
        )


def _check_chunks(bs_chunks: int) -> int:
    if not COUNT.allows(bs_chunks):
        raise RequestError(f"bs_chunks is {bs_chunks}; the batch is worked through in at least 1 part.")
    return bs_chunks
