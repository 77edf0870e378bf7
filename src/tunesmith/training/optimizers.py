"""Muon for the matrices of a transformer and AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class Joined(Optimizer):
    """Several optimizers, each with parameters of its own, that a trainer and a schedule can treat as one."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The parts' own groups, so that whoever sets a learning rate here sets it there."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Each part steps."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave, for the same parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def muon_and_adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    gentle: tuple[Sequence[str], float] | None = None,
) -> Joined:
    """Muon (Jordan 2024) for weights of linear layers inside blocks, AdamW for embeddings, heads, biases and norms.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4), so one
    learning rate serves both.  Blocks are what `nn.ModuleList`s hold; a linear layer that itself stands in a list is a
    head.  Frozen parameters are left out.

    Args:
        model: whose parameters learn.
        learning_rate: of all but `gentle`.
        betas: of AdamW.
        weight_decay: of Muon's matrices; AdamW's parameters don't decay.
        gentle: parts of parameter names that AdamW gets whatever they are, and the learning rate of these.  Muon's
            steps have full size in every direction, which drowns a signal as weak as that of words beside codes.

    """
    parts, rate = gentle or ((), learning_rate)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    careful = {name: p for name, p in learning.items() if any(part in name for part in parts)}
    blocks = _block_matrices(model)
    matrices = {name: p for name, p in learning.items() if id(p) in blocks and name not in careful}
    rest = [p for name, p in learning.items() if name not in matrices and name not in careful]
    groups = [{"params": rest, "lr": learning_rate}, {"params": list(careful.values()), "lr": rate}]
    muon = Muon(list(matrices.values()), lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Joined([muon, AdamW([group for group in groups if group["params"]], betas=betas, weight_decay=0.0)])


def _block_matrices(model: nn.Module) -> set[int]:
    blocks = [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]
    return {id(m.weight) for block in blocks for m in block.modules() if m is not block and isinstance(m, nn.Linear)}
