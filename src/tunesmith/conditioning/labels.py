"""The labels of songs as one row of integers each, and the part of them that a prior sees with a window of music.

    total_length  offset  sample_length | artist | genre ... genre | lyrics ...
                 samples                   id      G ids, -1: none   A ids, -1: no more

`labels` below is such a batch, int64 [B, Y], Y = 4 + G + A: a song's whole lyrics, right-padded to the longest.  A
prior reads rows of the same kind with a window of n characters instead, left-padded with 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from tunesmith.conditioning.lyrics import PAD
from tunesmith.errors import RequestError

TOTAL, OFFSET, LENGTH, ARTIST, GENRES = range(5)
"""Columns; the genres begin at the last of them."""

NONE = -1
"""In a genre slot: no genre.  Among lyrics: no more characters.  As an index: padding."""

Samples = int | float | Sequence[int] | Tensor
"""A number of audio samples, one for all songs or one a song."""


class Window(NamedTuple):
    """What a prior reads with a window of music."""

    labels: Int[Tensor, "B Y"]
    """Y = 4 + G + n."""
    indices: Int[Tensor, "B n"]
    """Where in the song's lyrics each character stands; -1 for padding.  Alignments are written there."""


def with_timing(
    labels: Int[Tensor, "B Y"],
    *,
    sample_length: Samples,
    total_length: Samples | None = None,
    offset: Samples | None = None,
) -> Int[Tensor, "B Y"]:
    """The same labels, saying how long the songs are and which part of them is wanted; all in samples.

    Without total_length or offset the labels' own are kept where they aren't 0; else a song is as long as what is
    wanted of it, and that starts at its beginning.  Raises RequestError unless 0 <= offset < total_length.
    """
    timed = labels.clone()
    timed[:, LENGTH] = _column(sample_length, labels, "sample_length")
    timed[:, OFFSET] = labels[:, OFFSET] if offset is None else _column(offset, labels, "offset")
    own = torch.where(labels[:, TOTAL] > 0, labels[:, TOTAL], timed[:, LENGTH])
    timed[:, TOTAL] = own if total_length is None else _column(total_length, labels, "total_length")
    _check(timed[:, TOTAL], timed[:, OFFSET])
    return timed


def cut_window(
    labels: Int[Tensor, "B Y"],
    *,
    start: int,
    length: int,
    n_genres: int | None,
    n_tokens: int,
    dtype: torch.dtype = torch.float32,
) -> Window:
    """The labels of a window of music, with the lyrics that are about to be sung in it.

    start, length: in samples, from the labels' offset on; length is a whole window of the prior, also where less of it
    is made.  n_genres: G; None where the labels are without lyrics, whatever their G.  n_tokens: lyric characters that
    the prior sees.

    Lyrics are taken as spread evenly over the song: the window of text is centred at the character of the music's
    midpoint, floor(A · (offset + length/2) / total_length), and stays inside the lyrics.  The original computes that in
    float32 while it samples, and in float64 when it prepares a song; the results differ now and then, by a character.

    Raises RequestError where the window starts outside the song.
    """
    total, offset = labels[:, TOTAL], labels[:, OFFSET] + start
    _check(total, offset)
    genres_end = labels.shape[1] if n_genres is None else GENRES + n_genres
    head, lyrics = labels[:, :genres_end].clone(), labels[:, genres_end:]
    head[:, OFFSET], head[:, LENGTH] = offset, length
    count = (lyrics != NONE).sum(dim=1)
    middle = (count.to(dtype) * (offset.to(dtype) + length / 2) / total).long()
    first = torch.minimum((middle - n_tokens // 2).clamp(min=0), count - n_tokens)  # negative: so much is padding
    indices = (first[:, None] + torch.arange(n_tokens, device=labels.device)).clamp(min=NONE)  # [B, n]
    padded = functional.pad(lyrics, (1, 0), value=PAD)  # what the index -1 finds
    return Window(torch.cat([head, padded.gather(1, indices + 1)], dim=1), indices)


def lyric_lengths(labels: Int[Tensor, "B Y"], n_genres: int) -> Int[Tensor, " B"]:
    """How many characters the lyrics of each song have."""
    return (labels[:, GENRES + n_genres :] != NONE).sum(dim=1)


def per_song(values: Samples, songs: int, name: str) -> list[int]:
    """A number of samples for each song.  Raises RequestError for another count of them and for what isn't one."""
    given = values.tolist() if hasattr(values, "tolist") else values
    numbers = list(given) if isinstance(given, Sequence) else [given] * songs
    if len(numbers) != songs:
        raise RequestError(f"{name} has {len(numbers)} values for {songs} songs; give one, or one a song.")
    if not all(isinstance(number, int | float) and 0 <= number < 2**63 and number % 1 == 0 for number in numbers):
        raise RequestError(f"{name} is {given}; it is a whole number of samples, from 0 to 2^63 - 1.")
    return [int(number) for number in numbers]


def _column(values: Samples, labels: Tensor, name: str) -> Int[Tensor, " B"]:
    return labels.new_tensor(per_song(values, len(labels), name))


def _check(total: Int[Tensor, " B"], offset: Int[Tensor, " B"]) -> None:
    outside = (offset < 0) | (offset >= total)
    if outside.any():
        song = int(outside.nonzero()[0])
        raise RequestError(
            f"The labels of song {song} start at sample {int(offset[song])} of a song of {int(total[song])} samples; "
            "the offset must lie inside the total length; give a greater total_length."
        )
