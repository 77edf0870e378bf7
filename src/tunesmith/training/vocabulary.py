"""The names and characters of a data set: artists, genres and the alphabet of its lyrics, as a prior's tokenizer."""

from collections.abc import Iterable

from tunesmith.conditioning.lyrics import ALPHABETS, Alphabet
from tunesmith.conditioning.tables import join_tables
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.training.metadata import Metadata

UNKNOWN_NAME = "unknown"
"""Has the id 0, in each table."""


def tokenizer_of(songs: Iterable[Metadata], *, genres: int = 1, characters: int = 0) -> JukeboxTokenizer:
    """A tokenizer for one prior that knows each artist and genre of the songs, in order of their names (v3 rules).

    genres: slots of a song; characters: in a window of lyrics.  The alphabet is the original's v3, and after it
    whatever else the lyrics hold, so any script can be sung.
    """
    known = list(songs)
    artists = _numbered(song.artist for song in known)
    tokenizer = JukeboxTokenizer(version=["v3"], n_genres=[genres], max_n_lyric_tokens=characters)
    tokenizer.tables = join_tables(artists, _numbered(genre for song in known for genre in song.genres))
    tokenizer.alphabet = Alphabet(_with_characters(song.lyrics.text for song in known))
    return tokenizer


def sizes_of(tokenizer: JukeboxTokenizer) -> dict[str, object]:
    """The settings of a prior that a tokenizer decides."""
    tables = tokenizer.tables
    rows = [1 + max(tables[kind, tokenizer.version[0]].ids.values(), default=0) for kind in ("genre", "artist")]
    characters = 1 + max(tokenizer.alphabet.ids.values())
    return {
        "metadata_dims": rows,
        "max_nb_genres": tokenizer.n_genres[0],
        **({"lyric_vocab_size": characters} if tokenizer.max_n_lyric_tokens else {}),
    }


def _numbered(names: Iterable[str]) -> dict[str, int]:
    found = sorted({name.lower() for name in names if name} - {UNKNOWN_NAME})
    return {UNKNOWN_NAME: 0, **{name: i for i, name in enumerate(found, start=1)}}


def _with_characters(texts: Iterable[str]) -> dict[str, int]:
    ids = dict(ALPHABETS["v3"])
    fresh = sorted({c for text in texts for c in text} - {*ids, "\\", "\r"})
    return ids | {c: len(ids) + i for i, c in enumerate(fresh)}
