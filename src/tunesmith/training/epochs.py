"""Which epoch a data set is in: told to every process that reads it, at the right moment."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState


class Epoch:
    """A number that data loaders' processes see when it is changed."""

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64).share_memory_()

    def set(self, epoch: int) -> None:
        """From 0 on."""
        self._value.fill_(epoch)

    def __int__(self) -> int:
        return int(self._value)


class Epochs(TrainerCallback):
    """Tells a data set its epoch before each one begins.

    Trainer does that too, but not in the epoch in whose middle a run goes on: the loader that skips the batches that
    were seen (accelerate's `skip_first_batches`) tells its sampler alone.
    """

    def __init__(self, data: Any) -> None:
        """data: with or without `set_epoch`."""
        self.data = data

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The state counts in epochs; after 5 of 4 batches it says 1.25."""
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(int((state.epoch or 0) + 1e-6))
