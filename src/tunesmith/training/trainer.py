"""`transformers.Trainer` for objectives that tell more than their loss, with checkpoints that are whole or absent."""

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from tunesmith.errors import RunError
from tunesmith.training import checkpoints
from tunesmith.training.callbacks import Sounds
from tunesmith.training.checkpoints import KEPT, write_json
from tunesmith.training.ema import Ema
from tunesmith.training.schedule import Schedule, learning_rate

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class Objective(nn.Module):
    """What a run makes small: `forward` of a batch returns a dictionary of scalars, `loss` among them.

    The model that learns is `model`; what rests (a codec, say) is held as `Frozen`, which this module doesn't own: it
    stays in evaluation mode, isn't averaged, sharded, exchanged or saved.
    """

    accepts_loss_kwargs = False  # the loss is a mean: nothing is to be multiplied by the number of processes
    model: PreTrainedModel
    sample_rate: int = 0
    beside: Callable[[Path], object] = staticmethod(lambda folder: None)
    """Writes what belongs into the model's folder beside the model."""

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
        self.beside(folder)


class Frozen(Generic[M]):
    """A model that doesn't learn, on the device of whoever asks.  Not a module: nothing wakes or saves it."""

    def __init__(self, model: M) -> None:
        self.model = model.eval().requires_grad_(False)

    def on(self, device: torch.device) -> M:
        """The model, moved there."""
        return self.model.to(device)


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

    @property
    def shared(self) -> bool:
        """Whether processes share the model (FSDP)."""
        return self.schedule.fsdp and several_processes()

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
            else nullcontext()
        ):
            self.export(part)
        if self.args.should_save:
            write_json(note, {"test_loss": loss, "step": self.state.global_step})

    def sounds(self) -> Sounds:
        """What the objective has to show; nobody notices."""
        objective = self.own
        assert objective is not None, "only objectives have a board"
        with self.resting():
            return objective.samples(self.schedule.sample_count, self.schedule.sample_seconds)

    def export(self, folder: Path) -> None:
        """The model, with averaged weights where there are any; every process has to call this."""
        objective = self.own
        assert objective is not None, "bare models are saved by their recipes"
        with self.ema.swapped() if self.ema else nullcontext():
            state = checkpoints.whole_state(objective.model) if self.shared else None
            if self.args.should_save and state is None:
                objective.export(folder)
            elif self.args.should_save:
                objective.model.save_pretrained(folder, state_dict=state)
                objective.beside(folder)
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
                else nullcontext()
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
        if self.shared:
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
        if not self.shared:
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


class Extras(TrainerCallback):
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


def compute_anew(model: PreTrainedModel) -> None:
    """Layers, on the way back (activation checkpointing)."""
    # Older versions of transformers know one name, newer ones warn of it.
    enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


# ------------------------------------------------------------------------------------------ sharded training


def sharing_asked_of_accelerate() -> bool:
    """Whether `accelerate launch` was told to shard (FSDP or DeepSpeed), which nothing here is made for."""
    return any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))


def several_processes() -> bool:
    """Whether there are others to share with."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def share(objective: Objective, arguments: TrainingArguments) -> None:
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
