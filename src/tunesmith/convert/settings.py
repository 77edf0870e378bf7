"""The settings text inside an audiocraft checkpoint: YAML whose values may refer to one another.

audiocraft writes OmegaConf's dialect: `${encodec.causal}` counts from the root, `${.name}` from the value's own
mapping, `${..name}` from the mapping around that one; a reference may stand alone (any type) or inside a longer string.

Values are looked up one path at a time, so a reference to something of the training machine (an environment variable,
an unknown resolver) harms nobody unless a value that we need depends on it.  Only YAML's plain types are constructed.
"""

import re
from typing import Any

import yaml

from tunesmith.errors import CheckpointError

_REFERENCE = re.compile(r"\$\{([^${}]+)\}")
_ABSENT = object()
_UNSET = "???"  # OmegaConf's spelling of a value that was never given
_DEEPEST = 32  # references that may follow one another


class Settings:
    """Reads values of a settings text by dotted path."""

    def __init__(self, text: str, source: object) -> None:
        """Raise `CheckpointError`, naming the source, if text isn't a YAML mapping."""
        self.source = source
        try:
            self._tree = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise CheckpointError(f"The settings inside {source} aren't valid YAML; the file is damaged.") from error
        if not isinstance(self._tree, dict):
            raise CheckpointError(f"The settings inside {source} aren't a YAML mapping; the file is damaged.")

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path with its references followed, or default where there is none."""
        value = self._find(path.split("."), 0)
        return default if value is _ABSENT or value == _UNSET else value

    def need(self, path: str, kind: type, default: Any = _ABSENT) -> Any:
        """The value at path, of that type (an int will do for a float); without a default it must be there."""
        value = self.get(path, default)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            found = "no usable value" if value is _ABSENT else repr(value)
            raise CheckpointError(
                f"The settings inside {self.source} have {found} for {path!r}; a {kind.__name__} is needed."
            )
        return value

    def _find(self, keys: list[str], depth: int) -> Any:
        if depth > _DEEPEST:
            raise CheckpointError(f"The settings inside {self.source} refer to themselves at {'.'.join(keys)!r}.")
        node = self._tree
        for place, key in enumerate(keys):
            node = _child(node, key)
            if isinstance(node, str) and (target := self._target(node, keys[:place])) is not None:
                return self._find(target + keys[place + 1 :], depth + 1)
        if isinstance(node, str):
            return self._fill(node, keys[:-1], depth)
        if isinstance(node, list):
            return [
                self._find([*keys, str(i)], depth + 1) if isinstance(item, str) else item for i, item in enumerate(node)
            ]
        return node

    def _fill(self, text: str, base: list[str], depth: int) -> Any:
        """Replace the references inside a longer string, innermost first."""
        while match := _REFERENCE.search(text):
            value = self._find(_absolute(match[1], base), depth + 1)
            if value is _ABSENT:
                return _ABSENT
            text = text[: match.start()] + str(value) + text[match.end() :]
            if (target := self._target(text, base)) is not None:
                return self._find(target, depth + 1)
        return text

    @staticmethod
    def _target(text: str, base: list[str]) -> list[str] | None:
        """The path that a text consisting of a single reference means."""
        match = _REFERENCE.fullmatch(text.strip())
        return _absolute(match[1], base) if match else None


def _child(node: Any, key: str) -> Any:
    if isinstance(node, dict):
        return node.get(key, _ABSENT)
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    return _ABSENT


def _absolute(reference: str, base: list[str]) -> list[str]:
    """`a.b[0]` and `..a` as paths from the root; base is the path of the mapping in which the reference stands."""
    name = reference.strip().replace("[", ".").replace("]", "")
    rest = name.lstrip(".")
    dots = len(name) - len(rest)
    return (base[: len(base) - dots + 1] if dots else []) + rest.split(".")
