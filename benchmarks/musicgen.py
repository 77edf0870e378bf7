"""MusicGen's `generate` against transformers', on this machine: interleaved pairs, median ratio.

    python benchmarks/musicgen.py            small (420 M parameters, random weights, float32), 64 tokens, 5 pairs
    python benchmarks/musicgen.py --quick    16 tokens, 2 pairs

Both get the same decoder weights, the same text and guidance 3.  Text encoder and codec are tiny, so that the language
model is what is timed.  The order within a pair alternates, so that a machine that slows down hurts both alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from torch import Tensor

from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.models.musicgen import PRESETS
from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration

TEXT_LENGTH = 12
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}
SIZES = {**PRESETS, "tiny": TINY}


def build(size: str) -> tuple[MusicgenForConditionalGeneration, transformers.MusicgenForConditionalGeneration]:
    """Both models around the same weights; text encoder and codec are tiny, for they aren't measured."""
    text = transformers.T5Config(vocab_size=8, d_model=64, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    codec = EncodecConfig(
        target_bandwidths=[2.2],
        sampling_rate=32_000,
        num_filters=2,
        hidden_size=4,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        num_lstm_layers=1,
    )
    ours = MusicgenForConditionalGeneration(MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=SIZES[size]))
    theirs = transformers.MusicgenForConditionalGeneration(
        transformers.MusicgenConfig(
            **{k: getattr(ours.config, k).to_dict() for k in ("text_encoder", "audio_encoder", "decoder")}
        )
    )
    state = ours.state_dict()
    for name, parameter in theirs.named_parameters():
        parameter.data = state[name]
    return ours.eval(), theirs.eval()


def seconds(generate: Callable[..., Tensor], tokens: int) -> float:
    """One run."""
    inputs = {
        "input_ids": torch.full((1, TEXT_LENGTH), 3),
        "attention_mask": torch.ones(1, TEXT_LENGTH, dtype=torch.long),
    }
    torch.manual_seed(0)
    began = time.perf_counter()
    generate(**inputs, do_sample=True, guidance_scale=3.0, max_new_tokens=tokens)
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    """Time pairs and print the median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="16 tokens, 2 pairs")
    args = parser.parse_args(arguments)
    if args.quick:
        args.tokens, args.pairs = 16, 2
    torch.set_num_threads(args.threads)
    ours, theirs = build(args.size)
    runs = {"tunesmith": ours.generate, "transformers": theirs.generate}
    for generate in runs.values():
        seconds(generate, 8)  # warm up
    ratios = []
    for pair in range(args.pairs):
        order = list(runs) if pair % 2 == 0 else list(runs)[::-1]
        taken = {name: seconds(runs[name], args.tokens) for name in order}
        ratios.append(taken["transformers"] / taken["tunesmith"])
        rates = ", ".join(f"{name} {args.tokens / taken[name]:.2f} tokens/s" for name in runs)
        print(f"pair {pair + 1}: {rates}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} (musicgen-{args.size}, float32, {args.threads} threads)")


if __name__ == "__main__":
    main()
