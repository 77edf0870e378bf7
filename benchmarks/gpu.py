"""Decoding on a GPU against the peers: the same random weights of full size, in turns, medians of ratios.

    python benchmarks/gpu.py                          all cases, 5 rounds each; what is done stays in out/bench-gpu.json
    python benchmarks/gpu.py --only "musicgen small"  cases whose name begins so: a case takes less than 10 minutes
    python benchmarks/gpu.py --jukebox PYTHON         the Python that has transformers 4.40.2; without it no Jukebox

Each side is a process of its own; in a round each runs once, and who begins alternates.  musicgen: codes by `generate`
with guidance 3, text encoder and codec tiny; against transformers as it is (eager), and with a static cache that it
compiles.  many songs: the same, against one song.  upsampler: a step (1920 x 72) after so many codes.  song: a level of
20 s by the 5b model, all windows, once; what takes longer than 400 s is estimated from what was done by then.
"fused" are steps that torch.compile worked on.  Bandwidth is that of copying 2 GiB in this run, reading and writing
counted; the fraction is of the bytes that a step can't avoid (weights, keys and values) over what the bandwidth could
read.  Matrices are 8192 x 8192 in bfloat16.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cpu import FRAME_RATE, GUIDANCE, HEAD, TEXT_LENGTH, Case, Side, class_of, keep, options, ours, rows, theirs
from cpu import Process as CpuProcess
from jukebox import inputs

STEPS = 200
"""Of an upsampler in a round."""
LIMIT = 400.0
"""Seconds after which a song's level is estimated."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _musicgen(size: str, seconds: float) -> list[Case]:
    """Ours as it comes, as fast as it can be, and in 8 bits; a case a peer, so that none takes long."""
    mine = ours("bfloat16"), ours("bfloat16 fused"), ours("int8")
    peers = theirs("bfloat16 eager"), theirs("bfloat16 compiled")
    return [
        Case(f"musicgen {size}, {side.precision} beside {peer.precision.split()[1]}", ((side, peer),), seconds)
        for side in mine
        for peer in peers
    ]


CASES = [
    *_musicgen("small", 10.0),
    *_musicgen("large", 5.0),
    *(Case(f"many songs x {n}", ((ours("bfloat16", n), ours("bfloat16")),)) for n in (4, 16, 64, 256)),
    Case("encodec", ((ours("float32"), theirs("float32")),)),
    *(
        Case(f"upsampler {precision}", ((ours(precision), theirs("float32")),), size=4096)
        for precision in ("bfloat16", "bfloat16 fused", "int8")
    ),
    Case("upsampler x 16", ((ours("bfloat16", 16), ours("bfloat16")),), size=4096),
    *(Case(f"song 5b, level {n}", ((ours("bfloat16"), theirs("none")),), size=20.0) for n in range(3)),
]

# Sides ----------------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    """Until the GPU is done."""
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def wait() -> None:
    """For all that was asked of the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def serve_musicgen(what: str, side: Side, size: float, folder: Path) -> Callable[[], float]:
    """Seconds of one `generate`."""
    precision, *how = side.precision.split()
    kind = class_of(side, "tunesmith.pipelines.musicgen", "MusicgenForConditionalGeneration")
    model = kind.from_pretrained(folder / ("large" if "large" in what else "small"), dtype=torch.bfloat16).eval()
    if side.who == "ours":
        model.decoder.fuse = "fused" in how
        _quantize(model.decoder.model.decoder.layers, precision)
    model.to(DEVICE)
    ids = torch.full((side.batch, TEXT_LENGTH), 3, device=DEVICE)
    settings = {"do_sample": True, "guidance_scale": GUIDANCE, "max_new_tokens": round(size * FRAME_RATE) + 3}
    if "compiled" in how:
        settings["cache_implementation"] = "static"
    return lambda: seconds(lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings))


def _quantize(layers: Any, precision: str) -> None:
    if precision == "int8":
        from tunesmith.nn import lowbit

        lowbit.quantize_(layers, precision, kernels=False)


@torch.no_grad()
def serve_encodec(what: str, side: Side, size: float, folder: Path) -> Callable[[], float]:
    """Seconds of one decoding."""
    kind = class_of(side, "tunesmith.codecs.encodec", "EncodecModel")
    model = kind.from_pretrained(folder / "codec").eval().requires_grad_(False).to(DEVICE)
    if side.who == "ours":
        model.fold_weight_norm()
    codes = torch.randint(0, model.config.codebook_size, (1, side.batch, 4, round(size * FRAME_RATE)), device=DEVICE)
    return lambda: seconds(lambda: model.decode(codes, [None] * side.batch))


def serve_upsampler(what: str, side: Side, size: float, folder: Path) -> Callable[[], float]:
    """Seconds of a step, on average."""
    return (_our_steps if side.who == "ours" else _their_steps)(side, round(size), folder)


def _our_steps(side: Side, primer: int, folder: Path) -> Callable[[], float]:
    """The window goes on from round to round."""
    from tunesmith.models.jukebox import JukeboxPrior

    precision, *how = side.precision.split()
    prior = JukeboxPrior.from_pretrained(folder / "prior", dtype=torch.bfloat16).eval()
    prior.prior.fuse = "fused" in how
    _quantize(prior.prior.transformer, precision)
    prior.to(DEVICE)
    given = inputs(prior.config)
    window = prior.iterate_codes(
        side.batch,
        labels=given["labels"],
        upper_codes=given["upper"],
        codes=torch.arange(primer)[None].repeat(side.batch, 1) % prior.config.music_vocab_size,
        generators=[torch.Generator(DEVICE).manual_seed(i) for i in range(side.batch)],
    )
    return lambda: seconds(lambda: [next(window) for _ in range(STEPS)]) / STEPS


def _their_steps(side: Side, primer: int, folder: Path) -> Callable[[], float]:
    """Their loop takes no break, so each round begins anew; what comes before the steps doesn't count."""
    from safetensors.torch import load_file
    from transformers.models.jukebox.modeling_jukebox import JukeboxPrior, JukeboxPriorConfig

    settings = json.loads((folder / "prior" / "config.json").read_text())
    prior = JukeboxPrior(JukeboxPriorConfig(**{**settings, "mask": True})).eval()
    state = load_file(folder / "prior" / "model.safetensors")
    prior.load_state_dict({"prior.fc_proj_out.weight": state["prior.embed_tokens.weight"], **state})
    prior.to(DEVICE)
    given, layers, times = inputs(prior.config), prior.prior.transformer, list[float]()
    labels, upper = (given[name].repeat(side.batch, 1).to(DEVICE) for name in ("labels", "upper"))
    codes = torch.arange(primer, device=DEVICE)[None].repeat(side.batch, 1) % prior.config.music_vocab_size
    forward = layers.forward

    def timed(x: Any, *rest: Any, **named: Any) -> Any:
        if x.shape[1] == 1:
            wait()
            times.append(time.perf_counter())
        return forward(x, *rest, **named)

    layers.forward = timed

    @torch.no_grad()
    def run() -> float:
        times.clear()
        asked = {"music_tokens_conds": [upper], "metadata": labels, "sample_tokens": primer + 24}
        prior.sample(side.batch, music_tokens=codes, **asked)
        return statistics.median(after - before for before, after in pairwise(times))

    return run


def serve_song(what: str, side: Side, size: float, folder: Path) -> Callable[[], float]:
    """Seconds of a level; the codes above are random."""
    from tunesmith.events import Progress
    from tunesmith.models.jukebox import JukeboxPrior
    from tunesmith.pipelines.jukebox import JukeboxConfig
    from tunesmith.pipelines.levels import Options, Plan, State, iterate

    level, config = int(what[-1]), JukeboxConfig.from_pretrained(folder / "song")
    with torch.device(DEVICE):
        prior = JukeboxPrior(config.prior_configs[level]).eval().to(torch.bfloat16)
    labels = [torch.zeros(1, 4 + c.max_nb_genres + c.nb_relevant_lyric_tokens).long() for c in config.prior_configs]
    options = Options(sample_length_in_seconds=size, total_length=60 * config.sampling_rate)
    plan = Plan.of(config, labels, options, sampled=[level])
    totals = [each.total if n < level else 0 for n, each in enumerate(plan.levels)]
    upper = [torch.randint(0, c.music_vocab_size, (1, n)) for c, n in zip(config.prior_configs, totals, strict=True)]

    def run() -> float:
        wait()
        began, share = time.perf_counter(), 0.0
        for event in iterate(plan, State.of(plan, upper, seeds=[0]), lambda _: nullcontext(prior)):
            if isinstance(event, Progress):
                share = event.done / event.total
            elif time.perf_counter() - began > LIMIT:  # a window is done, and the GPU with it
                break
        return (time.perf_counter() - began) / share

    return run


SERVE = {
    "musicgen": serve_musicgen,
    "many": serve_musicgen,
    "encodec": serve_encodec,
    "upsampler": serve_upsampler,
    "song": serve_song,
}


def kind_of(what: str) -> str:
    """The first word."""
    return what.split()[0]


def serve(what: str, side: Side, size: float, folder: Path) -> None:
    """Run once for each line; print the seconds."""
    run = SERVE[kind_of(what)](what, side, size, folder)
    for _ in sys.stdin:
        print(f"seconds {run()}", flush=True)


class Process(CpuProcess):
    """A side at work."""

    def __init__(self, python: str, side: Side, case: Case, folder: Path) -> None:
        told = {"what": case.what, "side": asdict(side), "size": case.size, "folder": str(folder)}
        self.process = subprocess.Popen(
            [python, __file__, "--serve", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


# What is compared -----------------------------------------------------------------------------------------------------


def save_models(folder: Path, whats: set[str], tiny: bool) -> None:
    """The random weights that both sides read; tiny ones, to see that all of this runs."""
    torch.manual_seed(0)
    kinds = {kind_of(what) for what in whats}
    sizes = {"large" if "large" in what else "small" for what in whats if kind_of(what) in ("musicgen", "many")}
    for size in sizes:
        _save_musicgen(folder, size, tiny)
    if "encodec" in kinds:
        from tunesmith.pipelines.musicgen import EncodecModel, MusicgenConfig

        codec = MusicgenConfig.preset("small").audio_encoder
        EncodecModel(_small_codec(codec) if tiny else codec).save_pretrained(folder / "codec")
    if "upsampler" in kinds:
        from tunesmith.models.jukebox import PRESETS, JukeboxPrior

        settings = PRESETS["upsampler_level_0"]()
        JukeboxPrior(_small_prior(settings) if tiny else settings).save_pretrained(
            folder / "prior", max_shard_size="100GB"
        )
    if "song" in kinds:
        from tunesmith.pipelines.jukebox import JukeboxConfig

        config = JukeboxConfig.preset("5b")
        for settings in config.prior_configs if tiny else ():
            _small_prior(settings)
        config.save_pretrained(folder / "song")


def _save_musicgen(folder: Path, size: str, tiny: bool) -> None:
    """The language model at its size; what stands around it is tiny, for it isn't measured here."""
    import transformers

    from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration

    config = MusicgenConfig.preset(size)
    config.text_encoder = transformers.T5Config(vocab_size=8, d_model=64, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    _small_codec(config.audio_encoder)
    if tiny:
        lm = config.decoder
        lm.hidden_size, lm.num_hidden_layers, lm.num_attention_heads, lm.ffn_dim = 32, 2, 2, 64
    with torch.device(DEVICE):
        model = MusicgenForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder / size, max_shard_size="100GB")


def _small_codec(codec: Any) -> Any:
    codec.num_filters, codec.hidden_size, codec.codebook_dim = 2, 8, 8
    return codec


def _small_prior(settings: Any) -> Any:
    settings.hidden_size, settings.num_layers, settings.n_heads, settings.res_conv_width = 32, 3, 1, 8
    return settings


def bandwidth() -> float:
    """GB/s of copying, reading and writing counted, the best of five."""
    size = 2**30 if DEVICE.type == "cuda" else 2**20
    source = torch.ones(size // 2, dtype=torch.float32, device=DEVICE)
    target = torch.empty_like(source)
    return max(2 * source.nbytes / 1e9 / seconds(lambda: target.copy_(source)) for _ in range(5))


def matrix_rate() -> float:
    """TFLOP/s of products in bfloat16, the best of five."""
    size = 8192 if DEVICE.type == "cuda" else 64
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return max(2 * size**3 / 1e12 / seconds(lambda: a @ b) for _ in range(5))


def reading(case: Case, side: Side, folder: Path) -> float | None:
    """GB that a run of our side must read; None where nothing is said."""
    kind, width = kind_of(case.what), 1 if side.precision == "int8" else 2
    if kind in ("encodec", "song") or side.who == "theirs":
        return None
    if kind == "upsampler":
        prior = json.loads((folder / "prior" / "config.json").read_text())
        return float(prior["num_layers"] * 3 * prior["hidden_size"] ** 2 * width) / 1e9
    size = "large" if "large" in case.what else "small"
    lm = json.loads((folder / size / "config.json").read_text())["decoder"]
    layers, wide, steps = lm["num_hidden_layers"], lm["hidden_size"], case.size * FRAME_RATE
    weights = layers * (6 * wide**2 + 2 * wide * lm["ffn_dim"]) * width
    kept = 2 * side.batch * layers * 2 * wide * (steps / 2) * 2
    return float((weights + kept) * steps) / 1e9


def measure(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of all sides in all rounds; a song's level is made once."""
    once = kind_of(case.what) == "song"
    pythons = {"ours": sys.executable, "theirs": args.jukebox if kind_of(case.what) == "upsampler" else sys.executable}
    chosen = [side for side in case.sides if pythons[side.who] and not (once and side.who == "theirs")]
    sides = {side: Process(pythons[side.who], side, case, folder) for side in chosen}
    for process in () if once else sides.values():
        process.run()  # warm up, one after the other
    found: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(1 if once else args.rounds):
        for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            found[side.name].append(sides[side].run())
        print(f"  {case.name}: " + ", ".join(f"{k} {v[-1]:.4f} s" for k, v in found.items()), flush=True)
    for process in sides.values():
        process.close()
    reads = {side.name: reading(case, side, folder) for side in sides}
    return {"seconds": found, "reads": reads, "bandwidth": bandwidth(), "matrices": matrix_rate()}


def main(arguments: list[str] | None = None) -> None:
    """Those cases that the file of results doesn't have."""
    args = options(__doc__, "out/bench-gpu.json").parse_args(arguments)
    if args.serve:
        told = json.loads(args.serve)
        serve(told["what"], Side(**told["side"]), told["size"], Path(told["folder"]))
        return
    if DEVICE.type != "cuda" and not args.tiny:
        print("There is no GPU here that torch can use, so there is nothing to measure.", file=sys.stderr)
        raise SystemExit(2)
    done = json.loads(args.results.read_text()) if not args.tiny and args.results.is_file() else {}
    cases = [case for case in CASES if case.name.startswith(args.only)]
    for case in cases:
        if case.name not in done:
            with tempfile.TemporaryDirectory() as name:
                save_models(Path(name), {case.what}, args.tiny)
                done[case.name] = measure(case, args, Path(name))
            if not args.tiny:
                keep(args.results, done)
    print(torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no GPU: this says nothing of speed")
    for what, unit in (("bandwidth", "GB/s of copying"), ("matrices", "TFLOP/s of products in bfloat16")):
        print(f"{statistics.median(found[what] for found in done.values()):.3g} {unit}")
    print("\n".join([*HEAD, *(row for case in cases for row in rows(case, done[case.name]))]))


if __name__ == "__main__":
    main()
