"""`tunesmith labels`: the artists and genres that a Jukebox knows."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tunesmith.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from tunesmith.conditioning.tables import Hit


FAMILIES = ("jukebox", "jukebox_prior")
"""Models that know names."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Look for artists and genres that a Jukebox knows.

    tunesmith labels search "alan jakson" --model openai/jukebox-1b-lyrics
    """

    action: tyro.conf.Positional[Literal["search"]]
    """What to do: search."""

    text: tyro.conf.Positional[str]
    """A name or a part of it; accents, case and spelling needn't be right."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """A folder with artists.json and genres.json, a bundled model or a Hugging Face id."""

    limit: int = 10
    """The most to show of each table: artists and genres, under v2 and v3 rules."""

    json: bool = False
    """As JSON, for programs."""

    def run(self) -> None:
        """Print to stdout what is found: exact hits first, then names that begin so, then look-alikes."""
        from tunesmith import hub
        from tunesmith.conditioning.tables import read_tables, search

        if self.limit < 1:
            raise RequestError(f"--limit is {self.limit}; it can be 1 or more.")
        folder = _folder(self.model)
        if (family := hub.family_of(folder)) not in (None, *FAMILIES):
            raise CheckpointError(
                f"{self.model!r} is of the family {family!r}, which knows no artists and genres; give a Jukebox."
            )
        tables = read_tables(folder)
        if not any(table.ids for table in tables.values()):
            raise CheckpointError(
                f"{self.model!r} has no artists.json and genres.json; "
                "add them with `tunesmith convert SRC DST --ids FOLDER`."
            )
        hits = search(tables, self.text, self.limit)
        if self.json:
            print(json.dumps([asdict(hit) for hit in hits], indent=2, ensure_ascii=False))
        else:
            _print(hits, self.text)


def _folder(model: str) -> Path:
    """Where the tables are; of a model on the hub they are fetched alone."""
    from tunesmith import hub
    from tunesmith.conditioning.tables import download

    name = hub.RELEASED.get(model, model)
    here = name in hub.bundled() or hub.on_disk(name) is not None
    if here or name.count("/") != 1 or name[0] in "/.~":
        return hub.find(model)
    return download(name)


def _print(hits: "Sequence[Hit]", text: str) -> None:
    """A line a hit, in columns."""
    if not hits:
        print(f"nothing like {text!r}")
    for hit in hits:
        name = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in hit.name)  # some hold invisible marks
        print(f"{hit.kind:6}  {hit.rules}  {hit.id:5}  {hit.match:6}  {name}")
