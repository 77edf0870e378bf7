"""Songs as codes on disk, and what training draws from them.  Reading needs neither audio files nor a codec.

    CODES/
      encoding.json               which codec made them, and what its codes are (`Encoding`)
      songs.jsonl                 a song a line: where its codes are, train or test, what is known of it
      shards/00000.safetensors    codes of some songs: "song" [K, S], or of a VQ-VAE "song/level" [S] each; int16
      text/00000.safetensors      states of their descriptions, if asked for: "song" [L, D], float16

`tunesmith data encode` (encode.py) writes it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tunesmith.errors import RequestError, RunError
from tunesmith.generation import patterns
from tunesmith.training.crops import Crop, Drawn, Labels, Places, Recent
from tunesmith.training.metadata import Metadata

ENCODING, SONGS, SHARDS, TEXTS = "encoding.json", "songs.jsonl", "shards", "text"
OPEN_SHARDS = 64
IGNORED = -100
"""A label that isn't counted."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What a folder of codes holds; all of it is the same for all songs."""

    codec: str
    """As the user named it."""
    codec_hash: str
    """SHA-256 of its weights."""
    rate: int
    """Audio samples per second."""
    hops: tuple[int, ...]
    """Audio samples per code: of an EnCodec one number, of a VQ-VAE that of each level, finest first."""
    codebooks: int
    """K, the streams of a level; of stereo twice the codec's, left and right in turn."""
    cardinality: int
    """V, the codes in a codebook."""
    channels: int
    """Of the audio that was coded."""
    pad_seconds: float
    """Shorter songs were followed by silence up to this length."""
    text: str | None = None
    """The model whose text states are beside the codes."""
    text_hash: str | None = None
    codes_hash: str | None = None
    """What the codes mean (convert/fingerprint.py); None in folders of older versions."""

    @property
    def by_level(self) -> bool:
        """Whether these are a VQ-VAE's codes."""
        return len(self.hops) > 1

    @classmethod
    def read(cls, folder: Path) -> "Encoding":
        """Raises RunError."""
        try:
            values = json.loads((folder / ENCODING).read_text())
            known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
            return cls(**known | {"hops": tuple(values["hops"])})
        except FileNotFoundError:
            raise RunError(
                f"{str(folder)!r} holds no codes; make them with `tunesmith data encode SONGS --codec NAME --out "
                f"{folder}`."
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{str(folder / ENCODING)!r} is damaged; encode again into another folder.") from None


@dataclass(frozen=True, kw_only=True)
class CodedSong:
    """A line of songs.jsonl."""

    name: str
    shard: int
    samples: int
    """At the codec's rate."""
    test: bool
    state: tuple[int, int]
    """Size and time of change of the file when it was encoded."""
    metadata: Metadata

    def to_row(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "metadata": self.metadata.to_row()}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "CodedSong":
        """What `to_row` made."""
        return cls(**{**row, "state": tuple(row["state"]), "metadata": Metadata.from_row(row["metadata"])})


def read_songs(folder: Path) -> list[CodedSong]:
    """Of songs.jsonl.  Raises RunError."""
    try:
        lines = (folder / SONGS).read_text(encoding="utf-8").splitlines()
        return [CodedSong.from_row(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{str(folder / SONGS)!r} is missing or damaged; give the command that encodes again.") from None


def shard_path(folder: Path, kind: str, shard: int) -> Path:
    """Where a shard of `SHARDS` or `TEXTS` lies."""
    return folder / kind / f"{shard:05}.safetensors"


def open_shard(path: Path) -> Any:
    """A safetensors file; only what is asked for is read.  Raises RunError."""
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise RunError(f"{str(path)!r} is missing; give the command that encodes again, it makes what lacks.") from None
    except (SafetensorError, OSError):
        raise RunError(f"{str(path)!r} is damaged; delete it, and give the command that encodes again.") from None


class EncodedCodes(Drawn):
    """Crops of codes, for language models.  Item i depends on (seed, epoch, i) alone.

    An item has `codes`, int64 [K, S]; of a level of a VQ-VAE [S], and `above`, the codes of the next level in the same
    stretch of music [S / ratio], unless it is the top.  With `text_states` also `encoder_hidden_states` [L, D] and
    `encoder_attention_mask` [L], and what `labels` says.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        steps: int,
        seed: int = 0,
        split: str | None = "train",
        level: int | None = None,
        count: int | None = None,
        aug_shift: bool = False,
        text_states: bool = False,
        withhold: float | int = 0.0,
        labels: Labels | None = None,
    ) -> None:
        """steps: S.  split: "train", "test" or None for all songs.  level: of a VQ-VAE, 0 is the finest.

        count, aug_shift, labels: as of AudioCrops.  withhold: share of items whose text states are none.
        Songs with fewer steps are told in `left_out`.
        Raises RunError for a folder that isn't whole, RequestError where no song is long enough.
        """
        self.folder, self.encoding = Path(folder), Encoding.read(Path(folder))
        self.level = _level(self.encoding, level)
        self.hop = self.encoding.hops[self.level or 0]
        above = None if self.level is None else self.level + 1
        self.above = above if above is not None and above < len(self.encoding.hops) else None
        self.ratio = 1 if self.above is None else self.encoding.hops[self.above] // self.hop
        if steps % self.ratio:
            raise RequestError(
                f"{steps} codes are no multiple of {self.ratio}, the codes of level {level} in one above."
            )
        if text_states and self.encoding.text is None:
            raise RequestError(f"{str(folder)!r} has no text states; encode again with --text NAME.")
        self.steps, self.labels = steps, labels
        self.text_states, self.withhold = text_states, withhold
        songs = read_songs(self.folder)
        lengths = dict(self._lengths({song.shard for song in songs}))
        chosen = [song for song in songs if split is None or song.test == (split == "test")]
        self.songs = [song for song in chosen if lengths.get(song.name, 0) >= steps]
        self.left_out = {song.name: lengths.get(song.name, 0) for song in chosen if lengths.get(song.name, 0) < steps}
        if not self.songs:
            raise RequestError(_too_short(self.folder, split, steps, self.left_out))
        numbers = [lengths[song.name] for song in self.songs]
        super().__init__(Places(numbers, steps, count, aug_shift=aug_shift, step=self.ratio), seed)
        self._shards = Recent(OPEN_SHARDS, open_shard)

    @property
    def skipped(self) -> dict[str, int]:
        """None: codes that can't be read are an error, for they can be made again."""
        return {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises RunError for a shard that was damaged or taken away."""
        random = self.random(index)
        number, start = self.places.at(index, random)
        song = self.songs[number]
        item = {"codes": self._codes(song, self.level, start, self.steps)}
        if self.above is not None:
            item["above"] = self._codes(song, self.above, start // self.ratio, self.steps // self.ratio)
        if self.text_states:
            item |= self._text(song, withheld=random.random() < self.withhold)
        if self.labels is None:
            return item
        place = (start * self.hop, self.steps * self.hop, song.samples, self.encoding.rate)
        return {**item, **self.labels(Crop(song.name, song.metadata, *place, random))}

    def _text(self, song: CodedSong, withheld: bool) -> dict[str, Tensor]:
        """States and mask; zeros where there is no text."""
        states = self._shards[shard_path(self.folder, TEXTS, song.shard)].get_tensor(song.name).float()
        states = torch.zeros_like(states) if withheld else states
        return {"encoder_hidden_states": states, "encoder_attention_mask": (states != 0).any(1).long()}

    def _codes(self, song: CodedSong, level: int | None, start: int, steps: int) -> Tensor:
        shard = self._shards[shard_path(self.folder, SHARDS, song.shard)]
        part = shard.get_slice(song.name if level is None else f"{song.name}/{level}")
        codes: Tensor = part[:, start : start + steps] if level is None else part[start : start + steps]
        return codes.long()

    def _lengths(self, shards: Iterable[int]) -> Iterator[tuple[str, int]]:
        """Codes of each song that has them, on this level."""
        ending = "" if self.level is None else f"/{self.level}"
        for shard in sorted(shards):
            opened = open_shard(shard_path(self.folder, SHARDS, shard))
            for key in opened.keys():  # noqa: SIM118  # it is no dictionary
                if key.endswith(ending):
                    yield key.removesuffix(ending), opened.get_slice(key).get_shape()[-1]


class DelayedCollator:
    """Items of `EncodedCodes` to a batch of what `MusicgenForCausalLM` takes: labels [B, S, K] in the delay pattern,
    and text states, if there are any, padded to the longest.
    """

    def __init__(self, channels: int = 1) -> None:
        """channels: 2 for stereo, where codebooks alternate left and right."""
        self.channels = channels

    def __call__(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch."""
        batch = {"labels": delayed(torch.stack([item["codes"] for item in items]), self.channels)}
        for name in ("encoder_hidden_states", "encoder_attention_mask"):
            if name in items[0]:
                batch[name] = pad_sequence([item[name] for item in items], batch_first=True)
        return batch


def delayed(codes: Int[Tensor, "B K S"], channels: int = 1) -> Int[Tensor, "B S K"]:
    """What the decoder predicts at each step under MusicGen's delay; codebook k's first k steps don't count.

    The last steps, in which a codebook has run out of frames, are left out as in the original's training.
    """
    grid = patterns.musicgen(codes.shape[2], codes.shape[1], channels).build(codes, special=IGNORED, valid_only=True)
    return grid[:, :, 1:].transpose(1, 2)


def _level(encoding: Encoding, level: int | None) -> int | None:
    if not encoding.by_level:
        if level:
            raise RequestError(f"These are codes of {encoding.codec}, which has no levels; leave the level out.")
        return None
    if level is None or not 0 <= level < len(encoding.hops):
        raise RequestError(
            f"These are codes of {encoding.codec}, on {len(encoding.hops)} levels; say which: 0 (finest) to "
            f"{len(encoding.hops) - 1}."
        )
    return level


def _too_short(folder: Path, split: str | None, steps: int, lengths: dict[str, int]) -> str:
    if not lengths:
        return f"{str(folder)!r} has no songs for the split {split!r}."
    return (
        f"No song of the split {split!r} in {str(folder)!r} has {steps} codes; the longest has "
        f"{max(lengths.values())}. Take shorter crops, or encode with --pad-seconds."
    )
