"""`tunesmith resume`, `upsample`, `continue`: a run of Jukebox that was stopped, drafted, or is to be longer."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tunesmith.cli.flags import comma_list, refuse_given
from tunesmith.errors import RequestError, TunesmithError
from tunesmith.requests import JukeboxRequest

if TYPE_CHECKING:
    from tunesmith.pipelines.runs import Run, Settings

Numbers = Annotated[tuple[float, ...], comma_list(float, "FLOAT,...")]
Wholes = Annotated[tuple[int, ...], comma_list(int, "INT,...")]
Device = Annotated[str | None, tyro.conf.arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What to go on with, and how."""

    run_folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[RUN]")] = None
    """Folder of a run, which is gone on with in its place."""

    codes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Instead of a run: a data.pth.tar of the original implementation, which --out makes a run of."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = "jukebox-1b-lyrics"
    """With --codes: the model to go on with."""

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("song")
    """With --codes: the run to make."""

    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 0
    """With --codes: take number i has seed + i."""

    pick: Annotated[str | None, tyro.conf.arg(metavar="INT,...")] = None
    """The takes to go on with, as in 2,5; by default those of last time."""

    hop_fraction: Numbers = ()
    """By level, top first: how far windows move, as a part of the window; by default as before."""

    temperature: Numbers = ()
    """By level: spread of the draws; by default as before."""

    top_k: Wholes = ()
    """By level: draw among this many likeliest codes; by default as before."""

    top_p: Numbers = ()
    """By level: draw among the likeliest codes whose probabilities sum to this; by default as before."""

    sample_rate: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Samples per second of the files; by default as before."""

    device: Device = None
    """cpu, cuda, cuda:N or mps; by default cuda where there is one, else cpu."""

    dtype: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """With --codes: float32, float16 or bfloat16 for the priors; by default float32."""

    def run(self) -> None:
        """Change what is to be made, then make it."""
        from tunesmith.cli.jukebox import go_on, pipeline_of
        from tunesmith.pipelines.ranks import ranks
        from tunesmith.pipelines.runs import Run

        if (self.run_folder is None) == (self.codes is None):
            raise RequestError("Name the folder of a run, or a file of the original implementation with --codes.")
        if self.codes is None:
            refuse_given(self, ("model", "out", "seed", "dtype"), "--codes; a run has its own")
        folder = self.run_folder or self.out
        with ranks() as group:
            group.first(lambda: self._prepare(folder))
            run = Run.open(folder)
            go_on(pipeline_of(run, self.device or group.device), run, group)

    def changed(self, settings: "Settings") -> "Settings":
        """The settings that the command makes of a run's: the same, where it doesn't say otherwise."""
        return settings

    def kept(self, settings: "Settings") -> tuple[int, float | None]:
        """How many levels of codes to keep, from the top down, and how many seconds of them; None is all."""
        return settings.levels, None

    def _prepare(self, folder: Path) -> None:
        from tunesmith.cli.jukebox import open_pipeline
        from tunesmith.pipelines.runs import Run

        if self.codes is None:
            return self._change(Run.open(folder))
        run = open_pipeline(self.model, self.device, self.dtype).take_over(self.codes, folder, self.seed)
        try:
            self._change(run)
        except TunesmithError:
            shutil.rmtree(run.folder, ignore_errors=True)  # made just now; else the command couldn't be given again
            raise

    def _change(self, run: "Run") -> None:
        """Give a run the settings asked for.  Raises TunesmithError, and leaves it alone, for what can't be done."""
        from tunesmith.cli.jukebox import pipeline_of
        from tunesmith.pipelines.runs import parse_picks

        settings = run.settings
        if self.pick is not None:
            settings = replace(settings, picked=parse_picks(self.pick, len(settings.takes)))
        settings = settings.with_takes(lambda take: replace(take, **self._given()))
        settings = self.changed(settings)
        settings.check_alike()
        pipeline = pipeline_of(run, self.device)
        pipeline.run_plan(settings, run.labels(), settings.chosen)  # refuses what can't be done
        run.change(settings, pipeline.lengths(*self.kept(settings)))

    def _given(self) -> dict[str, Any]:
        names = ("hop_fraction", "temperature", "top_k", "top_p", "sample_rate")
        return {name: value for name in names if (value := getattr(self, name)) not in ((), None)}


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run of Jukebox that was stopped, however that was: it ends in the same music.

    tunesmith resume song
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""

    device: Device = None
    """cpu, cuda, cuda:N or mps; by default cuda where there is one, else cpu."""

    def run(self) -> None:
        """Do what remains."""
        from tunesmith.cli.jukebox import go_on, pipeline_of
        from tunesmith.pipelines.ranks import ranks
        from tunesmith.pipelines.runs import Run

        with ranks() as group:
            run = Run.open(self.run_folder)
            go_on(pipeline_of(run, self.device or group.device), run, group)


@dataclass(frozen=True, kw_only=True)
class Upsample(Source):
    """Go on from the top level of a run of Jukebox to the lower ones: draft, listen, pick, upsample.

    tunesmith upsample song --pick 2,5
    """

    def changed(self, settings: "Settings") -> "Settings":
        """To the bottom."""
        return replace(settings, depth=settings.levels)


@dataclass(frozen=True, kw_only=True)
class Continue(Source):
    """Make a song by Jukebox longer.

    tunesmith continue song --seconds 40
    """

    seconds: float
    """Final length in seconds, what is there included."""

    from_level: Annotated[Literal["top", "middle", "bottom"], tyro.conf.arg(name="from", metavar="LEVEL")] = "bottom"
    """Keep the codes down to this level (top, middle, bottom), and sample lower ones anew from the beginning."""

    prompt_seconds: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Keep only so much of the beginning; by default all."""

    def changed(self, settings: "Settings") -> "Settings":
        """Longer.  Raises RequestError for a length that isn't, or doesn't fit."""
        for take in settings.chosen:
            _check_longer(settings.takes[take], self.seconds, self.prompt_seconds)
        longer = settings.with_takes(lambda take: replace(take, seconds=self.seconds))
        return longer if self.codes is None else replace(longer, depth=settings.levels)

    def kept(self, settings: "Settings") -> tuple[int, float | None]:
        """What was asked for."""
        return {"top": 1, "middle": 2, "bottom": settings.levels}[self.from_level], self.prompt_seconds


def _check_longer(take: JukeboxRequest, seconds: float, kept: float | None) -> None:
    if kept is not None and not 0 < kept <= take.seconds:
        raise RequestError(f"--prompt-seconds is {kept:g}; it must be above 0 and at most {take.seconds:g}.")
    there = take.seconds if kept is None else kept
    if seconds <= there:
        raise RequestError(f"{there:g} s are there already; --seconds is the final length, so ask for more.")
    if take.song_seconds is not None and take.offset + seconds > take.song_seconds:
        left = take.song_seconds - take.offset
        raise RequestError(f"The song has {left:g} s from there on; --seconds is {seconds:g}, so ask for less.")
