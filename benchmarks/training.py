"""Training steps: tokens per second and peak memory beside transformers, and what a plan or a GPU says.

    python benchmarks/training.py                     MusicGen's language model, ours and transformers' in turns
    python benchmarks/training.py --width 1024 --layers 24 --batch 4 --frames 500
    python benchmarks/training.py --plan 5b           bytes that each of --processes holds, from the meta device
    python benchmarks/training.py --prior 1b_lyrics   a GPU: a prior's step in bfloat16 beside the measured matmul rate
    python benchmarks/training.py --prior small_prior --batch 8

Each side is a process of its own with the same sizes, batches and optimizer (AdamW, float32 on a CPU); they take turns,
so that a machine that slows down hurts both alike.  A step is forward, backward and update.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

GIGA = 1e9
CODES, BOOKS = 2048, 4


def sides(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a decoder that both know."""
    return {
        "vocab_size": CODES,
        "num_codebooks": BOOKS,
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 64,
        "ffn_dim": 4 * args.width,
        "dropout": 0.0,
        "pad_token_id": CODES,
        "bos_token_id": CODES,
        "decoder_start_token_id": CODES,
    }


def decoder(side: str, args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    if side == "ours":
        from tunesmith.models.musicgen import MusicgenDecoderConfig, MusicgenForCausalLM

        return MusicgenForCausalLM(MusicgenDecoderConfig(**sides(args)))
    from transformers import MusicgenDecoderConfig as TheirConfig
    from transformers import MusicgenForCausalLM as TheirModel

    return TheirModel(TheirConfig(**sides(args)))


def serve(side: str, args: argparse.Namespace) -> None:
    """A line in, a step, its seconds, loss and the peak memory out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = decoder(side, args).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.randint(CODES, (args.batch, args.frames, BOOKS), generator=torch.Generator().manual_seed(1))
    inputs = shifted(labels).to(device)
    batch = {
        "input_ids": inputs,
        "labels": labels.to(device),
        "encoder_hidden_states": torch.zeros(args.batch, 16, args.width, device=device),
    }
    for _ in sys.stdin:
        begin = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        print(json.dumps([time.perf_counter() - begin, value, peak()]), flush=True)


def shifted(labels: Tensor) -> Tensor:
    """[B·K, S], moved right by one after a start token."""
    ids = labels.transpose(1, 2).flatten(0, 1)
    return torch.cat([torch.full_like(ids[:, :1], CODES), ids[:, :-1]], 1)


def peak() -> float:
    """Gigabytes: of the GPU, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIGA
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA


def compare(args: argparse.Namespace) -> None:
    options = [f"--{name}={getattr(args, name)}" for name in ("width", "layers", "batch", "frames")]
    running = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--serve", side, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in ("ours", "theirs")
    }
    seen: dict[str, list[list[float]]] = {side: [] for side in running}
    for step in range(args.steps + 1):
        for side, process in running.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            result = json.loads(process.stdout.readline())
            if step:  # the first one warms up
                seen[side].append(result)
    for process in running.values():
        process.communicate()
    tokens = args.batch * args.frames * BOOKS
    rates = {side: tokens / statistics.median(r[0] for r in results) for side, results in seen.items()}
    for side, results in seen.items():
        print(f"{side:7} {rates[side]:9.0f} tokens/s  peak {results[-1][2]:.2f} GB  loss {results[-1][1]:.5f}")
    print(f"ratio of speed {rates['ours'] / rates['theirs']:.2f} (median of {args.steps} steps each, in turns)")


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

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = JukeboxPriorConfig(**compose(args.prior).prior)
    model = JukeboxPrior(config).to(device).train()
    if args.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    codes = torch.randint(config.music_vocab_size, (args.batch, config.n_ctx), device=device)
    labels = torch.zeros(args.batch, config.label_width, dtype=torch.long, device=device)
    labels[:, :3] = torch.tensor([100, 0, 10]) * config.sampling_rate
    reads = config.metadata_conditioning or config.nb_relevant_lyric_tokens
    times = []
    for _ in range(args.steps + 2):
        begin = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = model(codes, labels if reads else None).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - begin)
    second = statistics.median(times[2:])
    tokens = args.batch * (config.n_ctx + (config.nb_relevant_lyric_tokens if config.joined else 0))
    flops = 6 * sum(p.numel() for p in model.prior.transformer.parameters()) * tokens
    rate = matmul_rate(device)
    print(f"{args.prior}: {tokens / second:,.0f} tokens/s, peak {peak():.2f} GB at batch {args.batch}")
    print(f"{flops / second / 1e12:.1f} of {rate / 1e12:.1f} TFLOP/s: {flops / second / rate:.2f} of the matmul rate")


def matmul_rate(device: str, size: int = 8192) -> float:
    size = size if device == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        b = a @ a
        b[0, 0].item()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--plan", help="a prior's recipe")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--prior", help="a prior's recipe")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args)
    elif args.plan:
        plan(args)
    elif args.prior:
        prior(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
