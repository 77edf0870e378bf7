"""Codebook patterns: in which step of a sequence the code of frame t and codebook k is predicted.

MusicGen's sequence is a grid of K rows.  A pattern places every code (t, k) in one column; all codes of a column are
predicted by one call of the model, so a pattern trades the number of calls for what each code can see (Copet et al.
2023, section 2.2 and table 4). The first column is empty: it is the start.  Cells without a code hold the special
token.  Four frames of four codebooks, delayed by 0, 1, 2, 3:

    k0  . 0 1 2 3 . . .
    k1  . . 0 1 2 3 . .        `.` is the special token, a number is the frame
    k2  . . . 0 1 2 3 .
    k3  . . . . 0 1 2 3

Patterns are pure functions of the number of frames; each returns a `Pattern`, which builds grids from codes and reads
codes from grids.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Column = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pattern:
    """Where each code is.

    `columns[s]` lists the (frame, codebook) pairs of step s.  Frames may reach past `frames` (a delay keeps running
    at the end); such cells hold the special token.
    """

    frames: int
    codebooks: int
    columns: tuple[Column, ...]

    @cached_property
    def steps(self) -> int:
        """Number of columns, the start included."""
        return len(self.columns)

    @cached_property
    def overhang(self) -> int:
        """Columns at the end in which some codebook has run out of frames (3 for MusicGen's delay)."""
        return max((t for column in self.columns for t, _ in column), default=0) + 1 - self.frames

    @cached_property
    def frame_of_cell(self) -> Int[Tensor, "K S"]:
        """The frame that a cell of the grid holds, -1 for the special token."""
        table = [[-1] * self.steps for _ in range(self.codebooks)]
        for t, k, s in self._codes():
            table[k][s] = t
        return torch.tensor(table)

    @cached_property
    def column_of_code(self) -> Int[Tensor, "K T"]:
        """The column in which a code is predicted, -1 where the pattern leaves it out."""
        table = [[-1] * self.frames for _ in range(self.codebooks)]
        for t, k, s in self._codes():
            table[k][t] = s
        return torch.tensor(table)

    def _codes(self) -> Iterator[tuple[int, int, int]]:
        """(frame, codebook, column) of every code."""
        return ((t, k, s) for s, column in enumerate(self.columns) for t, k in column if t < self.frames)

    def complete_frames(self, columns: int) -> int:
        """How many leading frames have all their codes in the first `columns` columns."""
        return bisect_left(self._completed, columns)

    @cached_property
    def _completed(self) -> list[int]:
        """The last column of each frame, and of all before it."""
        found: list[int] = self.column_of_code.amax(0).cummax(0).values.tolist()
        return found

    def build(self, codes: Int[Tensor, "B K T"], special: int, valid_only: bool = False) -> Int[Tensor, "B K S"]:
        """Codes -> grid.  `valid_only` leaves out the columns at the end in which some codebook has run out of frames
        (used in training).
        """
        table = self.frame_of_cell[:, : self._width(valid_only)].to(codes.device)
        cells = codes.gather(2, table.clamp(min=0).expand(len(codes), -1, -1))
        return torch.where(table < 0, special, cells)

    def mask(self, valid_only: bool = False) -> Bool[Tensor, "K S"]:
        """The cells of the grid that hold a code."""
        return self.frame_of_cell[:, : self._width(valid_only)] >= 0

    def revert(self, grid: Int[Tensor, "B K S"], special: int) -> Int[Tensor, "B K T"]:
        """Grid -> codes.  Codes whose column is missing at the right of the grid become the special token."""
        table, known = self._columns_within(grid.shape[2], grid.device)
        return torch.where(known, grid.gather(2, table.expand(len(grid), -1, -1)), special)

    def revert_mask(self, steps: int) -> Bool[Tensor, "K T"]:
        """The codes that a grid of so many columns holds."""
        return self._columns_within(steps, torch.device("cpu"))[1]

    def revert_logits(self, logits: Float[Tensor, "B K S V"]) -> Float[Tensor, "B K T V"]:
        """Logits of a grid -> logits of the grid's codes: the output at column s predicts column s + 1.  NaN where
        nothing predicts a code.
        """
        table, known = self._columns_within(logits.shape[2], logits.device)
        index = (table - 1).clamp(min=0)[None, :, :, None].expand(len(logits), -1, -1, logits.shape[3])
        known = known & (table > 0)
        return torch.where(known[..., None], logits.gather(2, index), torch.nan)

    def revert_logits_mask(self, steps: int) -> Bool[Tensor, "K T"]:
        """The codes of a grid of so many columns that its logits predict."""
        table, known = self._columns_within(steps, torch.device("cpu"))
        return known & (table > 0)

    def _width(self, valid_only: bool) -> int:
        return self.steps - self.overhang if valid_only else self.steps

    def _columns_within(self, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
        table = self.column_of_code.to(device)
        known = (table >= 0) & (table < steps)
        return torch.where(known, table, 0), known


def delay(frames: int, delays: Sequence[int], flatten_first: int = 0, empty_initial: int = 0) -> Pattern:
    """Codebook k runs `delays[k]` steps behind.

    MusicGen mono has delays 0, 1, 2, 3; stereo 0, 0, 1, 1, 2, 2, 3, 3 (codebooks alternate left and right).  The
    first `flatten_first` frames are predicted one code at a time; `empty_initial` adds empty columns after the start,
    or removes the start when it is negative.
    """
    columns = _empty(1 + empty_initial)
    columns += [((t, k),) for t in range(min(frames, flatten_first)) for k in range(len(delays))]
    for now in range(flatten_first, frames + max(delays)):
        columns.append(tuple((now - d, k) for k, d in enumerate(delays) if now - d >= flatten_first))
    return _pattern(frames, len(delays), columns)


def parallel(frames: int, codebooks: int) -> Pattern:
    """All codes of a frame at once."""
    return delay(frames, [0] * codebooks)


def unroll(frames: int, flattening: Sequence[int], delays: Sequence[int] | None = None) -> Pattern:
    """Codebook k is predicted in the inner step `flattening[k]` of its frame, and optionally some frames later.

    [0, 1, 2, 3] flattens completely, one code a step; [0, 1, 1, 1] predicts the first codebook, then the rest
    together (partial flattening). Codebooks of the same inner step have the same delay.
    """
    delays = delays or [0] * len(flattening)
    groups = [[k for k, step in enumerate(flattening) if step == inner] for inner in range(max(flattening) + 1)]
    end = frames + max(delays)
    emitted: list[tuple[int, Column]] = []
    for t in range(end):
        for group in groups:
            when = t + (delays[group[0]] if group else 0)
            if when < end:
                emitted.append((when, tuple((t, k) for k in group)))
    # By time; at the same time the older frame first, which is what tuples of (frame, codebook) compare.
    return _pattern(frames, len(flattening), [*_empty(1), *(column for _, column in sorted(emitted))])


def coarse_first(frames: int, codebooks: int, delays: Sequence[int] | None = None) -> Pattern:
    """The whole first codebook, then all others in parallel, each optionally delayed (`delays` has codebooks - 1
    entries).
    """
    delays = delays or [0] * (codebooks - 1)
    columns = [*_empty(1), *(((t, 0),) for t in range(frames))]
    for now in range(frames + max(delays, default=0)):
        columns.append(tuple((now - d, k) for k, d in enumerate(delays, start=1) if now >= d))
    return _pattern(frames, codebooks, columns)


def musiclm(frames: int, codebooks: int, group_by: int = 2) -> Pattern:
    """Groups of `group_by` codebooks, one group after the other, each flattened (as MusicLM's coarse and fine
    stages).
    """
    groups = [range(first, min(first + group_by, codebooks)) for first in range(0, codebooks, group_by)]
    return _pattern(
        frames, codebooks, [*_empty(1), *(((t, k),) for group in groups for t in range(frames) for k in group)]
    )


@lru_cache(maxsize=8)
def musicgen(frames: int, codebooks: int, audio_channels: int = 1) -> Pattern:
    """The delay of the released MusicGen models: one step a codebook, left and right of a stereo pair together."""
    return delay(frames, [k // audio_channels for k in range(codebooks)])


def _empty(count: int) -> list[Column]:
    return [()] * max(count, 0)


def _pattern(frames: int, codebooks: int, columns: Iterable[Column]) -> Pattern:
    return Pattern(frames, codebooks, tuple(columns))
