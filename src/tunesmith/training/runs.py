"""A training run: `transformers.Trainer` within a budget of time, resumable, with its history in a file.

A run folder holds `recipe.json`, `checkpoint-N/` (weights, optimizer, schedule and random states), `history.jsonl`
(every logged figure) and, after each budget, whatever the recipe exports.
"""

import json
import time
from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, how fast and how often; shared by all recipes."""

    steps: int = 20_000
    """Updates until the learning rate has come down to zero."""
    budget_seconds: float | None = None
    """Stop after this much time, with everything saved; the same command goes on from there."""
    batch: int = 8
    learning_rate: float = 1.5e-3
    beta1: float = 0.8
    beta2: float = 0.99
    weight_decay: float = 0.001
    warmup: int = 200
    """Updates over which the learning rate rises from zero."""
    clip: float = 5.0
    """Largest norm of a gradient."""
    bfloat16: bool = False
    """Multiply in bfloat16 (weights, optimizer and losses stay in float32)."""
    save_every_seconds: float = 240.0
    log_every: int = 50
    workers: int = 0
    seed: int = 0


class Budget(TrainerCallback):
    """Saves every few minutes and stops when the time is up."""

    def __init__(self, seconds: float | None, save_every: float) -> None:
        self.seconds, self.save_every = seconds, save_every

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clocks."""
        self.start = self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raise the flags that the trainer reads."""
        now = time.monotonic()
        control.should_training_stop |= self.seconds is not None and now - self.start >= self.seconds
        if control.should_training_stop or now - self.saved >= self.save_every:
            control.should_save, self.saved = True, now


class History(TrainerCallback):
    """Appends every logged figure to `history.jsonl` and prints it with the time left."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self.start, self.first = time.monotonic(), state.global_step

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """One line a log."""
        elapsed = time.monotonic() - self.start
        done = state.global_step - self.first
        left = elapsed / max(1, done) * (state.max_steps - state.global_step)
        record = {"step": state.global_step, "elapsed": round(elapsed, 1), **(logs or {})}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        figures = " ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items() if isinstance(value, float))
        print(f"step {state.global_step}/{state.max_steps}  {left / 60:.0f} min left  {figures}", flush=True)


class MetricTrainer(Trainer):
    """A trainer that also logs the mean of every scalar which the objective returns beside its loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Run the objective and remember its metrics; losses are means, so nothing is rescaled by the world size."""
        outputs = model(**inputs)
        if model.training:
            self._count += 1
            for name, value in outputs.items():
                if name != "loss" and isinstance(value, torch.Tensor) and value.ndim == 0:
                    self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means since the last log."""
        if self._count and "loss" in logs:
            logs |= {name: (total / self._count).item() for name, total in self._sums.items()}
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)


def train(
    objective: nn.Module,
    data: Dataset[Any],
    run: Path,
    schedule: Schedule,
    *,
    collate: Callable[[list[Any]], dict[str, Any]] | None = None,
    optimizer: Optimizer | None = None,
) -> MetricTrainer:
    """Train `objective` (its forward returns a dictionary with `loss`) for what is left of the schedule or budget.

    The optimizer is AdamW unless another is given, its learning rate the schedule's with a cosine down to zero.
    Goes on from the last checkpoint in `run`, to the very next batch.  A checkpoint that holds weights alone (no
    optimizer state, no position) is a fresh start from those weights: load them into `objective` before the call.
    """
    assert isinstance(data, Sized)
    run.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(run),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch,
        learning_rate=schedule.learning_rate,
        adam_beta1=schedule.beta1,
        adam_beta2=schedule.beta2,
        weight_decay=schedule.weight_decay,
        warmup_steps=schedule.warmup,
        lr_scheduler_type="cosine",
        max_grad_norm=schedule.clip,
        bf16=schedule.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=schedule.log_every,
        save_strategy="no",  # the budget says when
        save_total_limit=2,
        dataloader_num_workers=schedule.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=[],
        seed=schedule.seed,
        disable_tqdm=True,
    )
    trainer = MetricTrainer(
        model=objective,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[Budget(schedule.budget_seconds, schedule.save_every_seconds), History(run / "history.jsonl")],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run)))
    return trainer


def write_recipe(run: Path, recipe: "DataclassInstance") -> None:
    """Keep in the run's `recipe.json` how it was asked for; of paths their names alone."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "recipe.json", asdict(recipe))


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or absent; paths in it are shown by their names."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=lambda value: value.name) + "\n")
    part.replace(path)
