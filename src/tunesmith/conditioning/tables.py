"""Artists and genres <-> ids: how names are spelled, the tables, where they are read from, and a search in them.

The tables come with a model: in Hugging Face's layout as artists.json and genres.json, in the original's as four text
files.  None ships with this package.  No torch here, so a search starts at once.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from os import PathLike, getpid
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.conditioning.lyrics import ALPHABETS, spell
from tunesmith.errors import CheckpointError, ModelNotFoundError, RequestError

Rules = Literal["v2", "v3"]
"""How names are spelled: v2 as words joined by underscores, a genre being a bag of such words; v3 in lower case."""

Kind = Literal["artist", "genre"]

RULES: tuple[Rules, ...] = get_args(Rules)
KINDS: tuple[Kind, ...] = get_args(Kind)

UNKNOWN = 0
"""The id of whatever has none of its own."""

ALIKE = 0.7
"""Share of letters in common from which names look alike."""

SETTINGS = ("tokenizer_config.json", "config.json")
LYRICS = "lyrics.json"
FILES = (*(f"{kind}s.json" for kind in KINDS), LYRICS, *SETTINGS)
"""What is read of a Hugging Face folder; any of them may be absent."""

V2_SUFFIX = ".v2"
"""In Hugging Face's files both rules share a table, and this tells them apart."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A name that a search found."""

    kind: Kind
    rules: Rules
    id: int
    name: str
    match: Literal["exact", "prefix", "fuzzy"]
    """exact: the text is taken as this name; prefix: words of the name begin so; fuzzy: it looks alike."""


@dataclass(frozen=True, eq=False)
class Table:
    """Names -> ids, of one kind and under one set of rules; empty where the model came without."""

    kind: Kind
    rules: Rules
    ids: dict[str, int]

    def names(self, text: str) -> list[str]:
        """The names that a text stands for: one, or for a v2 genre one a word."""
        if self.rules == "v3":
            return [text.lower()]
        name = re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")
        return name.split("_") if self.kind == "genre" else [name]

    def name(self, number: int) -> str:
        """The first name with an id, or the id itself where there is none."""
        return self._first_names.get(number, str(number))

    def search(self, text: str, limit: int = 10) -> list[Hit]:
        """At most `limit` names like a text: those that it is taken as, then those that begin so, then look-alikes."""
        texts = self.names(text)
        sought = [name for name in texts if len(texts) == 1 or name not in self.ids]  # of a bag, what isn't found yet
        words = [word for name in sought if (word := fold(name))]
        begun = [name for name, folded in self._folded.items() if any(f" {word}" in f" {folded}" for word in words)]
        alike = [
            name
            for word in words
            for key in get_close_matches(word, self._by_fold, n=limit, cutoff=ALIKE)
            for name in self._by_fold[key]
        ]
        matches = {name: "exact" for name in texts if name in self.ids}
        for names, match in ((sorted(begun, key=len), "prefix"), (alike, "fuzzy")):
            matches = {**matches, **{name: match for name in names if name not in matches}}
        return [self._hit(name, match) for name, match in matches.items()][:limit]

    def _hit(self, name: str, match: Any) -> Hit:
        return Hit(kind=self.kind, rules=self.rules, id=self.ids[name], name=name, match=match)

    @cached_property
    def _first_names(self) -> dict[int, str]:
        return {number: name for name, number in reversed(self.ids.items())}

    @cached_property
    def _folded(self) -> dict[str, str]:
        return {name: fold(name) for name in self.ids}

    @cached_property
    def _by_fold(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name, folded in self._folded.items():
            names.setdefault(folded, []).append(name)
        return names


Tables = dict[tuple[Kind, Rules], Table]
"""All four tables of a model."""


def fold(text: str) -> str:
    """Words in plain lower-case ASCII: in a search, accents and punctuation don't matter."""
    return " ".join(re.findall("[a-z0-9]+", "".join(map(spell, text)).lower()))


def search(tables: Tables, text: str, limit: int = 10) -> list[Hit]:
    """Artists and genres like a text, at most `limit` a table.  Raises RequestError for a text without words."""
    if not fold(text):
        raise RequestError(f"There is nothing to search for in {text!r}; give some letters of a name.")
    return [hit for table in tables.values() for hit in table.search(text, limit)]


# Files ----------------------------------------------------------------------------------------------------------------


def read_tables(folder: str | PathLike[str]) -> Tables:
    """The tables of a model folder in Hugging Face's layout.  Raises CheckpointError for a damaged file."""
    return join_tables(*(read_ids(Path(folder) / f"{kind}s.json") for kind in KINDS))


def join_tables(artists: Mapping[str, int], genres: Mapping[str, int]) -> Tables:
    """From the contents of Hugging Face's two files, where v2 names carry a suffix."""
    tables: Tables = {}
    for kind, ids in zip(KINDS, (artists, genres), strict=True):
        v2 = {name.removesuffix(V2_SUFFIX): number for name, number in ids.items() if name.endswith(V2_SUFFIX)}
        v3 = {name: number for name, number in ids.items() if not name.endswith(V2_SUFFIX)}
        tables |= {(kind, "v2"): Table(kind, "v2", v2), (kind, "v3"): Table(kind, "v3", v3)}
    return tables


def split_tables(tables: Tables, kind: Kind) -> dict[str, int]:
    """The content of Hugging Face's file for a kind: the reverse of `join_tables`."""
    return {**tables[kind, "v3"].ids, **{f"{name}{V2_SUFFIX}": i for name, i in tables[kind, "v2"].ids.items()}}


def read_id_files(folder: str | PathLike[str]) -> Tables:
    """The tables of the original: v2_artist_ids.txt, v2_genre_ids.txt, v3_artist_ids.txt, v3_genre_ids.txt.

    A line is "name;id"; when a name occurs twice, the later line counts.  Files may be absent (the 5b models need v2
    alone).  Raises CheckpointError where all are, and for lines that aren't so.
    """
    tables: Tables = {}
    for kind in KINDS:
        for rules in RULES:
            tables[kind, rules] = Table(kind, rules, _read_lines(Path(folder) / f"{rules}_{kind}_ids.txt"))
    if not any(table.ids for table in tables.values()):
        raise CheckpointError(
            f"{str(folder)!r} has no id tables; it should hold v2_artist_ids.txt, v2_genre_ids.txt, v3_artist_ids.txt "
            "and v3_genre_ids.txt, with lines 'name;id'."
        )
    return tables


def write_tables(tables: Tables, folder: str | PathLike[str]) -> tuple[Path, Path, Path]:
    """Write artists.json, genres.json and lyrics.json into a folder; `tunesmith convert --ids` does so."""
    artists, genres = (write_json(Path(folder) / f"{kind}s.json", split_tables(tables, kind)) for kind in KINDS)
    return artists, genres, write_json(Path(folder) / LYRICS, ALPHABETS["v3"])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file.  Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} is damaged: it is not a JSON object; fetch it again.")
    return content


def read_ids(path: Path) -> dict[str, int]:
    """A table of ids, which are whole numbers from 0 on; empty where there is no file.  Raises CheckpointError."""
    ids = read_json(path)
    for name, number in ids.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise CheckpointError(f"{str(path)!r} is damaged: {name!r} has the id {number!r}; fetch it again.")
    return ids


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write an object, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{getpid()}")
    part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def download(repository: str, **options: Any) -> Path:
    """The folder with the tables and settings of a hub id, without its weights; what is cached comes first.

    options: huggingface_hub's `revision`, `cache_dir`, `token`, ...  Raises ModelNotFoundError.
    """
    from huggingface_hub import errors, snapshot_download

    found: Path | None = None
    for local in (True, False):
        try:
            found = Path(
                snapshot_download(repository, **{"local_files_only": local, "allow_patterns": [*FILES], **options})
            )
        except (errors.HFValidationError, errors.RepositoryNotFoundError):
            raise ModelNotFoundError(f"There is no model {repository!r}, here or on the hub; give a folder.") from None
        except (OSError, errors.HTTPError):  # type: ignore[attr-defined]  # of whichever HTTP library it uses
            continue
        if (found / FILES[0]).is_file():
            return found
    if found and any((found / name).is_file() for name in SETTINGS):
        return found
    raise ModelNotFoundError(
        f"The labels of {repository!r} are not on this machine and the Hugging Face hub can't be reached; "
        "connect and try again, or give a folder."
    )


def _read_lines(path: Path) -> dict[str, int]:
    ids: dict[str, int] = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        name, _, digits = line.rstrip("\r").rpartition(";")
        if not line.strip():
            continue
        if ";" not in line or not re.fullmatch(r"\s*[0-9]+\s*", digits):
            raise CheckpointError(f"Line {number} of {str(path)!r} is {line[:80]!r} instead of 'name;id'.")
        ids[name.lower()] = int(digits)
    return ids


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig") if path.exists() else ""
    except (OSError, ValueError):
        raise CheckpointError(f"{str(path)!r} can't be read as UTF-8 text.") from None
