"""EnCodec (Défossez et al. 2022): a convolutional autoencoder with an LSTM, and residual vector quantisation between.

    audio [B, C, T] --encoder--> latents [B, D, S] --quantizer--> codes [B, K, S]        S = ceil(T / hop_length)
    codes --quantizer--> latents --decoder--> audio [B, C, S · hop_length]

The names of parameters, arguments and outputs are those of Hugging Face's model, so its checkpoints load as they are.
Models with `chunk_length_s` (48 kHz) code overlapping chunks one by one and cross-fade them after decoding; models with
`normalize` divide each chunk by its loudness first and multiply it back at the end.
"""

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import EncodecFeatureExtractor, PreTrainedConfig
from transformers.utils.generic import ModelOutput

from tunesmith.errors import RequestError
from tunesmith.nn.conv import Conv1d, ConvStyle, ConvTranspose1d, fold_weight_norm, reset_conv
from tunesmith.nn.pretrained import StrictLoading
from tunesmith.nn.quantize import Codebook, ResidualQuantizer

__all__ = [
    "PRESETS",
    "EncodecConfig",
    "EncodecDecoderOutput",
    "EncodecEncoderOutput",
    "EncodecFeatureExtractor",
    "EncodecModel",
    "EncodecOutput",
]


@typing.no_type_check
class EncodecConfig(PreTrainedConfig):
    """What an EnCodec is made of; the defaults are those of the released 24 kHz model."""

    model_type = "encodec"

    target_bandwidths: list[float] | tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)  # kbit/s, ascending
    sampling_rate: int = 24_000  # Hz
    audio_channels: int = 1
    normalize: bool = False  # divide the audio by its root mean square before coding
    chunk_length_s: int | float | None = None  # seconds; None codes the audio in one piece
    overlap: float | None = None  # share of a chunk that the next one repeats
    hidden_size: int = 128  # width of the latents
    num_filters: int = 32  # channels of the first convolution; each ratio doubles them
    num_residual_layers: int = 1
    upsampling_ratios: list[int] | tuple[int, ...] = (8, 5, 4, 2)  # in the decoder's order
    norm_type: str = "weight_norm"  # or "time_group_norm"
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2  # a residual block narrows its channels by this
    num_lstm_layers: int = 2  # 0 leaves the LSTM out
    trim_right_ratio: float = 1.0
    codebook_size: int = 1024
    codebook_dim: int | None = None  # None: hidden_size
    use_conv_shortcut: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.codebook_dim is None:
            self.codebook_dim = self.hidden_size
        super().__post_init__(**kwargs)

    @property
    def chunk_length(self) -> int | None:
        """Samples in a chunk."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples from the start of one chunk to the start of the next."""
        length = self.chunk_length
        return None if length is None or self.overlap is None else max(1, int((1.0 - self.overlap) * length))

    @property
    def hop_length(self) -> int:
        """Samples per code step."""
        return math.prod(self.upsampling_ratios)

    @property
    def codebook_nbits(self) -> int:
        """Bits that one code needs."""
        return math.ceil(math.log2(self.codebook_size))

    @property
    def frame_rate(self) -> int:
        """Code steps per second, rounded up."""
        return math.ceil(self.sampling_rate / self.hop_length)

    @property
    def num_quantizers(self) -> int:
        """Codebooks that the highest bandwidth pays for."""
        return int(1000 * self.target_bandwidths[-1] // (self.frame_rate * self.codebook_nbits))


# Arguments of the released codecs.  A checkpoint's own config.json rules, above all its pad_mode.
_MUSIC = {
    "target_bandwidths": [2.2],
    "sampling_rate": 32_000,
    "num_filters": 64,
    "upsampling_ratios": [8, 5, 4, 4],
    "codebook_size": 2048,
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    "encodec_32khz": _MUSIC,
    "encodec_16khz": {**_MUSIC, "sampling_rate": 16_000, "upsampling_ratios": [8, 5, 4, 2]},
    "encodec_24khz": {},
    "encodec_48khz": {
        "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
        "sampling_rate": 48_000,
        "audio_channels": 2,
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "norm_type": "time_group_norm",
        "use_causal_conv": False,
    },
}


class Recurrence(nn.Module):
    """An LSTM over time with a skip connection, from a zero state."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers)

    def forward(self, x: Float[Tensor, "B C S"]) -> Float[Tensor, "B C S"]:
        """Output plus input."""
        steps = x.permute(2, 0, 1)  # [S, B, C]
        out: Tensor = self.lstm(steps)[0] + steps
        return out.permute(1, 2, 0)


class ResidualBlock(nn.Module):
    """A dilated convolution into fewer channels, a pointwise one back, plus the input."""

    def __init__(self, config: EncodecConfig, channels: int, dilation: int, style: ConvStyle) -> None:
        super().__init__()
        hidden = channels // config.compress
        self.block = nn.Sequential(
            nn.ELU(),
            Conv1d(channels, hidden, config.residual_kernel_size, dilation=dilation, style=style),
            nn.ELU(),
            Conv1d(hidden, channels, 1, style=style),
        )
        self.shortcut = Conv1d(channels, channels, 1, style=style) if config.use_conv_shortcut else nn.Identity()

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        """Shortcut plus block."""
        out: Tensor = self.shortcut(x) + self.block(x)
        return out


class SeaNet(nn.Module):
    """A chain of layers, numbered as released checkpoints number them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C2 T2"]:
        """Through all layers."""
        for layer in self.layers:
            x = layer(x)
        return x


def seanet_encoder(config: EncodecConfig, style: ConvStyle) -> SeaNet:
    """Audio [B, C, T] to latents [B, D, S]: residual blocks and strided convolutions, an LSTM at the lowest rate."""
    width = config.num_filters
    layers: list[nn.Module] = [Conv1d(config.audio_channels, width, config.kernel_size, style=style)]
    for ratio in reversed(config.upsampling_ratios):
        layers += _residual_blocks(config, width, style)
        layers += [nn.ELU(), Conv1d(width, 2 * width, 2 * ratio, stride=ratio, style=style)]
        width *= 2
    layers += _recurrence(config, width)
    layers += [nn.ELU(), Conv1d(width, config.hidden_size, config.last_kernel_size, style=style)]
    return SeaNet(layers)


def seanet_decoder(config: EncodecConfig, style: ConvStyle) -> SeaNet:
    """Latents [B, D, S] to audio [B, C, T]: the encoder's mirror image."""
    width = config.num_filters * 2 ** len(config.upsampling_ratios)
    layers: list[nn.Module] = [Conv1d(config.hidden_size, width, config.kernel_size, style=style)]
    layers += _recurrence(config, width)
    for ratio in config.upsampling_ratios:
        layers += [nn.ELU(), ConvTranspose1d(width, width // 2, 2 * ratio, stride=ratio, style=style)]
        width //= 2
        layers += _residual_blocks(config, width, style)
    layers += [nn.ELU(), Conv1d(width, config.audio_channels, config.last_kernel_size, style=style)]
    return SeaNet(layers)


def _residual_blocks(config: EncodecConfig, width: int, style: ConvStyle) -> list[nn.Module]:
    dilations = (config.dilation_growth_rate**i for i in range(config.num_residual_layers))
    return [ResidualBlock(config, width, dilation, style) for dilation in dilations]


def _recurrence(config: EncodecConfig, width: int) -> list[nn.Module]:
    return [Recurrence(width, config.num_lstm_layers)] if config.num_lstm_layers else []


@dataclass
class EncodecEncoderOutput(ModelOutput):
    """What `encode` gives.

    audio_codes: [chunks, B, K, S], one chunk unless the model is chunked.
    audio_scales: per chunk, the loudness [B, 1] that was divided out, or None.
    last_frame_pad_length: steps of the last chunk that are only filling; `decode` wants this number back.
    """

    audio_codes: Tensor | None = None
    audio_scales: list[Tensor | None] | None = None
    last_frame_pad_length: int | None = None


@dataclass
class EncodecDecoderOutput(ModelOutput):
    """What `decode` gives: audio_values [B, C, T]."""

    audio_values: Tensor | None = None


@dataclass
class EncodecOutput(ModelOutput):
    """What the model gives: audio_codes [chunks, B, K, S] and audio_values [B, C, T], as long as the input."""

    audio_codes: Tensor | None = None
    audio_values: Tensor | None = None


class EncodecModel(StrictLoading):
    """The codec: `encode`, `decode` and both at once, with Hugging Face's signatures, and the `Codec` protocol.

    To train, call `encoder`, `quantizer` and `decoder` in turn: in training mode the quantizer passes gradients
    straight through and its codebooks learn.  `encode` gives codes, which have no gradient.
    """

    config: EncodecConfig
    config_class = EncodecConfig
    base_model_prefix = "encodec"
    main_input_name = "input_values"
    default_dtype: ClassVar[torch.dtype | None] = torch.float32  # half precision changes codes

    def __init__(self, config: EncodecConfig) -> None:
        """Raise `RequestError` for a configuration that no codec can have."""
        super().__init__(config)
        _check(config)
        style = ConvStyle(
            causal=config.use_causal_conv,
            pad_mode=config.pad_mode,
            norm=config.norm_type,
            trim_right_ratio=config.trim_right_ratio,
        )
        self.encoder = seanet_encoder(config, style)
        self.decoder = seanet_decoder(config, style)
        self.quantizer = ResidualQuantizer(config.num_quantizers, config.codebook_size, config.hidden_size)
        self.few_bits = False
        """May decoding multiply bfloat16 and int8, on CPUs that do it quicker (codecs/streaming.py)?"""
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initial weights, as in the original implementation."""
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            reset_conv(module)
        elif isinstance(module, nn.LSTM | nn.GroupNorm | Codebook):
            module.reset_parameters()

    @property
    def sample_rate(self) -> int:
        """Audio samples per second."""
        return int(self.config.sampling_rate)

    @property
    def frame_rate(self) -> float:
        """Code steps per second (exact, where the config's rounds up)."""
        return self.sample_rate / self.hop_length

    @property
    def hop_length(self) -> int:
        """Audio samples per code step."""
        return int(self.config.hop_length)

    @property
    def channels(self) -> int:
        """Audio channels."""
        return int(self.config.audio_channels)

    @property
    def codebooks(self) -> int:
        """Codes per step (K)."""
        return len(self.quantizer.layers)

    @property
    def cardinality(self) -> int:
        """Codes in a codebook (V)."""
        return int(self.config.codebook_size)

    @torch.no_grad()
    def encode_codes(self, audio: Float[Tensor, "B C T"]) -> Int[Tensor, "B K S"]:
        """All codebooks' codes of audio in one piece.  Raises `RequestError` for models that chunk or normalise."""
        self._check_plain()
        self._check_audio(audio)
        return self.quantizer.encode(self.encoder(audio.to(self.dtype)))

    def decode_codes(self, codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B C T"]:
        """S · hop_length samples."""
        self._check_plain()
        self._check_codes(codes)
        return self._decode(codes)

    def fold_weight_norm(self) -> "EncodecModel":
        """Fold gains into weights, in place, for inference; saved files keep the weight-norm names."""
        fold_weight_norm(self)
        return self

    @torch.no_grad()
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> EncodecEncoderOutput | tuple[Tensor, list[Tensor | None], int]:
        """Audio [B, C, T] to codes.

        padding_mask: [B, T] or [B, C, T]; samples where it is 0 are silenced.
        bandwidth: kbit/s, one of `config.target_bandwidths`, the smallest by default; it sets the number of codebooks.
        """
        self._check_audio(input_values)
        codebooks = self._codebooks_for(bandwidth)
        audio = input_values.to(self.dtype)
        if padding_mask is not None:
            audio = audio * self._check_mask(padding_mask, audio)
        coded = [self._encode_chunk(chunk, codebooks) for chunk in self._chunks(audio)]
        filling = coded[0][0].shape[-1] - coded[-1][0].shape[-1]
        coded_last = nn.functional.pad(coded[-1][0], (0, filling))
        codes = torch.stack([*(codes for codes, _ in coded[:-1]), coded_last])
        scales = [scale for _, scale in coded]
        if not self._wants_dict(return_dict):
            return codes, scales, filling
        return EncodecEncoderOutput(codes, scales, filling)

    def decode(
        self,
        audio_codes: Tensor,
        audio_scales: Sequence[Tensor | None] | Tensor | None = None,
        padding_mask: Tensor | None = None,
        return_dict: bool | None = None,
        last_frame_pad_length: int | None = 0,
    ) -> EncodecDecoderOutput | tuple[Tensor]:
        """Codes [chunks, B, K, S] to audio, cut to the mask's length if that is shorter.

        audio_scales, last_frame_pad_length: as `encode` gave them; no scales means no scaling.
        """
        chunks = self._check_chunks(audio_codes)
        if last_frame_pad_length:
            chunks[-1] = chunks[-1][..., :-last_frame_pad_length]
        scales = [None] * len(chunks) if audio_scales is None else audio_scales
        pieces = [self._decode_chunk(codes, scale) for codes, scale in zip(chunks, scales, strict=False)]
        audio = pieces[0] if self.config.chunk_length is None else overlap_add(pieces, self._stride())
        if padding_mask is not None:
            audio = audio[..., : padding_mask.shape[-1]]
        return EncodecDecoderOutput(audio) if self._wants_dict(return_dict) else (audio,)

    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        audio_codes: Tensor | None = None,
        audio_scales: Sequence[Tensor | None] | Tensor | None = None,
        return_dict: bool | None = None,
        last_frame_pad_length: int | None = 0,
    ) -> EncodecOutput | tuple[Tensor, Tensor]:
        """Encode (unless codes and scales are given) and decode, cut to the input's length."""
        if (audio_codes is None) != (audio_scales is None):
            raise RequestError("audio_codes and audio_scales belong together; give both or neither.")
        if audio_codes is None:
            coded = self.encode(input_values, padding_mask, bandwidth, return_dict=False)
            audio_codes, audio_scales, last_frame_pad_length = coded
        mask = input_values if padding_mask is None else padding_mask
        audio = self.decode(audio_codes, audio_scales, mask, False, last_frame_pad_length)[0]
        return EncodecOutput(audio_codes, audio) if self._wants_dict(return_dict) else (audio_codes, audio)

    def _chunks(self, audio: Tensor) -> list[Tensor]:
        """The audio in pieces of `chunk_length` every `chunk_stride` samples, only the last one shorter.

        Hugging Face refuses lengths at which two trailing pieces would be short; the last of those repeats what the one
        before has, so it is left out here.
        """
        total, length, stride = audio.shape[-1], self.config.chunk_length, self._stride()
        if length is None:
            return [audio]
        starts = list(range(0, total, stride))
        while len(starts) > 2 and starts[-2] + length > total:
            starts.pop()
        return [audio[..., start : start + length] for start in starts]

    def _encode_chunk(self, audio: Tensor, codebooks: int) -> tuple[Tensor, Tensor | None]:
        scale = None
        if self.config.normalize:
            scale = audio.mean(dim=1, keepdim=True).pow(2).mean(dim=-1, keepdim=True).sqrt() + 1e-8  # [B, 1, 1]
            audio, scale = audio / scale, scale.view(-1, 1)
        return self.quantizer.encode(self.encoder(audio), codebooks), scale

    def _decode_chunk(self, codes: Tensor, scale: Tensor | None) -> Tensor:
        audio = self._decode(codes)
        return audio if scale is None else audio * scale.view(-1, 1, 1)

    def _decode(self, codes: Tensor) -> Tensor:
        """The modules' own way where gradients, hooks or devices ask for it."""
        from tunesmith.codecs import streaming

        if not torch.is_grad_enabled() and not self.training and streaming.runs_on_kernels(self):
            return streaming.decode(self, codes)
        audio: Tensor = self.decoder(self.quantizer.decode(codes))
        return audio

    def _stride(self) -> int:
        return self.config.chunk_stride or self.config.chunk_length or 1

    def _codebooks_for(self, bandwidth: float | None) -> int:
        offered = self.config.target_bandwidths
        if bandwidth is not None and bandwidth not in offered:
            raise RequestError(f"The codec doesn't offer {bandwidth} kbit/s; choose from {list(offered)}.")
        rate = math.log2(self.config.codebook_size) * self.config.frame_rate  # bit/s of one codebook
        wanted = math.floor(1000 * (offered[0] if bandwidth is None else bandwidth) / rate)
        return min(max(1, wanted), self.codebooks)

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)

    def _check_plain(self) -> None:
        if self.config.chunk_length is not None or self.config.normalize:
            raise RequestError(
                "This codec codes chunks with a loudness of their own, which codes alone can't carry; "
                "use `encode` and `decode`, which hand the scales over."
            )

    def _check_audio(self, audio: Tensor) -> None:
        if audio.ndim != 3 or audio.shape[1] != self.channels or 0 in audio.shape:
            raise RequestError(
                f"The audio has the shape {list(audio.shape)}; "
                f"this codec takes [batch, {self.channels}, samples] with at least one sample."
            )

    def _check_mask(self, mask: Tensor, audio: Tensor) -> Tensor:
        whole = audio.shape if mask.ndim == 3 and mask.shape[1] > 1 else (len(audio), 1, audio.shape[-1])
        if mask.ndim not in (2, 3) or mask.numel() != math.prod(whole) or mask.shape[-1] != whole[-1]:
            raise RequestError(
                f"The padding mask has the shape {list(mask.shape)} and the audio {list(audio.shape)}; "
                "a mask is [batch, samples] or [batch, channels, samples]."
            )
        return mask.view(whole).bool()

    def _check_chunks(self, codes: Tensor) -> list[Tensor]:
        if codes.ndim != 4 or len(codes) == 0 or (len(codes) > 1 and self.config.chunk_length is None):
            wanted = "1" if self.config.chunk_length is None else "chunks"
            raise RequestError(
                f"The codes have the shape {list(codes.shape)}; this codec takes [{wanted}, batch, codebooks, steps]."
            )
        self._check_codes(codes[0])
        self._check_range(codes)
        return list(codes)

    def _check_codes(self, codes: Tensor) -> None:
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.codebooks or 0 in codes.shape:
            raise RequestError(
                f"The codes have the shape {list(codes.shape)}; this codec takes "
                f"[batch, codebooks, steps] with 1 to {self.codebooks} codebooks and at least one step."
            )
        self._check_range(codes)

    def _check_range(self, codes: Tensor) -> None:
        if codes.is_floating_point():
            raise RequestError(f"The codes are of type {codes.dtype}; codes are whole numbers.")
        low, high = (int(bound) for bound in torch.aminmax(codes))
        if low < 0 or high >= self.cardinality:
            raise RequestError(f"The codes range from {low} to {high}; this codec has 0 to {self.cardinality - 1}.")


def overlap_add(chunks: list[Tensor], stride: int) -> Tensor:
    """Join chunks [B, C, T], each `stride` samples after the one before, by a triangular cross-fade.

    Each chunk is weighted by a triangle that peaks at its middle, and the sum is divided by the sum of the weights.
    """
    length = chunks[0].shape[-1]
    ramp = torch.linspace(0, 1, length + 2, dtype=chunks[0].dtype, device=chunks[0].device)[1:-1]
    triangle = 0.5 - (ramp - 0.5).abs()
    total = stride * (len(chunks) - 1) + chunks[-1].shape[-1]
    out, weights = chunks[0].new_zeros(*chunks[0].shape[:-1], total), triangle.new_zeros(total)
    for i, chunk in enumerate(chunks):
        window = triangle[: chunk.shape[-1]]
        out[..., i * stride : i * stride + len(window)] += window * chunk
        weights[i * stride : i * stride + len(window)] += window
    return out / weights


def _check(config: EncodecConfig) -> None:
    if config.codebook_dim != config.hidden_size:
        raise RequestError(
            f"codebook_dim is {config.codebook_dim} and hidden_size is {config.hidden_size}; EnCodec quantises its "
            "latents as they are, so both must be equal."
        )
    if config.codebook_size < 2 or config.codebook_size & (config.codebook_size - 1):
        raise RequestError(f"codebook_size is {config.codebook_size}; it must be a power of 2.")
    if config.num_quantizers < 1:
        raise RequestError(
            f"The highest of target_bandwidths, {config.target_bandwidths[-1]} kbit/s, doesn't pay for one codebook of "
            f"{config.frame_rate * config.codebook_nbits / 1000} kbit/s; raise it."
        )
