"""Is it sound at all?  Level, clipping, noise and onsets of a clip, without any judgement of taste."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tunesmith.evaluation.codec import decibels, power_spectrum

_WINDOW = 1024
_HOP = _WINDOW // 4
_SILENCE_DBFS = -60.0


@dataclass(frozen=True, kw_only=True)
class Sanity:
    """Plain facts about one clip."""

    rms_dbfs: float
    """Level; a full-scale square wave has 0."""
    crest_db: float
    """Peak over level: 3 for a sine, 10 to 20 for music, near 0 for a square wave."""
    clipped_share: float
    """Share of samples at the edge of the scale (|x| >= 0.999) beside another such sample."""
    silent_share: float
    """Share of 64 ms frames below -60 dBFS."""
    flatness: float
    """Spectral flatness of the audible frames: near 0 for tones, 0.56 for white noise."""
    onsets_per_second: float


def measure(audio: Float[Tensor, "T"], rate: int) -> Sanity:
    """Look at one channel of at least 1024 samples."""
    audio = audio.float()
    rms, peak = audio.square().mean().sqrt().item(), audio.abs().max().item()
    loud = _frame_levels(audio) > _SILENCE_DBFS
    return Sanity(
        rms_dbfs=_db(rms),
        crest_db=_db(peak) - _db(rms),
        clipped_share=_clipped(audio).float().mean().item(),
        silent_share=1 - loud.float().mean().item(),
        flatness=flatness(audio),
        onsets_per_second=len(onsets(audio, rate)) / (len(audio) / rate),
    )


def problems(
    sanity: Sanity,
    *,
    rms_dbfs_at_least: float = -45.0,
    clipped_share_at_most: float = 0.001,
    crest_db_at_least: float = 6.0,
    flatness_at_most: float = 0.3,
) -> list[str]:
    """Which of `silent`, `clipped` and `noise` a clip is; empty for sound music."""
    found = {
        "silent": sanity.rms_dbfs < rms_dbfs_at_least,
        "clipped": sanity.clipped_share > clipped_share_at_most or sanity.crest_db < crest_db_at_least,
        "noise": sanity.flatness > flatness_at_most,
    }
    return [name for name, bad in found.items() if bad]


def flatness(audio: Float[Tensor, "T"]) -> float:
    """Geometric over arithmetic mean of a frame's power spectrum, averaged over the frames within 40 dB of the
    loudest; 1 for a silent clip.
    """
    power = power_spectrum(audio, _WINDOW)[1:-1].double()  # [bins, frames]; the ends hold half a bin each
    energy = power.sum(0)
    if not energy.max() > 0:
        return 1.0
    power = power[:, energy > energy.max() * 1e-4].clamp(min=1e-16)
    return (power.log().mean(0).exp() / power.mean(0)).mean().item()


def onsets(audio: Float[Tensor, "T"], rate: int) -> list[float]:
    """Times in seconds where the spectrum suddenly grows: peaks of the spectral flux above a moving mean (Bello et al.
    2005).
    """
    flux = _flux(audio)
    near = max(1, round(0.1 * rate / _HOP))  # an onset is the largest flux within 0.1 s, and stands out from 0.5 s
    largest = _windowed(flux, near).amax(1)
    usual = _windowed(flux, 5 * near).mean(1)
    peaks = (flux == largest) & (flux > 1.5 * usual + 0.5)
    # Flux n compares the windows n and n + 2: together they are centred three quarters of a window after n's start.
    return [(int(frame) * _HOP + 0.75 * _WINDOW) / rate for frame in peaks.nonzero()]


def pulse(audio: Float[Tensor, "T"], rate: int) -> float:
    """How regularly onsets come, from about 0 to 1: the highest autocorrelation of the spectral flux at 0.33 to 1.05 s.

    The clip lasts 2 s at least; one whose spectrum never grows has 0.
    """
    flux = _flux(audio)
    flux = flux - flux.mean()
    spectrum = torch.fft.rfft(flux, 2 * len(flux))
    likeness = torch.fft.irfft(spectrum.abs().square())
    first, last = (round(seconds * rate / _HOP) for seconds in (0.33, 1.05))
    return (likeness[first : last + 1].max() / likeness[0]).item() if likeness[0] > 0 else 0.0


def _flux(audio: Float[Tensor, "T"]) -> Float[Tensor, "F"]:
    """Growth of the spectrum over half a window, in dB, averaged over bins."""
    level = decibels(power_spectrum(audio, _WINDOW))  # [bins, frames]
    return (level[:, 2:] - level[:, :-2]).clamp(min=0).mean(0)


def _windowed(values: Float[Tensor, "F"], reach: int) -> Float[Tensor, "F W"]:
    """The values within `reach` of each one; the ends are repeated."""
    padded = torch.nn.functional.pad(values[None, None], (reach, reach), mode="replicate")[0, 0]
    return padded.unfold(0, 2 * reach + 1, 1)


def _frame_levels(audio: Float[Tensor, "T"]) -> Float[Tensor, "F"]:
    frames = audio[: len(audio) // _WINDOW * _WINDOW].reshape(-1, _WINDOW)
    return decibels(frames.square().mean(1), floor=-120.0)


def _clipped(audio: Float[Tensor, "T"]) -> Bool[Tensor, "T"]:
    edge = audio.abs() >= 0.999
    before, after = torch.nn.functional.pad(edge, (1, 0))[:-1], torch.nn.functional.pad(edge, (0, 1))[1:]
    return edge & (before | after)


def _db(amplitude: float) -> float:
    return 20 * torch.tensor(max(amplitude, 1e-6)).log10().item()
