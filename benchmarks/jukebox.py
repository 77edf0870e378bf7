"""Jukebox's priors: speed beside transformers 4.40.2 (the last that has them), and peak memory.

    python -m venv hf && hf/bin/pip install transformers==4.40.2 torch==2.13.0
    python benchmarks/jukebox.py speed --theirs hf/bin/python           small prior (160 M), 128 codes, 5 pairs
    python benchmarks/jukebox.py speed --theirs hf/bin/python --quick   24 codes, 2 pairs
    python benchmarks/jukebox.py memory                                 full-size upsampler, a primed window, 64 codes
    python benchmarks/jukebox.py memory --dtype bfloat16
    python benchmarks/jukebox.py memory --preset prior_5b_lyrics --dtype bfloat16 --primer 0      within 24 GB

Weights are random, float32 unless --dtype says otherwise.
speed: both sides are processes of their own that take turns, so that a machine that slows down hurts both alike; they
have the same weights and must choose the same codes (greedily).  memory: the peak resident memory of a process that
builds a prior with random weights and samples, against 1.15 x (weights in the chosen precision + caches) + 0.5 GB.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GIGA = 1e9
BOUND = "1.15 x (weights + caches) + 0.5 GB"


def inputs(config: Any) -> dict[str, Tensor | None]:
    """The same labels and upper codes on both sides (zeros as lyrics)."""
    width = 4 + config.max_nb_genres + config.nb_relevant_lyric_tokens
    labels = torch.zeros(1, width, dtype=torch.long)
    labels[0, :3] = torch.tensor([100, 0, 10]) * config.sampling_rate
    ratio = config.res_strides_t[-1] ** config.res_downs_t[-1]
    upper = torch.arange(config.n_ctx // ratio)[None] % config.music_vocab_size
    return {"labels": labels, "upper": upper if config.level else None}


# ------------------------------------------------------------------------------------------------- speed


def serve_ours(folder: Path) -> Any:
    """A function from a number of codes to codes."""
    from tunesmith.models.jukebox import JukeboxPrior

    prior = JukeboxPrior.from_pretrained(folder).eval()
    given = inputs(prior.config)

    def sample(tokens: int) -> Tensor:
        return prior.sample(
            1, labels=given["labels"], upper_codes=given["upper"], sample_tokens=tokens, temperature=1.0, top_k=1
        )

    return sample


def serve_theirs(folder: Path) -> Any:
    """The same with transformers 4.40.2; its config must say `mask`, or it isn't causal."""
    from safetensors.torch import load_file
    from transformers.models.jukebox.modeling_jukebox import JukeboxPrior, JukeboxPriorConfig

    settings = json.loads((folder / "config.json").read_text())
    config = JukeboxPriorConfig(**{**settings, "mask": True})
    prior = JukeboxPrior(config).eval()
    state = load_file(folder / "model.safetensors")
    prior.load_state_dict({"prior.fc_proj_out.weight": state["prior.embed_tokens.weight"], **state})
    given = inputs(config)

    def sample(tokens: int) -> Tensor:
        upper = [] if given["upper"] is None else [given["upper"]]
        with torch.no_grad():
            return prior.sample(
                1, music_tokens_conds=upper, metadata=given["labels"], sample_tokens=tokens, temp=1.0, top_k=1
            )

    return sample


def serve(side: str, folder: Path) -> None:
    """Read a number of codes a line, sample them, print the seconds and the codes."""
    sample = {"ours": serve_ours, "theirs": serve_theirs}[side](folder)
    for line in sys.stdin:
        began = time.perf_counter()
        codes = sample(int(line))
        print(json.dumps([time.perf_counter() - began, codes[0].tolist()]), flush=True)


class Side:
    """One of the two processes."""

    def __init__(self, python: str, side: str, folder: Path, threads: int) -> None:
        command = [python, __file__, "serve", "--side", side, "--folder", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def sample(self, tokens: int) -> tuple[float, list[int]]:
        """Seconds, codes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{tokens}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("["):  # transformers may talk
                seconds, codes = json.loads(line)
                return seconds, codes
        raise SystemExit(f"{self.process.args} ended before it had sampled; run it by hand to see why.")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def speed(args: argparse.Namespace) -> None:
    """Interleaved pairs."""
    from tunesmith.models.jukebox import PRESETS, JukeboxPrior

    if args.quick:
        args.tokens, args.pairs = 24, 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        JukeboxPrior(PRESETS[args.preset]()).save_pretrained(folder, max_shard_size="100GB")
        sides = {
            "tunesmith": Side(sys.executable, "ours", folder, args.threads),
            "transformers": Side(args.theirs, "theirs", folder, args.threads),
        }
        warm = [side.sample(8)[1] for side in sides.values()]
        print(f"the same greedy codes: {'yes' if warm[0] == warm[1] else 'NO'}")
        ratios = [pair(sides, number, args.tokens) for number in range(args.pairs)]
        for side in sides.values():
            side.close()
    print(f"median ratio {statistics.median(ratios):.2f} ({args.preset}, float32, {args.threads} threads)")


def pair(sides: dict[str, Side], number: int, tokens: int) -> float:
    """Time both sides, in alternating order; how many times faster is ours?"""
    order = list(sides) if number % 2 == 0 else list(sides)[::-1]
    taken = {name: sides[name].sample(tokens)[0] for name in order}
    ratio = taken["transformers"] / taken["tunesmith"]
    rates = ", ".join(f"{name} {tokens / taken[name]:.2f} tokens/s" for name in sides)
    print(f"pair {number + 1}: {rates}, ratio {ratio:.2f}", flush=True)
    return ratio


# ------------------------------------------------------------------------------------------------ memory


def memory(args: argparse.Namespace) -> None:
    """Sample with most of the window primed: then the caches are full, not only reserved."""
    from tunesmith.models.jukebox import PRESETS, JukeboxPrior

    started = peak()
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    config = PRESETS[args.preset]()
    prior = JukeboxPrior._from_config(config, dtype=dtype).eval()
    weights = sum(p.numel() for p in prior.parameters()) * dtype.itemsize
    print(f"built in {time.process_time():.0f} s, peak {peak():.2f} GB", flush=True)
    caches = cache_bytes(prior, config.n_ctx)
    primer = config.n_ctx - args.tokens if args.primer is None else args.primer
    given, codes = inputs(config), torch.arange(primer)[None] % config.music_vocab_size
    began = time.perf_counter()
    run = prior.iterate_codes(
        1,
        labels=given["labels"],
        upper_codes=given["upper"],
        codes=codes,
        sample_tokens=config.n_ctx,
        generators=[torch.Generator().manual_seed(0)],
    )
    for step in run:
        if step.done == 1:
            print(
                f"primed with {primer} codes in {time.perf_counter() - began:.0f} s, peak {peak():.2f} GB", flush=True
            )
            began = time.perf_counter()
        if step.done == args.tokens:
            break
    rate = (args.tokens - 1) / (time.perf_counter() - began) if args.tokens > 1 else float("nan")
    bound = 1.15 * (weights + caches) / GIGA + 0.5
    print(f"{args.preset}, {args.dtype}: {args.tokens} codes at {rate:.2f} tokens/s")
    print(f"weights {weights / GIGA:.2f} GB, caches {caches / GIGA:.2f} GB, Python and libraries {started:.2f} GB")
    verdict = "within" if peak() <= bound else "ABOVE"
    print(f"peak {peak():.2f} GB, {verdict} the bound of {bound:.2f} GB = {BOUND}")


def cache_bytes(prior: Any, steps: int) -> int:
    """Bytes of all caches of one sample, counted without allocating them."""
    from tunesmith.nn.cache import Room

    config, prefix = prior.config, prior.config.nb_relevant_lyric_tokens
    heads_width = int(config.attention_multiplier * config.hidden_size)
    stack = prior.prior.transformer
    room = Room(1, config.n_heads, heads_width // config.n_heads, stack.dtype, "meta")
    kept = stack.caches(room, steps + (prefix if config.joined else 0))
    stored = [x for layer in kept for x in vars(layer.own).values() if isinstance(x, Tensor)]
    crossing = sum(layer.attn.crosses for layer in stack.layers) * 2 * prefix * heads_width
    return (sum(x.numel() for x in stored) + crossing) * stack.dtype.itemsize


def peak() -> float:
    """The most resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA


def main() -> None:
    """Which of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "serve"])
    parser.add_argument("--preset", help="default: small_labelled_prior for speed, upsampler_level_0 for memory")
    parser.add_argument("--tokens", type=int, help="codes to sample; default: 128 for speed, 64 for memory")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="24 codes, 2 pairs")
    parser.add_argument("--theirs", default=sys.executable, help="the Python that has transformers 4.40.2")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--primer", type=int, help="known codes; default: all of a window but the tokens")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "serve":
        serve(args.side, args.folder)
        return
    defaults = {"speed": ("small_labelled_prior", 128), "memory": ("upsampler_level_0", 64)}[args.what]
    args.preset, args.tokens = args.preset or defaults[0], args.tokens or defaults[1]
    {"speed": speed, "memory": memory}[args.what](args)


if __name__ == "__main__":
    main()
