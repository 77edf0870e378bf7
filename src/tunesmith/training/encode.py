"""Songs to codes on disk, once, so that language models train without the codec (encoded.py reads them).

A work item is a shard: a few songs, encoded by themselves and written as one file, whole or not at all.  Items depend
on nothing but the list of songs, so any number of processes can share them (`part`), and one that is done twice is the
same file twice.  What is there and still true is kept: the same command goes on where it stopped, and adds the songs
that are new.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from tunesmith import hub
from tunesmith.audio import Sound, write_atomically
from tunesmith.codecs.encodec import EncodecModel
from tunesmith.codecs.vqvae import JukeboxVQVAE
from tunesmith.convert.fingerprint import codes_hash
from tunesmith.errors import AudioFileError, RequestError, RunError
from tunesmith.events import Event, Finished, Pace
from tunesmith.training.crops import read_crop
from tunesmith.training.encoded import (
    ENCODING,
    SHARDS,
    SONGS,
    TEXTS,
    CodedSong,
    Encoding,
    open_shard,
    read_songs,
    shard_path,
)
from tunesmith.training.folders import Song, Songs
from tunesmith.training.labels import Captions

FACTS = "tunesmith"
"""The name under which a shard says what it was made of."""

PIECE, CONTEXT = 30.0, 2.0
"""Seconds that an EnCodec codes at once, and seconds around them that it hears."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to encode, and how."""

    songs: Songs
    out: Path
    codec: str
    """Name or folder of an EnCodec, a VQ-VAE, or a MusicGen or Jukebox, whose codec is taken."""
    text: str | None = None
    """A MusicGen, or a T5, whose states of the descriptions are stored too."""
    stereo: bool = False
    """Code both sides, by a mono codec each by itself, as stereo models of MusicGen need it."""
    pad_seconds: float = 0.0
    """Follow shorter songs by silence up to this length."""
    shard_songs: int = 16
    part: tuple[int, int] = (1, 1)
    """(i, n): do the i-th of n parts of the shards; from 1."""
    workers: int = 1
    """Processes."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        i, n = self.part
        if not 1 <= i <= n:
            raise RequestError(f"The part is {i}/{n}; it is i/n, with i from 1 to n.")
        if self.shard_songs < 1 or self.workers < 1 or self.pad_seconds < 0:
            raise RequestError(
                f"A shard has {self.shard_songs} songs, {self.workers} processes work and {self.pad_seconds} s is the "
                "least length; songs and processes are from 1 on, seconds from 0 on."
            )


@dataclass(frozen=True)
class Encoded:
    """What was done."""

    encoding: Encoding
    songs: int
    shards: int
    kept: int
    """Shards that were there already."""
    failed: Mapping[str, str]
    """Songs without codes -> why."""


@runtime_checkable
class Coder(Protocol):
    """A codec with what is known of its codes."""

    def facts(self) -> dict[str, Any]:
        """Fields of `Encoding`."""

    def codes(self, audio: Float[Tensor, "C T"]) -> dict[str, Tensor]:
        """Codes by what is added to the song's name."""


# The codecs -----------------------------------------------------------------------------------------------------------


class Streams:
    """K streams of codes, by an EnCodec: in pieces that hear what is around them, for little memory."""

    def __init__(self, codec: EncodecModel, channels: int, codebooks: int) -> None:
        self.codec, self.channels, self.books = codec, channels, codebooks

    def facts(self) -> dict[str, Any]:
        """Of stereo, the sides' codebooks take turns."""
        return {
            "rate": self.codec.sample_rate,
            "hops": (self.codec.hop_length,),
            "codebooks": self.books * self.sides,
            "cardinality": self.codec.cardinality,
            "channels": self.channels,
        }

    @property
    def sides(self) -> int:
        """Coded each by itself."""
        return self.channels // self.codec.channels

    @torch.no_grad()
    def codes(self, audio: Float[Tensor, "C T"]) -> dict[str, Int[Tensor, "K S"]]:
        """One tensor."""
        device = next(self.codec.parameters()).device
        parts = audio.to(device).reshape(self.sides, self.codec.channels, -1)
        hop, (core, around) = self.codec.hop_length, (round(s * self.codec.frame_rate) for s in (PIECE, CONTEXT))
        pieces = []
        for start in range(0, -(-parts.shape[-1] // hop), core):
            low = max(start - around, 0)
            heard = parts[..., low * hop : (start + core + around) * hop]
            pieces.append(self.codec.encode_codes(heard)[:, : self.books, start - low : start - low + core])
        return {"": torch.cat(pieces, 2).transpose(0, 1).flatten(0, 1)}  # [sides, K, S] -> [K · sides, S]


class Levels:
    """Codes of every level, by a VQ-VAE."""

    def __init__(self, codec: JukeboxVQVAE) -> None:
        self.codec = codec

    def facts(self) -> dict[str, Any]:
        """Each level is one stream."""
        config: Any = self.codec.config
        return {
            "rate": self.codec.sample_rate,
            "hops": tuple(self.codec.hop_lengths),
            "codebooks": 1,
            "cardinality": int(config.nb_discrete_codes),
            "channels": int(config.conv_input_shape),
        }

    def codes(self, audio: Float[Tensor, "C T"]) -> dict[str, Int[Tensor, " S"]]:
        """By level; all cover the same audio, what lacks of the last code of the top is silent."""
        filled = nn.functional.pad(audio, (0, -audio.shape[1] % max(self.codec.hop_lengths)))
        device = next(self.codec.parameters()).device
        return {f"/{i}": level[0] for i, level in enumerate(self.codec.encode(filled.T[None].to(device)))}


@lru_cache(maxsize=1)
def open_coder(name: str, weights: str, stereo: bool, device: str) -> Coder:
    """The codec of a name; a process opens it once.  Raises what loading raises, and RequestError for other models.

    weights: their hash, so that a codec which has learnt in the meantime is opened anew.
    """
    folder = hub.locate(name)
    family = hub.family_of(folder)
    if family in ("jukebox", "jukebox_vqvae"):
        return Levels(_ready(_vqvae(folder, family), device))
    if family == "encodec":
        codec = EncodecModel.from_pretrained(folder)
        return Streams(_ready(codec, device), 2 if stereo else codec.channels, codec.codebooks)
    if family == "musicgen":
        from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration

        whole = MusicgenForConditionalGeneration.from_pretrained(folder)
        channels = int(whole.config.decoder.audio_channels)
        return Streams(_ready(whole.audio_encoder, device), channels, whole.config.decoder.num_codebooks // channels)
    raise RequestError(
        f"{name!r} is of the family {family!r}; codecs are encodec and jukebox_vqvae, alone or in a model."
    )


def _vqvae(folder: Path, family: str) -> JukeboxVQVAE:
    from tunesmith.pipelines.jukebox import JukeboxConfig

    if family == "jukebox_vqvae":
        return JukeboxVQVAE.from_pretrained(folder)
    config: Any = JukeboxConfig.from_pretrained(folder)
    return JukeboxVQVAE.from_pretrained(folder, config=config.vqvae_config)


def _ready(codec: Any, device: str) -> Any:
    return codec.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def open_text(name: str, weights: str, device: str) -> Callable[[str], Float[Tensor, "L D"]]:
    """A description -> its states: of a MusicGen as wide as its decoder, of a T5 as they are.  weights: as above."""
    from transformers import AutoTokenizer

    folder = hub.locate(name)
    encode = _text_encoder(name, folder, device)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def states(description: str) -> Tensor:
        ids = tokenizer(description, return_tensors="pt").input_ids.to(device)
        return encode(ids)[0].cpu()

    return states


def _text_encoder(name: str, folder: Path, device: str) -> Callable[[Int[Tensor, "B L"]], Float[Tensor, "B L D"]]:
    from transformers import T5EncoderModel

    family = hub.family_of(folder)
    if family == "t5":
        text = _ready(T5EncoderModel.from_pretrained(folder), device)
        return lambda ids: text(ids).last_hidden_state
    if family != "musicgen":
        raise RequestError(f"{name!r} reads no text; give a MusicGen or a T5.")
    from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration

    whole = _ready(MusicgenForConditionalGeneration.from_pretrained(folder), device)
    encode: Callable[[Tensor], Tensor] = whole.encode_text
    return encode


# The plan -------------------------------------------------------------------------------------------------------------


def encode_songs(job: Job) -> Iterator[Event]:
    """Encode what isn't yet: Progress, at last Finished with `Encoded`.

    Raises RunError where `out` holds codes of another kind, RequestError and what loading a model raises.
    """
    encoding = _encoding(job)
    job.out.mkdir(parents=True, exist_ok=True)
    _keep(job.out / ENCODING, encoding)
    plan = plan_shards(job)
    _write(job.out / SONGS, "".join(json.dumps(song.to_row(), ensure_ascii=False) + "\n" for song in plan).encode())
    items = _items(job, encoding, plan)
    todo = [item for item in items if not item.is_done()]
    pace = Pace("encoding")
    yield pace.at(0, max(len(todo), 1))
    for done, _ in enumerate(_work(todo, job.workers), start=1):
        yield pace.at(done, len(todo))
    failed = {name: why for item in items for name, why in item.failures().items()}
    yield Finished(result=Encoded(encoding, len(plan) - len(failed), len(items), len(items) - len(todo), failed))


def _items(job: Job, encoding: Encoding, plan: Sequence[CodedSong]) -> "list[Item]":
    """The shards of the job's part."""
    paths = {song.name: song for song in job.songs}
    shards: dict[int, list[CodedSong]] = {}
    for song in plan:
        shards.setdefault(song.shard, []).append(song)
    mine = sorted(shards)[job.part[0] - 1 :: job.part[1]]
    bare = replace(job, songs=replace(job.songs, songs=(), left_out={}))
    return [Item(bare, encoding, i, tuple((song, paths[song.name]) for song in shards[i])) for i in mine]


def plan_shards(job: Job) -> list[CodedSong]:
    """Songs in their shards: those that are there where they were, new ones in new shards."""
    there = {song.name: song for song in read_songs(job.out)} if (job.out / SONGS).exists() else {}
    held_out = job.songs.held_out
    rate = Encoding.read(job.out).rate
    first = 1 + max((song.shard for song in there.values()), default=-1)
    plan, new = [], 0
    for song in job.songs:
        if song.name in there:
            shard = there[song.name].shard
        else:
            shard, new = first + new // job.shard_songs, new + 1
        state = song.path.stat()
        plan.append(
            CodedSong(
                name=song.name,
                shard=shard,
                samples=song.length(rate),
                test=song.name in held_out,
                state=(state.st_size, state.st_mtime_ns),
                metadata=song.metadata,
            )
        )
    return plan


@dataclass(frozen=True)
class Item:
    """The work of one shard."""

    job: Job
    """Without its songs."""
    encoding: Encoding
    shard: int
    songs: tuple[tuple[CodedSong, Song], ...]

    def is_done(self) -> bool:
        """Whether files are there that were made of these very songs and descriptions."""
        kinds = (SHARDS, TEXTS) if self.job.text else (SHARDS,)
        return all(self._facts(kind).get("made of") == self._made_of(kind) for kind in kinds)

    def run(self) -> None:
        """Write what isn't there."""
        if self._facts(SHARDS).get("made of") != self._made_of(SHARDS):
            self._write_codes()
        if self.job.text and self._facts(TEXTS).get("made of") != self._made_of(TEXTS):
            self._write_text()

    def failures(self) -> dict[str, str]:
        """Songs that couldn't be read -> why."""
        found: dict[str, str] = self._facts(SHARDS).get("failed", {})
        return found

    def _write_codes(self) -> None:
        coder = open_coder(self.job.codec, self.encoding.codec_hash, self.job.stereo, self.job.device)
        tensors, failed = dict[str, Tensor](), dict[str, str]()
        for coded, song in self.songs:
            try:
                codes = coder.codes(_read(song, coder.facts(), self.job.pad_seconds))
                tensors |= {coded.name + ending: x.cpu().to(torch.int16) for ending, x in codes.items()}
            except AudioFileError as error:
                failed[coded.name] = str(error)
        self._save(SHARDS, tensors, {"failed": failed})

    def _write_text(self) -> None:
        assert self.job.text is not None, "text was asked for"
        states = open_text(self.job.text, str(self.encoding.text_hash), self.job.device)
        told = {song.name: _description(song) for song, _ in self.songs}
        # No description is no text at all, which is zeros, as where text is withheld.
        found = {name: states(text) if text else torch.zeros_like(states("")[:1]) for name, text in told.items()}
        self._save(TEXTS, {name: x.half() for name, x in found.items()}, {})

    def _save(self, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        path = shard_path(self.job.out, kind, self.shard)
        path.parent.mkdir(exist_ok=True)
        own = {name: x.contiguous() for name, x in tensors.items()}
        told = json.dumps({**facts, "made of": self._made_of(kind)}, sort_keys=True)
        _write(path, save(own, {FACTS: told}))  # one entry: safetensors writes several in any order

    def _made_of(self, kind: str) -> str:
        """A digest of what a file depends on, but for what is the same in the whole folder."""
        codes = kind == SHARDS
        of = [[song.name, *(song.state if codes else (_description(song),))] for song, _ in self.songs]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def _facts(self, kind: str) -> dict[str, Any]:
        path = shard_path(self.job.out, kind, self.shard)
        try:
            told = (open_shard(path).metadata() or {}) if path.exists() else {}
        except RunError:  # damaged: made anew
            return {}
        facts: dict[str, Any] = json.loads(told.get(FACTS, "{}"))
        return facts


def _work(items: Sequence[Item], workers: int) -> Iterator[None]:
    """One after the other, or in processes."""
    if workers == 1 or len(items) < 2:
        for item in items:
            item.run()
            yield
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        for done in as_completed([pool.submit(item.run) for item in items]):
            done.result()
            yield


def _begin_worker() -> None:
    """One thread each, for there are as many as the user wants; what loads models tells nothing."""
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _read(song: Song, facts: Mapping[str, Any], pad_seconds: float) -> Float[Tensor, "C T"]:
    """The whole song as the codec takes it."""
    rate = facts["rate"]
    length = max(song.length(rate), round(pad_seconds * rate))
    with Sound(song.path) as sound:
        return read_crop(sound, song, 0, length, rate, facts["channels"])


def _description(song: CodedSong) -> str:
    """All that can be said in words."""
    return Captions().text(song.metadata, np.random.default_rng(0)) or ""


def _encoding(job: Job) -> Encoding:
    codec_hash = hub.weights_hash(hub.locate(job.codec))
    coder = open_coder(job.codec, codec_hash, job.stereo, job.device)
    return Encoding(
        codec=job.codec,
        codec_hash=codec_hash,
        pad_seconds=job.pad_seconds,
        text=job.text,
        text_hash=None if job.text is None else hub.weights_hash(hub.locate(job.text)),
        codes_hash=codes_hash(hub.locate(job.codec)),
        **coder.facts(),
    )


def _keep(path: Path, encoding: Encoding) -> None:
    """Write it, or see that what is there is the same.  Text may be added later."""
    if path.exists():
        there = Encoding.read(path.parent)
        there = replace(there, codes_hash=there.codes_hash or encoding.codes_hash)
        known = replace(encoding, codec=there.codec)  # another name of the same weights
        known = replace(known, text=there.text, text_hash=there.text_hash) if there.text is None else known
        old, new = asdict(there), asdict(known)
        changed = [f"{name} was {old[name]!r} and is {new[name]!r}" for name in old if old[name] != new[name]]
        if changed:
            raise RunError(
                f"{str(path.parent)!r} holds codes of another kind: {'; '.join(changed)}. Give another --out."
            )
        encoding = encoding if there.text is None else there
    _write(path, (json.dumps(asdict(encoding), indent=2) + "\n").encode())


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except AudioFileError as error:
        raise RunError(str(error)) from None
