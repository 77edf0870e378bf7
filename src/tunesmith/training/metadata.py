"""What is known of a song beside its sound: words about it, who made it, what is sung and when.

Fields of a row, a side-car file or a manifest become one `Metadata`; other tools' names for the same are taken too
(`caption`, `tempo`, `tags`, ...).  Labels may be in any script.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

NAMES = {
    "text": ("text", "description", "caption", "prompt"),
    "title": ("title", "name"),
    "artist": ("artist", "artists"),
    "genres": ("genre", "genres"),
    "key": ("key",),
    "bpm": ("bpm", "tempo"),
    "instrument": ("instrument", "instruments"),
    "moods": ("moods", "mood"),
    "keywords": ("keywords", "tags"),
    "lyrics": ("lyrics",),
    "split": ("split",),
}
"""Our field -> the names under which it comes; the first one that holds something counts."""

SILENT = {"file_name", "path", "duration", "sample_rate", "amplitude", "weight", "info_path", "file_extension"}
"""Fields that manifests and side-cars carry and that say nothing to us: a file's length and rate are read from it."""

_STAMP = re.compile(r"\[(\d+):(\d{1,2}(?:[.:]\d{1,3})?)\]")
_WORD_STAMP = re.compile(r"<(\d+):(\d{1,2}(?:[.:]\d{1,3})?)>")
_TAG = re.compile(r"^\[([a-z#]+):(.*)\]$", re.IGNORECASE)


@dataclass(frozen=True)
class Lyrics:
    """Sung text; of timed lyrics also where in it one is at which second."""

    text: str = ""
    times: tuple[tuple[int, float], ...] = ()
    """(character, second), both ascending; empty for plain lyrics."""

    @classmethod
    def parse(cls, text: str) -> "Lyrics":
        """Plain text, or LRC: lines that begin with `[minutes:seconds]`, a line that is sung again with several of
        them; `<minutes:seconds>` before words; `[offset:milliseconds]`, positive is earlier.
        """
        text = text.lstrip("\ufeff").replace("\r\n", "\n").strip("\n")
        if not _STAMP.match(next((line for line in text.splitlines() if _STAMP.match(line)), "")):
            return cls(text)
        return _timed(text.splitlines())

    def position(self, second: float | int, duration: float | int) -> float:
        """The character that is sung at this second of a song: between its neighbours in timed lyrics, else as if the
        text was spread evenly over the song.
        """
        if not self.times:
            return len(self.text) * second / duration
        marks = [(0, 0.0), *self.times, (len(self.text), max(duration, self.times[-1][1]))]
        i = min(max(bisect_left([at for _, at in marks], second), 1), len(marks) - 1)
        (first, begin), (last, end) = marks[i - 1], marks[i]
        share = (second - begin) / (end - begin) if end > begin else 1.0
        return first + (last - first) * min(max(share, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What is known of a song; what isn't is empty."""

    text: str = ""
    """A description in words."""
    title: str = ""
    artist: str = ""
    genres: tuple[str, ...] = ()
    key: str = ""
    """In lower case: "e minor".  A song in several keys has none."""
    bpm: float | None = None
    instrument: str = ""
    moods: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    lyrics: Lyrics = field(default_factory=Lyrics)
    split: str = ""
    """"train" or "test", where somebody has decided that; "validation" and the like count as test."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Metadata":
        """From a row of metadata, a side-car file, or what `to_row` made."""
        found = {ours: next((row[n] for n in names if _filled(row.get(n))), None) for ours, names in NAMES.items()}
        return cls(
            text=_line(found["text"]),
            title=_line(found["title"]),
            artist=_line(found["artist"]),
            genres=_several(found["genres"], ";"),
            key=_key(found["key"]),
            bpm=_number(found["bpm"]),
            instrument=_line(found["instrument"]),
            moods=_several(found["moods"], ",;"),
            keywords=_several(found["keywords"], ",;" if re.search("[,;]", _line(found["keywords"])) else r"\s"),
            lyrics=_lyrics(found["lyrics"]),
            split=_split(found["split"]),
        )

    def to_row(self) -> dict[str, Any]:
        """The fields that hold something, for JSON; `from_row` reads it back."""
        return {name: value for name, value in asdict(self).items() if _filled(value) and value != asdict(Lyrics())}


def unknown_fields(row: Mapping[str, Any]) -> set[str]:
    """The names in a row that mean nothing here: perhaps misspelt ones."""
    return set(map(str, row)) - {name for names in NAMES.values() for name in names} - SILENT


def _filled(value: Any) -> bool:
    """Other tools write what they don't know as None, NaN, "None" or nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    return value != "None" and value not in ("", [], (), {})


def _line(value: Any) -> str:
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(str(v).strip() for v in values if _filled(v))


def _several(value: Any, separators: str) -> tuple[str, ...]:
    """A list, or a text with separators in it."""
    values: Iterable[Any] = value if isinstance(value, list | tuple) else re.split(f"[{separators}]", _line(value))
    return tuple(str(v).strip() for v in values if str(v).strip())


def _key(value: Any) -> str:
    """Several keys say nothing of the moment that is heard."""
    keys = _several(value, ",;/")
    return keys[0].lower() if len(keys) == 1 else ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _split(value: Any) -> str:
    name = _line(value).lower()
    return name and ("train" if name.startswith("train") else "test")


def _lyrics(value: Any) -> Lyrics:
    if isinstance(value, Mapping):
        return Lyrics(str(value.get("text", "")), tuple((int(i), float(s)) for i, s in value.get("times", ())))
    return Lyrics.parse("" if value is None else "\n".join(map(str, value)) if isinstance(value, list) else str(value))


# Timed lyrics ---------------------------------------------------------------------------------------------------------


def _timed(lines: Sequence[str]) -> Lyrics:
    """Lines in the order in which they are sung; those without a time follow the one before."""
    offset, sung = 0.0, list[tuple[float, str]]()
    for line in lines:
        stamps = [_seconds(stamp) for stamp in _STAMP.finditer(line)]
        tag = _TAG.match(line.strip())
        if tag and not stamps:
            offset = -(_number_or_zero(tag[2]) / 1000) if tag[1].lower() == "offset" else offset
            continue
        words = _STAMP.sub("", line).strip()
        sung += [(second, words) for second in stamps or [sung[-1][0] if sung else 0.0]]
    text, times = "", []
    for second, words in sorted(sung, key=lambda entry: entry[0]):
        plain, marks = _words(words, second)
        times += [(len(text) + at, max(when + offset, 0.0)) for at, when in marks]
        text += plain + "\n"
    return Lyrics(text.removesuffix("\n"), _ascending(times))


def _words(line: str, second: float) -> tuple[str, list[tuple[int, float]]]:
    """A line without the times of its words, and those times with the characters at which they stand.

    A line that is sung again has the times of the first round; those are left out.
    """
    plain, marks, last = "", [(0, second)], 0
    for stamp in _WORD_STAMP.finditer(line):
        plain += line[last : stamp.start()]
        marks.append((len(plain), _seconds(stamp)))
        last = stamp.end()
    return plain + line[last:], [(at, when) for at, when in marks if when >= second]


def _seconds(stamp: re.Match[str]) -> float:
    return 60 * int(stamp[1]) + float(stamp[2].replace(":", "."))


def _number_or_zero(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _ascending(times: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """What goes back is left out, so that there is one character at a time."""
    kept: list[tuple[int, float]] = []
    for at, second in times:
        if not kept or (at >= kept[-1][0] and second >= kept[-1][1] and (at, second) != kept[-1]):
            kept.append((at, second))
    return tuple(kept)
