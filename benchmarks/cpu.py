"""Decoding on a CPU against the peers: the same random weights of full size, in turns, medians of ratios.

    python benchmarks/cpu.py                          all cases, 5 pairs each; what is done stays in out/bench-cpu.json
    python benchmarks/cpu.py --quick                  a few cases, short pieces, 2 pairs: under 10 minutes
    python benchmarks/cpu.py --only upsampler         cases whose name begins so
    python benchmarks/cpu.py --jukebox PYTHON         the Python that has transformers 4.40.2; without it no Jukebox

Each side is a process of its own; they take turns, and who begins alternates.  musicgen: codes and waveform of
`generate` with guidance 3, text encoder tiny, codec full; against transformers in float32 or bfloat16.  encodec:
decoding.  upsampler: a step (1920 x 72) in the middle of a window.  Bandwidth is that of summing 1 GiB in this run;
the fraction is of the bytes that a step can't avoid (weights, keys and values) over what the bandwidth could read.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

GUIDANCE, TEXT_LENGTH, FRAME_RATE = 3.0, 12, 50


@dataclass(frozen=True)
class Case:
    """What is compared: `ours` and `theirs` are precisions."""

    what: str
    ours: str
    theirs: str | None
    seconds: float = 10.0
    batch: int = 1
    quick: bool = False
    """Is it one of the few that show most?"""

    @property
    def name(self) -> str:
        """For people, and for the file of results."""
        size = f"{self.seconds:g} s" if self.what != "upsampler" else "mid-window"
        return f"{self.what}, {size}, batch {self.batch}, {self.ours} / {self.theirs or 'alone'}"


CASES = [
    Case("musicgen", "int8", "float32", quick=True),
    Case("musicgen", "int8", "bfloat16"),
    Case("musicgen", "int4", "bfloat16"),
    Case("musicgen", "float32", "float32", quick=True),
    Case("musicgen", "bfloat16", "bfloat16"),
    Case("musicgen", "int8", "bfloat16", seconds=30.0),
    Case("musicgen", "int4", None, seconds=30.0),
    Case("musicgen", "int8", None, quick=True),
    Case("musicgen", "int8", None, batch=16, quick=True),
    Case("encodec", "float32", "float32", quick=True),
    Case("encodec", "float32", "float32", seconds=30.0),
    *(Case("upsampler", "int8", "float32", batch=batch, quick=batch == 1) for batch in (1, 4, 16)),
    Case("upsampler", "int4", "float32"),
    Case("upsampler", "float32", "float32"),
]

# Sides ----------------------------------------------------------------------------------------------------------------


def serve_musicgen(side: str, precision: str, case: Case, folder: Path) -> Callable[[], float]:
    """Seconds of one `generate`."""
    if side == "ours":
        from tunesmith.nn import lowbit
    kind = _class(side, "tunesmith.pipelines.musicgen", "MusicgenForConditionalGeneration")
    few = precision in ("int8", "int4")
    model = kind.from_pretrained(folder, dtype=torch.float32 if few else getattr(torch, precision)).eval()
    if side == "ours":
        model.audio_encoder.fold_weight_norm()
    if few:
        lowbit.quantize_(model.decoder.model.decoder.layers, precision, kernels=True)
    ids = torch.full((case.batch, TEXT_LENGTH), 3)
    tokens = round(case.seconds * FRAME_RATE)

    def run() -> float:
        torch.manual_seed(0)
        began = time.perf_counter()
        settings = {"do_sample": True, "guidance_scale": GUIDANCE, "max_new_tokens": tokens + 3}
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        return time.perf_counter() - began

    return run


def _class(side: str, module: str, name: str) -> Any:
    return getattr(import_module(module if side == "ours" else "transformers"), name)


def serve_encodec(side: str, precision: str, case: Case, folder: Path) -> Callable[[], float]:
    """Seconds of one decoding."""
    kind = _class(side, "tunesmith.codecs.encodec", "EncodecModel")
    model = kind.from_pretrained(folder / "codec", dtype=getattr(torch, precision)).eval()
    if side == "ours":
        model.fold_weight_norm()
    codes = torch.randint(0, model.config.codebook_size, (1, case.batch, 4, round(case.seconds * FRAME_RATE)))

    @torch.no_grad()
    def run() -> float:
        began = time.perf_counter()
        model.decode(codes, [None] * case.batch)
        return time.perf_counter() - began

    return run


def serve_upsampler(side: str, precision: str, case: Case, folder: Path) -> Callable[[], float]:
    """Seconds of a step; the window is primed first, which doesn't count."""
    from jukebox import inputs

    primer, steps = int(case.seconds), 24
    prior = _our_prior(folder, precision) if side == "ours" else _their_prior(folder)
    given = inputs(prior.config)
    codes = torch.arange(primer)[None].repeat(case.batch, 1) % prior.config.music_vocab_size
    times: list[float] = []

    def ours() -> None:
        run = prior.iterate_codes(
            case.batch,
            labels=given["labels"],
            upper_codes=given["upper"],
            codes=codes,
            sample_tokens=primer + steps,
            generators=[torch.Generator().manual_seed(i) for i in range(case.batch)],
        )
        times.extend(time.perf_counter() for _ in run)

    def theirs() -> None:
        original = prior.prior.transformer.forward

        def timed(x: Any, *rest: Any, **named: Any) -> Any:
            if x.shape[1] == 1:
                times.append(time.perf_counter())
            return original(x, *rest, **named)

        prior.prior.transformer.forward = timed
        labels, upper = (given[name].repeat(case.batch, 1) for name in ("labels", "upper"))
        conditions = {"music_tokens_conds": [upper], "metadata": labels}
        with torch.no_grad():
            primed = {"music_tokens": codes} if primer else {}
            prior.sample(case.batch, **primed, **conditions, sample_tokens=primer + steps)
        prior.prior.transformer.forward = original

    def run() -> float:
        times.clear()
        ours() if side == "ours" else theirs()
        last = times[-steps:]
        return statistics.median(after - before for before, after in pairwise(last))

    return run


def _our_prior(folder: Path, precision: str) -> Any:
    from tunesmith.models.jukebox import JukeboxPrior
    from tunesmith.nn import lowbit

    prior = JukeboxPrior.from_pretrained(folder / "prior").eval()
    if precision in ("int8", "int4"):
        lowbit.quantize_(prior.prior.transformer, precision, kernels=True)
    return prior


def _their_prior(folder: Path) -> Any:
    from safetensors.torch import load_file
    from transformers.models.jukebox.modeling_jukebox import JukeboxPrior, JukeboxPriorConfig

    settings = json.loads((folder / "prior" / "config.json").read_text())
    prior = JukeboxPrior(JukeboxPriorConfig(**{**settings, "mask": True})).eval()
    state = load_file(folder / "prior" / "model.safetensors")
    prior.load_state_dict({"prior.fc_proj_out.weight": state["prior.embed_tokens.weight"], **state})
    return prior


SERVE = {"musicgen": serve_musicgen, "encodec": serve_encodec, "upsampler": serve_upsampler}


def serve(side: str, case: Case, folder: Path, threads: int) -> None:
    """Run once for each line; print the seconds."""
    torch.set_num_threads(threads)
    run = SERVE[case.what](side, str(case.ours if side == "ours" else case.theirs), case, folder)
    for _ in sys.stdin:
        print(f"seconds {run()}", flush=True)


class Side:
    """One of the two processes."""

    def __init__(self, python: str, side: str, case: Case, folder: Path, threads: int) -> None:
        work = json.dumps({"side": side, "case": asdict(case), "folder": str(folder), "threads": threads})
        self.process = subprocess.Popen(
            [python, __file__, "--serve", work],
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
    if kinds & {"musicgen", "encodec"}:
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


def step_bytes(case: Case, folder: Path) -> float:
    """That a step must read: weights, and keys and values in the middle of the piece; of encodec nothing is said."""
    bits, memory = BITS[case.ours] / 8, {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 1}[case.ours]
    if case.what == "upsampler":
        prior = json.loads((folder / "prior" / "config.json").read_text())
        return prior["num_layers"] * 3 * prior["hidden_size"] ** 2 * bits
    lm = json.loads((folder / "config.json").read_text())["decoder"]
    layers, width = lm["num_hidden_layers"], lm["hidden_size"]
    rows, steps = 2 * case.batch, case.seconds * FRAME_RATE / 2
    return layers * (6 * width**2 + 2 * width * lm["ffn_dim"]) * bits + rows * layers * 2 * width * steps * memory


def fraction(case: Case, seconds: float, read: float, folder: Path) -> str:
    """Of the bandwidth."""
    if case.what == "encodec":
        return ""
    steps = 1 if case.what == "upsampler" else case.seconds * FRAME_RATE
    return f"{step_bytes(case, folder) * steps / seconds / 1e9 / read:.2f}"


def measure(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians of the pairs."""
    peer = args.jukebox if case.what == "upsampler" else sys.executable
    sides = {"ours": Side(sys.executable, "ours", case, folder, args.threads)}
    if case.theirs is not None and peer is not None:
        sides["theirs"] = Side(peer, "theirs", case, folder, args.threads)
    for side in sides.values():
        side.run()  # warm up
    pairs = []
    for number in range(args.pairs):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        pairs.append({name: sides[name].run() for name in order})
        print(f"  {case.name}: " + ", ".join(f"{k} {v:.3f} s" for k, v in pairs[-1].items()), flush=True)
    for side in sides.values():
        side.close()
    found = {name: statistics.median(pair[name] for pair in pairs) for name in sides}
    ratio = statistics.median(pair["theirs"] / pair["ours"] for pair in pairs) if "theirs" in sides else None
    read = bandwidth(args.threads)
    return {
        "case": case.name,
        **found,
        "ratio": ratio,
        "bandwidth": read,
        "fraction": fraction(case, found["ours"], read, folder),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| case | ours | theirs | ratio | of the bandwidth |", "|---|---|---|---|---|"]
    for row in rows:
        theirs = f"{row['theirs']:.3f} s" if "theirs" in row else ""
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        reached = f"{row['fraction']} of {row['bandwidth']:.0f} GB/s" if row["fraction"] else ""
        lines.append(f"| {row['case']} | {row['ours']:.3f} s | {theirs} | {ratio} | {reached} |")
    return "\n".join(lines)


def throughput(rows: dict[str, dict[str, Any]]) -> str:
    """How many times more music a second a batch makes than one song, where both were measured alone."""
    alone = {name: row["ours"] for name, row in rows.items() if "alone" in name and "musicgen" in name}
    lines = []
    for name, seconds in alone.items():
        first, size, last = name.split(", ", 3)[:2], int(name.split("batch ")[1].split(",")[0]), name.split(", ")[-1]
        one = alone.get(f"{', '.join(first)}, batch 1, {last}")
        lines += [f"{name}: {size * one / seconds:.2f} x the music a second of one song"] if one and size > 1 else []
    return "\n".join(lines)


def shortened(case: Case, quick: bool) -> Case:
    """An upsampler's `seconds` are codes before the steps that are timed."""
    if case.what == "upsampler":
        return replace(case, seconds=64 if quick else 4096)
    return replace(case, seconds=min(case.seconds, 1.0) if quick else case.seconds)


def main(arguments: list[str] | None = None) -> None:
    """Those cases that the file of results doesn't have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few cases, short pieces, 2 pairs")
    parser.add_argument("--tiny", action="store_true", help="with tiny models, to see that all of this runs")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", metavar="NAME")
    parser.add_argument("--jukebox", metavar="PYTHON")
    parser.add_argument("--results", type=Path, default=Path("out/bench-cpu.json"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        work = json.loads(args.serve)
        serve(work["side"], Case(**work["case"]), Path(work["folder"]), work["threads"])
        return
    from tunesmith.nn import engine

    args.pairs = 2 if args.quick else args.pairs
    kept = not (args.quick or args.tiny)
    done = json.loads(args.results.read_text()) if kept and args.results.is_file() else {}
    chosen = [case for case in CASES if case.name.startswith(args.only) and (case.quick or not args.quick)]
    cases = [shortened(case, args.quick) for case in chosen]
    todo = [case for case in cases if case.name not in done]
    with tempfile.TemporaryDirectory() as name:
        save_models(Path(name), {case.what for case in todo}, args.tiny)
        for case in todo:
            done[case.name] = measure(case, args, Path(name))
            if kept:
                args.results.parent.mkdir(parents=True, exist_ok=True)
                args.results.write_text(json.dumps(done, indent=1))
    print(f"{platform.processor() or platform.machine()}, {engine.instructions()}, {args.threads} threads")
    print(table([done[case.name] for case in cases]))
    print(throughput(done))


if __name__ == "__main__":
    main()
