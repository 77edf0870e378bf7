"""Judge the small Jukebox by the frozen protocol (scripts/pocket_jukebox_protocol.json) and write evaluation.json.

    pip install tunesmith[singing] pocketsphinx                  # pocketsphinx (BSD) is a test tool
    python scripts/evaluate_pocket_jukebox.py                    # all of tunesmith/pocket-jukebox
    python scripts/evaluate_pocket_jukebox.py DIR --quick        # few songs, to see that everything runs
    python scripts/evaluate_pocket_jukebox.py DIR --only codec   # DIR may be a VQ-VAE's run alone

Generated songs and what the judge heard are kept in the work folder under a name that holds all they depend on, so an
interrupted evaluation goes on where it stopped.
"""

import argparse
import hashlib
import json
import math
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from analysers.lines import RATE as JUDGE_RATE
from analysers.lines import LineJudge
from pocket_protocol import judge
from tunesmith import hub
from tunesmith.audio import resample
from tunesmith.codecs.vqvae import SPECTRUM, JukeboxVQVAE
from tunesmith.conditioning.labels import cut_window, with_timing
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.evaluation import codec as codec_measures
from tunesmith.evaluation import sanity
from tunesmith.evaluation.choice import forced_choice
from tunesmith.generation.decode import finish
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.pipelines.jukebox_song import JukeboxPipeline
from tunesmith.requests import JukeboxRequest
from tunesmith.training.corpus.singing import ARTISTS, GENRES, SECONDS, Plan, SungCorpus
from tunesmith.training.corpus.singing_lyrics import draw_verse
from tunesmith.training.launch import folder_of

FILE = Path(__file__).with_name("pocket_jukebox_protocol.json")
MODEL = "tunesmith/pocket-jukebox"
PARTS = ("codec", "labels", "choice", "sanity", "size")
BATCH = 20
ONE_SIDED_99 = 2.33  # standard errors

Bits = Callable[[Sequence["Told"]], Float[Tensor, " B"]]
"""Bits per token of the codes of all songs, under what is told of each."""


@dataclass(frozen=True)
class Told:
    """What the model is told of a song; empty is unknown."""

    artist: str
    genre: str
    lyrics: str


def protocol() -> dict[str, Any]:
    """The frozen file."""
    return json.loads(FILE.read_text())


# ---- labels ----------------------------------------------------------------------------------------------------------


def wrong(told: Sequence[Told], label: str, rng: random.Random) -> list[Told]:
    """The same songs with one label that isn't theirs: another artist or genre, or another song's line, of as many
    words where there is one.
    """
    return [replace(song, **{label: rng.choice(_others(told, song, label))}) for song in told]


def _others(told: Sequence[Told], song: Told, label: str) -> list[str]:
    if label != "lyrics":
        return [name for name in (ARTISTS if label == "artist" else GENRES) if name != getattr(song, label)]
    lines = [other.lyrics for other in told if other.lyrics != song.lyrics]
    return [line for line in lines if len(line.split()) == len(song.lyrics.split())] or lines


def label_bits(told: Sequence[Told], bits: Bits, rng: random.Random) -> dict[str, Any]:
    """For each label bits per token with the true one, with none and with a wrong one, all else true."""
    true = bits(told)
    found: dict[str, Any] = {}
    for label in ("artist", "genre", "lyrics"):
        withheld = bits([replace(song, **{label: ""}) for song in told])
        other = bits(wrong(told, label, rng))
        means = {name: float(x.mean()) for name, x in (("true", true), ("withheld", withheld), ("wrong", other))}
        differences = {"withheld_minus_true": withheld - true, "wrong_minus_withheld": other - withheld}
        found[label] = means | {name: interval(values) for name, values in differences.items()}
    return found | {"songs": len(told)}


def interval(differences: Float[Tensor, " B"]) -> dict[str, float]:
    """Mean over songs, and the lower end of its one-sided 99 % interval."""
    mean, error = float(differences.mean()), float(differences.std()) / math.sqrt(len(differences))
    return {"mean": mean, "lower": mean - ONE_SIDED_99 * error}


@torch.no_grad()
def token_bits(prior: JukeboxPrior, codes: Int[Tensor, "B S"], labels: Int[Tensor, "B Y"]) -> Float[Tensor, " B"]:
    """Mean bits per music token of each song."""
    music = prior(codes, labels).logits[:, -codes.shape[1] :]
    tokens = codes + prior.lyric_shift
    return functional.cross_entropy(music.transpose(1, 2).float(), tokens, reduction="none").mean(1) / math.log(2)


def bits_of(prior: JukeboxPrior, tokenizer: JukeboxTokenizer, codes: Int[Tensor, "B S"]) -> Bits:
    """How a top prior predicts the codes of songs that fill its window."""
    config = prior.config
    length = config.window_length

    def bits(told: Sequence[Told]) -> Tensor:
        names = [song.artist for song in told], [[song.genre] for song in told], [song.lyrics for song in told]
        rows = with_timing(tokenizer(*names)["input_ids"][0], sample_length=length, total_length=length, offset=0)
        count = config.nb_relevant_lyric_tokens
        rows = cut_window(rows, start=0, length=length, n_genres=config.max_nb_genres, n_tokens=count).labels
        parts = zip(codes.split(BATCH), rows.split(BATCH), strict=True)
        return torch.cat([token_bits(prior, some, labels) for some, labels in parts])

    return bits


# ---- codec -----------------------------------------------------------------------------------------------------------


def convergence_db(reference: Float[Tensor, "B T"], estimate: Float[Tensor, "B T"]) -> float:
    """Norm of the difference of magnitude spectra over the reference's, in dB, averaged over songs."""
    first, second = (SPECTRUM.magnitudes(audio[..., None]) for audio in (reference, estimate))
    ratio = torch.linalg.vector_norm(first - second, dim=(1, 2)) / torch.linalg.vector_norm(first, dim=(1, 2))
    return float(20 * ratio.log10().mean())


def level_figures(
    audio: Float[Tensor, "B T"], others: Float[Tensor, "B T"], vqvae: JukeboxVQVAE, level: int
) -> dict[str, float]:
    """How well one level gives back songs.  others: what `audio` is compared with for scale, a song each."""
    codes, again = round_trip(vqvae, audio, level)
    rate, windows = vqvae.sample_rate, (256, 512, 1024)
    counts = codec_measures.code_counts(codes[:, None], vqvae.config.nb_discrete_codes)
    mel, scale = (
        float(codec_measures.mel_distance(audio, x, rate, windows=windows, bands=40).mean()) for x in (again, others)
    )
    return {
        "mel_db": mel,
        "mel_share": mel / scale,
        "convergence_db": convergence_db(audio, again),
        "si_sdr": float(codec_measures.si_sdr(audio, again).mean()),
        "perplexity": float(codec_measures.code_perplexity(counts)[0]),
        "perplexity_share": float(codec_measures.code_perplexity(counts)[0]) / vqvae.config.nb_discrete_codes,
        "usage": float(codec_measures.code_usage(counts)[0]),
        "codes_per_second": rate / vqvae.hop_lengths[level],
    }


@torch.no_grad()
def round_trip(
    vqvae: JukeboxVQVAE, audio: Float[Tensor, "B T"], level: int
) -> tuple[Int[Tensor, "B S"], Float[Tensor, "B T"]]:
    """A level's codes of songs, and the songs that these give."""
    codes = torch.cat([vqvae.encode(some[..., None], level, level + 1)[0] for some in audio.split(BATCH)])
    return codes, torch.cat([vqvae.decode([some], level, level + 1)[..., 0] for some in codes.split(BATCH)])


def neighbours(plans: Sequence[Plan], rng: random.Random) -> list[Plan]:
    """For each song another one by the same singer in the same genre: other words, another tune."""
    tunes = [random.Random(rng.random()).choice([t for t in range(4) if t != plan.tune]) for plan in plans]
    lines = [plan.line for plan in plans]
    return [
        replace(plan, tune=tune, line=rng.choice([line for line in lines if line != plan.line]))
        for plan, tune in zip(plans, tunes, strict=True)
    ]


# ---- forced choice ---------------------------------------------------------------------------------------------------


def asked(rules: Mapping[str, Any], seed: int, groups: int | None = None) -> list[list[Plan]]:
    """Groups of songs to sing: ten different verses that training never heard, artists and genres in turn."""
    rng, lines = random.Random(f"choice / {seed}"), rules["choice"]["lines"]
    return [_group(rng, lines, group * lines) for group in range(groups or rules["choice"]["groups"])]


def _group(rng: random.Random, lines: int, first: int) -> list[Plan]:
    artists, genres = list(ARTISTS), list(GENRES)
    verses: dict[str, Plan] = {}
    while len(verses) < lines:
        number, line = first + len(verses), draw_verse(rng, "test")
        plan = Plan(artists[number % len(artists)], genres[number % len(genres)], rng.randrange(4), line)
        verses.setdefault(line.text, plan)
    return list(verses.values())


def line_scores(
    heard: LineJudge, audio: Float[np.ndarray, "B T"], groups: Sequence[Sequence[Plan]], rate: int
) -> Float[np.ndarray, "G N N"]:
    """What the judge thinks of each of a group's lines in each of its songs; songs in the order of the groups."""
    clips = iter(resample(audio.astype(np.float32), rate, JUDGE_RATE))
    return np.array(
        [[heard.scores(next(clips), [plan.line.text for plan in group]) for _ in group] for group in groups]
    )


def sung(pipeline: JukeboxPipeline, plans: Sequence[Plan], rules: Mapping[str, Any], seed: int) -> np.ndarray:
    """The model's songs [B, T] for the words, artist and genre of each plan."""
    settings = rules["choice"]
    made = []
    for start in range(0, len(plans), BATCH):
        requests = [
            JukeboxRequest(
                lyrics=plan.line.text,
                artist=plan.artist,
                genre=(plan.genre,),
                seconds=SECONDS,
                seed=seed + start + i,
                temperature=(settings["temperature"],),
                top_p=(settings["top_p"],),
            )
            for i, plan in enumerate(plans[start : start + BATCH])
        ]
        plan = pipeline.plan(requests, pipeline.labels(requests), pipeline.levels)
        state = pipeline.start(plan, requests, prompts={})
        finish(pipeline.model.iterate(plan, state))
        made += [
            pipeline.clip(request, state.codes[-1][i], pipeline.levels - 1, origin={}).samples[0]
            for i, request in enumerate(requests)
        ]
        _note(f"sung {len(made)} of {len(plans)}")
    return np.stack(made)


# ---- the study -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Study:
    """One evaluation.  Everything is made when it is first asked for."""

    model: str
    work: Path
    quick: bool = False

    @cached_property
    def rules(self) -> dict[str, Any]:
        """The protocol."""
        return protocol()

    @cached_property
    def folder(self) -> Path:
        """Where the model lies."""
        return Path(folder_of(self.model))

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the weights."""
        return hub.weights_hash(self.folder)

    @cached_property
    def vqvae(self) -> JukeboxVQVAE:
        """The codec, of a whole model or alone."""
        return JukeboxVQVAE.from_pretrained(self.folder).eval()

    @cached_property
    def pipeline(self) -> JukeboxPipeline:
        """The whole model in float32."""
        return JukeboxPipeline(self.model, self.folder)

    @cached_property
    def plans(self) -> list[Plan]:
        """The held-out songs."""
        corpus = self.rules["corpus"]
        source = SungCorpus(corpus["seed"], corpus["split"], self.vqvae.sample_rate)
        return [source.plan(i) for i in range(24 if self.quick else corpus["songs"])]

    @cached_property
    def groups(self) -> list[list[Plan]]:
        """What is to be sung for the forced choice."""
        return asked(self.rules, self.rules["seed"], 2 if self.quick else None)

    def rendered(self, name: str, plans: Sequence[Plan]) -> Float[Tensor, "B T"]:
        """Songs of the corpus itself, whole codes of the top level."""
        corpus = SungCorpus(0, "test", self.vqvae.sample_rate)
        lines = [[plan.artist, plan.genre, plan.tune, plan.line.text] for plan in plans]
        audio = self._kept(name, [lines], lambda: np.stack([corpus.render(plan).audio for plan in plans]))
        hop = self.vqvae.hop_lengths[-1]
        return torch.from_numpy(audio)[:, : audio.shape[1] // hop * hop]

    def codec(self) -> dict[str, Any]:
        """Reconstruction, level by level."""
        others = neighbours(self.plans, random.Random(self.rules["seed"]))
        audio, scale = self.rendered("held out", self.plans), self.rendered("neighbours", others)
        names = self._levels()
        return {name: level_figures(audio, scale, self.vqvae, level) for name, level in names.items()}

    def labels(self) -> dict[str, Any]:
        """Bits per token."""
        audio = self.rendered("held out", self.plans)
        codes, _ = round_trip(self.vqvae, audio, self.vqvae.levels - 1)
        told = [Told(plan.artist, plan.genre, plan.line.text) for plan in self.plans]
        with self.pipeline.model.open_prior(0) as prior:
            bits = bits_of(prior, self.pipeline.tokenizer, codes)
            return label_bits(told, bits, random.Random(self.rules["seed"]))

    def choice(self) -> dict[str, Any]:
        """Which line was sung: by the corpus, by each level's reconstruction, and by the model."""
        plans = [plan for group in self.groups for plan in group]
        true = self.rendered("choice", plans)
        clips = {"true": true.numpy()}
        clips |= {name: round_trip(self.vqvae, true, level)[1].numpy() for name, level in self._levels().items()}
        if self._is_whole():
            clips["generated"] = self.generated()
        return {name: asdict(self._heard(name, audio)) for name, audio in clips.items()} | {"songs": len(plans)}

    def generated(self) -> Float[np.ndarray, "B T"]:
        """What the model sings."""
        plans = [plan for group in self.groups for plan in group]
        parts = [self.weights, self.rules["choice"], self.rules["seed"], len(plans)]
        return self._kept("generated", parts, lambda: sung(self.pipeline, plans, self.rules, self.rules["seed"]))

    def sanity(self) -> dict[str, Any]:
        """Silent, clipped or noisy songs among those that the model sang."""
        found = [
            sanity.problems(sanity.measure(torch.from_numpy(clip), self.vqvae.sample_rate)) for clip in self.generated()
        ]
        return {"clips": len(found), "failed": sum(map(bool, found)), "problems": sorted({p for f in found for p in f})}

    def size(self) -> dict[str, Any]:
        """Of all files."""
        return {"megabytes": sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file()) / 1e6}

    def _levels(self) -> dict[str, int]:
        return {"bottom": 0, "top": self.vqvae.levels - 1}

    def _is_whole(self) -> bool:
        return json.loads((self.folder / "config.json").read_text())["model_type"] == "jukebox"

    def _heard(self, name: str, audio: Float[np.ndarray, "B T"]) -> Any:
        parts = [hashlib.sha256(np.ascontiguousarray(audio)).hexdigest(), len(self.groups)]
        scores = self._kept(
            f"heard {name}", parts, lambda: line_scores(LineJudge(), audio, self.groups, self.vqvae.sample_rate)
        )
        return forced_choice(scores, self.rules["seed"])

    def _kept(self, name: str, parts: Sequence[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array in the work folder, named by a hash of all that it depends on."""
        told = hashlib.sha256(json.dumps([name, *parts]).encode()).hexdigest()[:12]
        path = self.work / f"{name.replace(' ', '-')}-{told}.npy"
        if not path.exists():
            _note(f"making {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, make())
            part.replace(path)
        return np.load(path)


def evaluate(study: Study, only: Sequence[str], hardware: str) -> dict[str, Any]:
    """All that was asked for, with the verdicts."""
    began, found = time.monotonic(), {name: getattr(study, name)() for name in only}
    where = "gpu" if hardware == "gpu" else "cpu"
    return {
        "model": study.model,
        "weights_sha256": study.weights,
        **found,
        "gates": judge(found, study.rules["gates"], where),
        "aims": judge(found, study.rules["aims"], where),
        "protocol": {
            "file": FILE.name,
            "sha256": hashlib.sha256(FILE.read_bytes()).hexdigest(),
            "quick": study.quick,
            "trained_on": where,
        },
        "machine": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(time.monotonic() - began, 1),
    }


def _note(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Measure, judge and write evaluation.json into the model's folder."""
    parser = argparse.ArgumentParser(description="Judge the small Jukebox.")
    parser.add_argument("model", nargs="?", default=MODEL, help="name, folder or run (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("judged"), help="what takes long is kept here")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="few songs: shows that everything runs, no more")
    parser.add_argument("--trained-on", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    study = Study(model=options.model, work=options.work, quick=options.quick)
    result = evaluate(study, options.only, options.trained_on)
    whole = set(options.only) == set(PARTS)
    target = study.folder / "evaluation.json" if whole else options.work / "evaluation.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(target)
    for gate in (*result["gates"], *result["aims"]):
        if gate["value"] is not None:
            print(f"{'passed' if gate['passed'] else 'FAILED'}  {gate['name']}: {gate['value']:.4g}")
    print(target)


if __name__ == "__main__":
    main()
