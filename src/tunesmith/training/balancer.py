"""Losses held in proportion by their gradients (EnCodec, Défossez et al. 2022, §3.4, "Balancer")."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tunesmith.nn.quantize import over_ranks, ranks


class Balancer:
    """Gradients of several losses by the same tensor, each brought to its share whatever its own size is.

        G = sum of w_i / sum(w) · g_i / <|g_i|>

    <|g_i|> is a moving average of the norm of an item's gradient, so that a weight says which part of the update a loss
    has.  In distributed runs the norms are means over all processes.
    """

    def __init__(self, weights: Mapping[str, float], decay: float = 0.999) -> None:
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.decay = decay
        self.totals: dict[str, Tensor] = {}
        """Sums of norms with exponentially falling weights, and the same of ones, so that first averages are right."""

    def __call__(self, losses: Mapping[str, Tensor], output: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient by `output` [B, ...], and of each loss the share of its gradient's norm in all of them.

        losses: means over the batch, functions of `output`; those without weight are left out, as are weights without a
        loss.  The result's items are
        of the size of 1 together, so that its sum over a batch grows with it, as in the original implementation.
        """
        weights = {name: weight for name, weight in self.weights.items() if name in losses}
        gradients = {
            name: torch.autograd.grad(losses[name], output, retain_graph=True)[0].float() * len(output)  # of each item
            for name in weights
        }
        norms = {
            name: over_ranks(gradient.flatten(1).norm(dim=1).mean()) / ranks() for name, gradient in gradients.items()
        }
        averages = self._average(norms)
        whole, total = sum(weights.values()), torch.zeros_like(output, dtype=torch.float32)
        for name, gradient in gradients.items():
            total += weights[name] / whole * gradient / (averages[name] + 1e-12)
        every = torch.stack(list(norms.values())).sum().clamp(min=1e-12)
        return total.to(output), {name: norm / every for name, norm in norms.items()}

    def _average(self, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, norm in norms.items():
            total, count = self.totals.get(name, torch.zeros(2, dtype=torch.float64)).to(norm.device)
            self.totals[name] = torch.stack([total * self.decay + norm, count * self.decay + 1])
        return {name: (self.totals[name][0] / self.totals[name][1]).float() for name in norms}

    def state_dict(self) -> dict[str, Tensor]:
        """The averages."""
        return dict(self.totals)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What `state_dict` gave."""
        self.totals = dict(state)
