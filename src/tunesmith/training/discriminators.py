"""Judges of sound: networks on spectrograms of several resolutions (Défossez et al. 2022, §3.4 and figure 2)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

WINDOWS = (1024, 2048, 512, 256, 128)
"""Samples in the windows of the original's five judges."""


class Verdict(NamedTuple):
    """What a judge says of sound."""

    logits: Float[Tensor, "B 1 S F"]
    """Above 0: sounds real; for each place in the spectrogram."""
    features: list[Float[Tensor, "B _ S G"]]
    """The activations on the way there."""


class SpectrogramJudge(nn.Module):
    """Convolutions over a complex spectrogram, real and imaginary parts as channels.

    window: samples; windows overlap by three quarters.  filters: channels inside.
    """

    def __init__(self, window: int, channels: int = 1, filters: int = 32) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        self.convs = nn.ModuleList([nn.Conv2d(2 * channels, filters, (3, 9), padding=(1, 4))])
        for dilation in (1, 2, 4):
            self.convs.append(_conv(filters, filters, (3, 9), stride=(1, 2), dilation=dilation))
        self.convs.append(_conv(filters, filters, (3, 3)))
        self.conv_post = _conv(filters, 1, (3, 3))

    def forward(self, audio: Float[Tensor, "B C T"]) -> Verdict:
        """T is at least a window."""
        x, features = self.spectrogram(audio), []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.3)
            features.append(x)
        return Verdict(self.conv_post(x), features)

    def spectrogram(self, audio: Float[Tensor, "B C T"]) -> Float[Tensor, "B C2 S F"]:
        """Of whole windows only, for a window of unit energy; time before frequency."""
        hann: Tensor = self.hann  # type: ignore[assignment]  # a buffer
        with torch.autocast(audio.device.type, enabled=False):
            rows = audio.float().flatten(0, 1)
            found = torch.stft(rows, self.window, self.window // 4, window=hann, center=False, return_complex=True)
            found = (found / hann.square().sum().sqrt()).unflatten(0, audio.shape[:2])
            return torch.cat([found.real, found.imag], 1).transpose(2, 3)


class Judges(nn.Module):
    """Several judges, each at its own resolution."""

    def __init__(self, windows: tuple[int, ...] = WINDOWS, channels: int = 1, filters: int = 32) -> None:
        super().__init__()
        self.judges = nn.ModuleList(SpectrogramJudge(window, channels, filters) for window in windows)

    def forward(self, audio: Float[Tensor, "B C T"]) -> list[Verdict]:
        """One verdict each."""
        return [judge(audio) for judge in self.judges]


def judge_loss(real: list[Verdict], fake: list[Verdict]) -> Float[Tensor, ""]:
    """Hinge: logits are to be above 1 for real sound and below -1 for decoded; a mean over the judges."""
    losses = [F.relu(1 - r.logits).mean() + F.relu(1 + f.logits).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_loss(fake: list[Verdict]) -> Float[Tensor, ""]:
    """The lower, the more real the judges find it."""
    return torch.stack([-verdict.logits.mean() for verdict in fake]).mean()


def feature_loss(real: list[Verdict], fake: list[Verdict]) -> Float[Tensor, ""]:
    """Mean absolute difference of the judges' activations, a mean over layers and judges.

    The paper divides by the size of the real ones (equation 4); the original implementation doesn't, nor do we.
    """
    pairs = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r.features, f.features, strict=True)]
    return torch.stack([(f - r.detach()).abs().mean() for r, f in pairs]).mean()


def _conv(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), dilation: int = 1
) -> nn.Module:
    """Weight-normed; dilated in time; as long as its input, but for strides."""
    padding = (dilation * (kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation=(dilation, 1)))
