"""What a codec is asked for, in differentiable form."""

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
