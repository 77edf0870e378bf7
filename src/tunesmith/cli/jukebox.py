"""`tunesmith generate` for a Jukebox: lyrics, an artist and a genre to a folder that survives a kill at any moment."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.cli.flags import LOADING, Loading, Look, flat, pick, spread
from tunesmith.errors import RequestError, RunError
from tunesmith.requests import JukeboxRequest

if TYPE_CHECKING:
    from tunesmith.pipelines.jukebox_song import JukeboxPipeline
    from tunesmith.pipelines.ranks import Ranks
    from tunesmith.pipelines.runs import Run


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command adds to a request."""

    like: Path | None = None
    """Repeat the recipe inside this audio file; the other flags change it."""

    out: Path = Path("song")
    """Folder to make: audio of each level, pages that light the lyrics, and what `tunesmith resume` needs."""

    level: Literal["loudness", "peak", "rms", "none", "clip"] = "loudness"
    """Loudness of the files: loudness (-14 LUFS), peak, rms, none, clip. All but clip never clip."""

    model: str = "jukebox-1b-lyrics"
    """A folder, a bundled model, a Hugging Face id, or jukebox-1b-lyrics, jukebox-5b-lyrics."""

    chunk_size: tuple[int, ...] = ()
    """By level: how many known codes are fed at a time; memory and speed depend on it, the music doesn't."""

    max_batch_size: tuple[int, ...] = ()
    """By level: the most takes that are sampled at once; by default 3,16,16. The music doesn't depend on it."""


LOOKS = {
    **LOADING,
    "lyrics": Look(metavar="TEXT|FILE"),
    "artist": Look(metavar="NAME"),
    "genre": Look(metavar="NAME,...", listed=str),
    "song_seconds": Look(metavar="FLOAT"),
    "audio_prompt": Look(metavar="FILE,...", listed=Path),
    "prompt_seconds": Look(metavar="FLOAT"),
    "seed": Look(metavar="INT"),
    "sample_rate": Look(metavar="INT"),
    "like": Look(metavar="FILE"),
    "out": Look(metavar="FOLDER"),
    "model": Look(metavar="NAME"),
    **{name: Look(metavar="FLOAT,...", listed=float) for name in ("hop_fraction", "temperature", "top_p")},
    **{name: Look(metavar="INT,...", listed=int) for name in ("top_k", "chunk_size", "max_batch_size")},
}

Flags: Any = flat("Flags", (JukeboxRequest, Options, Loading), LOOKS)


class GenerateJukebox(Flags):
    """Make a song by Jukebox: who sings which words in which style.

    tunesmith generate --model jukebox-1b-lyrics --artist "Alan Jackson" --genre country --lyrics words.txt --draft

    Under torchrun the processes share the takes: torchrun --nproc-per-node 2 -m tunesmith generate ...
    """

    @classmethod
    def preset(cls, arguments: Sequence[str]) -> "GenerateJukebox":
        """The defaults of the flags: with `--like FILE` those of its recipe."""
        from tunesmith.cli.generate import model_flags, recipe_of, value_of

        path = value_of("--like", arguments)
        if path is None:
            return cls()
        recipe = recipe_of(Path(path))
        return cls(**spread(JukeboxRequest.from_dict(recipe["request"])) | model_flags(recipe))

    def run(self) -> None:
        """Check everything that can be checked, then load the model, make the folder and sample."""
        from tunesmith.cli.generate import warn_unlike
        from tunesmith.pipelines.ranks import ranks
        from tunesmith.pipelines.runs import Run, check_new

        if self.like is not None:
            _check_repeatable(self.like, self.audio_prompt)
        request = pick(self, JukeboxRequest, lyrics=read_lyrics(self.lyrics))
        with ranks() as group:
            pipeline = open_pipeline(
                self.model, self.device or group.device, self.dtype, adapter=self.adapter, quantize=self.quantize
            )

            def begin() -> None:
                check_new(self.out)
                settings = pipeline.settings(request.songs(), self.level, self.chunk_size, self.max_batch_size)
                begun = pipeline.begin(self.out, settings).settings
                if self.like is not None:
                    warn_unlike(self.like, begun.model_hash, begun.audio_hash(0), begun.adapter_hash or None)

            group.first(begin)
            go_on(pipeline, Run.open(self.out), group)


def _check_repeatable(like: Path, prompts: Sequence[Path]) -> None:
    """Raises RequestError for a take that no single request makes, or that continues what isn't in a file."""
    from tunesmith.cli.generate import recipe_of
    from tunesmith.pipelines.jukebox_song import IN_MEMORY

    if recipe_of(like).get("history"):
        raise RequestError(
            f"{str(like)!r} was made in steps (`tunesmith info` shows them, under history), which generate can't "
            "repeat; go on with its run, or say what you want without --like."
        )
    if any(str(name).startswith(IN_MEMORY) for name in prompts):
        raise RequestError(f"{str(like)!r} continues audio that was in no file; save that, and name --audio-prompt.")


def refuse_words(arguments: Sequence[str]) -> None:
    """Raise RequestError for a word that belongs to no flag, as a MusicGen's prompt does."""
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            raise RequestError(f"A Jukebox reads no prompt like {word!r:.60}; say --lyrics, --artist and --genre.")
        if "=" not in word and word not in ("-h", "--help", "--draft"):
            next(words, None)  # its value


def read_lyrics(given: str) -> str:
    """The text, or that of the file.  Raises RequestError for a text file that isn't there or isn't text."""
    path = Path(given)
    try:
        is_file = "\n" not in given and path.is_file()
        if is_file or (path.suffix == ".txt" and " " not in given):
            return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        if len(given) < 200:
            raise RequestError(f"There is no text file (UTF-8) {given!r} to read lyrics from.") from None
    return given


def open_pipeline(
    model: str,
    device: str | None,
    dtype: str | None,
    one_prior_at_a_time: bool | None = None,
    adapter: str | Path | None = None,
    quantize: str | None = None,
) -> "JukeboxPipeline":
    """Configuration and tokenizer; weights are loaded when they are needed.  Raises what `tunesmith.load` does."""
    from tunesmith.cli.generate import quiet
    from tunesmith.pipelines.jukebox_song import JukeboxPipeline
    from tunesmith.pipelines.song import load

    quiet()
    pipeline = load(model, device, dtype, adapter, quantize)
    if not isinstance(pipeline, JukeboxPipeline):
        raise RequestError(f"{model!r} is no Jukebox, and this command is for Jukebox models.")
    pipeline.one_prior_at_a_time = one_prior_at_a_time
    return pipeline


def pipeline_of(run: "Run", device: str | None = None) -> "JukeboxPipeline":
    """For the model of a run.  Raises RunError if it isn't the same any more."""
    settings = run.settings
    pipeline = open_pipeline(
        settings.model, device, settings.dtype, adapter=settings.adapter or None, quantize=settings.quantize or None
    )
    if pipeline.hash != settings.model_hash:
        raise RunError(f"The model {settings.model!r} has changed since {str(run.folder)!r} was begun.")
    if pipeline.adapter is not None and pipeline.adapter.hash != settings.adapter_hash:
        raise RunError(f"The adapter {settings.adapter!r} has changed since {str(run.folder)!r} was begun.")
    return pipeline


def go_on(pipeline: "JukeboxPipeline", run: "Run", group: "Ranks") -> None:
    """Do what remains of a run, together; the first process tells how it goes and what there is in the end."""
    from tunesmith.cli.generate import set_threads
    from tunesmith.cli.progress import show, status
    from tunesmith.pipelines.jukebox_song import write_pages

    quietly = group.rank > 0
    group.first(run.tidy)
    with nullcontext() if quietly else status(f"loading {pipeline.name}"):
        set_threads(pipeline.model.config.prior_configs[0].hidden_size)
    show(pipeline.go_on(run, group.share(run.settings.chosen)), quietly)
    group.wait()
    group.first(lambda: write_pages(run))
    if not quietly:
        tell(run)


def tell(run: "Run") -> None:
    """The files that there are, of the lowest level that is done, and the page."""
    settings = run.settings
    for take in settings.chosen:
        name = settings.names[settings.depth - 1]
        request = settings.takes[take]
        print(f"{run.path(name, take, '.wav')}  {request.seconds:g} s  seed {request.seed}")
    print(run.folder / "index.html")
