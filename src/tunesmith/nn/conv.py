"""Convolutions over audio, padded so that lengths come out whole, with weight norm that can be folded.

A convolution of stride s turns L samples into ceil(L / s) frames, and its transpose turns S frames into S·s samples
(EnCodec, Défossez et al. 2022, §3.2; the SEANet layers of the original implementation).  With P = (k - 1)·d + 1 - s:

    centred   |<- P - P//2 ->| L samples |<- P//2 ->|<- -L mod s ->|     an odd P puts its larger half on the left
    causal    |<---- P ----->| L samples            |<- -L mod s ->|     no output sees its future
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from tunesmith.errors import RequestError

GAIN, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
LEGACY_GAIN, LEGACY_DIRECTION = "weight_g", "weight_v"


@dataclass(frozen=True, kw_only=True)
class ConvStyle:
    """What all convolutions of a codec share."""

    causal: bool = False
    pad_mode: str = "reflect"  # any mode of torch.nn.functional.pad
    norm: str = "weight_norm"  # or "time_group_norm"
    trim_right_ratio: float = 1.0  # share of the excess that causal transposed convolutions cut off on the right

    def __post_init__(self) -> None:
        """Raise `RequestError` for values that no codec can have."""
        if self.norm not in ("weight_norm", "time_group_norm"):
            raise RequestError(f"norm_type is {self.norm!r}; it must be 'weight_norm' or 'time_group_norm'.")
        if self.pad_mode not in ("reflect", "constant", "replicate", "circular"):
            raise RequestError(
                f"pad_mode is {self.pad_mode!r}; it must be 'reflect', 'constant', 'replicate' or 'circular'."
            )
        if not 0.0 <= self.trim_right_ratio <= 1.0:
            raise RequestError(f"trim_right_ratio is {self.trim_right_ratio}; it must lie between 0 and 1.")
        if self.trim_right_ratio != 1.0 and not self.causal:
            raise RequestError(
                f"trim_right_ratio is {self.trim_right_ratio}, which only causal convolutions can do; "
                "set it to 1.0 or set use_causal_conv to true."
            )


def pad1d(x: Float[Tensor, "B C T"], left: int, right: int, mode: str) -> Float[Tensor, "B C T2"]:
    """Pad both ends; a clip too short to be reflected is first lengthened with zeros, which are cut off again."""
    if left == right == 0:
        return x
    lacking = max(left, right) - x.shape[-1] + 1
    if mode != "reflect" or lacking <= 0:
        return functional.pad(x, (left, right), mode)
    padded = functional.pad(functional.pad(x, (0, lacking)), (left, right), mode)
    return padded[..., : padded.shape[-1] - lacking]


class Conv1d(nn.Module):
    """A convolution that makes ceil(T / stride) frames of T samples."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, dilation: int = 1, style: ConvStyle
    ) -> None:
        super().__init__()
        self.conv = _normed(nn.Conv1d(channels, out_channels, kernel, stride, dilation=dilation), style)
        self.norm = _output_norm(out_channels, style)
        self.stride, self.pad_mode = stride, style.pad_mode
        total = (kernel - 1) * dilation + 1 - stride
        self.right = 0 if style.causal else total // 2
        self.left = total - self.right

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C2 S"]:
        """Pad the last window full, then convolve."""
        filled = self.right + -x.shape[-1] % self.stride
        out: Tensor = self.norm(self.conv(pad1d(x, self.left, filled, self.pad_mode)))
        return out


class ConvTranspose1d(nn.Module):
    """The way back: S frames become exactly S · stride samples."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, style: ConvStyle) -> None:
        super().__init__()
        self.conv = _normed(nn.ConvTranspose1d(channels, out_channels, kernel, stride), style)
        self.norm = _output_norm(out_channels, style)
        excess = kernel - stride
        self.right = ceil(excess * style.trim_right_ratio) if style.causal else excess // 2
        self.left = excess - self.right

    def forward(self, x: Float[Tensor, "B C S"]) -> Float[Tensor, "B C2 T"]:
        """Convolve, normalise over all that comes out, then cut the excess off."""
        out: Tensor = self.norm(self.conv(x))
        return out[..., self.left : out.shape[-1] - self.right]


def reset_conv(conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
    """Draw fresh weights as torch does: direction (or weight) and bias uniform, gain equal to the direction's norm."""
    conv.reset_parameters()
    if parametrize.is_parametrized(conv, "weight"):
        direction = nn.init.kaiming_uniform_(conv.get_parameter(DIRECTION), a=5**0.5)
        with torch.no_grad():
            conv.get_parameter(GAIN).copy_(_norm(direction))


def fold_weight_norm(module: nn.Module) -> None:
    """Replace gain and direction by their product, in place, in every convolution below `module`.

    For inference: the product is no longer formed at every call.  State dicts keep the weight-norm names both ways.
    """
    for conv in module.modules():
        if isinstance(conv, nn.Conv1d | nn.ConvTranspose1d) and parametrize.is_parametrized(conv, "weight"):
            weight, learns = conv.weight.detach(), conv.get_parameter(DIRECTION).requires_grad
            # Not torch's remove_parametrizations: it breaks deep copies of the layer, which share its dynamic class.
            conv.__class__ = type(conv).__bases__[0]
            del conv.parametrizations
            conv.weight = nn.Parameter(weight, requires_grad=learns)
            conv.register_state_dict_post_hook(_unfold_on_save)
            conv.register_load_state_dict_pre_hook(_fold_on_load)


def _normed(conv: nn.Conv1d | nn.ConvTranspose1d, style: ConvStyle) -> nn.Module:
    if style.norm == "time_group_norm":
        return conv
    # Over dimension 0, which for transposed convolutions is the *input* channel: released checkpoints have it so.
    parametrizations.weight_norm(conv, dim=0)
    conv.register_load_state_dict_pre_hook(_rename_legacy)
    return conv


def _output_norm(channels: int, style: ConvStyle) -> nn.Module:
    return nn.GroupNorm(1, channels) if style.norm == "time_group_norm" else nn.Identity()


def _norm(direction: Tensor) -> Tensor:
    return torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.ndim)), keepdim=True)


def _rename_legacy(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for old, new in ((LEGACY_GAIN, GAIN), (LEGACY_DIRECTION, DIRECTION)):
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)


def _unfold_on_save(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    weight = state.pop(prefix + "weight")
    state[prefix + GAIN], state[prefix + DIRECTION] = _norm(weight), weight


def _fold_on_load(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if prefix + GAIN in state and prefix + DIRECTION in state:
        gain, direction = state.pop(prefix + GAIN), state.pop(prefix + DIRECTION)
        state[prefix + "weight"] = gain * direction / _norm(direction)
