"""Activations of Jukebox's priors as features of music (Castellon et al. 2021: layer 36 of the 5b prior, the mean).

Audio is encoded by the VQ-VAE, and its codes go through the first layers of one prior, a window after another.  Other
priors are never loaded: give a model whose priors stay on disk (`one_prior_at_a_time=True`).
"""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from tunesmith.audio import Clip, write_atomically
from tunesmith.conditioning.labels import GENRES, NONE, cut_window
from tunesmith.errors import RequestError
from tunesmith.generation.windows import upper_slice, window_starts
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.models.jukebox_checks import check_labels, check_layer

POOLS = ("mean", "max", "none")


@torch.no_grad()
def features(
    model: Any,
    audio: Float[Tensor, "B T 1"],
    layer: int = 36,
    pool: str | None = "mean",
    *,
    level: int = 0,
    labels: Int[Tensor, "B Y"] | None = None,
) -> Float[Tensor, "B D"] | Float[Tensor, "B S D"]:
    """What the first `layer` layers of a prior make of audio, in float32.

    model: a JukeboxModel; of its priors only that of `level` (0 is the top) is used.  layer: 1 is the first layer's
    output, 0 their input.  pool: over time: "mean", "max" or (also None) "none", a vector a code.  labels: as the
    tokenizer makes them for this level; by default an unknown artist without genres and lyrics.  Audio longer than a
    window goes through in windows side by side, the last one overlapping, each code counted once; what doesn't fill a
    code of the level is left out.  Raises RequestError before any work for a layer or labels that the prior doesn't
    have, and for audio that is as long as the longest song the model knows (`max_duration`): give parts of it.
    """
    if (pool or "none") not in POOLS:
        raise RequestError(f"There is no pool {pool!r}; known are {', '.join(POOLS)}.")
    if not 0 <= level < len(model.priors):
        raise RequestError(f"There is no level {level}; this model has 0 (top) to {len(model.priors) - 1}.")
    config, finest = model.config.prior_configs[level], len(model.priors) - 1 - level
    check_layer(config, layer)
    model.vqvae._check_audio(audio, at_least=config.hop_length)
    rows = _labels(config, len(audio), audio.shape[1]) if labels is None else labels
    windows = _windows(config, rows, audio.shape[1], len(audio))
    codes = model.encode(audio, finest, min(finest + 2, len(model.priors)))  # this level's, and those above it
    upper = codes[0] if level else None
    with model.open_prior(level) as prior:
        pieces = [_activations(prior, window, codes[-1], upper, layer) for window in windows]
    return _pooled(torch.cat(pieces, 1), pool)


class _Window(NamedTuple):
    """start: in codes; fresh: from which of its codes on they aren't in windows before."""

    start: int
    fresh: int
    labels: Int[Tensor, "B Y"]


def _windows(config: JukeboxPriorConfig, labels: Int[Tensor, "B Y"], samples: int, songs: int) -> list[_Window]:
    """All that cover so much audio, with what the prior reads in each, checked."""
    c, total, windows = config, samples // config.hop_length, []
    starts = window_starts(total, c.n_ctx, c.n_ctx, c.upper_ratio)
    for before, start in zip([-c.n_ctx, *starts], starts, strict=False):
        window = cut_window(
            labels,
            start=start * c.hop_length,
            length=c.window_length,
            n_genres=c.max_nb_genres,
            n_tokens=c.nb_relevant_lyric_tokens,
        )
        check_labels(c, window.labels, songs)
        windows.append(_Window(start, before + c.n_ctx - start, window.labels))
    return windows


def _activations(
    prior: JukeboxPrior, window: _Window, codes: Tensor, upper: Tensor | None, layer: int
) -> Float[Tensor, "B S D"]:
    """Of the codes that are fresh in a window."""
    c, start = prior.config, window.start
    above = None if upper is None else upper_slice(upper, start, c.n_ctx, c.upper_ratio)
    part = codes[:, start : start + c.n_ctx]
    return prior.activations(part, window.labels.to(prior.device), above, layer=layer)[:, window.fresh :]


def _pooled(frames: Float[Tensor, "B S D"], pool: str | None) -> Tensor:
    if pool == "mean":
        return frames.mean(1)
    return frames.amax(1) if pool == "max" else frames


def _labels(config: JukeboxPriorConfig, songs: int, samples: int) -> Int[Tensor, "B Y"]:
    """Nobody in particular, of a song that is as long as the audio."""
    rate, longest = config.sampling_rate, int(config.max_duration * config.sampling_rate) - 1
    if samples > longest:
        raise RequestError(
            f"The audio lasts {samples / rate:g} s; this model knows songs below {config.max_duration:g} s, so give "
            "parts of it."
        )
    total = min(max(samples, config.window_length, math.ceil(config.min_duration * rate)), longest)
    row = [total, 0, 0, 0, *[NONE] * config.max_nb_genres]
    assert len(row) == GENRES + config.max_nb_genres
    return torch.tensor([row]).expand(songs, -1)


def samples_of(audio: Any, rate: int) -> Float[Tensor, "B T 1"]:
    """A file, a Clip (mixed to mono, at the model's rate), or samples as they are."""
    if isinstance(audio, Tensor | np.ndarray):
        return torch.as_tensor(audio, dtype=torch.float32)
    clip = audio if isinstance(audio, Clip) else Clip.read(audio)
    return torch.from_numpy(clip.remix(1).resample(rate).samples.T[None].copy())


def save_features(path: Path, features: Mapping[str, Tensor]) -> None:
    """As .safetensors or .npz, a tensor by its name; the file appears whole or not at all.  Raises AudioFileError.

    Of names that aren't Unicode, as those of files may be, the odd bytes are written as escapes.
    """
    tensors = {name.encode(errors="backslashreplace").decode(): tensor.float() for name, tensor in features.items()}
    if path.suffix == ".safetensors":
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:  # numpy.savez can't hold an array of the name "file"
            for name, tensor in tensors.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, tensor.numpy())
        data = buffer.getvalue()
    write_atomically(path, data)
