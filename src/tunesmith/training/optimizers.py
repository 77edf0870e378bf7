"""The optimizer that a schedule asks for: AdamW, or Muon for a transformer's matrices beside it, as one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import MissingDependencyError, RequestError
from tunesmith.training.schedule import Schedule


def optimizer_of(model: nn.Module, schedule: Schedule) -> Optimizer:
    """Over what learns.  Raises MissingDependencyError where 8 bits are asked for and no package has them, and
    RequestError where Muon is and it can't be.
    """
    if schedule.optimizer != "muon":
        return adamw(model, schedule)
    if schedule.fsdp or not _block_matrices(model):
        reason = "shares matrices among processes (fsdp)" if schedule.fsdp else "has no transformer"
        raise RequestError(f"optimizer=muon needs a transformer's whole matrices, and this run {reason}; take adamw.")
    betas = schedule.beta1, schedule.beta2
    return muon_and_adamw(model, learning_rate=schedule.learning_rate, betas=betas, weight_decay=schedule.weight_decay)


def adamw(model: nn.Module, schedule: Schedule) -> Optimizer:
    """AdamW over what learns.  Raises MissingDependencyError where 8 bits are asked for and no package has them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if (p.ndim > 1) == wide] for wide in (True, False))
    decays = (schedule.weight_decay, schedule.weight_decay if schedule.decay_all else 0.0)
    groups = [{"params": p, "weight_decay": wd} for p, wd in zip((matrices, vectors), decays, strict=True) if p]
    kind = _adamw8bit() if schedule.optimizer == "adamw8bit" else AdamW
    made: Optimizer = kind(
        groups, lr=schedule.learning_rate, betas=(schedule.beta1, schedule.beta2), eps=schedule.epsilon
    )
    return made


def _adamw8bit() -> Any:
    try:
        from torchao.optim import AdamW8bit  # type: ignore[import-not-found]  # optional
    except ImportError:
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]  # optional
        except ImportError:
            raise MissingDependencyError(
                "optimizer=adamw8bit needs torchao or bitsandbytes; pip install torchao, or take adamw."
            ) from None
    return AdamW8bit


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
    rates: Mapping[str, float] | None = None,
) -> Joined:
    """Muon (Jordan 2024) for weights of linear layers inside blocks, AdamW for embeddings, heads, biases and norms.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).
    Blocks are what `nn.ModuleList`s hold; a linear layer that itself stands in a list is a head.  Frozen parameters are
    left out.

    Args:
        model: whose parameters learn.
        learning_rate: of all that `rates` doesn't name.
        betas: of AdamW.
        weight_decay: of Muon's matrices; AdamW's parameters don't decay.
        rates: learning rates by parts of parameter names, the first that fits.  What is named here learns by AdamW,
            whatever it is: Muon's steps have full size in every direction, which drowns a signal as weak as words'.

    """
    blocks, learning = _block_matrices(model), {n: p for n, p in model.named_parameters() if p.requires_grad}
    own = {name: next((rate for part, rate in (rates or {}).items() if part in name), None) for name in learning}
    matrices = [p for name, p in learning.items() if id(p) in blocks and own[name] is None]
    groups: dict[float, list[torch.Tensor]] = {}
    for name, p in learning.items():
        rate = own[name]
        if rate is not None or id(p) not in blocks:
            groups.setdefault(learning_rate if rate is None else rate, []).append(p)
    adamw = AdamW([{"params": ps, "lr": lr} for lr, ps in groups.items()], betas=betas, weight_decay=0.0)
    return Joined([Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"), adamw])


def _block_matrices(model: nn.Module) -> set[int]:
    blocks = [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]
    return {
        id(m.weight)
        for block in blocks
        for m in block.modules()
        if m is not block and isinstance(m, nn.Linear | Conv1D)
    }
