"""Artist, genre and lyrics -> the labels that Jukebox reads (`labels.py` says what they look like)."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding

from tunesmith.conditioning.labels import ARTIST, GENRES, NONE, Samples, per_song
from tunesmith.conditioning.lyrics import ALPHABETS, Alphabet
from tunesmith.conditioning.tables import (
    KINDS,
    LYRICS,
    SETTINGS,
    UNKNOWN,
    Rules,
    Table,
    download,
    join_tables,
    read_ids,
    read_json,
    split_tables,
    write_json,
)
from tunesmith.errors import CheckpointError, ModelNotFoundError, RequestError
from tunesmith.nn.pretrained import bundled

File = str | PathLike[str]

Name = str | int | Mapping[str, Any]
"""A name; an id, the same for every prior; or one of these by rules: {"v2": 145, "v3": 6785}."""

SLOTS: dict[Rules, int] = {"v2": 5, "v3": 1}
"""Genres of a song, in the released models."""

PRIOR_DEFAULTS = {
    "lyric_vocab_size": len(ALPHABETS["v3"]),
    "max_nb_genres": 1,
    "metadata_dims": [604, 7898],
    "nb_relevant_lyric_tokens": 384,
}
"""What a prior's configuration means by leaving these out: the released 1b model."""

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
SUGGESTIONS = 3


class UnknownLabelWarning(UserWarning):
    """The model has no such artist or genre, and takes it as unknown (id 0)."""


class Song(NamedTuple):
    """One song, as asked for or as labels say."""

    artist: Any
    genres: Any
    lyrics: str


class JukeboxTokenizer:
    """Words to labels, by the tables of a model.

    The priors of a model may follow different rules (the 1b model's top prior v3, its upsamplers v2), so a name has an
    id by prior.  The top prior alone reads lyrics.
    """

    def __init__(
        self,
        artists_file: File | None = None,
        genres_file: File | None = None,
        lyrics_file: File | None = None,
        version: str | Sequence[str] = ("v3", "v2", "v2"),
        max_n_lyric_tokens: int = 512,
        n_genres: int | Sequence[int] | None = None,
        **_: Any,
    ) -> None:
        """From the files of a Hugging Face folder; without them, artists and genres are given as ids.

        version: the rules of each prior, top first; one for three priors.
        max_n_lyric_tokens: characters in a window of the top prior; 0 for a model that knows no lyrics.
        n_genres: genre slots of each prior, top first.  A single number is that of the priors with the top's rules; the
        others have, as all have by default, the released models' slots: 5 under v2, 1 under v3.
        Hugging Face's other settings (unk_token, ...) are accepted and mean nothing here.

        Raises RequestError, and CheckpointError for a damaged file.
        """
        self.version = _rules(version)
        self.n_genres = _slots(n_genres, self.version)
        self.max_n_lyric_tokens = max_n_lyric_tokens
        artists, genres, characters = (read_ids(Path(f)) if f else {} for f in (artists_file, genres_file, lyrics_file))
        self.tables = join_tables(artists, genres)
        self.alphabet = Alphabet(_alphabet(characters, self.version[0]))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: File, **kwargs: Any) -> "JukeboxTokenizer":
        """From a model folder, a bundled model's name or a hub id.

        Keywords change settings of the constructor, or say where to look (`subfolder`, `revision`, `cache_dir`, ...).
        A folder without tokenizer_config.json has its settings from the model's config.json.

        Raises ModelNotFoundError and CheckpointError.
        """
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = _folder(pretrained_model_name_or_path, options) / kwargs.pop("subfolder", "")
        files = (*(folder / f"{kind}s.json" for kind in KINDS), folder / LYRICS)
        return cls(*files, **{**_settings(folder), **kwargs})

    def __call__(
        self,
        artist: Name | Sequence[Name] = "",
        genres: Name | Sequence[Any] = "",
        lyrics: str | Sequence[str] = "",
        *,
        total_length: Samples = 0,
        offset: Samples = 0,
        sample_length: Samples = 0,
        return_tensors: str = "pt",
    ) -> BatchEncoding:
        """`input_ids`: the labels for each prior, top first, int64 [B, 4 + G + A]; only the top prior's have lyrics.

        artist, lyrics: of one song, or lists for a batch; what isn't a list is the same for all songs.
        genres: of one song, several in a list; for a batch one for all, or a list with an entry a song.
        total_length, offset, sample_length: samples in the whole song, before the wanted part and in it; one number, or
        one a song.  0 leaves them to the model.
        return_tensors: "pt", or "np" for NumPy.

        A name that the model doesn't know gets an `UnknownLabelWarning` and id 0.  Raises RequestError for names
        without tables, more genres than slots, lists of different lengths and values of other kinds.
        """
        if return_tensors not in ("pt", "np"):
            raise RequestError(f"return_tensors is {return_tensors!r}; it can be 'pt' or 'np'.")
        songs = _songs(artist, genres, lyrics)
        timing = _timing(len(songs), total_length, offset, sample_length)
        unknown: dict[tuple[Table, str], None] = {}
        labels = []
        for rules, slots in zip(self.version, self.n_genres, strict=True):
            ids = [self._ids(song, rules, slots, unknown) for song in songs]
            labels.append(torch.tensor([[*when, *what] for when, what in zip(timing, ids, strict=True)]))
        labels[0] = torch.cat([labels[0], self._lyrics(songs)], dim=1)
        _warn(unknown)
        return BatchEncoding({"input_ids": labels if return_tensors == "pt" else [level.numpy() for level in labels]})

    def describe(self, labels: Int[Tensor, "B Y"], level: int = 0) -> list[Song]:
        """Labels read back: names where the tables have them, and the lyrics as the model sees them.

        level: which prior's labels these are, 0 for the top.
        """
        rules, end = self.version[level], GENRES + self.n_genres[level]
        artists, genres = (self.tables[kind, rules] for kind in KINDS)
        return [
            Song(
                artists.name(row[ARTIST]),
                [genres.name(number) for number in row[GENRES:end] if number != NONE],
                self.alphabet.decode(row[end:]),
            )
            for row in labels.tolist()
        ]

    def save_vocabulary(self, save_directory: File, filename_prefix: str | None = None) -> tuple[str, str, str]:
        """Write artists.json, genres.json and lyrics.json into a folder, and tell where."""
        start = "" if filename_prefix is None else f"{filename_prefix}-"
        contents = {f"{kind}s.json": split_tables(self.tables, kind) for kind in KINDS} | {LYRICS: self.alphabet.ids}
        artists, genres, lyrics = (
            str(write_json(Path(save_directory) / f"{start}{name}", content)) for name, content in contents.items()
        )
        return artists, genres, lyrics

    def save_pretrained(self, save_directory: File) -> tuple[str, ...]:
        """Write the tables and the settings into a folder, and tell where."""
        [slots, *_] = self.n_genres
        settings = {
            "tokenizer_class": type(self).__name__,
            "version": self.version,
            "n_genres": slots if _slots(slots, self.version) == self.n_genres else self.n_genres,
            "max_n_lyric_tokens": self.max_n_lyric_tokens,
        }
        return (*self.save_vocabulary(save_directory), str(write_json(Path(save_directory) / SETTINGS[0], settings)))

    def get_vocab(self) -> dict[str, dict[str, int]]:
        """What `save_vocabulary` writes."""
        names = {f"{kind}s_encoder": split_tables(self.tables, kind) for kind in KINDS}
        return {**names, "lyrics_encoder": dict(self.alphabet.ids)}

    def _ids(self, song: Song, rules: Rules, slots: int, unknown: dict[tuple[Table, str], None]) -> list[int]:
        """Artist and genres [1 + G]."""
        artists = _resolve(song.artist, self.tables["artist", rules], unknown)
        genres = _resolve(song.genres, self.tables["genre", rules], unknown)
        if len(artists) != 1:
            raise RequestError(f"{song.artist!r} are {len(artists)} artists; a song has one.")
        if len(genres) > slots:
            raise RequestError(
                f"{song.genres!r} are {len(genres)} genres under {rules} rules; the model takes at most {slots}."
            )
        return [*artists, *genres, *[NONE] * (slots - len(genres))]

    def _lyrics(self, songs: Sequence[Song]) -> Int[Tensor, "B A"]:
        sung = [self.alphabet.encode(song.lyrics) if self.max_n_lyric_tokens else [] for song in songs]
        return pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in sung], batch_first=True, padding_value=NONE)


# What was asked for ---------------------------------------------------------------------------------------------------


def _songs(artist: Any, genres: Any, lyrics: Any) -> list[Song]:
    """A song each; what isn't a list is the same for all."""
    batches = [value for value in (artist, lyrics) if _is_list(value)]
    if batches and _is_list(genres):
        batches.append(genres)
    if len({len(value) for value in batches}) > 1:
        raise RequestError(
            f"The lists for a batch have {' and '.join(str(len(value)) for value in batches)} entries; give one a song."
        )
    count = len(batches[0]) if batches else 1
    if not count:
        raise RequestError("There is no song in the lists; give at least one.")
    artists, texts = (value if _is_list(value) else [value] * count for value in (artist, lyrics))
    several = genres if batches and _is_list(genres) else [genres] * count
    for text in texts:
        if not isinstance(text, str):
            raise RequestError(f"lyrics are {text!r}; they are a text, or a list of texts for a batch.")
    return [Song(*song) for song in zip(artists, several, texts, strict=True)]


def _timing(songs: int, total_length: Samples, offset: Samples, sample_length: Samples) -> list[tuple[int, ...]]:
    """total_length, offset and sample_length of each song."""
    given = {"total_length": total_length, "offset": offset, "sample_length": sample_length}
    timing = list(zip(*(per_song(values, songs, name) for name, values in given.items()), strict=True))
    for total, start, _ in timing:
        if total and start >= total:
            raise RequestError(f"offset {start} lies outside the song, which has {total} samples (total_length).")
    return timing


def _resolve(value: Any, table: Table, unknown: dict[tuple[Table, str], None]) -> list[int]:
    """The ids that a name, an id or a list of them stands for; what isn't known is noted."""
    if isinstance(value, Mapping) and table.rules in value:
        return _resolve(value[table.rules], table, unknown)
    if _is_list(value):
        return [number for entry in value for number in _resolve(entry, table, unknown)]
    if isinstance(value, str):
        return [_id(name, value, table, unknown) for name in table.names(value)]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return [value]
    raise RequestError(
        f"{table.kind} {value!r} is neither a name nor an id (0, 1, ...) nor a dictionary with either for "
        f"{table.rules} rules."
    )


def _id(name: str, text: str, table: Table, unknown: dict[tuple[Table, str], None]) -> int:
    """The id of one name, which is (a word of) the given text under the table's rules."""
    if name in table.ids and (name or not text.strip()):
        return table.ids[name]
    if text.strip().lower() in ("", "unknown"):
        return UNKNOWN
    if not table.ids and name.isascii() and name.isdecimal():
        return int(name)
    if not table.ids:
        raise RequestError(
            f"The {table.kind} {text!r} can't be looked up: the model came without a table of {table.kind}s for "
            f"{table.rules} rules. Give an id, or add tables with `tunesmith convert SRC DST --ids FOLDER`."
        )
    unknown[table, name or text] = None
    return UNKNOWN


def _warn(unknown: Iterable[tuple[Table, str]]) -> None:
    for table, name in unknown:
        close = ", ".join(repr(hit.name) for hit in table.search(name, SUGGESTIONS))
        hint = f"the closest are {close}" if close else "nothing in its table is close"
        message = f"The model knows no {table.kind} {name!r} ({table.rules} rules) and takes it as unknown: {hint}."
        warnings.warn(message, UnknownLabelWarning, stacklevel=3)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


# Settings and files ---------------------------------------------------------------------------------------------------


def _rules(version: str | Sequence[str]) -> tuple[Rules, ...]:
    given = [version] * 3 if isinstance(version, str) else list(version)
    if not given or any(rules not in get_args(Rules) for rules in given):
        raise RequestError(f"version is {version!r}; it names the rules of each prior, 'v2' or 'v3', top first.")
    return tuple(given)  # type: ignore[arg-type]  # just checked


def _slots(n_genres: int | Sequence[int] | None, version: tuple[Rules, ...]) -> tuple[int, ...]:
    """Genre slots by prior."""
    if n_genres is None:
        return tuple(SLOTS[rules] for rules in version)
    if isinstance(n_genres, int):
        return tuple(n_genres if rules == version[0] else SLOTS[rules] for rules in version)
    if len(n_genres) != len(version):
        raise RequestError(f"n_genres has {len(n_genres)} values for {len(version)} priors; give one, or one a prior.")
    return tuple(n_genres)


def _alphabet(ids: dict[str, int], rules: Rules) -> dict[str, int]:
    """That of the rules, unless a file brings its own: in Hugging Face's folders lyrics.json may be of other rules."""
    given = {c: i for c, i in ids.items() if c}
    standard = any(given == {c: i for c, i in alphabet.items() if c} for alphabet in ALPHABETS.values())
    return ALPHABETS[rules] if standard or not given else ids


def _folder(name: File, options: dict[str, Any]) -> Path:
    path = Path(bundled(name)).expanduser()
    if str(name) and path.is_dir():
        return path
    if not isinstance(name, str) or name[:1] in ("", "/", ".", "~") or name.count("/") != 1:
        raise ModelNotFoundError(f"There is no model folder {str(name)!r}.")
    return download(name, **options)


def _settings(folder: Path) -> dict[str, Any]:
    """The constructor's keywords, from the tokenizer's settings or the model's; none where there are only tables."""
    settings, config = (read_json(folder / name) for name in SETTINGS)
    of_ours = settings.get("tokenizer_class", JukeboxTokenizer.__name__) == JukeboxTokenizer.__name__
    if of_ours and (settings or not config):
        return {name: settings[name] for name in ("version", "max_n_lyric_tokens", "n_genres") if name in settings}
    names = [name for name in sorted(config) if re.fullmatch(r"prior_\d", name)]
    listed = config.get("prior_config_list") or [config[name] for name in names]
    alone = [config] if config.get("model_type") == "jukebox_prior" else []
    priors = [{**PRIOR_DEFAULTS, **prior} for prior in listed or alone]
    if not priors:
        raise CheckpointError(
            f"{str(folder)!r} is no Jukebox model: neither its tokenizer nor its priors are a Jukebox's."
        )
    return {
        "version": [_rules_of(prior) for prior in priors],
        "n_genres": priors[0]["max_nb_genres"],
        "max_n_lyric_tokens": priors[0]["nb_relevant_lyric_tokens"],
    }


def _rules_of(prior: dict[str, Any]) -> Rules:
    """A configuration doesn't name them: v3 has no plus sign among its characters, or its own numbers of names."""
    lacks_plus = prior["nb_relevant_lyric_tokens"] > 0 and prior["lyric_vocab_size"] == len(ALPHABETS["v3"])
    return "v3" if lacks_plus or list(prior["metadata_dims"]) == PRIOR_DEFAULTS["metadata_dims"] else "v2"
