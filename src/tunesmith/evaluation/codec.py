"""How close a codec's reconstruction is to the original, and how evenly it uses its codes.

Spectra are in dB relative to a full-scale sine and end at a floor of -74 dBFS: the upper bands of rendered music are
digital silence, and without the floor a measure spends itself on differences that nobody can hear.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOOR_DBFS = -74.0

_LINEAR_HZ = 200 / 3  # Slaney's scale: linear up to 1 kHz (15 mel), then 27 mel for each factor of 6.4
_BREAK_HZ, _BREAK_MEL, _MEL_PER_LOG = 1000.0, 15.0, 27 / torch.log(torch.tensor(6.4, dtype=torch.float64)).item()


def si_sdr(reference: Float[Tensor, "*B T"], estimate: Float[Tensor, "*B T"]) -> Float[Tensor, "*B"]:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, eq. 2-4), of signals freed of their mean.

    100 dB is the most that is reported (equal signals), and -100 dB the least (a silent or unrelated estimate).
    """
    reference, estimate = (x.double() - x.double().mean(-1, keepdim=True) for x in (reference, estimate))
    energy = reference.square().sum(-1, keepdim=True)
    target = (estimate * reference).sum(-1, keepdim=True) / energy.clamp(min=1e-30) * reference
    kept, lost = target.square().sum(-1), (estimate - target).square().sum(-1)
    ratio = (kept + 1e-30) / (lost + 1e-30)
    ratio = torch.where(kept == 0, 0, ratio)
    return (10 * ratio.clamp(1e-10, 1e10).log10()).to(torch.float32)


def mel_edges(rate: int, bands: int) -> Float[Tensor, "edges"]:
    """Frequencies in Hz, bands + 2 of them, evenly spaced on Slaney's mel scale from 0 to half the rate (> 1 kHz)."""
    top = _BREAK_MEL + torch.log(torch.tensor(rate / 2 / _BREAK_HZ, dtype=torch.float64)) * _MEL_PER_LOG
    return _mel_to_hz(torch.linspace(0, float(top), bands + 2, dtype=torch.float64))


def mel_filters(rate: int, window: int, bands: int) -> Float[Tensor, "bands bins"]:
    """Triangles of height 1: each rises from one of `mel_edges` to the next and falls to the one after.

    `bins` = window // 2 + 1.
    """
    edges = mel_edges(rate, bands)
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window
    low, centre, high = (edges[i : i + bands, None] for i in range(3))
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < _BREAK_MEL, mel * _LINEAR_HZ, _BREAK_HZ * ((mel - _BREAK_MEL) / _MEL_PER_LOG).exp())


def power_spectrum(audio: Float[Tensor, "*B T"], window: int) -> Float[Tensor, "*B bins frames"]:
    """Power of Hann windows that overlap by three quarters; a full-scale sine has a peak of 1 (0 dBFS).

    Only whole windows are looked at, so T >= `window`, and the cut at the ends is no event.
    """
    hann = torch.hann_window(window, device=audio.device)
    flat = audio.float().reshape(-1, audio.shape[-1])
    spectrum = torch.stft(flat, window, window // 4, window=hann, center=False, return_complex=True)
    power = (spectrum.abs() * (2 / hann.sum())).square()
    return power.reshape(*audio.shape[:-1], *power.shape[1:])


def decibels(power: Float[Tensor, "*S"], floor: float = FLOOR_DBFS) -> Float[Tensor, "*S"]:
    """10 log10 of a power, no lower than `floor`."""
    return 10 * power.clamp(min=10 ** (floor / 10)).log10()


def mel_distance(
    reference: Float[Tensor, "*B T"],
    estimate: Float[Tensor, "*B T"],
    rate: int,
    *,
    windows: Sequence[int] = (512, 1024, 2048),
    bands: int = 64,
    floor: float = FLOOR_DBFS,
) -> Float[Tensor, "*B"]:
    """Mean absolute difference of mel spectra in dB, averaged over window lengths (in samples)."""

    def mel(audio: Tensor, window: int) -> Tensor:
        filters = mel_filters(rate, window, bands).to(audio.device)
        return decibels(filters @ power_spectrum(audio, window), floor)

    scales = [(mel(reference, window) - mel(estimate, window)).abs().mean((-2, -1)) for window in windows]
    return torch.stack(scales).mean(0)


def log_spectral_distance(
    reference: Float[Tensor, "*B T"],
    estimate: Float[Tensor, "*B T"],
    *,
    window: int = 2048,
    floor: float = FLOOR_DBFS,
) -> Float[Tensor, "*B"]:
    """Root mean square difference in dB over the bins of a frame (Gray and Markel 1976), averaged over frames."""
    first, second = (decibels(power_spectrum(audio, window), floor) for audio in (reference, estimate))
    return (first - second).square().mean(-2).sqrt().mean(-1)


def code_counts(codes: Int[Tensor, "B K S"], cardinality: int) -> Int[Tensor, "K V"]:
    """How often each code of each codebook occurs."""
    return torch.stack([torch.bincount(book.flatten(), minlength=cardinality) for book in codes.unbind(1)])


def code_usage(counts: Int[Tensor, "K V"]) -> Float[Tensor, "K"]:
    """Share of a book's codes that occur at all."""
    return (counts > 0).float().mean(1)


def code_perplexity(counts: Int[Tensor, "K V"]) -> Float[Tensor, "K"]:
    """exp(entropy): the size of the uniformly used book that would carry as much; V at best, 1 for a collapsed book."""
    share = counts.double() / counts.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp().float()
