"""What the bundled model is judged by: prompts, renders, generated clips, their codes and what analysers hear in them.

Whatever takes long is kept in the work folder under a name that holds all it depends on.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import tunesmith
from analysers.musicnn import RATE
from analysers.panel import Hearing
from pocket_protocol import Prompt, prompts, protocol, single_axis_prompts
from tunesmith import hub
from tunesmith.audio import Clip
from tunesmith.codecs import Codec
from tunesmith.codecs.encodec import EncodecModel
from tunesmith.evaluation import language
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import MusicgenProcessor
from tunesmith.requests import Sampling

README_PROMPT = "a lively jig for violin with drums, 120 bpm"
BATCH = 16
CODEC_BATCH = 8

Maker = tuple[Callable[[], np.ndarray], Callable[[], Sequence[Any]]]
"""How a set of clips is made, and what it depends on beside the protocol."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many clips each question takes."""

    prompts: int
    single: int
    """Prompts an axis that name it alone."""
    held_out: int
    """Held-out clips for the codec and for the language model."""
    training: int
    """Clips of the training split, for counting codes and for shared runs."""
    takes: int
    """Clips of one prompt, and of one style, for diversity."""
    memory: int
    """Generated and held-out clips whose codes are searched for in training's."""


FULL = Counts(prompts=200, single=24, held_out=100, training=400, takes=16, memory=48)
QUICK = Counts(prompts=16, single=4, held_out=8, training=16, takes=4, memory=4)


@dataclass(kw_only=True)
class Material:
    """What an evaluation works on.  Everything is made when it is first asked for."""

    model: str
    work: Path
    counts: Counts
    listen: Callable[[np.ndarray, bool], Hearing]
    """Analysers: clips [N, T] at 16 kHz, whether key and tempo are asked for."""
    rate: int = RATE
    """Of the renders; the model's own rate where there is a model."""
    training_seed: int = 0
    """Seed of the corpus that the model was trained on."""
    rules: dict[str, Any] = field(default_factory=protocol)

    # ---- the model ----------------------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """Where the model lies."""
        return hub.find(self.model)

    @cached_property
    def whole(self) -> MusicgenForConditionalGeneration:
        """The model in float32."""
        return MusicgenForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def codec(self) -> Codec:
        """The model's codec; the folder may also be a codec's."""
        kind = json.loads((self.folder / "config.json").read_text())["model_type"]
        if kind == "encodec":
            return EncodecModel.from_pretrained(self.folder, dtype=torch.float32).eval()
        return self.whole.audio_encoder

    @cached_property
    def model_hash(self) -> str:
        """SHA-256 of the weights."""
        return hub.weights_hash(self.folder)

    # ---- what is kept -------------------------------------------------------------------------------------------

    def _path(self, name: str, suffix: str, parts: Sequence[Any]) -> Path:
        """A file named by a hash of all that its contents depend on."""
        rules = [self.rules["seed"], self.rules["control"]]
        told = json.dumps([name, *parts, self.rate, corpus_hash(), rules], sort_keys=True)
        self.work.mkdir(parents=True, exist_ok=True)
        return self.work / f"{name.replace(' ', '-')}-{hashlib.sha256(told.encode()).hexdigest()[:12]}{suffix}"

    def clips(self, name: str) -> np.ndarray:
        """A set of clips [N, T], 16-bit integers at the study's rate."""
        make, parts = self._makers[name]
        path = self._path(name, ".npy", parts())
        if not path.exists():
            note(f"making {name}")
            write(path, lambda part: np.save(part, make()))
        return np.load(path, mmap_mode="r")

    def hearing(self, name: str) -> Hearing:
        """What the analysers hear in a set of clips."""
        path = self._path("heard " + name, ".npz", self._makers[name][1]())
        if not path.exists():
            clips = _resampled(self.clips(name), self.rate)
            note(f"listening to {name}: {len(clips)} clips")
            found = self.listen(clips, name not in _WITHOUT_KEY_AND_TEMPO)
            write(path, found.save)
        return Hearing.load(path)

    @cached_property
    def _makers(self) -> dict[str, Maker]:
        """The sets of clips by name."""
        n, takes = self.counts.prompts, self.counts.takes
        return {
            "ceiling": (lambda: self._renders("test", self.rules["seed"]), lambda: [n]),
            "calibration": (lambda: self._renders("train", self.rules["seed"] + 1), lambda: [n]),
            "style": (self._one_style, lambda: [takes]),
            "reconstructed": (lambda: self._round_trip(self.clips("ceiling")), lambda: [n, self.model_hash]),
            "unigram": (self._unigram_clips, lambda: [n, self.counts.training, self.training_seed, self.model_hash]),
            "generated": (lambda: self._generate(self.prompts, "generated"), lambda: [n, self.model_hash]),
            "takes": (self._takes, lambda: [takes, self.model_hash]),
            **{f"only {axis}": self._single(axis, asked) for axis, asked in self.single_prompts.items()},
        }

    def _single(self, axis: str, asked: Sequence[Prompt]) -> Maker:
        return lambda: self._generate(asked, axis), lambda: [len(asked), self.model_hash]

    # ---- clips --------------------------------------------------------------------------------------------------

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The balanced prompts."""
        return prompts(self.rules, self.counts.prompts, self.rules["seed"])

    @cached_property
    def single_prompts(self) -> dict[str, list[Prompt]]:
        """Prompts that name one axis."""
        return single_axis_prompts(self.rules, self.counts.single, self.rules["seed"] + 10)

    @property
    def seconds(self) -> float:
        """Length of all clips."""
        return float(self.rules["control"]["seconds"])

    def corpus(self, split: Literal["train", "test"], seed: int) -> Any:
        """The generator of corpus clips (its packages are needed only when something is rendered)."""
        from tunesmith.training.corpus import Corpus

        return Corpus(seed=seed, split=split, seconds=self.seconds, sample_rate=self.rate)

    def _renders(self, split: Literal["train", "test"], seed: int) -> np.ndarray:
        """Corpus renders with the labels of the prompts."""
        corpus = self.corpus(split, seed)
        asked = enumerate(self.prompts)
        return as_int16(
            corpus.compose(i, key=p.key, bpm=int(p.labels.tempo), lead=p.instrument, drums=p.labels.drums).audio
            for i, p in asked
        )

    def _one_style(self) -> np.ndarray:
        corpus = self.corpus("test", self.rules["seed"])
        return as_int16(corpus.compose(i, style="country").audio for i in range(self.counts.takes))

    def _round_trip(self, clips: np.ndarray) -> np.ndarray:
        return as_int16(self._decoded(self.encode(clips), clips.shape[1]))

    def _unigram_clips(self) -> np.ndarray:
        """Each code drawn by its frequency: what a model that learnt nothing of music would play."""
        table = language.unigram(self.training_codes, self.codec.cardinality)
        frames, generator = self.encode(self.clips("ceiling")[:1]).shape[2], torch.Generator().manual_seed(0)
        drawn = torch.multinomial(table.exp(), self.counts.prompts * frames, replacement=True, generator=generator)
        codes = drawn.reshape(len(table), self.counts.prompts, frames).transpose(0, 1)
        return as_int16(self._decoded(codes, self.clips("ceiling").shape[1]))

    def _takes(self) -> np.ndarray:
        made = self._song.generate(
            README_PROMPT, seconds=self.seconds, seed=self.rules["seed"], takes=self.counts.takes
        )
        return as_int16(mono(clip) for clip in made)

    @cached_property
    def _song(self) -> Any:
        return tunesmith.load(self.folder, quantize="none")

    def _generate(self, asked: Sequence[Prompt], name: str) -> np.ndarray:
        """A clip for each prompt; finished batches survive an interruption."""
        starts = self._batch_seeds(asked)
        return np.concatenate([self._batch(name, seed, asked[i : i + BATCH]) for i, seed in starts])

    def _batch(self, name: str, seed: int, asked: Sequence[Prompt]) -> np.ndarray:
        path = self._path(f"batch {name}", ".npy", [self.model_hash, seed, [p.text for p in asked]])
        if not path.exists():
            rules, begun = self.rules["control"], time.monotonic()
            made = self._song.generate(
                [p.text for p in asked],
                seconds=self.seconds,
                seed=seed,
                **{key: rules[key] for key in ("guidance", "top_k", "temperature")},
            )
            write(path, lambda part: np.save(part, as_int16(mono(clip) for clip in made)))
            note(f"generated {len(asked)} clips in {time.monotonic() - begun:.0f} s")
        return np.load(path)

    # ---- codes --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, clips: np.ndarray) -> torch.Tensor:
        """[N, T] integers -> codes [N, K, S]."""
        parts = [clips[start : start + CODEC_BATCH] for start in range(0, len(clips), CODEC_BATCH)]
        return torch.cat([self.codec.encode_codes(as_floats(part)[:, None]) for part in parts])

    @torch.no_grad()
    def _decoded(self, codes: torch.Tensor, samples: int) -> Any:
        for part in codes.split(CODEC_BATCH):
            yield from self.codec.decode_codes(part)[:, 0, :samples].numpy()

    def examples(self, split: Literal["train", "test"], seed: int, count: int) -> tuple[np.ndarray, list[str]]:
        """Clips [N, T] and captions as training has them, of any kind and style."""
        path = self._path(f"examples {split}", ".npz", [seed, count])
        if not path.exists():
            note(f"rendering {count} {split} clips")
            corpus = self.corpus(split, seed)
            made = [corpus.example(i) for i in range(count)]
            captions = np.array([example.caption for example in made])
            write(path, lambda part: np.savez(part, clips=as_int16(e.audio for e in made), captions=captions))
        with np.load(path) as found:
            return found["clips"], [str(caption) for caption in found["captions"]]

    @cached_property
    def held_out(self) -> tuple[np.ndarray, list[str]]:
        """Clips and captions of works that training has not."""
        return self.examples("test", self.rules["seed"], self.counts.held_out)

    @cached_property
    def training_codes(self) -> torch.Tensor:
        """Codes [N, K, S] of clips from the training split."""
        return self.encode(self.examples("train", self.training_seed, self.counts.training)[0])

    def drawn_codes(self) -> np.ndarray:
        """Codes [N, K, S] of the first prompts as the model drew them: once more, with the seeds of the clips."""
        rules, asked = self.rules["control"], self.prompts[: self.counts.memory]
        path = self._path("drawn codes", ".npy", [self.model_hash, [p.text for p in asked]])
        if not path.exists():
            note(f"drawing the codes of {len(asked)} clips again")
            sampling = Sampling(**{key: rules[key] for key in ("guidance", "top_k", "temperature")})
            parts = [self._draw(asked[i : i + BATCH], seed, sampling) for i, seed in self._batch_seeds(asked)]
            write(path, lambda part: np.save(part, np.concatenate(parts)))
        return np.load(path)

    def _batch_seeds(self, asked: Sequence[Prompt]) -> list[tuple[int, int]]:
        """Where each batch starts, and the seed of its first clip."""
        return [(start, self.rules["seed"] + start) for start in range(0, len(asked), BATCH)]

    @torch.no_grad()
    def _draw(self, asked: Sequence[Prompt], seed: int, sampling: Sampling) -> np.ndarray:
        model = self._song.model
        processor = MusicgenProcessor.from_pretrained(self.folder)
        text = processor(text=[p.text for p in asked], padding=True, return_tensors="pt")
        *_, last = model.decoder.iterate_codes(
            frames=self._song.facts.frames(self.seconds),
            sampling=sampling,
            generators=[torch.Generator().manual_seed(seed + i) for i in range(len(asked))],
            text_states=model.encode_text(text["input_ids"], text["attention_mask"]),
            text_mask=text["attention_mask"],
        )
        codes: np.ndarray = last.codes.numpy()
        return codes


@cache
def corpus_hash() -> str:
    """SHA-256 of the corpus generator's sources: another generator, other clips.  (Not of songs.)"""
    folder = Path(tunesmith.__file__).parent / "training" / "corpus"
    sources = [file for file in sorted(folder.glob("*.py")) if not file.name.startswith("singing")]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def as_int16(clips: Any) -> np.ndarray:
    """Clips with full scale 1 -> [N, T] 16-bit integers."""
    return np.stack([np.round(np.clip(clip, -1, 1) * 32767).astype(np.int16) for clip in clips])


def as_floats(clips: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(clips.astype(np.float32) / 32767)


def mono(clip: Clip) -> np.ndarray:
    """The samples of a clip, turned down only where they would clip: its level is judged too."""
    samples: np.ndarray = clip.level("none").remix(1).samples[0]
    return samples


def _resampled(clips: np.ndarray, rate: int) -> np.ndarray:
    return (
        as_int16(Clip(as_floats(clip).numpy(), rate).resample(RATE).samples[0] for clip in clips)
        if rate != RATE
        else clips
    )


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """The file appears whole or not at all."""
    part = path.with_name("part-" + path.name)
    save(part)
    part.replace(path)


def note(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


_WITHOUT_KEY_AND_TEMPO = {"calibration", "unigram", "takes", "style"}
