"""What a codec is asked for, in differentiable form."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.evaluation.codec import mel_filters

FLOOR = 3e-4  # amplitude of a band below which differences hardly count (-70 dBFS): rendered music is silent up there


class MelLoss(nn.Module):
    """Mean absolute difference of log mel amplitudes (natural logarithm), averaged over window lengths.

    Multi-scale as in EnCodec (Défossez et al. 2022, eq. 2), but on amplitudes above a floor.
    """

    def __init__(
        self,
        rate: int,
        windows: Sequence[int] = (2048, 1024, 512),
        bands: Sequence[int] = (80, 64, 40),
        floor: float = FLOOR,
    ) -> None:
        super().__init__()
        self.windows, self.floor = tuple(windows), floor
        for window, count in zip(windows, bands, strict=True):
            self.register_buffer(f"filters{window}", mel_filters(rate, window, count), persistent=False)
            self.register_buffer(f"hann{window}", torch.hann_window(window), persistent=False)

    def forward(self, reference: Float[Tensor, "B T"], estimate: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Zero for equal signals; one neper is 8.7 dB."""
        scales = [
            (self._log_mel(reference, window) - self._log_mel(estimate, window)).abs().mean() for window in self.windows
        ]
        return torch.stack(scales).mean()

    def _log_mel(self, audio: Tensor, window: int) -> Tensor:
        hann: Tensor = getattr(self, f"hann{window}")
        filters: Tensor = getattr(self, f"filters{window}")
        spectrum = torch.stft(audio, window, window // 4, window=hann, pad_mode="constant", return_complex=True)
        return (filters @ spectrum.abs() / hann.sum() + self.floor).log()


def soft_si_sdr(reference: Float[Tensor, "B T"], estimate: Float[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), kept finite for silent clips."""
    reference, estimate = (x - x.mean(-1, keepdim=True) for x in (reference, estimate))
    scale = (reference * estimate).sum(-1, keepdim=True) / (reference.square().sum(-1, keepdim=True) + 1e-4)
    target = scale * reference
    kept, lost = target.square().sum(-1), (estimate - target).square().sum(-1)
    return 10 * ((kept + 1e-5) / (lost + 1e-5)).log10()


class MultiScaleMel(nn.Module):
    """Differences of mel spectrograms at several resolutions, in power and in its logarithm (EnCodec, Défossez et al.
    2022, equation 2), as the original implementation weighs them: for each window the mean absolute difference of power
    plus the mean square of that of log10(1e-5 + power), the sum divided by twice the number of windows.

    Powers are of windows of unit energy, in `bands` triangles of height 1 on the mel scale of O'Shaughnessy from
    `lowest` Hz to half the rate.
    """

    def __init__(
        self,
        rate: int,
        windows: Sequence[int] = (64, 128, 256, 512, 1024),
        bands: int = 64,
        lowest: float = 64.0,
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        for window in self.windows:
            self.register_buffer(f"filters{window}", mel_triangles(rate, window, bands, lowest), persistent=False)
            self.register_buffer(f"hann{window}", torch.hann_window(window), persistent=False)

    def forward(self, reference: Float[Tensor, "B C T"], estimate: Float[Tensor, "B C T"]) -> Float[Tensor, ""]:
        """Zero for equal signals; T is more than three eighths of the longest window."""
        total = reference.new_zeros(())
        for window in self.windows:
            one, other = (self._mel(audio.flatten(0, 1), window) for audio in (reference, estimate))
            logs = (1e-5 + one).log10() - (1e-5 + other).log10()
            total = total + (one - other).abs().mean() + logs.square().mean()
        return total / (2 * len(self.windows))

    def _mel(self, audio: Float[Tensor, "R T"], window: int) -> Float[Tensor, "R bands S"]:
        hann: Tensor = getattr(self, f"hann{window}")
        filters: Tensor = getattr(self, f"filters{window}")
        hop = window // 4
        edge, rest = (window - hop) // 2, -audio.shape[-1] % hop
        padded = nn.functional.pad(nn.functional.pad(audio[:, None], (edge, edge), "reflect"), (0, rest))[:, 0]
        spectrum = torch.stft(padded, window, hop, window=hann, center=False, return_complex=True)
        return filters @ (spectrum.real.square() + spectrum.imag.square()) / hann.square().sum()


def mel_triangles(rate: int, window: int, bands: int, lowest: float) -> Float[Tensor, "bands bins"]:
    """Triangles of height 1 whose feet are equally far apart in mel = 2595 log10(1 + Hz / 700)."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (lowest, rate / 2))
    feet = 700 * (10 ** (torch.linspace(low, high, bands + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    rising = (bins - feet[:-2, None]) / (feet[1:-1] - feet[:-2])[:, None]
    falling = (feet[2:, None] - bins) / (feet[2:] - feet[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()
