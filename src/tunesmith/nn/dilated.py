"""Stacks of dilated residual convolutions with strided ones between (Jukebox: Dhariwal et al. 2020, §3 and appendix B).

    down   x [B, C, T] -> stages x (strided convolution, stack) -> convolution -> [B, D, T / stride^stages]
    up     x [B, D, S] -> convolution -> stages x (stack, transposed convolution) -> [B, C, S · stride^stages]

The Jukebox VQ-VAE is built of both, and the upsamplers' conditioner is one block that goes up.  Not causal; all
padding is with zeros, as much as keeps the length; strides are even.  Parameter names are those of Hugging Face's
Jukebox.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["DilatedBlock", "DilatedStack", "DilatedStyle", "DownBlock", "UpBlock"]


@dataclass(frozen=True, kw_only=True)
class DilatedStyle:
    """What the stacks of a block share."""

    depth: int  # residual blocks in a stack
    growth: int = 1  # block i has dilation growth^i ...
    cycle: int | None = None  # ... and i starts again at 0 after this many blocks
    reverse: bool = False  # largest dilation first, as in VQ-VAE decoders, not in upsamplers' conditioners
    multiplier: int | float = 1.0  # inner width of a block over its outer width (m_conv)
    scaled: bool = False  # divide what blocks add by √depth

    @property
    def dilations(self) -> list[int]:
        """In the order of the blocks."""
        grown = [self.growth ** (i % self.cycle if self.cycle else i) for i in range(self.depth)]
        return grown[::-1] if self.reverse else grown

    @property
    def reach(self) -> int:
        """How many steps away, to either side, the inputs lie that an output of a stack can see."""
        return sum(self.dilations)

    @property
    def residual_scale(self) -> float:
        """What the output of a block is multiplied by before its input is added."""
        return 1.0 / math.sqrt(self.depth) if self.scaled else 1.0


class DilatedBlock(nn.Module):
    """ReLU, dilated convolution, ReLU, pointwise convolution, plus the input."""

    def __init__(self, width: int, hidden: int, dilation: int, scale: float) -> None:
        super().__init__()
        self.conv1d_1 = nn.Conv1d(width, hidden, 3, padding=dilation, dilation=dilation)
        self.conv1d_2 = nn.Conv1d(hidden, width, 1)
        self.scale = scale

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        """The input plus scale · f(input)."""
        added: Tensor = self.conv1d_2(self.conv1d_1(x.relu()).relu_())
        return x + self.scale * added if self.scale != 1.0 else x + added


class DilatedStack(nn.Module):
    """Residual blocks of the style's dilations, one after the other."""

    def __init__(self, width: int, style: DilatedStyle) -> None:
        super().__init__()
        hidden = int(style.multiplier * width)
        self.resnet_block = nn.ModuleList(
            DilatedBlock(width, hidden, dilation, style.residual_scale) for dilation in style.dilations
        )

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        """Through all blocks."""
        for block in self.resnet_block:
            x = block(x)
        return x


class DownBlock(nn.Module):
    """`stages` times (a convolution that divides the length by `stride`, a stack), then a convolution to `out`."""

    def __init__(self, channels: int, width: int, out: int, *, stages: int, stride: int, style: DilatedStyle) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in range(stages):
            layers += [
                nn.Conv1d(width if stage else channels, width, 2 * stride, stride, padding=stride // 2),
                DilatedStack(width, style),
            ]
        self.downsample_block = nn.ModuleList(layers)
        self.proj_out = nn.Conv1d(width if stages else channels, out, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B D S"]:
        """Each stage drops what doesn't fill a stride."""
        for layer in self.downsample_block:
            x = layer(x)
        out: Tensor = self.proj_out(x)
        return out


class UpBlock(nn.Module):
    """A convolution, then `stages` times (a stack, a transposed convolution that multiplies the length by `stride`)."""

    def __init__(self, channels: int, width: int, out: int, *, stages: int, stride: int, style: DilatedStyle) -> None:
        super().__init__()
        self.proj_in = nn.Conv1d(channels, width, 3, padding=1)
        layers: list[nn.Module] = []
        for stage in range(stages):
            wide = out if stage == stages - 1 else width
            layers += [
                DilatedStack(width, style),
                nn.ConvTranspose1d(width, wide, 2 * stride, stride, padding=stride // 2),
            ]
        self.upsample_block = nn.ModuleList(layers)

    def forward(self, x: Float[Tensor, "B D S"]) -> Float[Tensor, "B C T"]:
        """T = S · stride^stages."""
        x = self.proj_in(x)
        for layer in self.upsample_block:
            x = layer(x)
        return x
