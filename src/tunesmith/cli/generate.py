"""`tunesmith generate`: words, audio or both to files of music."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.cli.flags import LOADING, Loading, Look, flat, pick, spread
from tunesmith.errors import AudioFileError, ModelNotFoundError, RequestError
from tunesmith.requests import MusicgenRequest, Sampling

DEFAULT_MODEL = "tunesmith/pocket"
NARROW = 512
"""Models of less width sample on one thread."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command adds to a request."""

    prompts: Path | None = None
    """Text file with more prompts, one a line."""

    unconditional: bool = False
    """Without any prompt, let the model choose."""

    like: Path | None = None
    """Repeat the recipe inside this audio file; the other flags change it."""

    out: Path = Path("song.wav")
    """File to write: wav, flac, ogg or mp3. Several songs are numbered: song-1.wav, song-2.wav, ..."""

    level: Literal["loudness", "peak", "rms", "none", "clip"] = "loudness"
    """Loudness of the file: loudness (-14 LUFS), peak, rms, none, clip. All but clip never clip."""

    model: str = DEFAULT_MODEL
    """A bundled model, a folder, a Hugging Face id, or small, medium, large, stereo-small, ..."""


LOOKS = {
    **LOADING,
    "prompt": Look(metavar="[PROMPT ...]", positional=True),
    "audio_prompt": Look(metavar="FILE", repeated=True),
    "prompt_seconds": Look(metavar="FLOAT"),
    "seed": Look(metavar="INT"),
    "prompts": Look(metavar="FILE"),
    "like": Look(metavar="FILE"),
    "out": Look(metavar="FILE"),
    "model": Look(metavar="NAME"),
}

Flags: Any = flat("Flags", (MusicgenRequest, Sampling, Options, Loading), LOOKS)


class Generate(Flags):
    """Make music from words, from audio, or from both.

    tunesmith generate "a lively jig for violin" --seconds 10 --seed 7 --out jig.wav

    A Jukebox sings: with --model jukebox-1b-lyrics or a folder of one the flags are others, among them --lyrics,
    --artist, --genre, --song-seconds, --hop-fraction, --sample-rate and --draft; add --help to see them.
    """

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Any:
        """The class for these arguments: the model's family decides."""
        from tunesmith import hub  # not at the top: help is to be quick

        like, model = value_of("--like", arguments), value_of("--model", arguments)
        recipe = None if like is None else recipe_of(Path(like))
        if model is None and recipe is not None:
            model = str(recipe.get("model"))
        fetch = not {"-h", "--help"} & set(arguments)
        sings = model is not None and hub.family_of(model, fetch=fetch) == "jukebox"
        if recipe is not None and sings != ("lyrics" in recipe["request"]):
            kind = "MusicGen" if sings else "Jukebox"
            _check_model(str(model), like)
            raise RequestError(f"{like!r} was made by a {kind}, which {model!r} isn't; name one with --model.")
        if sings:
            from tunesmith.cli.jukebox import GenerateJukebox, refuse_words

            refuse_words(arguments)
            return GenerateJukebox
        for flag in ("--lyrics", "--artist", "--genre", "--song-seconds", "--hop-fraction", "--sample-rate", "--draft"):
            if any(word.partition("=")[0] == flag for word in arguments):
                _check_model(model or DEFAULT_MODEL, None)
                raise RequestError(f"{flag} is for a Jukebox; name one with --model, as in --model jukebox-1b-lyrics.")
        return cls

    @classmethod
    def preset(cls, arguments: Sequence[str]) -> "Generate":
        """The defaults of the flags: with `--like FILE` those of its recipe."""
        path = value_of("--like", arguments)
        flags = {} if path is None else _recipe_flags(Path(path))
        if value_of("--audio-prompt", arguments):
            flags["audio_prompt"] = ()  # what is repeated is added to the default, and this is to replace it
        return cls(**flags)

    def run(self) -> None:
        """Check everything that can be checked, then load the model, sample and write."""
        _check_model(self.model, self.like)
        request = self.request()
        paths = _check(request, self)
        _make(request, self, paths)

    def request(self) -> MusicgenRequest:
        """Raises RequestError, also when nothing says what to make."""
        request = pick(self, MusicgenRequest, sampling=pick(self, Sampling))
        if self.prompts is not None:
            request = replace(request, prompt=(*request.prompt, *read_prompts(self.prompts)))
        if not (request.prompt or request.audio_prompt or self.unconditional or self.like):
            raise RequestError(
                'Say what you want to hear: tunesmith generate "a slow waltz for piano"; '
                "or --unconditional, and the model chooses."
            )
        if request.prompt and self.unconditional:
            raise RequestError("--unconditional means without a prompt, but there is one; leave one of them out.")
        return request


def _check_model(model: str, like: str | Path | None) -> None:
    """What is wrong with its name is told first.  Raises ModelNotFoundError or CheckpointError."""
    from tunesmith import hub

    try:
        hub.check_name(model)
    except ModelNotFoundError:
        if like is None or recipe_of(Path(like)).get("model") != model:
            raise
        raise ModelNotFoundError(
            f"{str(like)!r} was made by {model!r}, which isn't here; name it with --model."
        ) from None


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines are skipped.  Raises RequestError."""
    from tunesmith import hub

    try:
        lines = hub.local_path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        raise RequestError(f"There is no text file (UTF-8) {str(path)!r} to read prompts from.") from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise RequestError(f"{str(path)!r} holds no prompts; write one a line.")
    return prompts


def output_paths(out: Path, count: int) -> list[Path]:
    """`out` itself for one song; else numbered from 1, with as many digits as the last one needs."""
    if count == 1:
        return [out]
    digits = len(str(count))
    return [out.with_name(f"{out.stem}-{i:0{digits}d}{out.suffix}") for i in range(1, count + 1)]


def _check(request: MusicgenRequest, flags: Any) -> list[Path]:
    """All that can be known without torch; the paths to write to.  Raises a TunesmithError."""
    from tunesmith import hub
    from tunesmith.audio import check_writable
    from tunesmith.pipelines.plan import plan
    from tunesmith.pipelines.song import check_device, check_dtype, check_quantize

    paths = [check_writable(path) for path in output_paths(flags.out, request.count)]
    for path in {path.resolve() for path in paths} & {path.resolve() for path in request.audio_prompt}:
        raise RequestError(f"{path.name!r} is the audio prompt and would be overwritten; give another --out.")
    check_device(flags.device)
    check_dtype(flags.dtype)
    check_quantize(flags.quantize)
    folder = hub.locate(flags.model)
    songs = plan(request, hub.check(folder))
    adapter_hash = None if flags.adapter is None else _adapter_hash(flags.adapter, flags.model, folder)
    if flags.like is not None:
        warn_unlike(flags.like, hub.weights_hash(folder), songs[0].audio_hash, adapter_hash)
    return paths


def warn_unlike(like: Path, model: str, audio_prompt: str | None, adapter: str | None) -> None:
    """Say which of what the recipe of a file names isn't the same any more, by their hashes."""
    recipe = recipe_of(like)
    same = {
        "model": model == recipe.get("model_hash"),
        "audio prompt": audio_prompt == recipe.get("audio_prompt_hash"),
        "adapter": adapter == recipe.get("adapter_hash"),
    }
    for what in (what for what, is_same in same.items() if not is_same):
        warnings.warn(f"The {what} is not the one of {str(like)!r}; the music will differ.", stacklevel=1)


def _adapter_hash(adapter: Path, name: str, model: Path) -> str:
    """What it changes; tells now if it isn't for this model.  Raises a TunesmithError."""
    from tunesmith.pipelines.song import open_adapter

    return open_adapter(adapter, name, model, "musicgen").hash


def _make(request: MusicgenRequest, flags: Any, paths: Sequence[Path]) -> None:
    from tunesmith.cli.progress import show, status
    from tunesmith.pipelines.song import MusicgenPipeline, load

    with status(f"loading {flags.model}"):
        quiet()
        pipeline = load(flags.model, flags.device, flags.dtype, flags.adapter, flags.quantize)
        assert isinstance(pipeline, MusicgenPipeline), "the family was checked"
        set_threads(pipeline.model.config.decoder.hidden_size)
    clips = show(pipeline.stream(request))
    for path, clip in zip(paths, clips, strict=True):
        clip.save(path, level=flags.level)
        print(f"{path}  {clip.duration:g} s  seed {clip.recipe['request']['seed']}")


def quiet() -> None:
    """No logs and bars of transformers beside ours."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def set_threads(width: int) -> None:
    """A step of a small model is too short to share: on a busy machine, waiting for each other costs tenfold."""
    import torch

    if width < NARROW and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


# Repeating ------------------------------------------------------------------------------------------------------------


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What follows a flag, before the flags are parsed: the last time, and with - or _ in its name, as for tyro."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else following
    return found


def recipe_of(path: Path) -> dict[str, Any]:
    """The recipe inside an audio file.  Raises AudioFileError."""
    from tunesmith.audio import read_recipe

    recipe = read_recipe(path)
    if recipe is None or not isinstance(recipe.get("request"), dict):
        raise AudioFileError(f"{str(path)!r} holds no recipe; only files that tunesmith made do.")
    return recipe


def _recipe_flags(path: Path) -> dict[str, Any]:
    """A recipe as flags: what was asked, of which model."""
    recipe = recipe_of(path)
    request = MusicgenRequest.from_dict(recipe["request"])
    return spread(request) | model_flags(recipe)


def model_flags(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says of the model."""
    flags: dict[str, Any] = {name: str(recipe[name]) for name in ("model", "dtype", "quantize") if name in recipe}
    return flags | ({"adapter": Path(recipe["adapter"])} if recipe.get("adapter") else {})
