"""What a run will take: parameters, memory, time; from one trial pass over a real batch that leaves no trace."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.training.callbacks import clock
from tunesmith.training.schedule import Schedule, updates
from tunesmith.training.trainer import Objective

STEPS = {"adamw": 8, "adamw8bit": 2, "muon": 4}  # bytes of an optimizer's state per parameter


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes are those of each process."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    averages: int
    """On the model's device; in main memory they cost that nothing."""
    activations: int
    """What a batch's pass keeps for the way back."""
    step_seconds: float
    """Of a pass there and back; the optimizer comes on top."""
    epoch_seconds: float
    run_seconds: float

    @property
    def memory(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations

    def __str__(self) -> str:
        parts = f"weights {_size(self.weights)}, gradients {_size(self.gradients)}, optimizer {_size(self.optimizer)}"
        return (
            f"{self.parameters:,} parameters, {self.trained:,} of them trained. "
            f"Memory about {_size(self.memory)}: {parts}, averages {_size(self.averages)}, activations "
            f"{_size(self.activations)}. About {self.step_seconds:.3g} s a step, {clock(self.epoch_seconds)} an epoch, "
            f"{clock(self.run_seconds)} in all."
        )


def plan(model: nn.Module, schedule: Schedule, processes: int = 1) -> dict[str, int]:
    """Bytes that each process holds besides activations; the model may be on the meta device.

    With `fsdp` all is shared evenly; else each process holds all.
    """
    share = processes if schedule.fsdp else 1
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = {
        "weights": weights,
        "gradients": 4 * trained,
        "optimizer": STEPS[schedule.optimizer] * trained,
        "averages": 4 * trained if schedule.ema == "device" else 0,
    }
    return {name: -(-size // share) for name, size in held.items()}


def estimate(
    objective: Objective, batch: Mapping[str, Tensor], schedule: Schedule, items: int, processes: int = 1
) -> Estimate:
    """Of a run over `items` items an epoch.  The batch's pass changes neither the model nor any random state."""
    model = objective.model
    seconds, activations = trial(objective, batch, schedule)
    steps = max(1, items // (schedule.batch * processes * schedule.accumulate))
    update = seconds * schedule.accumulate
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        activations=activations,
        step_seconds=update,
        epoch_seconds=update * steps,
        run_seconds=update * updates(schedule),
        **plan(model, schedule, processes),
    )


def trial(objective: Objective, batch: Mapping[str, Tensor], schedule: Schedule) -> tuple[float, int]:
    """Seconds of one pass there and back, and bytes that are kept in between."""
    device = next(objective.parameters()).device
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    begin = time.perf_counter()
    with _untouched(objective), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16):
            loss = objective(**{name: value.to(device) for name, value in batch.items()})["loss"]
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    return time.perf_counter() - begin, sum(size for place, size in kept.items() if place not in own)


@contextmanager
def _untouched(objective: Objective) -> Iterator[None]:
    """Evaluation mode, so that codebooks don't learn, and everything as it was afterwards."""
    modes: dict[Any, bool] = {module: module.training for module in objective.modules()}
    objective.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        objective.zero_grad()
        for module, mode in modes.items():
            module.training = mode


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
