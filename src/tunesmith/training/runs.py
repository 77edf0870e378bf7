"""A training run: `transformers.Trainer` within a budget of time, resumable, with its history in a file.

A run folder holds `recipe.json`, `checkpoint-N/` (weights, optimizer, schedule and random states), `history.jsonl`
(every logged figure) and, after each budget, whatever the recipe exports.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from tunesmith.errors import MissingDependencyError, RunError
from tunesmith.training import checkpoints
from tunesmith.training.callbacks import Board, Budget, History, Sounds
from tunesmith.training.checkpoints import write_json
from tunesmith.training.ema import Ema
from tunesmith.training.epochs import Epochs

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["MetricTrainer", "Objective", "Schedule", "adamw", "learning_rate", "train", "write_json", "write_recipe"]

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

KEPT = 2  # checkpoints of a run, the best one besides


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
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps its moments in 8 bits; it needs torchao or bitsandbytes."""
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
    """Share of the average that a step keeps; by default 1 - items per step / 8000."""
    ema_every: int = 1
    """Steps after which the average moves, by as much at once."""
    save_every: int = 0
    """Updates between checkpoints, besides those by the clock."""
    save_every_seconds: float = 240.0
    log_every: int = 50
    test_every: int = 0
    """Updates between tests on held-out songs; 0: once an epoch."""
    sample_every: int = 0
    """Updates between sounds made for the board; 0 makes none."""
    sample_count: int = 2
    sample_seconds: float = 10.0
    workers: int = 0
    seed: int = 0


class Objective(nn.Module):
    """What a run makes small: `forward` of a batch returns a dictionary of scalars, `loss` among them.

    The model that learns is `model`; what rests (a codec, say) is held as `Frozen`, which this module doesn't own: it
    stays in evaluation mode, isn't averaged, sharded, exchanged or saved.
    """

    accepts_loss_kwargs = False  # the loss is a mean: nothing is to be multiplied by the number of processes
    model: PreTrainedModel
    sample_rate: int = 0

    @property
    def blocks(self) -> list[nn.Module]:
        """Parts of the model that are shared among processes one by one."""
        names = set(getattr(self.model, "_no_split_modules", None) or ())
        return [module for module in self.model.modules() if type(module).__name__ in names]

    def samples(self, count: int, seconds: float) -> Sounds:
        """Sounds that show what was learnt, by name; none here."""
        return {}

    def export(self, folder: Path) -> None:
        """Write the model as it is now to a folder that loads like any other."""
        self.model.save_pretrained(folder)


class Frozen(Generic[M]):
    """A model that doesn't learn, on the device of whoever asks.  Not a module: nothing wakes or saves it."""

    def __init__(self, model: M) -> None:
        self.model = model.eval().requires_grad_(False)

    def on(self, device: torch.device) -> M:
        """The model, moved there."""
        return self.model.to(device)


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


class MetricTrainer(Trainer):
    """A trainer that also logs the mean of every scalar which the objective returns beside its loss.

    Its checkpoints are whole or absent, sharded models and averaged weights are part of them, and a loss or gradient
    that is not finite ends the run before it reaches the weights.
    """

    def __init__(
        self, *args: Any, schedule: Schedule | None = None, test_dataset: Dataset[Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.schedule = schedule or Schedule()
        self.test_dataset = test_dataset
        self.ema: Ema | None = None
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._skipped = 0
        self._part: Path | None = None

    @property
    def own(self) -> Objective | None:
        """The objective, where it is one of ours and not a bare model."""
        found = self.accelerator.unwrap_model(self.model)
        return found if isinstance(found, Objective) else None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(str(self.args.output_dir))

    @property
    def learner(self) -> nn.Module:
        """The model that learns."""
        objective = self.own
        whole: Any = self.accelerator.unwrap_model(self.model)
        found: nn.Module = whole if objective is None else objective.model
        return found

    # ------------------------------------------------------------------------------------------------- a step

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

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm; gradients above `skip_above` are dropped, those that aren't numbers end the run."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        scaled = self.accelerator.scaler is not None  # which leaves out what overflows by itself
        if not math.isfinite(value) and not scaled:
            raise RunError(self._not_finite())
        if 0 < self.schedule.skip_above < value:
            self._skipped += 1
            for p in model.parameters():
                p.grad = None
        return value

    def _not_finite(self) -> str:
        found = checkpoints.last(self.run)
        kept = f"The last good checkpoint is {found}" if found else "There is no checkpoint yet"
        return (
            f"The loss or its gradient stopped being a number in step {self.state.global_step + 1}, and the run ended "
            f"before that reached the weights. {kept}; go on with a lower learning_rate, a longer warmup or without "
            "float16."
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means since the last log, over all processes."""
        if self._count and "loss" in logs:
            means = {name: total / self._count for name, total in self._sums.items()}
            logs |= {name: value.item() for name, value in self._over_processes(means).items()}
            self._sums, self._count = {}, 0
            if self.schedule.skip_above:
                logs["skipped"] = float(self._skipped)
            if self.accelerator.scaler is not None:
                logs["lg_loss_scale"] = math.log2(self.accelerator.scaler.get_scale())
        super().log(logs, *args, **kwargs)

    def _over_processes(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.args.world_size == 1:
            return values
        reduced: dict[str, Tensor] = self.accelerator.reduce(values, reduction="mean")
        return reduced

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The schedule's learning rate."""
        if self.lr_scheduler is None:
            share = functools.partial(learning_rate, self.schedule)
            self.lr_scheduler = LambdaLR(_some(optimizer or self.optimizer), share)
            self._created_lr_scheduler = True
        return _some(self.lr_scheduler)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        return _deferred(self.model)

    # ------------------------------------------------------------------------------------------------- a test

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Averaged weights, evaluation mode, no gradients, and random states that nobody notices."""
        model = _some(self.model)
        with torch.no_grad(), torch.random.fork_rng(), self.ema.swapped() if self.ema else nullcontext():
            model.eval()
            try:
                yield
            finally:
                model.train()

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Means over the test set, as `test_...`; the best model so far is kept in `best/`."""
        totals, items = dict[str, Tensor](), 0
        with self.resting(), self.accelerator.autocast():
            for batch in self._test_batches():
                outputs = _some(self.model)(**self._prepare_inputs(batch))
                count = len(next(iter(batch.values())))
                scalars = {n: v.float() for n, v in outputs.items() if isinstance(v, Tensor) and v.ndim == 0}
                totals = {name: totals.get(name, 0) + count * value for name, value in scalars.items()}
                items += count
        means = self._over_processes({name: total / items for name, total in totals.items()})
        metrics = {f"test_{name}": value.item() for name, value in means.items()}
        self.log(metrics)
        self._keep_best(metrics["test_loss"])
        self.control.should_evaluate = False  # an epoch's end would test again
        return metrics

    def _test_batches(self) -> Iterator[dict[str, Any]]:
        """What is this process's to test: as much as everyone's, so the first items may come again."""
        data, world = self.test_dataset, self.args.world_size
        assert isinstance(data, Sized)
        share = range(self.args.process_index, -(-len(data) // world) * world, world)
        own = Subset(data, [i % len(data) for i in share])
        yield from DataLoader(own, batch_size=self.schedule.batch, collate_fn=self.data_collator)

    def _keep_best(self, loss: float) -> None:
        run, objective = self.run, self.own
        note = run / "best.json"
        best = json.loads(note.read_text())["test_loss"] if note.exists() else math.inf
        if objective is None or not loss < best:
            return
        part = run / ".best.part"
        with (
            checkpoints.whole_or_absent(part, run / "best", checkpoints.last(run))
            if self.args.should_save
            else (nullcontext())
        ):
            self.export(part)
        if self.args.should_save:
            write_json(note, {"test_loss": loss, "step": self.state.global_step})

    def export(self, folder: Path) -> None:
        """The model, with averaged weights where there are any; every process has to call this."""
        objective = self.own
        assert objective is not None, "bare models are saved by their recipes"
        with self.ema.swapped() if self.ema else nullcontext():
            state = checkpoints.whole_state(objective.model) if self.schedule.fsdp and _sharded() else None
            if self.args.should_save and state is None:
                objective.export(folder)
            elif self.args.should_save:
                objective.model.save_pretrained(folder, state_dict=state)
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------------------------------- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.run) if self._part is None else str(self._part)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers', but whole or absent."""
        run = self.run
        name = f"checkpoint-{self.state.global_step}"
        self._part = run / ".checkpoint.part"
        part = self._part / name
        try:
            with (
                checkpoints.whole_or_absent(part, run / name, checkpoints.last(run))
                if self.args.should_save
                else (nullcontext())
            ):
                super()._save_checkpoint(model, trial)
                self._save_progress(part)
                self.accelerator.wait_for_everyone()
        finally:
            self._part = None
        if self.args.should_save:
            rotate_checkpoints(output_dir=str(run), save_total_limit=KEPT, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model that learns as a folder of its own, and its averages beside it."""
        objective = self.own
        if objective is None:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or self.run)
        if self.schedule.fsdp and _sharded():
            folder.mkdir(parents=True, exist_ok=True)
            objective.model.config.save_pretrained(folder)
            shadow = None if self.ema is None else self.ema.shadow
            checkpoints.save_shards(objective.model, _plain(self.optimizer), shadow, folder)
        elif self.args.should_save:
            objective.model.save_pretrained(folder)
            if self.ema is not None:
                state = {**objective.model.state_dict(), **self.ema.shadow}
                objective.model.save_pretrained(folder / "ema", state_dict=state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not (self.schedule.fsdp and _sharded()):
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            torch.save(_some(self.lr_scheduler).state_dict(), Path(output_dir) / "scheduler.pt")

    def _save_progress(self, folder: Path) -> None:
        """What was summed up since the last log, so that a resumed run logs what an uninterrupted one does."""
        sums = self._over_processes({**self._sums, "loss": self._tr_loss})
        progress = {
            "sums": {name: value.item() for name, value in sums.items()},
            "count": self._count,
            "skipped": self._skipped,
            "last_logged": self._globalstep_last_logged,
        }
        if self.args.should_save:
            write_json(folder / "progress.json", progress)

    def load_progress(self, folder: Path) -> None:
        """What `_save_progress` wrote, if it did."""
        file = folder / "progress.json"
        if not file.exists():
            return
        progress = json.loads(file.read_text())
        sums = {name: torch.tensor(value, device=self.args.device) for name, value in progress["sums"].items()}
        self._tr_loss = sums.pop("loss")
        self._sums, self._count, self._skipped = sums, progress["count"], progress["skipped"]
        self._globalstep_last_logged = progress["last_logged"]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        objective, folder = self.own, Path(resume_from_checkpoint)
        if objective is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif not (folder / checkpoints.SHARDS).exists():
            checkpoints.load_weights(objective.model, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = None if checkpoint is None else Path(checkpoint)
        if folder is not None and (folder / checkpoints.SHARDS).exists():
            shadow = None if self.ema is None else self.ema.shadow
            checkpoints.load_shards(self.learner, _plain(self.optimizer), shadow, folder)
            _some(self.lr_scheduler).load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)


def _some(value: T | None) -> T:
    """What transformers says may be absent, and isn't while a run is on."""
    assert value is not None, "only inside train()"
    return value


class _Extras(TrainerCallback):
    """What the trainer's own loop doesn't do: averages, tests, unfinished means."""

    def __init__(self, trainer: MetricTrainer, checkpoint: Path | None, test_every: int) -> None:
        self.trainer, self.checkpoint, self.test_every = trainer, checkpoint, test_every

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on with the sums of an interrupted run."""
        if self.checkpoint is not None:
            self.trainer.load_progress(self.checkpoint)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Average, and test when it is time."""
        if self.trainer.ema is not None:
            self.trainer.ema.update(state.global_step)
        due = state.global_step % self.test_every == 0 or state.global_step == state.max_steps
        if self.trainer.test_dataset is not None and due:
            control.should_evaluate = True


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
        # Older versions of transformers know one name, newer ones warn of it.
        enable: Any = getattr(learner, "activation_checkpointing_enable", learner.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if schedule.compile:
        learner.compile()
    arguments = _arguments(run, schedule, len(data))
    if schedule.fsdp and isinstance(objective, Objective) and _sharded():
        _share(objective, arguments)
    trainer = MetricTrainer(
        model=objective,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        optimizers=(optimizer or (adamw(learner, schedule) if own else None), None),
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
        decay = 1.0 - per_step / 8000 if schedule.ema_decay is None else schedule.ema_decay
        device = "cpu" if schedule.ema == "cpu" else None
        trainer.ema = Ema(learner, decay=decay, every=schedule.ema_every, device=device)
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
    trainer.add_callback(_Extras(trainer, checkpoint, schedule.test_every or epoch))
    objective = trainer.own
    if objective is not None:
        trainer.add_callback(
            Board(trainer.run, objective.sample_rate, _sounds(trainer, schedule), schedule.sample_every)
        )


def _sounds(trainer: MetricTrainer, schedule: Schedule) -> Callable[[], Sounds]:
    def make() -> Sounds:
        objective = trainer.own
        assert objective is not None, "only objectives have a board"
        with trainer.resting():
            return objective.samples(schedule.sample_count, schedule.sample_seconds)

    return make


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


# ------------------------------------------------------------------------------------------ sharded training


def _sharded() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _share(objective: Objective, arguments: TrainingArguments) -> None:
    """Share the model's blocks, then the rest, among processes (FSDP2); gradients are averaged, as by DDP."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    objective.to(arguments.device)
    mesh = init_device_mesh(arguments.device.type, (arguments.world_size,))
    for block in objective.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    objective.is_distributed_loading_by_transformers = True  # type: ignore[assignment]  # tells Trainer not to wrap it


@contextmanager
def _deferred(model: Any) -> Iterator[None]:
    """Exchange gradients with the last of several batches only."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _plain(optimizer: Any) -> Optimizer:
    """Without accelerate's wrapper."""
    found: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def write_recipe(run: Path, recipe: "DataclassInstance") -> None:
    """Keep in the run's `recipe.json` how it was asked for; of paths their names alone."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "recipe.json", asdict(recipe))
