"""What goes on beside a training run: clocks, history, the board, sounds."""

import json
import math
import time
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

SHOWN = 9  # figures on a line of the terminal; all are in the history
QUIET = 20.0
"""Seconds without a line in the terminal after which one says how far the run is."""


class Budget(TrainerCallback):
    """Saves every few minutes or steps and stops when the time is up."""

    def __init__(self, seconds: float | None, save_every: float, steps: int = 0) -> None:
        self.seconds, self.save_every, self.steps = seconds, save_every, steps

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clocks."""
        self.start = self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raise the flags that the trainer reads."""
        now = time.monotonic()
        control.should_training_stop |= self.seconds is not None and now - self.start >= self.seconds
        due = now - self.saved >= self.save_every or (self.steps > 0 and state.global_step % self.steps == 0)
        if control.should_training_stop or due:
            control.should_save, self.saved = True, now


class History(TrainerCallback):
    """Appends every logged figure to `history.jsonl` and prints it with the time left, which is also told between.

    What a killed run logged after its last checkpoint is taken out when the run goes on from there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self.start, self.first = time.monotonic(), state.global_step
        self.told = self.start
        fresh = not state.global_step and any(self.path.parent.glob("checkpoint-*"))  # from weights alone
        if state.is_world_process_zero and not fresh and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines(True) if _step(line) <= state.global_step]
            part = self.path.with_name(f".{self.path.name}.part")
            part.write_text("".join(kept))
            part.replace(self.path)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Nobody is to wonder whether it still runs."""
        if state.is_world_process_zero and time.monotonic() - self.told >= QUIET:
            self._tell(state, [])

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """One line a log."""
        if not state.is_world_process_zero:
            return
        elapsed = time.monotonic() - self.start
        record = {"step": state.global_step, "elapsed": round(elapsed, 1), **(logs or {})}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        figures = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if isinstance(value, float)]
        self._tell(state, figures[:SHOWN])

    def _tell(self, state: TrainerState, figures: list[str]) -> None:
        self.told = time.monotonic()
        done = state.global_step - self.first
        left = (self.told - self.start) / max(1, done) * (state.max_steps - state.global_step)
        place = f"step {state.global_step}/{state.max_steps}  {clock(left)} left  {' '.join(figures)}"
        print(place.rstrip(), flush=True)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # half a line, of a process that was killed
        return 2**63


Sounds = Mapping[str, Float[Tensor, " T"]]


class Board(TrainerCallback):
    """TensorBoard: every logged figure, and every `every` steps sounds with their spectrograms.

    Sounds are also files: `samples/step-N/NAME.wav`.  Without tensorboard installed there are files alone.
    """

    def __init__(self, run: Path, rate: int, make: Callable[[], Sounds] | None = None, every: int = 0) -> None:
        self.run, self.rate, self.make, self.every = run, rate, make, every
        self.writer: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the board; what a killed run showed after its last checkpoint is hidden."""
        if state.is_world_process_zero:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=state.global_step + 1)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """All figures."""
        if self.writer is not None:
            for name, value in (logs or {}).items():
                self.writer.add_scalar(name, value, state.global_step)
            self.writer.flush()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Sounds, made by all processes, shown by the first."""
        if self.make is None or not self.every or state.global_step % self.every:
            return
        sounds = self.make()
        if state.is_world_process_zero:
            for name, sound in sounds.items():
                self._show(name, sound.detach().float().cpu(), state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the board."""
        if self.writer is not None:
            self.writer.close()

    def _show(self, name: str, sound: Float[Tensor, " T"], step: int) -> None:
        folder = self.run / "samples" / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / f"{name}.wav", sound, self.rate)
        if self.writer is not None:
            self.writer.add_audio(name, sound.clamp(-1, 1), step, sample_rate=self.rate)
            self.writer.add_image(f"{name}_spectrogram", spectrogram(sound), step, dataformats="HW")


def spectrogram(sound: Float[Tensor, " T"], bands: int = 256, floor: float = -80.0) -> Float[Tensor, "F S"]:
    """Decibels below the loudest as grey from 0 (floor) to 1, low notes at the bottom."""
    size = 2 * bands
    padded = torch.nn.functional.pad(sound, (0, max(0, size - len(sound))))
    powers = torch.stft(padded, size, window=torch.hann_window(size), return_complex=True, pad_mode="constant").abs()
    decibels = 20 * (powers / powers.max().clamp(min=1e-8)).clamp(min=10 ** (floor / 20)).log10()
    return (1 - decibels / floor).flip(0)


def write_wav(path: Path, sound: Float[Tensor, " T"], rate: int) -> None:
    """16 bits, mono, by Python alone: training machines needn't have an audio library."""
    samples = (sound.clamp(-1, 1) * (2**15 - 1)).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.numpy().tobytes())


def clock(seconds: float) -> str:
    """A duration for people."""
    if not math.isfinite(seconds):
        return "unknown"
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
