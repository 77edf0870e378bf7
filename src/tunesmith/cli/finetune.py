"""`tunesmith finetune`: a model and a folder of songs to an adapter."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tunesmith.cli.flags import pick
from tunesmith.errors import RequestError

Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Teach a MusicGen or a Jukebox your music: a folder of songs to a small adapter, or to a whole model.

    tunesmith finetune small --data songs --out tuned

    tunesmith generate "a slow waltz" --model small --adapter tuned/adapter

    The same command goes on where it stopped. docs/finetuning.md tells more.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A bundled model, a folder, a Hugging Face id, or small, medium, jukebox-1b-lyrics, ..."""

    data: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("songs")
    """Songs with what is known of them; see `tunesmith data`."""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("tuned")
    """Folder of the run: adapter/ or model/, before.wav, after.wav, result.json and checkpoints."""

    method: Literal["lora", "dora", "full"] = "lora"
    """Train thin matrices beside the model's (lora), these and the lengths of columns (dora), or all weights (full)."""

    rank: int = 16
    """Width of the thin matrices."""

    level: Annotated[str | None, tyro.conf.arg(metavar="LEVEL")] = None
    """Of a Jukebox: whose prior to train: top (the default), middle or bottom."""

    like: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="NEW=OLD", help_behavior_hint="(repeatable)"),
    ] = ()
    """Of a Jukebox: a new artist or genre, and the known one that it begins as."""

    seconds: Number = None
    """Of a MusicGen: length of the crops; by default that of the songs, up to what the model makes in one piece."""

    steps: int = 1000
    """Updates."""

    batch: int = 2
    """Crops an update."""

    accumulate: int = 1
    """Batches whose gradients make one update."""

    learning_rate: Number = None
    """By default 2e-4 for adapters, 2e-5 for all weights."""

    bfloat16: bool = False
    """Multiply in bfloat16."""

    checkpointing: bool = False
    """Compute layers anew on the way back: less memory, a third more time."""

    budget_seconds: Number = None
    """Stop after so much time, with everything saved."""

    seed: int = 0
    """Of what is drawn."""

    def run(self) -> None:
        """Print how it goes, and what there is in the end."""
        from tunesmith import hub

        hub.find(self.model)  # a wrong name is told before torch is loaded
        from tunesmith.cli.generate import quiet
        from tunesmith.training.finetune import RATES, SCHEDULE, Tuning, finetune, level_of

        quiet()
        schedule = replace(
            SCHEDULE,
            steps=self.steps,
            batch=self.batch,
            accumulate=self.accumulate,
            learning_rate=RATES[self.method] if self.learning_rate is None else self.learning_rate,
            warmup=min(SCHEDULE.warmup, self.steps // 10),
            bfloat16=self.bfloat16,
            checkpointing=self.checkpointing,
            budget_seconds=self.budget_seconds,
            seed=self.seed,
        )
        level = level_of(self.model, self.level)
        tuning = pick(self, Tuning, run=self.out, level=level, like=self._like(), schedule=schedule)
        finetune(tuning)
        print(self.out / ("model" if self.method == "full" else "adapter"))

    def _like(self) -> dict[str, str]:
        """Raises RequestError."""
        found = {}
        for pair in self.like:
            new, _, old = map(str.strip, pair.partition("="))
            if not new or not old:
                raise RequestError(f"--like {pair!r} is no pair; write NEW=OLD, as in --like 'My Band=Queen'.")
            found[new] = old
        return found
