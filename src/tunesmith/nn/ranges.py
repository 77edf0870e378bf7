"""What a model's settings may be.  Each that may not gets a sentence when the model is built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`."""

    low: float | int
    high: float | int = math.inf
    above: bool = False
    """`low` itself is left out."""
    whole: bool = False
    optional: bool = False
    """None will do too."""
    many: bool = False
    """A list of them."""

    def allows(self, value: Any) -> bool:
        """Whether a setting may have this value."""
        if value is None:
            return self.optional
        if self.many:
            return isinstance(value, list | tuple) and all(map(self._holds, value))
        return self._holds(value)

    def __str__(self) -> str:
        kind = f"{'' if self.many else 'a '}{'whole ' if self.whole else ''}number{'s' * self.many}"
        bounds = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        bounds += f" to {self.high:g}" if self.high < math.inf else "" if self.above else " on"
        return f"{'a list of ' * self.many}{kind} {bounds}{', or None' * self.optional}"

    def _holds(self, value: Any) -> bool:
        if not isinstance(value, int if self.whole else (int, float)) or isinstance(value, bool):
            return False
        low = value > self.low if self.above else value >= self.low
        return math.isfinite(value) and low and value <= self.high


COUNT = Range(low=1, whole=True)
COUNTS = Range(low=1, whole=True, many=True)
POSITIVE = Range(low=0, above=True)
WEIGHT = Range(low=0)
SHARE = Range(low=0, high=1)


def check_ranges(config: Any, ranges: Mapping[str, Range], where: str = "") -> None:
    """Raise RequestError for the first of a configuration's settings that isn't in its range.

    where: what comes before the setting's name in the sentence.
    """
    for name, allowed in ranges.items():
        if not allowed.allows(value := getattr(config, name)):
            raise RequestError(f"{where}{name} is {value!r}; it must be {allowed}.")
