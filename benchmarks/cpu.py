"""Decoding on a CPU against the peers: the same random weights of full size, in turns, medians of ratios.

    python benchmarks/cpu.py                          all cases, 5 rounds each; what is done stays in out/bench-cpu.json
    python benchmarks/cpu.py --quick                  a few cases, short pieces, 2 rounds: under 10 minutes
    python benchmarks/cpu.py --only upsampler         cases whose name begins so
    python benchmarks/cpu.py --jukebox PYTHON         the Python that has transformers 4.40.2; without it no Jukebox

Each side is a process of its own; in a round each runs once, and who begins alternates.  musicgen: codes and waveform
of `generate` with guidance 3, text encoder tiny, codec full; against transformers in float32 or bfloat16, and many
songs against one.  encodec: decoding.  upsampler: a step (1920 x 72) after so many codes.  Bandwidth is that of summing
1 GiB in this run; the fraction is of the bytes that a step can't avoid (weights, keys and values) over what the
bandwidth could read.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

GUIDANCE, TEXT_LENGTH, FRAME_RATE = 3.0, 12, 50
STEPS = 24
"""Of an upsampler in a round."""


@dataclass(frozen=True)
class Side:
    """Who takes part."""

    who: str
    precision: str
    batch: int = 1

    @property
    def name(self) -> str:
        """For people, and for the file of results."""
        return f"{self.who} {self.precision}" + (f" x {self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True)
class Case:
    """What is compared."""

    what: str
    pairs: tuple[tuple[Side, Side], ...]
    """Whose music a second over whose is told; all sides take turns."""
    size: float = 10.0
    """Seconds of music; of an upsampler codes before the steps that are timed."""
    quick: float | None = None
    """The size in a quick run, if it is in it."""

    @property
    def name(self) -> str:
        """For people, and for the file of results."""
        return f"{self.what}, {self.size:g} {'codes before' if self.what == 'upsampler' else 's'}"

    @property
    def sides(self) -> list[Side]:
        """Everybody once."""
        return list(dict.fromkeys(side for pair in self.pairs for side in pair))


def ours(precision: str, batch: int = 1) -> Side:
    """A process of this package."""
    return Side("ours", precision, batch)


def theirs(precision: str, batch: int = 1) -> Side:
    """A process of transformers."""
    return Side("theirs", precision, batch)


CASES = [
    Case(
        "musicgen",
        (
            (ours("int8"), theirs("float32")),
            (ours("int8"), theirs("bfloat16")),
            (ours("int4"), theirs("bfloat16")),
            (ours("float32"), theirs("float32")),
            (ours("bfloat16"), theirs("bfloat16")),
        ),
        quick=1.0,
    ),
    Case("encodec", ((ours("int8"), theirs("float32")), (ours("float32"), theirs("float32"))), quick=2.0),
    Case("many songs", ((ours("int8", 16), ours("int8")),), quick=1.0),
    Case("many songs", ((ours("int8", 16), ours("int8")),), size=5.0),
    Case(
        "upsampler",
        (
            (ours("int8"), theirs("float32")),
            (ours("int4"), theirs("float32")),
            (ours("float32"), theirs("float32")),
        ),
        size=4096,
        quick=64,
    ),
    Case("upsampler", tuple((ours("int8", batch), theirs("float32", batch)) for batch in (4, 16)), size=256),
    Case("musicgen", ((ours("int8"), theirs("bfloat16")), (ours("int4"), theirs("bfloat16"))), size=30.0),
    Case("encodec", ((ours("int8"), theirs("float32")), (ours("float32"), theirs("float32"))), size=30.0),
]

# Sides ----------------------------------------------------------------------------------------------------------------


def serve_musicgen(side: Side, size: float, folder: Path) -> Callable[[], float]:
    """Seconds of one `generate`."""
    if side.who == "ours":
        from tunesmith.nn import lowbit
    kind = class_of(side, "tunesmith.pipelines.musicgen", "MusicgenForConditionalGeneration")
    few = side.precision in ("int8", "int4")
    model = kind.from_pretrained(folder, dtype=torch.float32 if few else getattr(torch, side.precision)).eval()
    if side.who == "ours":
        model.audio_encoder.fold_weight_norm()
        model.audio_encoder.few_bits = few
    if few:
        lowbit.quantize_(model.decoder.model.decoder.layers, side.precision, kernels=True)
    ids = torch.full((side.batch, TEXT_LENGTH), 3)
    tokens = round(size * FRAME_RATE)

    def run() -> float:
        torch.manual_seed(0)
        began = time.perf_counter()
        settings = {"do_sample": True, "guidance_scale": GUIDANCE, "max_new_tokens": tokens + 3}
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        return time.perf_counter() - began

    return run


def class_of(side: Side, module: str, name: str) -> Any:
    """Ours or theirs of that name."""
    return getattr(import_module(module if side.who == "ours" else "transformers"), name)


def serve_encodec(side: Side, size: float, folder: Path) -> Callable[[], float]:
    """Seconds of one decoding."""
    kind = class_of(side, "tunesmith.codecs.encodec", "EncodecModel")
    model = kind.from_pretrained(folder / "codec").eval()
    if side.who == "ours":
        model.fold_weight_norm()
        model.few_bits = side.precision == "int8"
    codes = torch.randint(0, model.config.codebook_size, (1, side.batch, 4, round(size * FRAME_RATE)))

    @torch.no_grad()
    def run() -> float:
        began = time.perf_counter()
        model.decode(codes, [None] * side.batch)
        return time.perf_counter() - began

    return run


def serve_upsampler(side: Side, size: float, folder: Path) -> Callable[[], float]:
    """Seconds of a step, the median of some.  What comes before is fed once, before the first round."""
    turns, times = Turns(), []
    sample = _our_sample(side, folder) if side.who == "ours" else _their_sample(folder)

    def step() -> None:
        turns.take()
        times.append(time.perf_counter())

    threading.Thread(target=sample, args=(side.batch, round(size), step), daemon=True).start()

    def run() -> float:
        times.clear()
        turns.give(STEPS)
        return statistics.median(after - before for before, after in pairwise(times))

    return run


class Turns:
    """Lets another thread make so many steps, and waits until it stands before the next."""

    def __init__(self) -> None:
        self.free, self.waiting = threading.Semaphore(0), threading.Semaphore(0)

    def take(self) -> None:
        """In the other thread: wait for a turn."""
        self.waiting.release()
        self.free.acquire()

    def give(self, count: int) -> None:
        """So many turns, one after the other."""
        for _ in range(count):
            self.waiting.acquire()
            self.free.release()
        self.waiting.acquire()
        self.waiting.release()


Sample = Callable[[int, int, Callable[[], None]], None]
"""(batch, codes that are given, what to call before each step)"""


def _our_sample(side: Side, folder: Path) -> Sample:
    from jukebox import inputs
    from tunesmith.models.jukebox import JukeboxPrior
    from tunesmith.nn import lowbit

    prior = JukeboxPrior.from_pretrained(folder / "prior").eval()
    if side.precision in ("int8", "int4"):
        lowbit.quantize_(prior.prior.transformer, side.precision, kernels=True)
    given = inputs(prior.config)

    def sample(batch: int, primer: int, step: Callable[[], None]) -> None:
        for _ in prior.iterate_codes(
            batch,
            labels=given["labels"],
            upper_codes=given["upper"],
            codes=torch.arange(primer)[None].repeat(batch, 1) % prior.config.music_vocab_size,
            sample_tokens=prior.config.n_ctx,
            generators=[torch.Generator().manual_seed(i) for i in range(batch)],
        ):
            step()

    return sample


def _their_sample(folder: Path) -> Sample:
    from safetensors.torch import load_file
    from transformers.models.jukebox.modeling_jukebox import JukeboxPrior, JukeboxPriorConfig

    from jukebox import inputs

    settings = json.loads((folder / "prior" / "config.json").read_text())
    prior = JukeboxPrior(JukeboxPriorConfig(**{**settings, "mask": True})).eval()
    state = load_file(folder / "prior" / "model.safetensors")
    prior.load_state_dict({"prior.fc_proj_out.weight": state["prior.embed_tokens.weight"], **state})
    given, layers = inputs(prior.config), prior.prior.transformer
    forward = layers.forward

    def sample(batch: int, primer: int, step: Callable[[], None]) -> None:
        def timed(x: Any, *rest: Any, **named: Any) -> Any:
            if x.shape[1] == 1:
                step()
            return forward(x, *rest, **named)

        layers.forward = timed
        labels, upper = (given[name].repeat(batch, 1) for name in ("labels", "upper"))
        codes = torch.arange(primer)[None].repeat(batch, 1) % prior.config.music_vocab_size
        conditions = {"music_tokens_conds": [upper], "metadata": labels, "music_tokens": codes}
        with torch.no_grad():
            prior.sample(batch, **conditions, sample_tokens=prior.config.n_ctx)

    return sample


SERVE = {
    "musicgen": serve_musicgen,
    "many songs": serve_musicgen,
    "encodec": serve_encodec,
    "upsampler": serve_upsampler,
}


def serve(what: str, side: Side, size: float, folder: Path, threads: int) -> None:
    """Run once for each line; print the seconds."""
    torch.set_num_threads(threads)
    run = SERVE[what](side, size, folder)
    for _ in sys.stdin:
        print(f"seconds {run()}", flush=True)


class Process:
    """A side at work."""

    def __init__(self, python: str, side: Side, case: Case, folder: Path, threads: int) -> None:
        told = {"what": case.what, "side": asdict(side), "size": case.size, "folder": str(folder), "threads": threads}
        self.process = subprocess.Popen(
            [python, __file__, "--serve", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self) -> float:
        """Seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("seconds "):  # transformers may talk
                return float(line.split()[1])
        by_hand = f"echo | {shlex.join(map(str, self.process.args))}"
        raise SystemExit(f"A side ended before it had run.  To see why, keep the models and run:\n  {by_hand}")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


# What is compared -----------------------------------------------------------------------------------------------------


def save_models(folder: Path, kinds: set[str], tiny: bool) -> None:
    """The random weights that both sides read; tiny ones, to see that all of this runs."""
    torch.manual_seed(0)
    if kinds - {"upsampler"}:
        import transformers

        from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration

        config = MusicgenConfig.preset("small")
        text = transformers.T5Config(vocab_size=8, d_model=64, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
        config.text_encoder = text
        if tiny:
            lm, codec = config.decoder, config.audio_encoder
            lm.hidden_size, lm.num_hidden_layers, lm.num_attention_heads, lm.ffn_dim = 32, 2, 2, 64
            codec.num_filters, codec.hidden_size, codec.codebook_dim = 2, 8, 8
        model = MusicgenForConditionalGeneration(config)
        model.save_pretrained(folder, max_shard_size="100GB")
        model.audio_encoder.save_pretrained(folder / "codec")
    if "upsampler" in kinds:
        from tunesmith.models.jukebox import PRESETS, JukeboxPrior

        settings = PRESETS["upsampler_level_0"]()
        if tiny:
            settings.hidden_size, settings.num_layers, settings.res_conv_width = 32, 3, 8
        JukeboxPrior(settings).save_pretrained(folder / "prior", max_shard_size="100GB")


def bandwidth(threads: int) -> float:
    """GB/s of reading, the best of five."""
    torch.set_num_threads(threads)
    numbers, best = torch.ones(2**28), 0.0
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, 2**30 / 1e9 / (time.perf_counter() - began))
    return best


BITS = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.0, "int4": 4.5}


def step_bytes(case: Case, side: Side, folder: Path) -> float:
    """That a step must read: weights, and keys and values in the middle of the piece."""
    bits, memory = BITS[side.precision] / 8, {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 1}[side.precision]
    if case.what == "upsampler":
        prior = json.loads((folder / "prior" / "config.json").read_text())
        return prior["num_layers"] * 3 * prior["hidden_size"] ** 2 * bits
    lm = json.loads((folder / "config.json").read_text())["decoder"]
    layers, width = lm["num_hidden_layers"], lm["hidden_size"]
    rows, steps = 2 * side.batch, case.size * FRAME_RATE / 2
    return layers * (6 * width**2 + 2 * width * lm["ffn_dim"]) * bits + rows * layers * 2 * width * steps * memory


def reading(case: Case, side: Side, folder: Path) -> float | None:
    """GB that a run of our side must read; of encodec nothing is said."""
    if case.what == "encodec" or side.who == "theirs":
        return None
    steps = 1 if case.what == "upsampler" else case.size * FRAME_RATE
    return step_bytes(case, side, folder) * steps / 1e9


def measure(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of all sides in all rounds."""
    peer = args.jukebox if case.what == "upsampler" else sys.executable
    pythons = {"ours": sys.executable, "theirs": peer}
    sides = {
        side: Process(pythons[side.who], side, case, folder, args.threads) for side in case.sides if pythons[side.who]
    }
    for process in sides.values():
        process.run()  # warm up, one after the other
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(args.rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for side in order:
            seconds[side.name].append(sides[side].run())
        print(f"  {case.name}: " + ", ".join(f"{k} {v[-1]:.3f} s" for k, v in seconds.items()), flush=True)
    for process in sides.values():
        process.close()
    reads = {side.name: reading(case, side, folder) for side in sides}
    return {"seconds": seconds, "reads": reads, "bandwidth": bandwidth(args.threads)}


def rows(case: Case, found: dict[str, Any]) -> list[str]:
    """A row of the table for each pair whose sides ran."""
    seconds, lines = found["seconds"], []
    for first, second in case.pairs:
        mine, other = seconds[first.name], seconds.get(second.name)
        ratio = reference = ""
        if other is not None:
            scale = first.batch / second.batch
            ratio = f"{statistics.median(b / a for a, b in zip(mine, other, strict=True)) * scale:.2f}"
            reference = f"{second.name}: {statistics.median(other):.3f} s"
        read = found["reads"][first.name]
        share = "" if read is None else f"{read / statistics.median(mine) / found['bandwidth']:.2f}"
        cells = (case.name, f"{first.name}: {statistics.median(mine):.3f} s", reference, ratio, share)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


HEAD = ["| case | | beside | ratio | of the bandwidth |", "|---|---|---|---|---|"]


def options(about: str | None, results: str) -> argparse.ArgumentParser:
    """What comparisons by cases have in common."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="with tiny models, wherever, to see that all of this runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="NAME")
    parser.add_argument("--jukebox", metavar="PYTHON")
    parser.add_argument("--results", type=Path, default=Path(results))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser


def keep(results: Path, done: dict[str, Any]) -> None:
    """For the next run."""
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(done, indent=1))


def main(arguments: list[str] | None = None) -> None:
    """Those cases that the file of results doesn't have."""
    parser = options(__doc__, "out/bench-cpu.json")
    parser.add_argument("--quick", action="store_true", help="a few cases, short pieces, 2 rounds")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    if args.serve:
        told = json.loads(args.serve)
        serve(told["what"], Side(**told["side"]), told["size"], Path(told["folder"]), told["threads"])
        return
    from tunesmith.nn import engine

    args.rounds = 2 if args.quick else args.rounds
    kept = not (args.quick or args.tiny)
    done = json.loads(args.results.read_text()) if kept and args.results.is_file() else {}
    chosen = [case for case in CASES if case.name.startswith(args.only)]
    cases = [replace(case, size=case.quick) for case in chosen if case.quick] if args.quick else chosen
    todo = [case for case in cases if case.name not in done]
    with tempfile.TemporaryDirectory() as name:
        save_models(Path(name), {case.what for case in todo}, args.tiny)
        for case in todo:
            done[case.name] = measure(case, args, Path(name))
            if kept:
                keep(args.results, done)
    print(f"{platform.processor() or platform.machine()}, {engine.instructions()}, {args.threads} threads")
    read = [found["bandwidth"] for found in done.values()]
    if read:
        print(f"reading {min(read):.0f} to {max(read):.0f} GB/s")
    print("\n".join([*HEAD, *(row for case in cases for row in rows(case, done[case.name]))]))


if __name__ == "__main__":
    main()
