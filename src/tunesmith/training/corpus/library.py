"""The tunes and chorales, parsed once and kept in the user's cache folder.

Parsing takes the better part of a minute, reading the cache half a second.  The cache is keyed by music21's version and
by the source of the parsers, so it is never stale.
"""

import hashlib
import json
import os
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.errors import MissingDependencyError
from tunesmith.training.corpus.chorales import Chorale, read_chorales
from tunesmith.training.corpus.music import Key
from tunesmith.training.corpus.tunes import Tune, read_books


class Library(NamedTuple):
    """All works that aren't composed here."""

    tunes: tuple[Tune, ...]
    chorales: tuple[Chorale, ...]


def music21_corpus() -> Path:
    """The corpus folder inside the installed music21, which need not be imported.

    Raises:
        MissingDependencyError: without music21.

    """
    spec = find_spec("music21")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "The corpus needs the tunes inside music21; install it with `pip install tunesmith[corpus]`."
        )
    return Path(spec.submodule_search_locations[0], "corpus")


def cache_file() -> Path:
    """Where the parsed works lie: below XDG_CACHE_HOME, or ~/.cache."""
    music21_corpus()
    here = Path(__file__).parent
    sources = b"".join((here / name).read_bytes() for name in ("tunes.py", "chorales.py", "works.py", "music.py"))
    key = hashlib.sha256(sources + version("music21").encode()).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tunesmith", f"corpus-{key}.json")


@lru_cache(maxsize=1)
def load_library() -> Library:
    """The works from the cache, or parsed and cached."""
    file = cache_file()
    if file.exists():
        return _decoded(json.loads(file.read_text()))
    library = Library(tuple(read_books(music21_corpus())), tuple(read_chorales(music21_corpus())))
    _write(
        file,
        json.dumps({"tunes": [asdict(t) for t in library.tunes], "chorales": [asdict(c) for c in library.chorales]}),
    )
    return library


def _decoded(data: dict[str, Any]) -> Library:
    tunes = tuple(
        Tune(**{**t, "key": Key(**t["key"]), "notes": _tuples(t["notes"]), "bars": tuple(t["bars"])})
        for t in data["tunes"]
    )
    return Library(
        tunes, tuple(Chorale(**{**c, "key": Key(**c["key"]), "notes": _tuples(c["notes"])}) for c in data["chorales"])
    )


def _tuples(rows: list[list[Any]]) -> tuple[Any, ...]:
    return tuple(tuple(row) for row in rows)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(file)
