"""What weights in few bits cost: how far probabilities move, and how many likeliest codes change.

    python benchmarks/quality.py             the bundled model, MusicGen-small and a Jukebox upsampler, 64 steps each
    python benchmarks/quality.py --quick     the bundled model and a Jukebox upsampler of 12 layers

Both models are fed the same codes (teacher forcing), through the caches of a session, as in sampling.  Divergence is
Kullback and Leibler's of the float32 model's probabilities from those in few bits, in nats a token.  Full-size models
have random weights, scaled to logits of standard deviation 2, which is what trained ones have; the bundled one is fed
music that it made.  `guided` is after guidance by 3, what codes are drawn from.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tunesmith
from tunesmith.generation.sampling import guide
from tunesmith.models.jukebox import PRESETS as PRIORS
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.models.musicgen import PRESETS, MusicgenDecoderConfig, MusicgenForCausalLM, Text
from tunesmith.nn import engine
from tunesmith.nn.lowbit import QUANTIZE, quantize_
from tunesmith.requests import Sampling

DEVIATION = 2.0
BOUND = 0.01
"""Nats: what int8 may cost to be a default."""
TEXT = "a lively jig for violin with drums, 120 bpm"


@torch.no_grad()
def logits_of(session: Any, ids: Tensor) -> Tensor:
    """Of every step [S, G, B, K, V]."""
    found = [session.prefill(ids[..., :1])]
    found += [session.step(ids[..., i]) for i in range(1, ids.shape[-1])]
    return torch.stack(found)


def divergence(exact: Tensor, found: Tensor) -> tuple[float, float]:
    """Mean nats a token, and the share of tokens whose likeliest code is the same."""
    p, q = exact.log_softmax(-1), found.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean()), float((exact.argmax(-1) == found.argmax(-1)).float().mean())


def compare(name: str, layers: Any, run: Callable[[], Tensor], original: Callable[[], None]) -> None:
    """Print a row for each number of bits.  original: put the float32 weights back."""
    exact = run()
    print(f"{name}, {exact.shape[0]} steps, logits of deviation {float(exact.std()):.2f}")
    for quantize in QUANTIZE:
        quantize_(layers, quantize, kernels=engine.library() is not None)
        found = run()
        nats, same = divergence(exact[:, 0], found[:, 0])
        row = f"  {quantize}: {nats:.5f} nats, {same:.1%} of the likeliest codes"
        if exact.shape[1] == 2:
            guided = divergence(*(guide(x[:, 0], x[:, 1], 3.0) for x in (exact, found)))
            row += f"; guided {guided[0]:.5f} nats, {guided[1]:.1%}"
        print(row + ("" if quantize != "int8" else f"; {'within' if nats <= BOUND else 'ABOVE'} {BOUND}"), flush=True)
        original()


def keeping(layers: Any) -> Callable[[], None]:
    """A function that undoes `quantize_`."""
    kept = [(parent, key, child) for parent in layers.modules() for key, child in parent.named_children()]

    def restore() -> None:
        for parent, key, child in kept:
            setattr(parent, key, child)

    return restore


def bundled(steps: int) -> None:
    """The model in the package, on a song of its own."""
    pipeline: Any = tunesmith.load("tunesmith/pocket", "cpu", quantize="none")
    lm, states = pipeline.model.decoder, pipeline._encode_text(TEXT)[None]
    settings = {"frames": steps + 4, "sampling": Sampling(), "generators": [torch.Generator().manual_seed(0)]}
    *_, last = lm.iterate_codes(**settings, text_states=states)
    codes, layers, text = last.grid[:, :, :steps], lm.model.decoder.layers, Text.of(states, None)
    compare("tunesmith/pocket", layers, lambda: logits_of(lm.session(1, steps, text), codes), keeping(layers))


def musicgen(name: str, config: MusicgenDecoderConfig, steps: int) -> None:
    """Random weights."""
    torch.manual_seed(0)
    lm = MusicgenForCausalLM(config).eval()
    ids = torch.randint(0, config.vocab_size, (1, 4, steps))
    text = Text.of(torch.randn(1, 12, lm.config.hidden_size), None)
    scale = DEVIATION / logits_of(lm.session(1, steps, text), ids[..., :8])[:, 0].std()
    for head in lm.lm_heads:
        head.weight.data *= scale
    layers = lm.model.decoder.layers
    compare(name, layers, lambda: logits_of(lm.session(1, steps, text), ids), keeping(layers))


def jukebox(config: JukeboxPriorConfig, steps: int) -> None:
    """An upsampler with random weights."""
    torch.manual_seed(0)
    prior = JukeboxPrior(config).eval()
    labels = torch.zeros(1, 4 + config.max_nb_genres, dtype=torch.long)
    labels[0, :3] = torch.tensor([100, 0, 10]) * config.sampling_rate
    condition = prior.condition(labels, torch.randint(0, 2048, (1, config.n_ctx // config.upper_ratio)), 1)
    ids = torch.randint(0, 2048, (1, 1, steps))
    scale = DEVIATION / logits_of(prior.session(condition, 1, steps), ids[..., :8]).std()
    head = prior.prior.fc_proj_out
    head.weight = torch.nn.Parameter(head.weight.data * scale)  # of its own: tied ones would change the input too
    stack = prior.prior.transformer
    compare(
        f"upsampler {config.hidden_size} x {config.num_layers}",
        stack,
        lambda: logits_of(prior.session(condition, 1, steps), ids),
        keeping(stack),
    )


def main(arguments: list[str] | None = None) -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="tiny random models alone, to see that all of this runs")
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args(arguments)
    print(f"kernels: {engine.instructions()}")
    upsampler = PRIORS["upsampler_level_0"]()
    if args.tiny:
        upsampler.hidden_size, upsampler.num_layers, upsampler.res_conv_width = 64, 3, 8
        small = MusicgenDecoderConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, ffn_dim=128)
        musicgen("tiny musicgen", small, args.steps)
    elif args.quick:
        upsampler.num_layers = 12
        bundled(args.steps)
    else:
        bundled(args.steps)
        musicgen("musicgen-small", MusicgenDecoderConfig(**PRESETS["small"]), args.steps)
    jukebox(upsampler, args.steps)


if __name__ == "__main__":
    main()
