"""Which words are sung when: read off the attention of a prior to its lyrics.

A prior with lyrics has a layer and a head or two that look, for each code of music, at the characters being sung
(Dhariwal et al. 2020, section 5.3).  `align` collects that attention over the windows of a song into one matrix
[S, A], codes by characters; `best_heads` looks for the layer and head on given music; `timed` turns a matrix into the
times of words and lines, for the lyric page, LRC and JSON.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tunesmith.conditioning.labels import Window, cut_window, lyric_lengths
from tunesmith.errors import RequestError
from tunesmith.generation.windows import hop_of, window_starts
from tunesmith.models.jukebox import JukeboxPrior

STEP = 0.05
"""Seconds: what timed lyrics are exact to."""

WORD, LINE = re.compile(r"\S+"), re.compile(r"[^\n]*\S[^\n]*")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A piece of text and when it is sung, in seconds; None: not in this part of the song."""

    text: str
    start: float | None
    end: float | None

    @classmethod
    def from_dict(cls, record: Any) -> "Timed":
        """Of JSON.  Raises TypeError for anything else."""
        timed = cls(**record)
        if not isinstance(timed.text, str) or not all(
            isinstance(t, int | float | None) for t in (timed.start, timed.end)
        ):
            raise TypeError("a piece of text has a start and an end in seconds")
        return timed


@dataclass(frozen=True, kw_only=True)
class TimedLyrics:
    """Lyrics as the model sees them, with the times of their words and lines."""

    lyrics: str
    words: tuple[Timed, ...]
    lines: tuple[Timed, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Any) -> "TimedLyrics":
        """The opposite.  Raises TypeError, ValueError or KeyError for anything else."""
        words, lines = (tuple(map(Timed.from_dict, record[name])) for name in ("words", "lines"))
        if len(words) != len(WORD.findall(record["lyrics"])):
            raise ValueError("lyrics have another number of words")
        return cls(lyrics=record["lyrics"], words=words, lines=lines)

    def to_lrc(self) -> str:
        """LRC: a line of text a line, [minutes:seconds.hundredths] before it.  Lines that aren't sung are left out."""
        sung = [line for line in self.lines if line.start is not None and line.text]
        return "".join(f"[{_stamp(line.start or 0.0)}]{line.text}\n" for line in sung)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A layer and a head of a prior, and how well its attention follows the music (1: along a straight line)."""

    layer: int
    head: int
    score: float


@torch.no_grad()
def align(
    prior: JukeboxPrior,
    codes: Int[Tensor, "B S"],
    labels: Int[Tensor, "B Y"],
    *,
    hop_fraction: float,
    layer: int | None = None,
    head: int | None = None,
) -> list[Float[Tensor, "S A"]]:
    """The attention of each code to each character of a song's own lyrics, on the CPU in float32; a matrix a song.

    labels: of the whole songs (conditioning/labels.py), with their timing.  hop_fraction: how far windows move.  layer,
    head: by default those that the configuration names.  Windows overlap; where they do, the earlier one rules, as in
    the original implementation.  Codes of less than a window are followed by zeros for the pass.

    Raises RequestError for a prior without lyrics and for a layer that doesn't attend to them.
    """
    layer, head = _alignment_head(prior, layer, head)
    songs = zip(codes.split(1), labels.split(1), strict=True)
    return [_align(prior, *song, hop_fraction, layer, head) for song in songs]


def _align(prior: JukeboxPrior, codes: Tensor, labels: Tensor, hop_fraction: float, layer: int, head: int) -> Tensor:
    length, window = codes.shape[1], prior.config.n_ctx
    characters = int(lyric_lengths(labels, prior.config.max_nb_genres))
    matrix = torch.zeros(max(length, window), characters + 1)  # the last column takes what attends to padding
    for start, (rows, indices) in reversed(list(_windows(prior, codes, labels, hop_fraction))):
        part = functional.pad(codes[:, start : start + window], (0, max(window - length, 0)))
        weights = prior.attention(part, rows, layer=layer, head=head)[0, 0].float().cpu()
        matrix[start : start + window, indices[0].cpu()] = weights
    return matrix[:length, :characters].contiguous()


def _windows(prior: JukeboxPrior, codes: Tensor, labels: Tensor, hop_fraction: float) -> Iterator[tuple[int, Window]]:
    """Where each window starts, in codes, and its labels."""
    config = prior.config
    length = max(codes.shape[1], config.n_ctx)
    for start in window_starts(length, config.n_ctx, hop_of(hop_fraction, config.n_ctx)):
        yield (
            start,
            cut_window(
                labels,
                start=start * config.hop_length,
                length=config.window_length,
                n_genres=config.max_nb_genres,
                n_tokens=config.nb_relevant_lyric_tokens,
            ),
        )


def lyric_layers(prior: JukeboxPrior) -> list[int]:
    """The layers that attend to lyrics."""
    layers = prior.prior.transformer.layers
    return [i for i, layer in enumerate(layers) if layer.attn.crosses or layer.attn.reads_prefix]


@torch.no_grad()
def best_heads(prior: JukeboxPrior, codes: Int[Tensor, "B S"], labels: Int[Tensor, "B Y"]) -> list[Head]:
    """Every layer and head that attends to lyrics, the best first, judged on this music.

    The score is the correlation of time and place under the attention, taken as a distribution over codes and
    characters; a mean over windows and songs.  Attention that doesn't move scores 0.  Raises RequestError where a
    window holds no lyrics.
    """
    layers = lyric_layers(prior)
    if not layers:
        raise _no_lyrics()
    scores = {layer: torch.zeros(prior.config.n_heads) for layer in layers}
    windows = [
        (part[:, start : start + prior.config.n_ctx], window)
        for part, rows in zip(codes.split(1), labels.split(1), strict=True)
        for start, window in _windows(prior, part, rows, hop_fraction=1.0)
        if (window.indices >= 0).sum() > 1
    ]
    if not windows:
        raise RequestError("There are no lyrics to align; give the words that are sung.")
    for layer in layers:
        for part, window in windows:
            weights = prior.attention(part, window.labels, layer=layer)[0].float().cpu()
            scores[layer] += _straightness(weights, window.indices[0].cpu()) / len(windows)
    heads = [
        Head(layer=layer, head=head, score=float(score)) for layer in layers for head, score in enumerate(scores[layer])
    ]
    return sorted(heads, key=lambda head: -head.score)


def _straightness(weights: Float[Tensor, "N S L"], indices: Int[Tensor, " L"]) -> Float[Tensor, " N"]:
    """Correlation of the code's and the character's number; each code counts the same."""
    weights = weights[..., indices >= 0].double()
    joint = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12) / weights.shape[1]
    time = torch.linspace(-1, 1, weights.shape[1], dtype=torch.float64)
    place = torch.linspace(-1, 1, weights.shape[2], dtype=torch.float64)
    where = joint.sum(1)  # [N, L]
    mean = where @ place
    spread = (where @ place.square() - mean.square()).clamp(min=1e-12).sqrt() * time.square().mean().sqrt()
    return (torch.einsum("nsl,s,l->n", joint, time, place) / spread).float()


def _alignment_head(prior: JukeboxPrior, layer: int | None, head: int | None) -> tuple[int, int]:
    """What is asked for, or else what the configuration names.  Raises RequestError."""
    config, layers = prior.config, lyric_layers(prior)
    if not layers:
        raise _no_lyrics()
    layer = config.alignment_layer if layer is None else layer
    head = config.alignment_head if head is None else head
    if layer not in layers or head is None or not 0 <= head < config.n_heads:
        raise RequestError(
            f"Layer {layer}, head {head} doesn't attend to lyrics; layers {', '.join(map(str, layers))} do, with heads "
            f"0 to {config.n_heads - 1}. `tunesmith align --search` finds the best."
        )
    return layer, head


def _no_lyrics() -> RequestError:
    return RequestError("This model knows no lyrics, so there is nothing to align.")


# Times ----------------------------------------------------------------------------------------------------------------


def timed(alignment: Float[Tensor, "S A"], lyrics: str, rate: float) -> TimedLyrics:
    """When words and lines are sung, by an alignment.

    lyrics: as the model sees them, a character a column.  rate: codes per second.
    """
    starts = _character_times(alignment.numpy(), rate)
    end = alignment.shape[0] / rate
    return TimedLyrics(
        lyrics=lyrics,
        words=tuple(_timed(lyrics, starts, end, WORD)),
        lines=tuple(_timed(lyrics, starts, end, LINE)),
    )


def _timed(lyrics: str, starts: list[float | None], end: float, pattern: re.Pattern[str]) -> Iterator[Timed]:
    for match in pattern.finditer(lyrics):
        text = match[0].strip()
        first = lyrics.index(text, match.start())
        start = starts[first]
        stop = next((t for t in starts[first + len(text) :] if t is not None), end)
        yield Timed(text=text, start=start, end=None if start is None else round(max(stop, start), 2))


def _character_times(alignment: Float[np.ndarray, "S A"], rate: float) -> list[float | None]:
    """When each character begins: the way through the matrix that never goes back and meets the most attention.

    What stands in column i has read the characters before i (inputs are moved right by one), so that the column of a
    character is the next one.  Characters outside the windows of this music (no attention at all) have no time.
    """
    if not alignment.shape[1]:
        return []
    step = max(1, round(STEP * rate))
    moved = np.concatenate([alignment[:, 1:], alignment[:, -1:]], 1)
    pieces = [moved[start : start + step].sum(0) for start in range(0, len(moved), step)]
    path = _monotone(np.stack(pieces))
    sung = (moved.sum(0) > 0) & (np.arange(moved.shape[1]) >= path[0]) & (np.arange(moved.shape[1]) <= path[-1])
    times = np.searchsorted(path, np.arange(alignment.shape[1])) * (step / rate)
    return [round(float(time), 3) if is_sung else None for time, is_sung in zip(times, sung, strict=True)]


def _monotone(scores: Float[np.ndarray, "P A"]) -> Int[np.ndarray, " P"]:
    """The column of each row, never decreasing, with the largest sum of scores; early columns win ties."""
    columns = np.arange(scores.shape[1])
    best = np.zeros(scores.shape[1], scores.dtype)
    came_from = np.empty(scores.shape, np.int32)
    for row, score in enumerate(scores):
        peak = np.maximum.accumulate(best)
        risen = np.concatenate([[True], best[1:] > peak[:-1]])
        came_from[row] = np.maximum.accumulate(np.where(risen, columns, 0))
        best = peak + score
    path = np.empty(len(scores), np.int64)
    column = int(best.argmax())
    for row in range(len(scores) - 1, -1, -1):
        path[row] = column
        column = int(came_from[row, column])
    return path


def _stamp(seconds: float) -> str:
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    return f"{minutes:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}"
