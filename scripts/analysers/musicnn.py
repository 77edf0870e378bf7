"""musicnn (Pons and Serra 2019): a network that hears 50 tags of MagnaTagATune in three seconds of music.

Written from the paper and the package's description of the network; the weights are the package's.  Log-mel spectra in,
a front end of tall filters (timbre) and long ones (time), three residual layers, pooling over time, two dense layers.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from analysers.checkpoint import read_checkpoint
from tunesmith.evaluation.codec import mel_edges, mel_filters

RATE, WINDOW, HOP, BANDS, PATCH = 16000, 512, 256, 96, 187
TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano", "ambient",
    "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing", "vocals", "no vocals",
    "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop", "soft", "sitar", "solo",
    "man", "classic", "choir", "voice", "new age", "dance", "male voice", "female vocal", "beats", "harp", "cello",
    "no voice", "weird", "country", "metal", "female voice", "choral",
)  # fmt: skip


def installed_weights() -> Path | None:
    """The folder of weights in the installed package, if there is one (found without importing it)."""
    spec = find_spec("musicnn")
    places = [Path(place) / "MTT_musicnn" for place in (spec.submodule_search_locations or [])] if spec else []
    return next((place for place in places if (place / ".index").is_file()), None)


def log_mel(audio: Tensor) -> Tensor:
    """[T] at 16 kHz -> [frames, 96], log10 of the mel power as the network was trained on it."""
    spectrum = torch.stft(
        audio.float(), WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="reflect", return_complex=True
    )
    mel = _area_filters() @ spectrum.abs().square()
    return (1 + 10000 * mel.half().float()).log10().T  # the original computes through half precision


@cache
def _area_filters() -> Tensor:
    """Triangles of area 1 Hz instead of height 1."""
    edges = mel_edges(RATE, BANDS)
    return mel_filters(RATE, WINDOW, BANDS) * (2 / (edges[2:] - edges[:-2]))[:, None].float()


def patches(audio: Tensor) -> Tensor:
    """[T] (3 s at least) -> [patches, 187, 96]: as many as needed to cover the clip, evenly spaced."""
    mel = log_mel(audio)
    count = -(-len(mel) // PATCH)
    starts = np.linspace(0, len(mel) - PATCH, count).round().astype(int)
    return torch.stack([mel[start : start + PATCH] for start in starts])


class MusicNN:
    """The network; `hear` is all there is to call."""

    def __init__(self, weights: Path) -> None:
        tensors = read_checkpoint(weights / ".index", weights / ".data-00000-of-00001")
        self.tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}

    @torch.no_grad()
    def hear(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[T] at 16 kHz -> probabilities of `TAGS` [patches, 50] and embeddings [patches, 200]."""
        x = self._norm(patches(audio)[:, None], 0)  # [B, 1, frames, bands]
        tall = functional.pad(x, (0, 0, 3, 3))
        front = [self._conv(tall, layer).amax(3) for layer in (0, 1)]
        # Kernels of even length: one frame less before than after, as the original pads.
        front += [
            self._conv(functional.pad(x, (0, 0, size // 2 - 1, size // 2)), layer).amax(3)
            for layer, size in ((2, 128), (3, 64), (4, 32))
        ]
        layers = [torch.cat(front, 1)]  # [B, channels, frames]
        first = self._residual(layers[0], 5)
        second = first + self._residual(first, 6)
        third = second + self._residual(second, 7)
        return self._back(torch.cat([*layers, first, second, third], 1))

    def _back(self, features: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self._norm(torch.stack([features.amax(2), features.mean(2)], 2).flatten(1), 9)
        embedding = self._norm(functional.relu(self._dense(pooled, "dense")), 10)
        return self._dense(embedding, "dense_1").sigmoid(), embedding

    def _residual(self, x: Tensor, layer: int) -> Tensor:
        image = functional.pad(x.transpose(1, 2)[:, None], (0, 0, 3, 3))
        return self._conv(image, layer)[..., 0]

    def _conv(self, x: Tensor, layer: int) -> Tensor:
        name = "conv2d" + _suffix(layer)
        kernel = self.tensors[f"{name}/kernel"].permute(3, 2, 0, 1)
        return self._norm(functional.relu(functional.conv2d(x, kernel, self.tensors[f"{name}/bias"])), layer + 1)

    def _norm(self, x: Tensor, layer: int) -> Tensor:
        name = "batch_normalization" + _suffix(layer)
        mean, variance = self.tensors[f"{name}/moving_mean"], self.tensors[f"{name}/moving_variance"]
        return functional.batch_norm(
            x, mean, variance, self.tensors[f"{name}/gamma"], self.tensors[f"{name}/beta"], eps=1e-3
        )

    def _dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self.tensors[f"{name}/kernel"] + self.tensors[f"{name}/bias"]


def _suffix(layer: int) -> str:
    return f"_{layer}" if layer else ""
