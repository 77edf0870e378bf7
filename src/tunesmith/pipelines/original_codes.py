"""Codes that the original implementation saved: the `data.pth.tar` beside its samples.

zs       codes [B, S] of each level, finest first
labels   of each level, finest first: y [B, 4 + G + n], info with each song's artist, genre, lyrics and full_tokens
sampling_kwargs, x (audio)   not needed
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tunesmith.conditioning.labels import GENRES, NONE, OFFSET, TOTAL
from tunesmith.convert.folders import read_pickle
from tunesmith.errors import CheckpointError
from tunesmith.requests import JukeboxRequest


@dataclass(frozen=True)
class OriginalCodes:
    """What such a file holds; lists by level are top first."""

    codes: list[Int[Tensor, "B _"]]
    labels: list[Int[Tensor, "B _"]]
    requests: tuple[JukeboxRequest, ...]
    """Of each song: as long as its codes of the top level."""


def read_original_codes(path: Path, config: Any, **fields: Any) -> OriginalCodes:
    """The codes and labels for a model of this JukeboxConfig.  fields: of the requests, besides what the file says.

    Raises CheckpointError for a file that isn't one, holds more than plain values, or is of another model.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {str(path)!r} with codes.")
    package = read_pickle(path)
    try:
        zs, labels = package["zs"], package["labels"]
        if len(zs) != len(config.prior_configs):
            raise CheckpointError(f"{str(path)!r} has codes of {len(zs)} levels; the model has {config.nb_priors}.")
        codes = [torch.as_tensor(level).long() for level in reversed(zs)]
        rows = [_labels(*pair) for pair in zip(reversed(labels), config.prior_configs, strict=True)]
        return OriginalCodes(codes, rows, tuple(_requests(codes[0], labels[-1], config, fields)))
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{str(path)!r} isn't a data.pth.tar of the original implementation for this model ({error})."
        ) from None


def _labels(labels: dict[str, Any], config: Any) -> Int[Tensor, "B Y"]:
    """With whole lyrics in place of a window of them."""
    rows = torch.as_tensor(labels["y"]).long()
    tokens = config.nb_relevant_lyric_tokens
    head = rows[:, : rows.shape[1] - tokens]
    if not tokens:
        return head
    lyrics = [torch.tensor(list(info["full_tokens"]), dtype=torch.long) for info in labels["info"]]
    assert head.shape[1] >= GENRES
    return torch.cat([head, pad_sequence(lyrics, batch_first=True, padding_value=NONE)], 1)


def _requests(codes: Tensor, labels: dict[str, Any], config: Any, fields: dict[str, Any]) -> list[JukeboxRequest]:
    rate, hop = config.sampling_rate, config.prior_configs[0].hop_length
    seconds, seed = codes.shape[1] * hop / rate, fields.pop("seed", 0)
    requests = []
    for song, info in enumerate(labels["info"]):
        total, offset = (int(labels["y"][song, column]) / rate for column in (TOTAL, OFFSET))
        requests.append(
            JukeboxRequest(
                lyrics=str(info.get("lyrics", "")),
                artist=str(info.get("artist", "")),
                genre=(str(info.get("genre", "")),),
                seconds=seconds,
                song_seconds=total if total >= offset + seconds else None,
                offset=offset,
                seed=seed + song,
                **fields,
            )
        )
    return requests
