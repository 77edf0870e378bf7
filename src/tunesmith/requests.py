"""What can be asked for: one frozen record is the Python call, the command's flags, the recipe in the file.

Every field is described, defaulted and checked here and nowhere else.  Nothing is imported that costs time.
The records check their own types: `no_type_check` keeps run-time type checkers from speaking first.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, no_type_check

from tunesmith.errors import RequestError

MAX_SECONDS = 3600.0
"""No model makes more in one piece; the window of a model is shorter and is checked when the model is known."""
MAX_SONGS = 1000
MAX_CHARACTERS = 20_000
"""The text encoder's memory grows with the square of the text."""
TYPES: dict[type, str] = {str: "text", Path: "path"}
MAX_SEED = 2**53 - 1
"""JSON readers keep whole numbers exact up to here."""


R = TypeVar("R", bound="Record")


class Record:
    """What requests share: JSON-ready dictionaries, in and out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        assert is_dataclass(self)
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls: type[R], values: Any) -> R:
        """Inverse of `to_dict`; what is left out has its default.  Raises RequestError, also for an unknown key."""
        assert is_dataclass(cls)
        if not isinstance(values, Mapping):
            raise RequestError(f"{cls.__name__} is made from a dictionary, not from {values!r}.")
        known = {f.name: f for f in fields(cls)}
        for name in values:
            check_known("setting", str(name), list(known))
        return cls(**{name: _parsed(known[name].type, value) for name, value in values.items()})


@dataclass(frozen=True, kw_only=True)
class Sampling(Record):
    """How each code is drawn from the model's probabilities."""

    temperature: float = 1.0
    """Spread of the draws: below 1 safer, above 1 wilder; 0 always takes the likeliest code."""

    top_k: int = 250
    """Draw among this many likeliest codes; 0 is no limit."""

    top_p: float = 0.0
    """Draw among the likeliest codes whose probabilities sum to this, of those that top_k leaves; 0 is no limit."""

    guidance: float = 3.0
    """How strongly the text steers (classifier-free guidance); 1 is without, and takes half the work."""

    def __post_init__(self) -> None:
        _check_number(self, "temperature", 0, 100)
        _check_whole(self, "top_k", 0, 1_000_000)
        _check_number(self, "top_p", 0, 1)
        _check_number(self, "guidance", 1, 100)


no_type_check(Sampling.__init__)


@dataclass(frozen=True, kw_only=True)
class MusicgenRequest(Record):
    """Music from words, from audio, or from both."""

    prompt: tuple[str, ...] = ()
    """What you want to hear; each text is a song of its own.  Without any text the model chooses."""

    audio_prompt: tuple[Path, ...] = ()
    """Audio file to continue; one for all songs, or one for each text."""

    prompt_seconds: float | None = None
    """Continue from this point of the audio prompt, in seconds; by default from its end."""

    seconds: float = 10.0
    """Length of the result in seconds, the audio prompt included."""

    seed: int | None = None
    """The same seed makes the same music; song number i has seed + i.  By default a new one is drawn."""

    takes: int = 1
    """How many songs to make of each text."""

    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _tuple_of("prompt", self.prompt, str))
        object.__setattr__(self, "audio_prompt", tuple(map(Path, _tuple_of("audio_prompt", self.audio_prompt, Path))))
        for text in self.prompt:
            check_text(text)
        _check_number(self, "seconds", 0.1, MAX_SECONDS)
        _check_whole(self, "takes", 1, MAX_SONGS)
        if self.prompt_seconds is not None:
            _check_number(self, "prompt_seconds", 0.1, self.seconds)
        if not isinstance(self.sampling, Sampling):
            raise RequestError(f"sampling is {self.sampling!r}; it must be a Sampling.")
        self._check_counts()
        if self.seed is not None:
            _check_whole(self, "seed", 0, MAX_SEED - self.count + 1)

    def _check_counts(self) -> None:
        texts, audios = len(self.prompt), len(self.audio_prompt)
        if texts > 1 and audios > 1 and texts != audios:
            raise RequestError(f"There are {texts} texts and {audios} audio prompts; give one audio prompt or {texts}.")
        if self.prompt_seconds is not None and not audios:
            raise RequestError("prompt_seconds says how much of the audio prompt to use, but there is no audio_prompt.")
        if self.count > MAX_SONGS:
            raise RequestError(f"That is {self.count} songs; at most {MAX_SONGS} fit in one request.")

    @property
    def count(self) -> int:
        """How many songs are asked for."""
        return max(len(self.prompt), len(self.audio_prompt), 1) * self.takes

    def songs(self) -> tuple["MusicgenRequest", ...]:
        """A request for each song: at most one text, one audio prompt, one take, its own seed.

        The takes of a text follow one another.  A missing seed is drawn from the operating system.
        """
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        sources = max(len(self.prompt), len(self.audio_prompt), 1)
        return tuple(
            replace(
                self,
                prompt=_share(self.prompt, i // self.takes),
                audio_prompt=_share(self.audio_prompt, i // self.takes),
                seed=seed + i,
                takes=1,
            )
            for i in range(sources * self.takes)
        )


no_type_check(MusicgenRequest.__init__)


@dataclass(frozen=True, kw_only=True)
class JukeboxRequest(Record):
    """A song by Jukebox: who sings which words in which style, and how much of the song to make.

    What goes by level is one value, or one for each level, top first.
    """

    lyrics: str = ""
    """What is sung, spread over the whole song; a text, or a text file (UTF-8)."""

    artist: str = ""
    """A name that the model knows (`tunesmith labels search` finds them), or, if it came without names, an id."""

    genre: tuple[str, ...] = ()
    """One genre or several, likewise."""

    seconds: float = 20.0
    """Length of the result in seconds, audio prompts included."""

    song_seconds: float | None = None
    """Length of the song that the result is a part of, in seconds; by default as short as the model allows."""

    offset: float = 0.0
    """Where in that song the result begins, in seconds."""

    audio_prompt: tuple[Path, ...] = ()
    """Audio files to continue; take number i continues file number i, and so on in turn."""

    prompt_seconds: float | None = None
    """Use so much of the beginning of each audio prompt, in seconds; by default all."""

    takes: int = 1
    """How many versions to make; at least one of each audio prompt."""

    seed: int | None = None
    """The same seed makes the same music; take number i has seed + i.  By default a new one is drawn."""

    draft: bool = False
    """Stop after the top level: quick, and rough in sound.  `tunesmith upsample` goes on from there."""

    hop_fraction: tuple[float, ...] = ()
    """By level: how far windows move, as a part of the window; smaller is slower and better joined.  By default as the
    model says."""

    temperature: tuple[float, ...] = (0.99,)
    """By level: spread of the draws; below 1 safer, above 1 wilder; 0 always takes the likeliest code."""

    top_k: tuple[int, ...] = (0,)
    """By level: draw among this many likeliest codes; 0 is no limit."""

    top_p: tuple[float, ...] = (0.0,)
    """By level: draw among the likeliest codes whose probabilities sum to this, of those that top_k leaves; 0 is no
    limit."""

    sample_rate: int | None = None
    """Samples per second of the result; by default the model's."""

    def __post_init__(self) -> None:
        for name, kind in (("genre", str), ("audio_prompt", Path)):
            object.__setattr__(self, name, tuple(map(kind, _tuple_of(name, getattr(self, name), kind))))
        _check_words(self)
        _check_number(self, "seconds", 0.01, MAX_SECONDS)
        _check_number(self, "offset", 0, MAX_SECONDS)
        if self.song_seconds is not None:
            _check_number(self, "song_seconds", self.offset + self.seconds, MAX_SECONDS)
        _check_whole(self, "takes", 1, MAX_SONGS)
        if self.prompt_seconds is not None:
            _check_number(self, "prompt_seconds", 0.001, self.seconds)
        if self.prompt_seconds is not None and not self.audio_prompt:
            raise RequestError("prompt_seconds says how much of the audio prompt to use, but there is no audio_prompt.")
        if self.seed is not None:
            _check_whole(self, "seed", 0, MAX_SEED - self.count + 1)
        if not isinstance(self.draft, bool):
            raise RequestError(f"draft is {self.draft!r}; it must be true or false.")
        if self.sample_rate is not None:
            _check_whole(self, "sample_rate", 1000, 1_000_000)
        _check_by_level(self, "hop_fraction", 0.001, 1)
        _check_by_level(self, "temperature", 0, 100)
        _check_by_level(self, "top_k", 0, 1_000_000, whole=True)
        _check_by_level(self, "top_p", 0, 1)

    @property
    def count(self) -> int:
        """How many takes are asked for."""
        return max(self.takes, len(self.audio_prompt))

    def songs(self) -> tuple["JukeboxRequest", ...]:
        """A request for each take: at most one audio prompt, its own seed.

        A missing seed is drawn from the operating system.
        """
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        prompts = self.audio_prompt
        return tuple(
            replace(self, audio_prompt=prompts[i % len(prompts) :][:1] if prompts else (), seed=seed + i, takes=1)
            for i in range(self.count)
        )


no_type_check(JukeboxRequest.__init__)


def check_text(text: str) -> None:
    """Raises RequestError for a text that no model could read: empty, endless, or not Unicode."""
    if not text.strip():
        raise RequestError("The prompt is empty; write what you want to hear, or give no prompt and the model chooses.")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"The prompt has {len(text)} characters; at most {MAX_CHARACTERS} are allowed.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"The prompt {text!a:.60} is not valid Unicode; save or type it as UTF-8.") from None


def _check_words(request: JukeboxRequest) -> None:
    for name, text in (("lyrics", request.lyrics), ("artist", request.artist), *(("genre", g) for g in request.genre)):
        if not isinstance(text, str):
            raise RequestError(f"{name} is {text!r:.60}; it must be a text.")
        if len(text) > MAX_CHARACTERS:
            raise RequestError(f"{name} has {len(text)} characters; at most {MAX_CHARACTERS} are allowed.")


def check_known(kind: str, name: str, known: list[str]) -> None:
    """Raises RequestError, with the closest known name, when the name is not known."""
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
        raise RequestError(f"There is no {kind} {name!r}; {hint}")


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_number(record: Record, name: str, low: float | int, high: float | int) -> None:
    """The field, also a number of NumPy's, becomes a float."""
    value = getattr(record, name)
    if not _is_number(value, Real) or not low <= value <= high:
        raise RequestError(f"{name} is {value!r:.60}; it must be a number from {low:g} to {high:g}.")
    object.__setattr__(record, name, float(value))


def _check_whole(record: Record, name: str, low: int, high: int) -> None:
    """The field, also a number of NumPy's, becomes an int."""
    value = getattr(record, name)
    if not _is_number(value, Integral) or not low <= value <= high:
        raise RequestError(f"{name} is {value!r:.60}; it must be a whole number from {low} to {high}.")
    object.__setattr__(record, name, int(value))


def _check_by_level(record: Record, name: str, low: float | int, high: float | int, whole: bool = False) -> None:
    """The field, one number or several, becomes a tuple."""
    values = getattr(record, name)
    values = tuple(values) if isinstance(values, tuple | list) else (values,)
    for value in values:
        if not _is_number(value, Integral if whole else Real) or not low <= value <= high:
            kind = f"whole number from {low} to {high}" if whole else f"number from {low:g} to {high:g}"
            raise RequestError(f"{name} is {value!r:.60}; it must be a {kind}, or one for each level, top first.")
    object.__setattr__(record, name, tuple(map(int if whole else float, values)))


def _tuple_of(name: str, value: object, kind: type) -> tuple[Any, ...]:
    """One value or several, as a tuple; a lone string is one value."""
    items = (value,) if isinstance(value, str | Path) else value
    if not isinstance(items, tuple | list) or not all(isinstance(item, str | kind) for item in items):
        raise RequestError(f"{name} is {value!r:.60}; it must be one {TYPES[kind]} or a list of them.")
    return tuple(items)


def _share(values: tuple[Any, ...], i: int) -> tuple[Any, ...]:
    """The i-th value, or the only one."""
    return values if len(values) < 2 else values[i : i + 1]


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _parsed(kind: Any, value: Any) -> Any:
    return kind.from_dict(value) if isinstance(kind, type) and issubclass(kind, Record) else value
