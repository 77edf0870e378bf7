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
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from tunesmith.codecs.vqvae_config import PRESETS, JukeboxVQVAEConfig, check_config
from tunesmith.codecs.vqvae_losses import (
    SPECTRUM,
    ReconstructionLoss,
    Stft,
    check_bandwidth,
    check_spectrum,
    measure_bandwidth,
)
from tunesmith.errors import RequestError
from tunesmith.nn.codebook import Codebook, Quantized
from tunesmith.nn.dilated import DilatedBlock, DilatedStyle, DownBlock, UpBlock
from tunesmith.nn.pretrained import StrictLoading
from tunesmith.nn.ranges import COUNT

__all__ = [
    "PRESETS",
    "SPECTRUM",
    "JukeboxVQVAE",
    "JukeboxVQVAEConfig",
    "JukeboxVQVAEOutput",
    "ReconstructionLoss",
    "Stft",
    "VQVAELevel",
    "measure_bandwidth",
]


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
        check_config(config)
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
        measure = ReconstructionLoss(self.config, check_bandwidth(bandwidth or self.config.bandwidth))
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
        check_spectrum(samples, [SPECTRUM.size, *self.config.multispec_loss_n_fft])

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


def _check_chunks(bs_chunks: int) -> int:
    if not COUNT.allows(bs_chunks):
        raise RequestError(f"bs_chunks is {bs_chunks}; the batch is worked through in at least 1 part.")
    return bs_chunks
