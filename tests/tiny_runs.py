"""Tiny training runs on noise, in a test's own process or by torchrun.

    torchrun --nproc-per-node 2 tiny_runs.py vqvae|prior RUN key=value ...

leaves in RUN what a run leaves, its `model/`, its first gradients and its logged losses.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parent))

from tiny_jukebox import tiny_jukebox
from tunesmith.training.jukebox import PriorObjective, VQVAEObjective
from tunesmith.training.recipes import parse
from tunesmith.training.runs import MetricTrainer, Objective, Schedule, train

SETTINGS: dict[str, Any] = {
    "steps": 4,
    "batch": 2,
    "learning_rate": 1e-3,
    "warmup": 0,
    "clip": 0.0,
    "log_every": 1,
    "curve": "constant",
    "weight_decay": 0.0,
}


class Noise(Dataset[dict[str, Tensor]]):
    """Items that are the same in every process."""

    def __init__(self, kind: str, count: int = 24, slow: float = 0.0) -> None:
        self.slow = slow
        draw = torch.Generator().manual_seed(1)
        self.items = (
            [{"audio": torch.rand(2048, generator=draw) * 2 - 1} for _ in range(count)]
            if kind == "vqvae"
            else [
                {
                    "codes": torch.randint(24, (16,), generator=draw),
                    "above": torch.randint(24, (8,), generator=draw),
                    "labels": torch.tensor([5000, 100 * i % 4000, 64, 1, 1, -1, -1, -1, -1]),
                }
                for i in range(count)
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        time.sleep(self.slow)
        return self.items[index]


def objective(kind: str) -> Objective:
    """Tiny, the same weights every time; codes that nothing chooses stay where they are."""
    whole = tiny_jukebox()
    if kind == "vqvae":
        for book in whole.vqvae.bottleneck.level_blocks:
            book.threshold = 1e-9
            book.k_elem.fill_(1.0)
            book.k_sum.copy_(book.codebook)
        return VQVAEObjective(whole.vqvae)
    return PriorObjective(whole.priors[2])


class Gradients(MetricTrainer):
    """Keeps the first gradients."""

    seen: dict[str, Tensor] | None = None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if Gradients.seen is None:
            Gradients.seen = {
                name.removeprefix("module."): getattr(p.grad, "full_tensor", lambda p=p: p.grad)().clone()
                for name, p in model.named_parameters()
                if p.grad is not None
            }
        return super()._get_grad_norm(model, grad_norm)


def main(arguments: Sequence[str]) -> None:
    kind, run, *settings = arguments
    given = {key: parse(value) for key, value in (setting.split("=", 1) for setting in settings)}
    sys.modules["tunesmith.training.runs"].MetricTrainer = Gradients  # type: ignore[attr-defined]
    trainer = train(objective(kind), Noise(kind), Path(run), Schedule(**{**SETTINGS, **given}))
    trainer.export(Path(run) / "model")
    if trainer.args.should_save:
        torch.save(Gradients.seen, Path(run) / "gradients.pt")
        losses = [record for record in trainer.state.log_history if "loss" in record]
        (Path(run) / "losses.json").write_text(json.dumps(losses))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
