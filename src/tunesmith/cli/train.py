"""`tunesmith train`: from a folder of songs to a codec, a prior, an upsampler or a MusicGen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tunesmith.cli.flags import pick
from tunesmith.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on a folder of songs, or go on where the same command stopped.

    tunesmith train small_vqvae --data songs --run runs/vqvae

    tunesmith train small_vqvae,small_prior,all_fp16,cpu_ema --data songs --vqvae runs/vqvae --run runs/prior

    For several GPUs: torchrun --nproc-per-node 8 -m tunesmith train ...
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A recipe, or several names with commas between them, the later the stronger; `list` shows all."""

    data: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("songs")
    """Songs with what is known of them, or codes that `tunesmith data encode` made."""

    run_folder: Annotated[Path | None, tyro.conf.arg(name="run", metavar="FOLDER")] = None
    """Folder for checkpoints, figures and sounds; the model is written to its model/. By default runs/RECIPE."""

    settings: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(name="set", metavar="KEY=VALUE", help_behavior_hint="(repeatable)"),
    ] = ()
    """Change a setting of the recipe; docs/training.md lists them. The original's names work too."""

    vqvae: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Of a prior or upsampler: the VQ-VAE whose codes it learns: a run, a folder or a model's name."""

    codec: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Of MusicGen: the EnCodec whose codes it learns."""

    text_encoder: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Of MusicGen: the text encoder; google-t5/t5-base by default."""

    level: Annotated[str | None, tyro.conf.arg(metavar="LEVEL")] = None
    """Of a prior: 0 is the finest level; or bottom, top."""

    origin: Annotated[str | None, tyro.conf.arg(name="from", metavar="CHECKPOINT")] = None
    """Begin from a run or checkpoint, with its optimizer and its step, or from a model's weights."""

    changed: bool = False
    """Go on with a run though its settings were others."""

    show: bool = False
    """Show the settings of the recipe, and stop."""

    def run(self) -> None:
        """Print what is going on, and the folder of the model at the end."""
        from tunesmith.training.recipes import SETS, compose, flat

        if self.recipe == "list":
            print("\n".join(SETS))
            return
        recipe = compose(self.recipe, self._given())
        if self.show:
            print("\n".join(f"{key}={value}" for key, value in flat(recipe).items()))
            return
        from tunesmith.cli.generate import quiet
        from tunesmith.training.launch import Order, launch

        quiet()
        run = self.run_folder or Path("runs") / self.recipe.replace(",", "-")
        order = pick(self, Order, recipe=recipe, run=run, codec=self.vqvae or self.codec)
        print(launch(order))

    def _given(self) -> dict[str, str]:
        """Settings, `--level` among them.  Raises RequestError."""
        settings = [word for words in self.settings for word in words.split()]
        for setting in settings:
            if "=" not in setting:
                raise RequestError(f"--set {setting!r} has no value; write KEY=VALUE, as in --set batch=2.")
        given = dict(setting.split("=", 1) for setting in settings)
        if self.level is not None:
            given["level"] = {"bottom": "0", "top": "none"}.get(self.level, self.level)
            given |= {"upsampler": "false"} if self.level == "top" else {}
        return given
