"""What a decode step of MusicGen-small costs on a CPU, by kind of operation: what a faster one would have to change.

    python benchmarks/step.py                              int8, 1, 4 and 16 songs, guidance, at column 250
    python benchmarks/step.py --quantize int4 --column 1450 --songs 1

Random weights, a text of 12 tokens.  Each kind's operations run by themselves, in their order, over all layers; the
best of some runs.  GB/s are of weights, keys and values, beside those that summing 1 GiB reads.
"""

import argparse
import time
from collections.abc import Iterable

import torch

from cpu import TEXT_LENGTH, bandwidth
from tunesmith.models.musicgen import MusicgenDecoderConfig, MusicgenForCausalLM
from tunesmith.models.musicgen_engine import EngineSlots
from tunesmith.models.musicgen_layers import Text
from tunesmith.nn import engine, lowbit
from tunesmith.nn.engine import Op, Program

KINDS = {"products": [engine.LINEAR], "attention": [engine.ATTEND]}
"""All others are the rest: norms, rounding, remembering."""
RUNS = 7
PLACES = 1503


def language_model(quantize: str, tiny: bool) -> MusicgenForCausalLM:
    """MusicGen-small's, of random weights."""
    torch.manual_seed(0)
    config = MusicgenDecoderConfig(num_hidden_layers=2, hidden_size=64, ffn_dim=64) if tiny else MusicgenDecoderConfig()
    model = MusicgenForCausalLM(config).eval()
    if quantize != "none":
        lowbit.quantize_(model.model.decoder.layers, quantize, kernels=True)
    return model


def standing(model: MusicgenForCausalLM, songs: int, column: int) -> EngineSlots:
    """Songs of which so many columns were made, and that are at work on the next one."""
    slots = EngineSlots(model, songs, PLACES, TEXT_LENGTH, 2)
    for own, _ in slots.kept:  # memory that was never written to costs nothing to read
        own.keys.fill_(1)
        own.values.fill_(1)
    states = torch.randn(1, TEXT_LENGTH, model.config.hidden_size)
    text = Text.of(torch.cat([states, torch.zeros_like(states)]), None)
    slots.begin(dict.fromkeys(range(songs), text))
    slots.fed = [column] * songs
    slots.feed({song: torch.zeros(model.config.num_codebooks, 1, dtype=torch.long) for song in range(songs)})
    return slots


def seconds(program: Program, ops: Iterable[Op], rows: int) -> float:
    """Of running these operations alone."""
    part = Program(program.rows, program.raw.shape[1])
    part.ops, part.views, part.kept, part.room = list(ops), program.views, program.kept, program.room
    times = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        part.run(rows)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def size(model: MusicgenForCausalLM, slots: EngineSlots, column: int) -> dict[str, float]:
    """GB that the kinds read."""
    parts = [part for layer in model.model.decoder.layers for part in layer.modules()]
    read = {name: weight for part in parts if (weight := engine.weight_of(part)) for name in [id(part)]}
    weights = sum(x.nbytes for weight in read.values() for x in (weight.data, weight.scales) if x is not None)
    share = (column + 1) / PLACES
    memory = sum(x.nbytes for own, _ in slots.kept for x in (own.keys, own.values)) * share
    return {"products": weights / 1e9, "attention": memory / 1e9}


def row(model: MusicgenForCausalLM, songs: int, column: int) -> str:
    """Of the table, for so many songs."""
    slots = standing(model, songs, column)
    rows, ops, reads = 2 * songs, slots.program.ops, size(model, slots, column)
    cells = []
    for name, kinds in KINDS.items():
        took = seconds(slots.program, [op for op in ops if op.kind in kinds], rows)
        cells.append(f"{took * 1e3:.1f} ms ({reads[name] / took:.0f} GB/s)")
    known = [kind for kinds in KINDS.values() for kind in kinds]
    rest = seconds(slots.program, [op for op in ops if op.kind not in known], rows)
    heads, whole = seconds(slots.heads, slots.heads.ops, rows), seconds(slots.program, ops, rows)
    cells += [f"{x * 1e3:.1f} ms" for x in (rest, heads, whole + heads)]
    return f"| {songs} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> None:
    """A table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantize", choices=["int8", "int4", "none"], default="int8")
    parser.add_argument("--songs", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--column", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="with a tiny model, to see that this runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    model = language_model(args.quantize, args.tiny)
    print(f"{engine.instructions()}, {args.threads} threads, reading {bandwidth(args.threads):.0f} GB/s")
    print("| songs | " + " | ".join([*KINDS, "rest", "heads", "whole step"]) + " |")
    print("|---" * (len(KINDS) + 4) + "|")
    with engine.with_torch_aside():
        for songs in args.songs:
            print(row(model, songs, args.column), flush=True)


if __name__ == "__main__":
    main()
