"""Seeds as users give them: one number, or one a sample; Python's, NumPy's or torch's."""

from typing import Any

from tunesmith.errors import RequestError

LIMIT = 2**64  # what torch's generators take


def plain(values: Any) -> Any:
    """NumPy's and torch's numbers and arrays as Python's numbers and lists, also within lists."""
    given = values.tolist() if hasattr(values, "tolist") else values
    return [plain(value) for value in given] if isinstance(given, list | tuple | range) else given


def is_seed(value: Any) -> bool:
    """Whether a plain value is one that a generator takes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LIMIT


def one_each(seeds: Any, samples: int) -> list[int]:
    """A seed a sample; of a single number sample i has seed + i.  Raises RequestError."""
    given = plain(seeds)
    listed = [given + i for i in range(samples)] if is_seed(given) else given
    if not isinstance(listed, list) or not all(map(is_seed, listed)):
        raise RequestError(f"seeds is {given!r}; give a whole number from 0 to 2^64 - 1, or one a sample.")
    if len(listed) != samples:
        raise RequestError(f"There are {len(listed)} seeds for {samples} samples; give one each.")
    return listed
