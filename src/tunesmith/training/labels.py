"""Labels of crops, for the `labels` of AudioCrops and EncodedCodes: descriptions for MusicGen, rows for Jukebox."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tunesmith.conditioning.labels import ARTIST, GENRES
from tunesmith.conditioning.lyrics import PAD
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.errors import RequestError
from tunesmith.training.crops import Crop
from tunesmith.training.metadata import Metadata

MERGED = ("key", "bpm", "genre", "moods", "instrument", "keywords")
"""Fields that may be added to a description, under audiocraft's names."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """{"text": str, or None}: a song's description, varied as audiocraft does; nothing is varied by default.

    A song without a description has its other fields always merged, where audiocraft gives it no text at most times.
    Released models were trained with merge 0.25, keep_text 0.5, keep_field 0.5 and drop_words 0.3.
    """

    merge: float | int = 0.0
    """Share of crops whose description also names key, bpm, genre, moods, instrument and keywords, in random order."""
    keep_text: float | int = 1.0
    """Where fields are merged: share of those that keep the description itself."""
    keep_field: float | int = 1.0
    """Where fields are merged: with which probability each is named."""
    drop_words: float | int = 0.0
    """With which probability each word is left out."""
    withhold: float | int = 0.0
    """Share of crops without any text, so that guidance has something to compare with."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise RequestError(f"{name} is {value}; it is a probability, from 0 to 1.")

    def __call__(self, crop: Crop) -> dict[str, str | None]:
        """For one crop."""
        return {"text": None if crop.random.random() < self.withhold else self.text(crop.metadata, crop.random)}

    def text(self, metadata: Metadata, random: np.random.Generator) -> str | None:
        """A description; None where nothing is known."""
        parts = [metadata.text] if metadata.text else []
        if random.random() < self.merge or not parts:
            parts = parts if random.random() < self.keep_text else []
            named = [part for part in fields(metadata) if random.random() < self.keep_field]
            parts += [named[i] for i in random.permutation(len(named))]
        words = ". ".join(part.strip().rstrip(".") if i < len(parts) - 1 else part for i, part in enumerate(parts))
        kept = [word for word in words.split() if random.random() >= self.drop_words] if self.drop_words else [words]
        return " ".join(kept) or None


def fields(metadata: Metadata) -> list[str]:
    """What is known beside the description, as "field: value"."""
    values = {
        "key": metadata.key,
        "bpm": "" if metadata.bpm is None else f"{metadata.bpm:g}",
        "genre": ", ".join(metadata.genres).lower(),
        "moods": ", ".join(metadata.moods),
        "instrument": metadata.instrument.lower(),
        "keywords": ", ".join(metadata.keywords),
    }
    return [f"{name}: {values[name]}" for name in MERGED if values[name]]


class JukeboxLabels:
    """{"labels": int64 [4 + G + n]}: the row that a prior reads with a crop (conditioning/labels.py says what it is).

    Lyrics are the window of n characters around the one at the crop's middle: by the times of timed lyrics, else as if
    the text was spread evenly over the song, which is how the original does it.
    """

    def __init__(self, tokenizer: JukeboxTokenizer, *, level: int = 0, n_tokens: int = 0) -> None:
        """level: which of the tokenizer's priors, 0 for the top.  n_tokens: n, 0 for a prior that reads no lyrics."""
        rules, self.slots = tokenizer.version[level], tokenizer.n_genres[level]
        # The whole tokenizer refuses what any of its priors can't take.
        self.names = JukeboxTokenizer(version=[rules], n_genres=[self.slots], max_n_lyric_tokens=0)
        self.names.tables, self.alphabet, self.n_tokens = tokenizer.tables, tokenizer.alphabet, n_tokens
        self._names: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def __call__(self, crop: Crop) -> dict[str, Int[Tensor, " Y"]]:
        """For one crop.  Raises RequestError for labels that the tokenizer's tables can't hold."""
        known = crop.metadata
        if (names := self._names.get((known.artist, known.genres))) is None:
            names = self._names[known.artist, known.genres] = self._ids(known.artist, known.genres)
        timing = torch.tensor([crop.total, crop.start, crop.samples])
        return {"labels": torch.cat([timing, names, self._window(crop)])}

    def _ids(self, artist: str, genres: tuple[str, ...]) -> Int[Tensor, " _"]:
        """Artist and genre slots; of more genres than there are slots, the first ones."""
        row: Tensor = self.names(artist, [*genres[: self.slots]] or [""])["input_ids"][0][0]
        return row[ARTIST : GENRES + self.slots]

    def _window(self, crop: Crop) -> Int[Tensor, " n"]:
        """Left-padded where the lyrics are shorter."""
        if not self.n_tokens:
            return torch.zeros(0, dtype=torch.long)
        lyrics = crop.metadata.lyrics
        ids = self.alphabet.encode(lyrics.text)
        moment, count = crop.start + crop.samples / 2, len(ids)
        if lyrics.times:
            heard = lyrics.position(moment / crop.rate, crop.total / crop.rate)
            middle = len(self.alphabet.clean(lyrics.text[: int(heard)]))
        else:
            middle = int(count * moment / crop.total)
        first = min(max(middle - self.n_tokens // 2, 0), max(count - self.n_tokens, 0))
        window = ids[first : first + self.n_tokens]
        return torch.tensor([PAD] * (self.n_tokens - len(window)) + window)
