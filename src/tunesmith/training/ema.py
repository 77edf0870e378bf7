"""A moving average of the weights, on the model's device or in main memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages of a model's trained weights; they begin as the weights are.

    decay: per step; with `every` above 1 the average moves every so many steps, by as much at once (decay ** every), as
    the original does on the CPU.  warm: let step number n decay by (1 + n) / (10 + n) as long as that is less, so that
    a short run's average isn't made of the random weights that it began with; the original does not.  device: where
    averages are kept; None is where each weight is.
    """

    def __init__(
        self, model: nn.Module, *, decay: float, warm: bool = False, every: int = 1, device: str | None = None
    ) -> None:
        self.decay, self.warm, self.every, self.device = decay, warm, every, device
        self.model = model
        self.shadow = {name: self._copy(p) for name, p in self._trained()}

    def update(self, step: int) -> None:
        """After step number `step`, counted from 1."""
        if step % self.every:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay
        weight = 1.0 - decay**self.every
        with torch.no_grad():
            for name, p in self._trained():
                average = self.shadow[name]
                average.lerp_(p.detach().to(average), weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model with the averages as its weights, for as long as the context lasts."""
        kept = {name: p.detach().clone() for name, p in self._trained()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(kept)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Averages that were saved."""
        for name, average in self.shadow.items():
            average.copy_(tensors[name])

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, p in self._trained():
            p.copy_(tensors[name])

    def _copy(self, p: nn.Parameter) -> Tensor:
        return p.detach().to(self.device or p.device, torch.float32, copy=True)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
