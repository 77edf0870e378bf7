"""What a Jukebox VQ-VAE is trained by: how far a reconstruction is from the audio, sample by sample and by spectra."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.codecs.vqvae_config import JukeboxVQVAEConfig
from tunesmith.errors import RequestError
from tunesmith.nn.ranges import POSITIVE

SILENT = 2e-3
"""Frobenius norm of a spectrogram up to which its spectral convergence counts as 0."""


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
        check_spectrum(x.shape[1], [SPECTRUM.size])
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


def _norms(spectrogram: Float[Tensor, "B F S"]) -> Float[Tensor, " B"]:
    """Frobenius norms; their gradient is 0 where they are 0."""
    return torch.linalg.vector_norm(spectrogram, dim=(1, 2))


def check_bandwidth(given: Mapping[str, float] | None) -> Mapping[str, float]:
    """As it is; ones where there is none.  Raises RequestError for anything else."""
    bandwidth = {"l1": 1.0, "l2": 1.0, "spec": 1.0} if given is None else given
    if not isinstance(bandwidth, Mapping) or any(not POSITIVE.allows(bandwidth.get(n)) for n in ("l1", "l2", "spec")):
        raise RequestError(f"bandwidth is {bandwidth!r}; it needs numbers above 0 for l1, l2 and spec.")
    return bandwidth


def check_spectrum(samples: int, sizes: Sequence[int]) -> None:
    """Raise RequestError for audio too short for spectrograms of these sizes."""
    if samples <= max(sizes) // 2:
        raise RequestError(
            f"The audio has {samples} samples, too few for the spectrograms of the loss; "
            f"give more than {max(sizes) // 2}."
        )
