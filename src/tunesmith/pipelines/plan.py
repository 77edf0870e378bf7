"""What a request means for a model: each song with its length in frames and its audio prompt, read and fitted.

All that can be refused is refused here, before torch is imported.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.audio import Clip
from tunesmith.errors import AudioFileError, RequestError
from tunesmith.hub import Facts
from tunesmith.requests import MusicgenRequest

IN_MEMORY = "(clip "
"""How the names of audio prompts begin that are no files."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Song:
    """One song to make."""

    request: MusicgenRequest
    """Of this song alone: one text, one audio prompt, one take, its own seed."""
    audio: Clip | None
    """The audio prompt at the model's rate and channels, cut to whole frames."""
    audio_hash: str | None
    """SHA-256 of the audio prompt's samples as they were read."""
    frames: int
    """Length in frames, prompt included."""
    samples: int
    """Length in samples; the last frame may be cut."""


@dataclass(frozen=True, eq=False)
class _Prompt:
    clip: Clip
    digest: str


def plan(request: MusicgenRequest, facts: Facts, clips: Mapping[Path, Clip] | None = None) -> tuple[Song, ...]:
    """The songs of a request.  `clips` holds audio prompts that are in memory, under the names that the request uses.

    Raises RequestError for what the model can't do, AudioFileError for an audio prompt that can't be read.
    """
    frames = facts.frames(request.seconds)
    if frames > facts.window_frames and not request.audio_prompt:
        raise RequestError(f"{_asked(request, facts)}; ask for at most {facts.window_seconds:g}.")
    prompts = {path: _prompt(path, request, facts, clips or {}) for path in request.audio_prompt}
    return tuple(_song(song, prompts, frames, facts) for song in request.songs())


def _song(request: MusicgenRequest, prompts: Mapping[Path, _Prompt], frames: int, facts: Facts) -> Song:
    prompt = prompts[request.audio_prompt[0]] if request.audio_prompt else None
    return Song(
        request=request,
        audio=prompt.clip if prompt else None,
        audio_hash=prompt.digest if prompt else None,
        frames=frames,
        samples=round(request.seconds * facts.rate),
    )


def _prompt(path: Path, request: MusicgenRequest, facts: Facts, clips: Mapping[Path, Clip]) -> _Prompt:
    """Read (no more than could be used), remix, resample, and drop what doesn't fill a frame."""
    seconds = request.prompt_seconds or request.seconds + 1
    if path not in clips and str(path).startswith(IN_MEMORY) and not path.exists():
        raise AudioFileError(
            f"The audio prompt {str(path)!r} was no file, but a clip in memory; give it as a file, with --audio-prompt."
        )
    clip = clips[path][:seconds] if path in clips else Clip.read(path, seconds)
    fitted = clip.remix(facts.channels).resample(facts.rate)
    frames = fitted.samples.shape[1] // facts.hop
    if frames == 0:
        raise RequestError(f"The audio prompt {str(path)!r} is shorter than one frame of {facts.hop / facts.rate:g} s.")
    _check_room(path, frames, request, facts)
    digest = hashlib.sha256(clip.samples.tobytes()).hexdigest()
    return _Prompt(Clip(fitted.samples[:, : frames * facts.hop], facts.rate), digest)


def _check_room(path: Path, frames: int, request: MusicgenRequest, facts: Facts) -> None:
    """The prompt must end before the song does, and the song must fit the window."""
    prompt = frames * facts.hop / facts.rate
    if facts.frames(request.seconds) > facts.window_frames:
        left = max(facts.window_seconds - prompt, 0)
        room = f"the audio prompt takes {prompt:g} s of it, so at most {left:g} s of new music remain"
        if left == 0:
            room = "the audio prompt leaves nothing of it; use less of it with prompt_seconds"
        raise RequestError(f"{_asked(request, facts)}; {room}.")
    if frames >= facts.frames(request.seconds):
        raise RequestError(
            f"The audio prompt {str(path)!r} is as long as the {request.seconds:g} s asked for, which count it; "
            "ask for more seconds, or use less of it with prompt_seconds."
        )


def _asked(request: MusicgenRequest, facts: Facts) -> str:
    return f"{request.seconds:g} s were asked for, but this model makes at most {facts.window_seconds:g} s in one piece"
