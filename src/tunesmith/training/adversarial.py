"""Teaching EnCodec against judges that learn with it (Défossez et al. 2022, §3.4): two optimizers, a gradient balancer.

A step: the codec decodes a batch, the judges learn to tell it from the real one, then the codec learns from their
opinion, from the activations on the way to it, from mel spectrograms and from the samples, each held to its share by
the balancer.

The loop is accelerate's and not `transformers.Trainer`'s, which knows one optimizer.  Step n depends on the weights
before it, the seed and n alone, so a run that was killed goes on as if it hadn't been.  Over several processes
gradients are summed, as if one had the whole batch.
"""

import math
import shutil
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState

from tunesmith.codecs.encodec import EncodecModel
from tunesmith.errors import RequestError, RunError
from tunesmith.nn.quantize import over_ranks, ranks
from tunesmith.training import checkpoints
from tunesmith.training.balancer import Balancer
from tunesmith.training.callbacks import Board, Budget, History
from tunesmith.training.checkpoints import KEPT
from tunesmith.training.discriminators import WINDOWS, Judges, feature_loss, generator_loss, judge_loss
from tunesmith.training.ema import Ema
from tunesmith.training.losses import MultiScaleMel, soft_si_sdr
from tunesmith.training.schedule import Schedule, learning_rate, updates

STATE = "training.pt"
TESTED = 32
"""Held-out crops that a test hears."""


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """What the codec is asked for; the defaults are those of the original's 32 kHz codec."""

    adversarial: float = 4.0
    """Weight of the judges' opinion; without this and `features` there are no judges."""
    features: float = 4.0
    """Weight of the difference of the judges' activations."""
    wave: float = 0.1
    """Weight of the mean absolute difference of samples."""
    mel: float = 2.0
    """Weight of the difference of mel spectrograms at five resolutions."""
    commitment: float = 1.0
    """Weight of the distance from latents to their codes; not balanced."""
    windows: tuple[int, ...] = WINDOWS
    """Samples in the judges' windows, one judge each."""
    filters: int = 32
    """Channels inside a judge."""
    balance_decay: float = 0.999
    """Share of the average norm of a gradient that a step keeps."""
    judge_every: int = 1
    """Steps after which the judges learn."""
    judge_after: int = 0
    """Steps that the codec learns alone at first.  With few steps or little data that helps much: judges soon tell what
    an untrained codec makes, and drive it anywhere but to the sound."""


class Endless(Dataset[Any]):
    """Item n of an endless run over the data, in a new order every epoch; it depends on the seed and n alone."""

    def __init__(self, data: Dataset[Any], seed: int) -> None:
        assert isinstance(data, Sized)
        self.data, self.seed, self.length = data, seed, len(data)
        self.epoch, self.order = -1, [0]

    def __getitem__(self, number: int) -> Any:
        epoch, place = divmod(number, self.length)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.epoch, self.order = epoch, torch.randperm(self.length, generator=generator).tolist()
            if hasattr(self.data, "set_epoch"):
                self.data.set_epoch(epoch)
        return self.data[self.order[place]]


class CodecTraining:
    """A codec, its judges and all that a step changes."""

    def __init__(self, codec: EncodecModel, settings: Adversarial, schedule: Schedule, device: torch.device) -> None:
        self.codec, self.settings, self.schedule = codec.to(device).train(), settings, schedule  # type: ignore[arg-type]  # transformers leaves `to` untyped
        self.mel = MultiScaleMel(codec.sample_rate).to(device)
        judged = settings.adversarial > 0 or settings.features > 0
        windows = settings.windows if judged else ()
        with torch.random.fork_rng():
            torch.manual_seed(schedule.seed)
            self.judges = Judges(windows, codec.channels, settings.filters).to(device)
        self.optimizer = self._adam(self.codec)
        self.judge_optimizer = self._adam(self.judges) if judged else None
        weights = {name: getattr(settings, name) for name in ("adversarial", "features", "wave", "mel")}
        self.balancer = Balancer(weights, settings.balance_decay)
        self.ema = self._averages(codec)
        self.steps = 0

    def _adam(self, model: nn.Module) -> Optimizer:
        schedule = self.schedule
        options: dict[str, Any] = {"betas": (schedule.beta1, schedule.beta2), "eps": schedule.epsilon}
        return AdamW(model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, **options)

    def _averages(self, codec: EncodecModel) -> Ema | None:
        schedule = self.schedule
        if schedule.ema == "none":
            return None
        decay = 0.99 if schedule.ema_decay is None else schedule.ema_decay
        return Ema(codec, decay=decay, every=schedule.ema_every, device="cpu" if schedule.ema == "cpu" else None)

    def step(self, audio: Float[Tensor, "B C T"]) -> dict[str, Tensor]:
        """Learn from a batch of samples in [-1, 1]; the losses and figures of this step."""
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.steps)  # restarts of codes depend on the step alone
        decoded, commitment, used = self._reconstruct(audio)
        figures = self._teach_judges(audio, decoded.detach())
        losses = self._losses(audio, decoded)
        gradient, shares = self.balancer(losses, decoded)
        self.optimizer.zero_grad()
        # The balanced gradient is a sum over items, the commitment a mean over all processes' items.
        weight = torch.full_like(commitment, self.settings.commitment / ranks())
        torch.autograd.backward([decoded, commitment], [gradient, weight])
        self._update(self.optimizer, self.codec)
        self.steps += 1
        if self.ema is not None:
            self.ema.update(self.steps)
        ratio = soft_si_sdr(audio.flatten(0, 1), decoded.detach().flatten(0, 1)).mean()
        named = {f"share_{name}": share for name, share in shares.items()}
        return {**losses, **figures, **named, "commitment": commitment, "si_sdr": ratio, "used_codes": used}

    def _reconstruct(self, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Audio through the codes, the commitment, and the share of codes that this batch chose."""
        with self._precision(audio):
            latents = self.codec.encoder(audio)
            output = self.codec.quantizer(latents.float())
            decoded = self.codec.decoder(output.quantized)[..., : audio.shape[-1]]
        books = output.codes.transpose(0, 1).flatten(1)  # [K, B S]
        used = torch.stack([book.unique().numel() / torch.ones((), device=book.device) for book in books]).mean()
        return decoded.float(), output.commitment, used / self.codec.cardinality

    def _precision(self, audio: Tensor) -> torch.autocast:
        return torch.autocast(audio.device.type, torch.bfloat16, enabled=self.schedule.bfloat16)

    @property
    def _judged(self) -> bool:
        return self.judge_optimizer is not None and self.steps >= self.settings.judge_after

    def _teach_judges(self, audio: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        if not self._judged or self.steps % self.settings.judge_every:
            return {}
        with self._precision(audio):
            real, fake = self.judges(audio), self.judges(decoded)
        loss = judge_loss(real, fake)
        assert self.judge_optimizer is not None, "there are judges"
        self.judge_optimizer.zero_grad()
        (loss / ranks()).backward()
        self._update(self.judge_optimizer, self.judges)
        return {"judges": loss.detach()}

    def _losses(self, audio: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        """Those with a weight; all are means."""
        losses = {"wave": (audio - decoded).abs().mean(), "mel": self.mel(audio, decoded)}
        if self._judged:
            self.judges.requires_grad_(False)
            with self._precision(audio):
                with torch.no_grad():
                    real = self.judges(audio)
                fake = self.judges(decoded)
            self.judges.requires_grad_(True)
            losses |= {"adversarial": generator_loss(fake), "features": feature_loss(real, fake)}
        return {name: loss.float() for name, loss in losses.items()}

    def _update(self, optimizer: Optimizer, model: nn.Module) -> None:
        """A step with the gradients of all processes, summed."""
        parameters = [p for p in model.parameters() if p.grad is not None]
        for p in parameters:
            over_ranks(p.grad)  # type: ignore[arg-type]  # just looked
        if self.schedule.clip:
            nn.utils.clip_grad_norm_(parameters, self.schedule.clip)
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate * learning_rate(self.schedule, self.steps + 1)
        optimizer.step()

    @torch.no_grad()
    def test(self, data: Dataset[Any], device: torch.device) -> dict[str, float]:
        """Mel difference and SI-SDR of the first held-out crops, by averaged weights."""
        assert isinstance(data, Sized)
        batches = [data[i]["audio"] for i in range(min(TESTED, len(data)))]
        self.codec.eval()
        try:
            pairs = [
                (audio, self.reconstruct(audio)) for audio in (_channels(item[None]).to(device) for item in batches)
            ]
        finally:
            self.codec.train()
        mel = torch.stack([self.mel(*pair) for pair in pairs]).mean()
        ratio = torch.stack([soft_si_sdr(a.flatten(0, 1), b.flatten(0, 1)).mean() for a, b in pairs]).mean()
        return {"test_mel": mel.item(), "test_si_sdr": ratio.item()}

    def reconstruct(self, audio: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        """Through the codes and back, by averaged weights where there are some."""
        if self.ema is None:
            return self._decoded(audio)
        with self.ema.swapped():
            return self._decoded(audio)

    def _decoded(self, audio: Tensor) -> Tensor:
        quantized = self.codec.quantizer(self.codec.encoder(audio)).quantized
        decoded: Tensor = self.codec.decoder(quantized)[..., : audio.shape[-1]]
        return decoded

    def state_dict(self) -> dict[str, Any]:
        """All but the codec's own weights."""
        return {
            "steps": self.steps,
            "judges": self.judges.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "judge_optimizer": None if self.judge_optimizer is None else self.judge_optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "ema": None if self.ema is None else self.ema.shadow,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.steps = state["steps"]
        self.judges.load_state_dict(state["judges"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.judge_optimizer is not None:
            self.judge_optimizer.load_state_dict(state["judge_optimizer"])
        self.balancer.load_state_dict(state["balancer"])
        if self.ema is not None:
            self.ema.load(state["ema"])

    def export(self, folder: Path) -> None:
        """The codec, by averaged weights where there are some."""
        if self.ema is None:
            self.codec.save_pretrained(folder)
            return
        with self.ema.swapped():
            self.codec.save_pretrained(folder)


def train_encodec(
    codec: EncodecModel,
    data: Dataset[Any],
    run: Path,
    schedule: Schedule,
    settings: Adversarial | None = None,
    *,
    test: Dataset[Any] | None = None,
) -> EncodecModel:
    """Run or resume; the codec as it is at the end, averaged, is also saved to `run/model`.

    data: items {"audio": [T] or [C T]} of one length.  test: the same, held out.
    Raises RequestError for crops that are shorter than a window, RunError for losses that stop being numbers.
    """
    run.mkdir(parents=True, exist_ok=True)
    settings = settings or Adversarial()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    _check(codec, data, settings)
    training, means = CodecTraining(codec, settings, schedule, accelerator.device), Means()
    if (found := checkpoints.last(run)) is not None:
        checkpoints.load_weights(codec, found)
        state = torch.load(found / STATE, map_location="cpu", weights_only=True)
        training.load_state_dict(state)
        means.sums = state["means"]
    _loop(training, means, data, test, run, accelerator)
    if accelerator.is_main_process:
        part = run / ".model.part"
        with checkpoints.whole_or_absent(part, run / "model", checkpoints.last(run)):
            training.export(part)
    accelerator.wait_for_everyone()
    return training.codec.eval()


def _check(codec: EncodecModel, data: Dataset[Any], settings: Adversarial) -> None:
    item = data[0]["audio"]
    longest = max((*settings.windows, codec.hop_length, 512))
    if item.shape[-1] < longest:
        raise RequestError(
            f"Crops have {item.shape[-1]} samples and the longest window has {longest}; give a sample_length of at "
            "least that."
        )
    if item.ndim == 1 and codec.channels != 1:
        raise RequestError(f"Crops are mono, and the codec has {codec.channels} channels.")


def _loop(
    training: CodecTraining,
    means: "Means",
    data: Dataset[Any],
    test: Dataset[Any] | None,
    run: Path,
    accelerator: Accelerator,
) -> None:
    schedule = training.schedule
    total = updates(schedule)
    state = TrainerState(global_step=training.steps, max_steps=total)
    state.is_world_process_zero = accelerator.is_main_process
    control = TrainerControl()
    budget = Budget(schedule.budget_seconds, schedule.save_every_seconds, schedule.save_every)
    watchers: list[TrainerCallback] = [budget, History(run / "history.jsonl"), Board(run, training.codec.sample_rate)]
    _tell(watchers, "on_train_begin", state, control)
    for audio in _batches(training, data, accelerator, total):
        means.add(training.step(audio))
        state.global_step = training.steps
        _tell(watchers, "on_step_end", state, control)
        last = control.should_training_stop or training.steps == total
        if training.steps % schedule.log_every == 0 or last:
            _tell(watchers, "on_log", state, control, logs=means.take(run))
        if control.should_save or last:
            means.check(run)
            if test is not None and accelerator.is_main_process:  # before the checkpoint, or a kill between loses it
                _tell(watchers, "on_log", state, control, logs=training.test(test, accelerator.device))
            _save(training, means, run, accelerator)
            control.should_save = False
        if last:
            break
    _tell(watchers, "on_train_end", state, control)


class Means:
    """Figures since the last log."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, figures: dict[str, Tensor]) -> None:
        """Those of a step."""
        for name, value in figures.items():
            total, count = self.sums.get(name, (torch.zeros_like(value), 0))
            self.sums[name] = total + value.detach(), count + 1

    def take(self, run: Path) -> dict[str, float]:
        """Means, over all processes; afterwards there are none."""
        self.check(run)
        means = {name: (over_ranks(total / count) / ranks()).item() for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means

    def pooled(self) -> dict[str, tuple[Tensor, int]]:
        """The sums as a mean over all processes, for each of them to go on with."""
        return {name: (over_ranks(total.clone()) / ranks(), count) for name, (total, count) in self.sums.items()}

    def check(self, run: Path) -> None:
        """Raise RunError where one isn't a number."""
        wrong = [name for name, (total, _) in self.sums.items() if not math.isfinite(float(total))]
        if wrong:
            found = checkpoints.last(run)
            kept = f"the last good checkpoint is {found}" if found else "there is no checkpoint yet"
            raise RunError(
                f"The loss ({', '.join(wrong)}) stopped being a number, and nothing of that was saved; {kept}. Give a "
                "lower learning_rate, then the same command again."
            )


def _batches(
    training: CodecTraining, data: Dataset[Any], accelerator: Accelerator, total: int
) -> Iterator[Float[Tensor, "B C T"]]:
    """The batches that this process takes in the steps that are left."""
    size, world, rank = training.schedule.batch, accelerator.num_processes, accelerator.process_index
    starts = [(step * world + rank) * size for step in range(training.steps, total)]
    loader = DataLoader(
        Endless(data, training.schedule.seed),
        batch_sampler=[list(range(start, start + size)) for start in starts],
        num_workers=training.schedule.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    for batch in loader:
        yield _channels(batch["audio"]).to(accelerator.device)


def _channels(audio: Tensor) -> Float[Tensor, "B C T"]:
    return audio[:, None] if audio.ndim == 2 else audio


def _save(training: CodecTraining, means: Means, run: Path, accelerator: Accelerator) -> None:
    state = {**training.state_dict(), "means": means.pooled()}
    if accelerator.is_main_process:
        name = f"checkpoint-{training.steps}"
        part = run / ".checkpoint.part"
        with checkpoints.whole_or_absent(part, run / name, checkpoints.last(run)):
            training.codec.save_pretrained(part)
            torch.save(state, part / STATE)
        found = sorted(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
        for old in found[:-KEPT]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _tell(
    watchers: list[TrainerCallback], event: str, state: TrainerState, control: TrainerControl, **more: Any
) -> None:
    for watcher in watchers:
        getattr(watcher, event)(None, state, control, **more)
