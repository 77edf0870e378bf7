"""How long, how fast and how often a run learns."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, how fast and how often; shared by all recipes."""

    steps: int = 20_000
    """Updates until the learning rate has come down to zero."""
    budget_seconds: float | None = None
    """Stop after this much time, with everything saved; the same command goes on from there."""
    batch: int = 8
    """Items that each process takes at a time."""
    accumulate: int = 1
    """Batches whose gradients make one update."""
    learning_rate: float = 1.5e-3
    curve: Literal["cosine", "constant", "exponential", "linear"] = "cosine"
    """How the learning rate goes on after the warm-up: to zero at the last step; not at all; by `decay_factor` every
    `decay_steps`; or in a straight line to zero in the `decay_steps` after `decay_start`, where training ends."""
    decay_start: int = 0
    decay_steps: int = 10_000_000_000
    decay_factor: float = 1.0
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit keeps its moments in 8 bits; it needs torchao or bitsandbytes.  muon, for transformers: Muon for the
    blocks' matrices, AdamW for the rest."""
    beta1: float = 0.8
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.001
    decay_all: bool = False
    """Weight decay for biases, norms and embeddings too, as in the original implementations."""
    warmup: int = 200
    """Updates over which the learning rate rises from zero."""
    clip: float = 5.0
    """Largest norm of a gradient; 0 is no limit."""
    skip_above: float = 0.0
    """Leave out updates whose gradient has a larger norm than this; 0 takes all."""
    bfloat16: bool = False
    """Multiply in bfloat16 (weights, optimizer and losses stay in float32)."""
    float16: bool = False
    """Multiply in float16 with a scaled loss, likewise; needs a GPU."""
    loss_scale: float = 65536.0
    """What the loss is multiplied by at first; halved when gradients overflow."""
    scale_window: int = 1000
    """Good steps in which that factor doubles."""
    checkpointing: bool = False
    """Compute layers anew on the way back instead of keeping what they computed: less memory, a third more time."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, then faster steps on a GPU."""
    fsdp: bool = False
    """Share weights, gradients and optimizer among processes (FSDP2); start it with torchrun."""
    bucket: int = 128
    """Megabytes of gradients that processes exchange at a time."""
    ema: Literal["none", "device", "cpu"] = "none"
    """Average the weights beside the model, or in main memory; tests, samples and the result take the average."""
    ema_decay: float | None = None
    """Share of the average that a step keeps; by default 1 - items per step / 8000, and less in the first steps."""
    ema_every: int = 1
    """Steps after which the average moves, by as much at once."""
    save_every: int = 0
    """Updates between checkpoints, besides those by the clock."""
    save_every_seconds: float = 240.0
    log_every: int = 50
    test_every: int = 0
    """Updates between tests on held-out songs; 0: once an epoch, or with every log where that is rarer."""
    sample_every: int = 0
    """Updates between sounds made for the board; 0 makes none."""
    sample_count: int = 2
    sample_seconds: float = 10.0
    workers: int = 0
    seed: int = 0


def learning_rate(schedule: Schedule, step: int) -> float:
    """The share of the learning rate that update number `step` (from 0) gets."""
    rise = min(1.0, step / schedule.warmup) if schedule.warmup else 1.0
    if schedule.curve == "constant":
        return rise
    if schedule.curve == "exponential":
        return rise * schedule.decay_factor ** (step // schedule.decay_steps)
    if schedule.curve == "linear":
        return rise * max(0.0, 1.0 - max(0, step - schedule.decay_start) / schedule.decay_steps)
    if step < schedule.warmup:
        return rise
    progress = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def updates(schedule: Schedule) -> int:
    """How many updates a run makes: a straight line ends where it meets zero."""
    end = schedule.decay_start + schedule.decay_steps
    return min(schedule.steps, end) if schedule.curve == "linear" else schedule.steps
