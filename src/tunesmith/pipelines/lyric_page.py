"""The page that plays a run and lights the lyrics as they are sung: one file beside the audio, without a server."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).resolve().parents[1] / "assets" / "lyrics.html"
_EMPTY = '<script type="application/json" id="song">{}</script>'


@dataclass(frozen=True, kw_only=True)
class TakePage:
    """What the page has of a take."""

    take: int
    audio: dict[str, str]
    """Level -> the audio file, beside the page, top first."""
    lyrics: dict[str, Any] | None
    """TimedLyrics as a dictionary; None for a model without lyrics."""


def lyric_page(title: str, facts: str, levels: Sequence[str], takes: Sequence[TakePage]) -> str:
    """HTML.  `levels` top first; the page begins with the last of them and the first take."""
    song = {"title": title, "facts": facts, "levels": list(levels), "takes": [asdict(take) for take in takes]}
    data = json.dumps(song).replace("<", "\\u003c")  # no lyrics end the script
    return TEMPLATE.read_text(encoding="utf-8").replace(_EMPTY, _EMPTY.replace("{}", data))
