"""Judge the bundled model by the frozen protocol (scripts/pocket_protocol.json) and write evaluation.json.

    pip install essentia && pip install --no-deps musicnn        # test tools; essentia is AGPL-3.0
    python scripts/evaluate_pocket.py                            # all of tunesmith/pocket
    python scripts/evaluate_pocket.py --quick                    # few clips, to see that everything runs
    python scripts/evaluate_pocket.py --only codec --model DIR   # also for a codec alone

Whatever takes long (renders, generated clips, what was heard in them) is kept in the work folder under a name that
holds all it depends on, so an interrupted evaluation goes on where it stopped.
"""

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import tunesmith
from analysers.musicnn import RATE
from analysers.panel import Calibration, Hearing, Panel, drum_strength, lead_odds
from pocket_protocol import FILE, Hardware, Prompt, judge, prompts, protocol, single_axis_prompts, trained_on
from tunesmith import hub
from tunesmith.audio import Clip
from tunesmith.codecs import Codec
from tunesmith.codecs.encodec import EncodecModel
from tunesmith.evaluation import codec as codec_measures
from tunesmith.evaluation import control, distance, language, sanity
from tunesmith.generation.patterns import musicgen
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
class Study:
    """One evaluation.  Everything is made when it is first asked for."""

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
            _note(f"making {name}")
            _write(path, lambda part: np.save(part, make()))
        return np.load(path, mmap_mode="r")

    def hearing(self, name: str) -> Hearing:
        """What the analysers hear in a set of clips."""
        path = self._path("heard " + name, ".npz", self._makers[name][1]())
        if not path.exists():
            clips = _resampled(self.clips(name), self.rate)
            _note(f"listening to {name}: {len(clips)} clips")
            found = self.listen(clips, name not in _WITHOUT_KEY_AND_TEMPO)
            _write(path, found.save)
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
        return _int16(
            corpus.compose(i, key=p.key, bpm=int(p.labels.tempo), lead=p.instrument, drums=p.labels.drums).audio
            for i, p in asked
        )

    def _one_style(self) -> np.ndarray:
        corpus = self.corpus("test", self.rules["seed"])
        return _int16(corpus.compose(i, style="country").audio for i in range(self.counts.takes))

    def _round_trip(self, clips: np.ndarray) -> np.ndarray:
        return _int16(self._decoded(self.encode(clips), clips.shape[1]))

    def _unigram_clips(self) -> np.ndarray:
        """Each code drawn by its frequency: what a model that learnt nothing of music would play."""
        table = language.unigram(self.training_codes, self.codec.cardinality)
        frames, generator = self.encode(self.clips("ceiling")[:1]).shape[2], torch.Generator().manual_seed(0)
        drawn = torch.multinomial(table.exp(), self.counts.prompts * frames, replacement=True, generator=generator)
        codes = drawn.reshape(len(table), self.counts.prompts, frames).transpose(0, 1)
        return _int16(self._decoded(codes, self.clips("ceiling").shape[1]))

    def _takes(self) -> np.ndarray:
        made = self._song.generate(
            README_PROMPT, seconds=self.seconds, seed=self.rules["seed"], takes=self.counts.takes
        )
        return _int16(_mono(clip) for clip in made)

    @cached_property
    def _song(self) -> Any:
        return tunesmith.load(self.folder)

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
            _write(path, lambda part: np.save(part, _int16(_mono(clip) for clip in made)))
            _note(f"generated {len(asked)} clips in {time.monotonic() - begun:.0f} s")
        return np.load(path)

    # ---- codes --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, clips: np.ndarray) -> torch.Tensor:
        """[N, T] integers -> codes [N, K, S]."""
        parts = [clips[start : start + CODEC_BATCH] for start in range(0, len(clips), CODEC_BATCH)]
        return torch.cat([self.codec.encode_codes(_float(part)[:, None]) for part in parts])

    @torch.no_grad()
    def _decoded(self, codes: torch.Tensor, samples: int) -> Any:
        for part in codes.split(CODEC_BATCH):
            yield from self.codec.decode_codes(part)[:, 0, :samples].numpy()

    def examples(self, split: Literal["train", "test"], seed: int, count: int) -> tuple[np.ndarray, list[str]]:
        """Clips [N, T] and captions as training has them, of any kind and style."""
        path = self._path(f"examples {split}", ".npz", [seed, count])
        if not path.exists():
            _note(f"rendering {count} {split} clips")
            corpus = self.corpus(split, seed)
            made = [corpus.example(i) for i in range(count)]
            captions = np.array([example.caption for example in made])
            _write(path, lambda part: np.savez(part, clips=_int16(e.audio for e in made), captions=captions))
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

    # ---- answers ------------------------------------------------------------------------------------------------

    @cached_property
    def calibration(self) -> Calibration:
        """How tags are read, from renders that nothing else uses but the Frechet distance."""
        tags, leads = self.hearing("calibration").tags, self.rules["control"]["leads"]
        by_label = {names[0]: names for names in leads.values()}
        drums = np.array([p.labels.drums for p in self.prompts])
        return Calibration(
            leads=by_label,
            usual={name: float(odds.mean()) for name, odds in lead_odds(tags, by_label).items()},
            drums=control.best_threshold(drum_strength(tags).astype(np.float64), drums),
        )

    def hits(self, name: str, asked: Sequence[Prompt] | None = None) -> dict[str, np.ndarray]:
        """For each axis whether clip i meets prompt j.  Gates read tempo, key, lead and drums; the others are told."""
        plain = replace(self.calibration, usual=dict.fromkeys(self.calibration.usual, 0.0))
        found = self._hits(self.calibration, name, asked or self.prompts)
        return found | {"lead, tags as they come": self._hits(plain, name, asked or self.prompts)["lead"]}

    def _hits(self, calibration: Calibration, name: str, asked: Sequence[Prompt]) -> dict[str, np.ndarray]:
        rules = self.rules["control"]
        tables: dict[str, np.ndarray] = control.hits(
            calibration.heard(self.hearing(name)),
            [p.labels for p in asked],
            drums_threshold=calibration.drums,
            tempo_tolerance=rules["tempo_tolerance"],
            lead_top=rules["lead_top"],
        )
        return tables

    def own(self, name: str) -> dict[str, float]:
        """For each axis the share of clips that meet their own labels."""
        return {axis: control.own_and_permuted(table)[0] for axis, table in self.hits(name).items()}

    def answer_ceiling(self) -> dict[str, Any]:
        """How well the analysers do on real renders."""
        drums = np.array([p.labels.drums for p in self.prompts])
        strength = drum_strength(self.hearing("ceiling").tags).astype(np.float64)
        return {
            "clips": len(self.prompts),
            "own": self.own("ceiling"),
            "lead_by_instrument": self._by_instrument("ceiling"),
            "drums_auc": control.auc(strength, drums),
            "drums_threshold": self.calibration.drums,
            "insane": len(self._insane("ceiling")),
            "onset_share": self._onset_share("ceiling"),
        }

    def answer_codec(self) -> dict[str, Any]:
        """Reconstructions against originals, and what analysers still hear in them."""
        clips, codes = self.held_out[0], self.encode(self.held_out[0])
        original = _float(clips)
        decoded = torch.from_numpy(np.stack(list(self._decoded(codes, clips.shape[1]))))
        counts = codec_measures.code_counts(codes, self.codec.cardinality)
        perplexity = codec_measures.code_perplexity(counts)
        own = self.own("reconstructed")
        return {
            "clips": len(clips),
            "si_sdr": float(codec_measures.si_sdr(original, decoded).mean()),
            "mel_distance_db": float(codec_measures.mel_distance(original, decoded, self.rate).mean()),
            "log_spectral_distance_db": float(codec_measures.log_spectral_distance(original, decoded).mean()),
            "code_usage": codec_measures.code_usage(counts).tolist(),
            "perplexity": perplexity.tolist(),
            "least_perplexity_share": float(perplexity.min()) / self.codec.cardinality,
            "lead_top2": own["lead"],
            "own": own,
            "lead_by_instrument": self._by_instrument("reconstructed"),
        }

    def answer_language(self) -> dict[str, Any]:
        """Nats per token of held-out codes."""
        clips, captions = self.held_out
        codes = self.encode(clips)[:, : self.whole.decoder.num_codebooks]
        decoder = self.whole.config.decoder
        pattern = musicgen(codes.shape[2], codes.shape[1], decoder.audio_channels)
        predict = language.predictor(self.whole, MusicgenProcessor.from_pretrained(self.folder))
        partner = language.mismatch(len(codes), torch.Generator().manual_seed(self.rules["seed"]))
        texts = {"true": captions, "withheld": None, "wrong": [captions[i] for i in partner.tolist()]}
        books: dict[str, list[float]] = {}
        for name, told in texts.items():
            _note(f"predicting {len(codes)} held-out clips, text {name}")
            nll = language.held_out_nll(predict, codes, told, pattern=pattern, special=decoder.pad_token_id)
            books[name] = nll.mean(0).tolist()
        table = language.unigram(self.training_codes[:, : codes.shape[1]], self.codec.cardinality)
        books["unigram"] = language.unigram_nll(table, codes).mean(0).tolist()
        means = {name: float(np.mean(values)) for name, values in books.items()}
        return {
            "clips": len(codes),
            "tokens": codes.numel(),
            "by_codebook": books,
            "mean": means,
            **{f"{name}_minus_true": means[name] - means["true"] for name in ("withheld", "wrong", "unigram")},
        }

    def answer_control(self) -> dict[str, Any]:
        """Does the music follow its prompts?"""
        ceiling, tables = self.own("ceiling"), self.hits("generated")
        return {axis: self._scored(table, ceiling[axis]) for axis, table in tables.items()} | {
            "lead_by_instrument": self._by_instrument("generated")
        }

    def answer_single(self) -> dict[str, Any]:
        """The same for prompts that name one axis alone."""
        ceiling = self.own("ceiling")
        return {
            axis: self._scored(self.hits(f"only {axis}", asked)[axis], ceiling[axis])
            for axis, asked in self.single_prompts.items()
        }

    def answer_sanity(self) -> dict[str, Any]:
        """Is each generated clip sound?"""
        found = self._insane("generated")
        figures = self.hearing("generated").sanities()
        return {
            "clips": len(figures),
            "failed": len(found),
            "failures": found,
            "onset_share": self._onset_share("generated"),
            "median_rms_dbfs": float(np.median([f.rms_dbfs for f in figures])),
            "median_flatness": float(np.median([f.flatness for f in figures])),
        }

    def answer_distance(self) -> dict[str, Any]:
        """Frechet distances to calibration renders, each of as many clips."""
        names = ("ceiling", "reconstructed", "generated", "unigram")
        reference = _flat(self.hearing("calibration"))
        found = {name: distance.frechet_distance(_flat(self.hearing(name)), reference) for name in names}
        span = found["unigram"] - found["reconstructed"]  # not above 0: the codec is no better than chance
        return {
            "renders": found["ceiling"],
            "codec": found["reconstructed"],
            "generated": found["generated"],
            "unigram": found["unigram"],
            "position": (found["generated"] - found["reconstructed"]) / span if span > 0 else None,
            "embeddings": len(reference),
        }

    def answer_memory(self) -> dict[str, Any]:
        """Longest runs of first-book codes that also occur in a sample of training."""
        corpus = self.training_codes[:, 0].numpy()
        held_out = self.encode(self.held_out[0][: self.counts.memory])[:, 0].numpy()
        runs = {
            name: [distance.longest_shared_run(codes, corpus) for codes in sequences]
            for name, sequences in (("generated", self.drawn_codes()[:, 0]), ("held_out", held_out))
        }
        longest = {name: max(found) for name, found in runs.items()}
        medians = {f"median_{name}": float(np.median(found)) for name, found in runs.items()}
        return (
            longest
            | medians
            | {
                "excess": longest["generated"] - longest["held_out"],
                "training_clips": len(corpus),
                "clips": self.counts.memory,
            }
        )

    def drawn_codes(self) -> np.ndarray:
        """Codes [N, K, S] of the first prompts as the model drew them: once more, with the seeds of the clips."""
        rules, asked = self.rules["control"], self.prompts[: self.counts.memory]
        path = self._path("drawn codes", ".npy", [self.model_hash, [p.text for p in asked]])
        if not path.exists():
            _note(f"drawing the codes of {len(asked)} clips again")
            sampling = Sampling(**{key: rules[key] for key in ("guidance", "top_k", "temperature")})
            parts = [self._draw(asked[i : i + BATCH], seed, sampling) for i, seed in self._batch_seeds(asked)]
            _write(path, lambda part: np.save(part, np.concatenate(parts)))
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

    def answer_diversity(self) -> dict[str, Any]:
        """How far clips of one prompt lie apart, beside renders of one style."""
        spread = {
            name: distance.pairwise_distance(self.hearing(name).embeddings.mean(1)) for name in ("takes", "style")
        }
        return spread | {
            "ratio": spread["takes"] / spread["style"],
            "prompt": README_PROMPT,
            "clips": self.counts.takes,
        }

    def _scored(self, table: np.ndarray, ceiling: float) -> dict[str, float | None]:
        own, permuted = control.own_and_permuted(table)
        score = control.control_score(own, permuted, ceiling)
        return {"own": own, "permuted": permuted, "ceiling": ceiling, "score": score if math.isfinite(score) else None}

    def _by_instrument(self, name: str) -> dict[str, float]:
        found = np.diag(self.hits(name)["lead"])
        played = np.array([p.instrument for p in self.prompts])
        return {lead: float(found[played == lead].mean()) for lead in self.rules["control"]["leads"] if lead in played}

    def _insane(self, name: str) -> list[dict[str, Any]]:
        """The clips that are silent, clipped or noise."""
        found = [sanity.problems(figures, **self.rules["sanity"]) for figures in self.hearing(name).sanities()]
        asked = [p.text for p in self.prompts]
        return [{"prompt": asked[i], "problems": problems} for i, problems in enumerate(found) if problems]

    def _onset_share(self, name: str) -> float:
        return float(np.mean([figures.onsets_per_second >= 1 for figures in self.hearing(name).sanities()]))


QUESTIONS: dict[str, Callable[[Study], dict[str, Any]]] = {
    name.removeprefix("answer_"): getattr(Study, name) for name in vars(Study) if name.startswith("answer_")
}
"""In the order of asking: what needs no model, the codec, the language model, both."""

_WITHOUT_KEY_AND_TEMPO = {"calibration", "unigram", "takes", "style"}


def evaluate(study: Study, questions: Sequence[str], hardware: Hardware, quick: bool) -> dict[str, Any]:
    """Ask, and judge the answers by the gates."""
    results: dict[str, Any] = {
        "model": study.model,
        "protocol": {
            "sha256": hashlib.sha256(FILE.read_bytes()).hexdigest(),
            "quick": quick,
            "trained_on": hardware,
            "counts": vars(study.counts),
            "corpus_sha256": corpus_hash(),
        },
        "analysers": _versions(),
        "seconds": {},
    }
    for name in questions:
        begun = time.monotonic()
        results[name] = QUESTIONS[name](study)
        results["seconds"][name] = round(time.monotonic() - begun, 1)
        _note(f"{name}: {json.dumps(results[name])[:300]}")
    if set(questions) != {"ceiling"}:
        results["weights_sha256"] = study.model_hash
    return results | {
        "gates": judge(results, study.rules["gates"], hardware),
        "aims": judge(results, study.rules["aims"], hardware),
    }


@cache
def corpus_hash() -> str:
    """SHA-256 of the corpus generator's sources: another generator, other clips."""
    sources = sorted((Path(tunesmith.__file__).parent / "training" / "corpus").glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "tunesmith": tunesmith.__version__}
    for package in ("torch", "essentia", "musicnn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _flat(hearing: Hearing) -> np.ndarray:
    return hearing.embeddings.reshape(-1, hearing.embeddings.shape[-1])


def _int16(clips: Any) -> np.ndarray:
    """Clips with full scale 1 -> [N, T] 16-bit integers."""
    return np.stack([np.round(np.clip(clip, -1, 1) * 32767).astype(np.int16) for clip in clips])


def _float(clips: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(clips.astype(np.float32) / 32767)


def _mono(clip: Clip) -> np.ndarray:
    """The samples of a clip, turned down only where they would clip: its level is judged too."""
    samples: np.ndarray = clip.level("none").remix(1).samples[0]
    return samples


def _resampled(clips: np.ndarray, rate: int) -> np.ndarray:
    return (
        _int16(Clip(_float(clip).numpy(), rate).resample(RATE).samples[0] for clip in clips) if rate != RATE else clips
    )


def _write(path: Path, save: Callable[[Path], Any]) -> None:
    """The file appears whole or not at all."""
    part = path.with_name("part-" + path.name)
    save(part)
    part.replace(path)


def _note(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def table(results: dict[str, Any]) -> str:
    """The verdicts as lines of text."""
    lines = []
    for kind in ("gates", "aims"):
        for gate in results[kind]:
            sense = "at_least" if "at_least" in gate else "at_most"
            value = "not measured" if gate["value"] is None else f"{gate['value']:.3f}"
            sign = ">=" if sense == "at_least" else "<="
            lines.append(f"{'pass' if gate['passed'] else 'FAIL'}  {gate['name']}: {value} ({sign} {gate[sense]:g})")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Read the options, evaluate, write the JSON and print the verdicts."""
    parser = argparse.ArgumentParser(description="Judge the bundled model by the frozen protocol.")
    parser.add_argument(
        "--model", default="tunesmith/pocket", help="name or folder; a codec's folder with --only codec"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file; by default evaluation.json in the model's folder, for parts partial.json in the work folder",
    )
    parser.add_argument("--work", type=Path, default=Path("build/evaluation"), help="what takes long is kept here")
    parser.add_argument("--only", nargs="+", choices=list(QUESTIONS), help="only these questions")
    parser.add_argument("--quick", action="store_true", help="few clips: shows that all runs, judges nothing")
    parser.add_argument(
        "--trained-on", choices=("cpu", "gpu"), help="by default from training.json in the model's folder"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that listen")
    parser.add_argument("--threads", type=int, default=2, help="threads of the model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    questions = options.only or list(QUESTIONS)
    counts = QUICK if options.quick else FULL
    study = Study(model=options.model, work=options.work, counts=counts, listen=Panel(options.workers).hear)
    training: dict[str, Any] = {}
    if set(questions) != {"ceiling"}:
        study.rate = study.codec.sample_rate
        facts = study.folder / "training.json"
        training = json.loads(facts.read_text()) if facts.is_file() else {}
    study.training_seed = int(training.get("corpus_seed", 0))
    hardware = options.trained_on or trained_on(str(training.get("hardware", "cpu")))
    results = evaluate(study, questions, hardware, options.quick)
    whole = not options.only and not options.quick
    out = options.out or (study.folder / "evaluation.json" if whole else options.work / "partial.json")
    _write(out, lambda part: part.write_text(json.dumps(results, indent=1) + "\n"))
    print(table(results) + f"written to {out}")


if __name__ == "__main__":
    main()
