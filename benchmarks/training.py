"""Training steps: tokens per second and peak memory beside transformers, and what a plan or a GPU says.

    python benchmarks/training.py                            MusicGen's language model beside the transformers at hand
    python -m venv hf && hf/bin/pip install transformers==4.40.2 torch==2.13.0
    python benchmarks/training.py --theirs hf/bin/python     and a Jukebox prior beside transformers 4.40.2
    python benchmarks/training.py --width 1024 --layers 24 --batch 4 --steps 3
    python benchmarks/training.py --plan 5b           bytes that each of --processes holds, from the meta device
    python benchmarks/training.py --prior 1b_lyrics   a GPU: a prior's step in bfloat16 beside the measured matmul rate
    python benchmarks/training.py --prior small_prior --batch 8

Each side is a process of its own with the same weights, batches and optimizer (AdamW, float32); they take turns, each
going first every other time, so that a machine that slows down hurts both alike.  A step is forward, backward and
update; the first one warms up, and must have the same loss on both sides.  4.40.2 is the last that has a Jukebox.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GIGA = 1e9
CODES, BOOKS, TEXT = 2048, 4, 16
Loss = Callable[[], Tensor]


# ------------------------------------------------------------------------------------------------ beside transformers


def save_musicgen(folder: Path, args: argparse.Namespace) -> int:
    """The tokens of a step."""
    from tunesmith.models.musicgen import MusicgenDecoderConfig, MusicgenForCausalLM

    config = MusicgenDecoderConfig(
        vocab_size=CODES,
        num_codebooks=BOOKS,
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        ffn_dim=4 * args.width,
        dropout=0.0,
        pad_token_id=CODES,
        bos_token_id=CODES,
        decoder_start_token_id=CODES,
    )
    MusicgenForCausalLM(config).save_pretrained(folder)
    return int(args.batch * args.frames * BOOKS)


def save_prior(folder: Path, args: argparse.Namespace) -> int:
    """Likewise; of the recipe small_prior but for its sizes."""
    from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
    from tunesmith.training.recipes import compose

    sizes = {"hidden_size": args.width, "num_layers": args.layers, "n_ctx": args.codes, "blocks": 16}
    JukeboxPrior(JukeboxPriorConfig(**{**compose("small_prior").prior, **sizes})).save_pretrained(folder)
    return int(args.batch * args.codes)


def our_musicgen(folder: Path, args: argparse.Namespace) -> tuple[nn.Module, Loss]:
    from tunesmith.models.musicgen import MusicgenForCausalLM

    return of_musicgen(MusicgenForCausalLM.from_pretrained(folder), args)


def their_musicgen(folder: Path, args: argparse.Namespace) -> tuple[nn.Module, Loss]:
    from transformers import MusicgenForCausalLM

    return of_musicgen(MusicgenForCausalLM.from_pretrained(folder), args)


def of_musicgen(model: Any, args: argparse.Namespace) -> tuple[nn.Module, Loss]:
    labels = drawn(args.batch, args.frames, BOOKS)
    batch = {"input_ids": shifted(labels), "labels": labels}
    batch["encoder_hidden_states"] = torch.zeros(args.batch, TEXT, args.width, device=labels.device)
    return model, lambda: model(**batch).loss


def our_prior(folder: Path, args: argparse.Namespace) -> tuple[nn.Module, Loss]:
    from tunesmith.models.jukebox import JukeboxPrior

    model, codes = JukeboxPrior.from_pretrained(folder), drawn(args.batch, args.codes)
    return model, lambda: model(codes).loss


def their_prior(folder: Path, args: argparse.Namespace) -> tuple[nn.Module, Loss]:
    """With transformers 4.40.2; its config must say `mask`, or it isn't causal."""
    from safetensors.torch import load_file
    from transformers.models.jukebox.modeling_jukebox import JukeboxPrior, JukeboxPriorConfig

    settings = json.loads((folder / "config.json").read_text())
    model = JukeboxPrior(JukeboxPriorConfig(**{**settings, "mask": True}))
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({"prior.fc_proj_out.weight": state["prior.embed_tokens.weight"], **state})
    codes = drawn(args.batch, args.codes)
    return model, lambda: model.prior(codes)[0]  # its forward_tokens fails where there are no lyrics


SAVED = {"musicgen": save_musicgen, "prior": save_prior}
SIDES = {
    ("musicgen", "ours"): our_musicgen,
    ("musicgen", "theirs"): their_musicgen,
    ("prior", "ours"): our_prior,
    ("prior", "theirs"): their_prior,
}


def drawn(*shape: int) -> Tensor:
    """The same codes on both sides."""
    return torch.randint(CODES, shape, generator=torch.Generator().manual_seed(1)).to(device())


def shifted(labels: Tensor) -> Tensor:
    """[B·K, S], moved right by one after a start token."""
    ids = labels.transpose(1, 2).flatten(0, 1)
    return torch.cat([torch.full_like(ids[:, :1], CODES), ids[:, :-1]], 1)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def stepper(what: str, side: str, args: argparse.Namespace) -> Callable[[], list[float]]:
    """A step: its seconds, loss and the peak memory since the process began."""
    model, loss = SIDES[what, side](args.folder, args)
    model.to(device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> list[float]:
        begin = time.perf_counter()
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        told = value.item()
        return [time.perf_counter() - begin, told, peak()]

    return step


def serve(args: argparse.Namespace) -> None:
    """A line in, a step, its figures out."""
    step = stepper(*args.serve, args)
    for _ in sys.stdin:
        print(json.dumps(step()), flush=True)


def peak() -> float:
    """Gigabytes: of the GPU, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIGA
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA


class Side:
    """One of the two processes."""

    def __init__(self, python: str, what: str, side: str, args: argparse.Namespace) -> None:
        options = [f"--{name}={getattr(args, name)}" for name in ("width", "batch", "frames", "codes", "folder")]
        self.process = subprocess.Popen(
            [python, __file__, "--serve", what, side, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def step(self) -> list[float]:
        """What `stepper` tells."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("["):  # transformers may talk
                figures: list[float] = json.loads(line)
                return figures
        raise SystemExit(f"{self.process.args} ended before its step; run it by hand to see why.")

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(what: str, python: str, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        torch.manual_seed(0)
        tokens = SAVED[what](args.folder, args)
        sides = {"ours": Side(sys.executable, what, "ours", args), "theirs": Side(python, what, "theirs", args)}
        first = {side: process.step() for side, process in sides.items()}
        rounds = [turn(sides, number) for number in range(args.steps)]
        for process in sides.values():
            process.close()
    print(table(what, tokens, first, rounds))


def turn(sides: dict[str, Side], number: int) -> dict[str, list[float]]:
    order = list(sides) if number % 2 == 0 else list(sides)[::-1]
    return {side: sides[side].step() for side in order}


def table(what: str, tokens: int, first: dict[str, list[float]], rounds: list[dict[str, list[float]]]) -> str:
    lines = []
    for side, (_, loss, _) in first.items():
        rate, memory = (statistics.median(figures) for figures in (
            [tokens / one[side][0] for one in rounds], [one[side][2] for one in rounds]
        ))  # fmt: skip
        lines.append(f"{what:8} {side:6} {rate:9.0f} tokens/s  peak {memory:.2f} GB  first loss {loss:.5f}")
    ours, theirs = (first[side][1] for side in ("ours", "theirs"))
    same = "the same loss" if abs(ours - theirs) < 1e-4 * abs(theirs) else "ANOTHER LOSS"
    ratio = statistics.median(one["theirs"][0] / one["ours"][0] for one in rounds)
    return "\n".join([*lines, f"{what:8} ratio of speed {ratio:.2f} (median of {len(rounds)} pairs of steps), {same}"])


# --------------------------------------------------------------------------------------------------- plan, and a GPU


def plan(args: argparse.Namespace) -> None:
    from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
    from tunesmith.training.estimate import plan as planned
    from tunesmith.training.recipes import compose

    recipe = compose(args.plan)
    with torch.device("meta"):
        model = JukeboxPrior(JukeboxPriorConfig(**recipe.prior))
    print(f"{args.plan}: {sum(p.numel() for p in model.parameters()):,} parameters, {args.processes} processes")
    held = planned(model, recipe.schedule, args.processes)
    for name, size in held.items():
        print(f"{name:10} {size / GIGA:6.2f} GB")
    print(f"{'together':10} {sum(held.values()) / GIGA:6.2f} GB in each process, and activations on top")


def prior(args: argparse.Namespace) -> None:
    """Steps of a prior under autocast with layers computed anew, beside a large matrix product on the same device."""
    from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
    from tunesmith.training.recipes import compose

    where = device()
    config = JukeboxPriorConfig(**compose(args.prior).prior)
    model = JukeboxPrior(config).to(where).train()
    if args.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=where == "cuda")
    codes = torch.randint(config.music_vocab_size, (args.batch, config.n_ctx), device=where)
    labels = torch.zeros(args.batch, config.label_width, dtype=torch.long, device=where)
    labels[:, :3] = torch.tensor([100, 0, 10]) * config.sampling_rate
    reads = config.metadata_conditioning or config.nb_relevant_lyric_tokens
    times = []
    for _ in range(args.steps + 2):
        begin = time.perf_counter()
        with torch.autocast(where, torch.bfloat16):
            loss = model(codes, labels if reads else None).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - begin)
    second = statistics.median(times[2:])
    tokens = args.batch * (config.n_ctx + (config.nb_relevant_lyric_tokens if config.joined else 0))
    flops = 6 * sum(p.numel() for p in model.prior.transformer.parameters()) * tokens
    rate = matmul_rate(where)
    print(f"{args.prior}: {tokens / second:,.0f} tokens/s, peak {peak():.2f} GB at batch {args.batch}")
    print(f"{flops / second / 1e12:.1f} of {rate / 1e12:.1f} TFLOP/s: {flops / second / rate:.2f} of the matmul rate")


def matmul_rate(where: str, size: int = 8192) -> float:
    size = size if where == "cuda" else 1024
    a = torch.randn(size, size, device=where, dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        b = a @ a
        b[0, 0].item()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(times)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--theirs", help="the python of an environment with transformers 4.40.2, for a Jukebox prior")
    parser.add_argument("--plan", help="a prior's recipe")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--prior", help="a prior's recipe")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=250, help="of MusicGen's crop")
    parser.add_argument("--codes", type=int, default=1024, help="of the prior's window")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args)
    elif args.plan:
        plan(args)
    elif args.prior:
        prior(args)
    else:
        compare("musicgen", sys.executable, args)
        if args.theirs:
            compare("prior", args.theirs, args)


if __name__ == "__main__":
    main()
