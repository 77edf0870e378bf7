"""Tiny training runs on noise and chords, in a test's own process or, one after the other, by torchrun.

    torchrun --nproc-per-node 2 tiny_runs.py JOBS.json        a list of {"kind": ..., "run": FOLDER, "settings": {...}}

leaves in each folder what such a run leaves; of kinds vqvae and prior also `model/`, the first gradients and losses.
"""

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))

from tiny_jukebox import tiny_jukebox
from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.training.adversarial import Adversarial, train_encodec
from tunesmith.training.finetune import Tuning, finetune
from tunesmith.training.jukebox import PriorObjective, VQVAEObjective
from tunesmith.training.runs import Objective, Schedule, train

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
JUDGED = Adversarial(windows=(256, 128), filters=4)
JUDGED_SETTINGS = SETTINGS | {"steps": 5, "log_every": 2, "learning_rate": 3e-3, "beta1": 0.5, "beta2": 0.9}
JUDGED_SETTINGS |= {"weight_decay": 0.001, "ema": "device"}


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


class Chords(Dataset[dict[str, Tensor]]):
    """Six chords of 1024 samples at 2000 Hz."""

    def __init__(self, broken: bool = False, samples: int = 1024) -> None:
        self.broken, self.samples, self.epoch = broken, samples, 0

    def __len__(self) -> int:
        return 6

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        t = torch.arange(self.samples) / 2000 + 0.001 * self.epoch
        sound = torch.sin(2 * math.pi * 100 * (1 + index) * t) / 3
        return {"audio": sound * math.nan if self.broken else sound}


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


def codec(channels: int = 1, restarts: bool = True) -> EncodecModel:
    """For chords, the same weights every time; restarts: of codes that nothing chooses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EncodecModel(
            EncodecConfig(
                sampling_rate=2000,
                audio_channels=channels,
                hidden_size=8,
                num_filters=4,
                upsampling_ratios=[2, 4, 5],
                num_lstm_layers=1,
                codebook_size=16,
                target_bandwidths=[0.8],
                use_causal_conv=False,
                use_conv_shortcut=False,
            )
        )
    for book in model.quantizer.books:
        book.learning = replace(book.learning, dead_below=book.learning.dead_below if restarts else 0.0)
    return model


class FirstGradients(TrainerCallback):
    """Keeps them."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        if not self.seen:
            self.seen = {
                name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)().clone()
                for name, p in model.named_parameters()
                if p.grad is not None
            }


def train_on_noise(kind: str, run: Path, **settings: Any) -> Path:
    """A VQ-VAE or a prior."""
    gradients = FirstGradients()
    trainer = train(objective(kind), Noise(kind), run, Schedule(**SETTINGS | settings), callbacks=[gradients])
    trainer.export(run / "model")
    if trainer.args.should_save:
        torch.save(gradients.seen, run / "gradients.pt")
        losses = [record for record in trainer.state.log_history if "loss" in record]
        (run / "losses.json").write_text(json.dumps(losses))
    return run


def train_on_chords(run: Path, **settings: Any) -> Path:
    """An EnCodec against judges."""
    train_encodec(codec(restarts=False), Chords(), run, Schedule(**JUDGED_SETTINGS | settings), JUDGED)
    return run


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text()):
        run, settings = Path(job["run"]), job["settings"]
        if job["kind"] == "encodec":
            train_on_chords(run, **settings)
        elif job["kind"] == "finetune":
            model, data = settings.pop("model"), Path(settings.pop("data"))
            finetune(Tuning(model=model, data=data, run=run, rank=4, schedule=Schedule(**SETTINGS | settings)))
        else:
            train_on_noise(job["kind"], run, **settings)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
