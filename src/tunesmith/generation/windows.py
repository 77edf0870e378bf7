"""Music longer than a model's window: where windows start, what each begins with, what it sees of the level above.

    total   |-----------------------------------------------|
    windows |--------------|                                     codes that are there already are its primer,
            |    hop |--------------|                            the rest of it is sampled
                                  ...|--------------|            the last one ends where the music does

All numbers are codes of one level.  `ratio` is how many of them lie below one code of the level above (1 at the top).
A total is a final length: what is there already counts.  (In the original a window that isn't filled gets `total` new
codes on top of what is there, so a prompt made the result longer.)
"""

import math

from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from tunesmith.errors import RequestError

SLACK = 1e-6
"""Of a code: what products of fractions that should be whole may lack."""


def hop_of(fraction: float | int, window: int, ratio: int = 1) -> int:
    """By how many codes a window moves: a fraction of its length, rounded down.

    Raises RequestError unless that is from one code of the level above to a whole window, and a multiple of ratio:
    a window sees whole codes of the level above.
    """
    hop = int(fraction * window + SLACK) if isinstance(fraction, int | float) and 0 < fraction <= 1 else 0
    if hop < 1 or hop % ratio:
        near = max(ratio, min(round(hop / ratio) * ratio, window // ratio * ratio))
        raise RequestError(
            f"hop_fraction is {fraction!r}, which moves a window of {window} codes by {fraction * window:g} codes; it "
            f"must lie above 0, be at most 1, and move by a multiple of {ratio}: {near / window:g} would."
        )
    return hop


def window_starts(total: int, window: int, hop: int, ratio: int = 1) -> list[int]:
    """Where windows start that fill `total` codes: every `hop` codes, the last so that it ends with the total.

    Starts are multiples of ratio; where the total isn't one, the last window reaches beyond it.
    """
    last = math.ceil(max(total - window, 0) / ratio) * ratio
    return [*range(0, last, hop), last]


def upper_slice(upper: Int[Tensor, "B S"], start: int, window: int, ratio: int) -> Int[Tensor, "B R"]:
    """The codes of the level above over a window that starts at `start`; code 0 where the music has ended."""
    codes = upper[:, start // ratio : (start + window) // ratio]
    return functional.pad(codes, (0, window // ratio - codes.shape[1]))
