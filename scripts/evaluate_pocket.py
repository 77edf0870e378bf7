"""Judge the bundled model by the frozen protocol (scripts/pocket_protocol.json) and write evaluation.json.

    pip install essentia && pip install --no-deps musicnn        # test tools; essentia is AGPL-3.0
    python scripts/evaluate_pocket.py                            # all of tunesmith/pocket
    python scripts/evaluate_pocket.py --quick                    # few clips, to see that everything runs
    python scripts/evaluate_pocket.py --only codec --model DIR   # also for a codec alone

An interrupted evaluation goes on where it stopped (pocket_material.py keeps what takes long).
"""

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tunesmith
from analysers.panel import Calibration, Hearing, Panel, drum_strength, lead_odds
from pocket_material import FULL, QUICK, README_PROMPT, Material, as_floats, corpus_hash, note, write
from pocket_protocol import FILE, Hardware, Prompt, judge, trained_on
from tunesmith.evaluation import codec as codec_measures
from tunesmith.evaluation import control, distance, language, sanity
from tunesmith.generation.patterns import musicgen
from tunesmith.pipelines.processor import MusicgenProcessor


class Study(Material):
    """One evaluation: the answers to its questions."""

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
        original = as_floats(clips)
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
            note(f"predicting {len(codes)} held-out clips, text {name}")
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

    def answer_rhythm(self) -> dict[str, Any]:
        """Median pulse of renders, reconstructions and generated clips."""
        names = ("ceiling", "reconstructed", "generated")
        return {
            name: float(np.median([sanity.pulse(clip, self.rate) for clip in as_floats(self.clips(name))]))
            for name in names
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
        note(f"{name}: {json.dumps(results[name])[:300]}")
    if set(questions) != {"ceiling"}:
        results["weights_sha256"] = study.model_hash
    return results | {
        "gates": judge(results, study.rules["gates"], hardware),
        "aims": judge(results, study.rules["aims"], hardware),
    }


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
    write(out, lambda part: part.write_text(json.dumps(results, indent=1) + "\n"))
    print(table(results) + f"written to {out}")


if __name__ == "__main__":
    main()
