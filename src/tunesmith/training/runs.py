"""A training run: `transformers.Trainer` within a budget of time, resumable, with its history in a file.

A run folder holds `recipe.json`, `checkpoint-N/` (weights, optimizer, schedule and random states), `history.jsonl`
(every logged figure) and, after each budget, whatever the recipe exports.
"""

import os
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.utils import logging

from tunesmith.errors import RunError
from tunesmith.training import checkpoints
from tunesmith.training.callbacks import Board, Budget, History
from tunesmith.training.checkpoints import KEPT, write_json
from tunesmith.training.ema import Ema
from tunesmith.training.epochs import Epochs
from tunesmith.training.optimizers import optimizer_of
from tunesmith.training.schedule import Schedule, updates
from tunesmith.training.trainer import Extras, MetricTrainer, Objective, compute_anew, several_processes, share

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["MetricTrainer", "Objective", "Schedule", "train", "write_json", "write_recipe"]


def train(
    objective: nn.Module,
    data: Dataset[Any],
    run: Path,
    schedule: Schedule,
    *,
    collate: Callable[[list[Any]], dict[str, Any]] | None = None,
    optimizer: Optimizer | None = None,
    test: Dataset[Any] | None = None,
    start: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> MetricTrainer:
    """Train `objective` (its forward returns a dictionary with `loss`) for what is left of the schedule or budget.

    The optimizer is AdamW unless another is given.  Goes on from the last checkpoint in `run`, to the very next batch,
    or where there is none from the checkpoint `start`.  A checkpoint that holds weights alone (no optimizer state, no
    position) is a fresh start from those weights: load them into `objective` before the call.  test: held-out items,
    for `test_loss`.  Raises RunError where the run can't go on.
    """
    assert isinstance(data, Sized)
    run.mkdir(parents=True, exist_ok=True)
    own = isinstance(objective, Objective)
    learner = objective.model if isinstance(objective, Objective) else objective
    if schedule.checkpointing and isinstance(learner, PreTrainedModel):
        compute_anew(learner)
    if schedule.compile:
        learner.compile()
    arguments = _arguments(run, schedule, len(data))
    if schedule.fsdp and isinstance(objective, Objective) and several_processes():
        share(objective, arguments)
    trainer = MetricTrainer(
        model=objective,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        optimizers=(optimizer or (optimizer_of(learner, schedule) if own else None), None),
        callbacks=[
            Budget(schedule.budget_seconds, schedule.save_every_seconds, schedule.save_every),
            History(run / "history.jsonl"),
            Epochs(data),
            *callbacks,
        ],
        schedule=schedule,
        test_dataset=test,
    )
    trainer.remove_callback(PrinterCallback)  # History prints
    checkpoint = checkpoints.last(run) or start
    _prepare(trainer, learner, schedule, checkpoint, len(data))
    with _memory_told(schedule), _without_bars():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


def _prepare(
    trainer: MetricTrainer, learner: nn.Module, schedule: Schedule, checkpoint: Path | None, items: int
) -> None:
    """Averages, sounds and the scale of the loss."""
    world = trainer.args.world_size
    if schedule.ema != "none":
        per_step = schedule.batch * world * schedule.accumulate
        warm = schedule.ema_decay is None
        decay = 1.0 - per_step / 8000 if schedule.ema_decay is None else schedule.ema_decay
        device = "cpu" if schedule.ema == "cpu" else None
        trainer.ema = Ema(learner, decay=decay, warm=warm, every=schedule.ema_every, device=device)
        if checkpoint is not None and (checkpoint / "ema").exists():
            trainer.ema.load(checkpoints.read_tensors(checkpoint / "ema"))
    if trainer.accelerator.scaler is not None:  # the original's: up a little in every good step, down by half
        trainer.accelerator.scaler.load_state_dict(
            {
                "scale": schedule.loss_scale,
                "growth_factor": 2.0 ** (1 / schedule.scale_window),
                "backoff_factor": 0.5,
                "growth_interval": 1,
                "_growth_tracker": 0,
            }
        )
    epoch = max(1, items // (schedule.batch * world * schedule.accumulate))
    trainer.add_callback(Extras(trainer, checkpoint, schedule.test_every or max(epoch, schedule.log_every)))
    objective = trainer.own
    if objective is not None:
        trainer.add_callback(Board(trainer.run, objective.sample_rate, trainer.sounds, schedule.sample_every))


def _arguments(run: Path, schedule: Schedule, items: int) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    if schedule.float16 and not gpu:
        print("float16 needs a GPU; training in float32.", flush=True)
    return TrainingArguments(
        output_dir=str(run),
        max_steps=updates(schedule),
        per_device_train_batch_size=schedule.batch,
        per_device_eval_batch_size=schedule.batch,
        gradient_accumulation_steps=schedule.accumulate,
        learning_rate=schedule.learning_rate,
        adam_beta1=schedule.beta1,
        adam_beta2=schedule.beta2,
        adam_epsilon=schedule.epsilon,
        weight_decay=schedule.weight_decay,
        warmup_steps=schedule.warmup,
        lr_scheduler_type="cosine",
        max_grad_norm=schedule.clip,
        bf16=schedule.bfloat16,
        fp16=schedule.float16 and gpu,
        use_cpu=not gpu,
        ddp_backend=None if gpu or "WORLD_SIZE" not in os.environ else "gloo",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # codebooks are the same everywhere, by their own exchange
        ddp_bucket_cap_mb=schedule.bucket,
        logging_steps=schedule.log_every,
        logging_nan_inf_filter=False,
        save_strategy="no",  # the budget says when
        save_total_limit=KEPT,
        dataloader_num_workers=schedule.workers,
        dataloader_pin_memory=gpu,
        dataloader_drop_last=items >= schedule.batch,
        remove_unused_columns=False,
        report_to=[],
        seed=schedule.seed,
        disable_tqdm=True,
    )


@contextmanager
def _memory_told(schedule: Schedule) -> Iterator[None]:
    """Say what to lower where memory doesn't suffice."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        words = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in words:
            raise
        half = max(1, schedule.batch // 2)
        advice = [f"batch={half} accumulate={schedule.accumulate * 2}"] if schedule.batch > 1 else []
        advice += [] if schedule.checkpointing else ["checkpointing=true"]
        advice += [] if schedule.bfloat16 or schedule.float16 else ["bfloat16=true"]
        advice += ["ema=cpu"] if schedule.ema == "device" else []
        advice += [] if schedule.optimizer == "adamw8bit" else ["optimizer=adamw8bit"]
        raise RunError(
            f"Memory did not suffice for batches of {schedule.batch}. Set, in this order: {', '.join(advice)}; or give "
            "a shorter sample_length (codecs) or n_ctx (priors)."
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Saving is quick; transformers would show a bar for each file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def write_recipe(run: Path, recipe: "DataclassInstance") -> None:
    """Keep in the run's `recipe.json` how it was asked for; of paths their names alone."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "recipe.json", asdict(recipe))
