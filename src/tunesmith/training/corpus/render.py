"""Scores into sound: FluidSynth in this process with a General MIDI soundfont.

The same score gives the same samples whatever was rendered before it: each clip gets a new synthesizer (which costs a
millisecond; voices, reverb and chorus of a used one keep traces of the last clip) that borrows the soundfont, and the
output is taken as floats, without dither.
"""

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tunesmith.errors import MissingDependencyError
from tunesmith.training.corpus.music import BASS, DRUMS, INSTRUMENTS, LEAD, PAD, Score

SOUNDFONT_VARIABLE = "TUNESMITH_SOUNDFONT"
_FOLDERS = (
    "/usr/share/sounds/sf3",
    "/usr/share/fluidr3mono-gm-soundfont",
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
)
_NAMES = ("FluidR3Mono_GM.sf3", "FluidR3_GM.sf2")
_BLOCK = 64
"""Samples that FluidSynth computes at a time; events take effect between blocks (2 ms at 32 kHz)."""
_LOWEST_RATE = 32_000
"""Clips are rendered at this rate or above and then filtered: FluidSynth itself lets 44.1 kHz samples alias."""
_DRY = 0.12
"""Rooms smaller than this have no reverberation at all: it is a third of the cost of a clip."""
_WARNING = 2  # FluidSynth's log level
_PREROLL = 0.3
"""Seconds rendered beyond the clip, out of which the silence before the first attack is cut."""
BEHIND = {PAD: 0.58, BASS: 0.68}
"""Volume of the players behind the lead, relative to their own."""
_PEAK, _RMS = 0.89, 0.14
"""A clip is as loud as it can be under both limits (full scale is 1)."""


def find_soundfont() -> Path:
    """The soundfont of the variable TUNESMITH_SOUNDFONT, or FluidR3Mono in the system's usual folders.

    Raises:
        MissingDependencyError: when there is none.

    """
    if named := os.environ.get(SOUNDFONT_VARIABLE):
        if Path(named).is_file():
            return Path(named)
        raise MissingDependencyError(
            f"{SOUNDFONT_VARIABLE} names {named}, which is not a file; let it name a General MIDI soundfont."
        )
    for path in (Path(folder, name) for name in _NAMES for folder in _FOLDERS):
        if path.is_file():
            return path
    raise MissingDependencyError(
        "The corpus needs a soundfont to play its music; install it with `apt-get install fluidr3mono-gm-soundfont`"
        f" or let {SOUNDFONT_VARIABLE} name another one."
    )


def _fluidsynth() -> Any:
    try:
        import fluidsynth
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "The corpus needs pyfluidsynth; install it with `pip install tunesmith[corpus]`."
        ) from error
    except ImportError as error:
        raise MissingDependencyError(
            "The corpus needs the FluidSynth library; install it with `apt-get install libfluidsynth3`."
        ) from error
    return fluidsynth


class Renderer:
    """Holds a loaded soundfont; one a process is enough."""

    def __init__(self, soundfont: Path, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.factor = math.ceil(_LOWEST_RATE / sample_rate)
        self._library = library = _fluidsynth()
        pointer, integer = library.c_void_p, library.c_int

        def function(name: str, result: Any, *arguments: Any) -> Any:
            return library.cfunc(name, result, *((f"argument{i}", kind, 1) for i, kind in enumerate(arguments)))

        self._borrow = function("fluid_synth_add_sfont", integer, pointer, pointer)
        self._return = function("fluid_synth_remove_sfont", integer, pointer, pointer)
        self._write = function(
            "fluid_synth_write_float", integer, *(pointer, integer), *(pointer, integer, integer) * 2
        )
        # Returning the soundfont makes FluidSynth warn of channels without instruments.
        function("fluid_set_log_function", pointer, integer, pointer, pointer)(_WARNING, None, None)
        self._owner = self._new_synth()
        number = self._owner.sfload(str(soundfont))
        if number < 0:
            raise MissingDependencyError(
                f"{soundfont} can't be read as a soundfont; let {SOUNDFONT_VARIABLE} name another one."
            )
        self._font = function("fluid_synth_get_sfont_by_id", pointer, pointer, integer)(self._owner.synth, number)

    def render(self, score: Score, seconds: float, grid: float = 0.0) -> Float32[np.ndarray, " T"]:
        """Mono samples of the first seconds of a score, which begin with its first attack, at a sane level.

        With a grid (seconds) every note begins and ends on a multiple of it, and so does the silence that is cut.
        """
        if grid:
            score = score.retimed(lambda beat: round(beat * 60 / score.bpm / grid) * grid * score.bpm / 60)
        blocks = math.ceil((seconds + _PREROLL) * self.sample_rate * self.factor / _BLOCK)
        stereo = np.zeros((2, blocks * _BLOCK), np.float32)
        player = self._new_synth(reverb=score.room > _DRY)
        number = self._borrow(player.synth, self._font)
        try:
            self._prepare(player, number, score)
            self._play(player, self._events(score, blocks), stereo)
        finally:
            self._return(player.synth, self._font)
            player.delete()
        mono = decimate(stereo.mean(0), self.factor)
        return level(trimmed(mono, round(seconds * self.sample_rate), max(1, round(grid * self.sample_rate))))

    def _new_synth(self, *, reverb: bool = False) -> Any:
        rate, effects = (
            float(self.sample_rate * self.factor),
            {"synth.chorus.active": 0, "synth.reverb.active": int(reverb)},
        )
        return self._library.Synth(gain=0.4, samplerate=rate, channels=16, **effects)

    def _prepare(self, player: Any, font: int, score: Score) -> None:
        player.set_reverb(roomsize=0.2 + 0.6 * score.room, damping=0.3, width=0.5, level=0.1 + 0.5 * score.room)
        for channel, name in score.voices.items():
            instrument = INSTRUMENTS[name]
            player.program_select(channel, font, 0, instrument.program)
            player.cc(channel, 7, round(instrument.volume * BEHIND.get(channel, 1.0)))
        player.program_select(DRUMS, font, 128, 0)
        player.cc(DRUMS, 7, 84)

    def _play(
        self, player: Any, events: list[tuple[int, int, int, int, int]], stereo: Float32[np.ndarray, "2 T"]
    ) -> None:
        """Fill the buffer, block by block between the events."""
        position, last = 0, stereo.shape[1] // _BLOCK
        left, right = stereo[0].ctypes.data, stereo[1].ctypes.data
        for block, on, channel, pitch, velocity in [*events, (last, 0, LEAD, 0, 0)]:
            if block > position:
                offset = position * _BLOCK
                self._write(player.synth, (block - position) * _BLOCK, left, offset, 1, right, offset, 1)
                position = block
            if on:
                player.noteon(channel, pitch, velocity)
            else:
                player.noteoff(channel, pitch)

    def _events(self, score: Score, blocks: int) -> list[tuple[int, int, int, int, int]]:
        """Block, on (1) or off (0), channel, pitch and velocity, in the order of playing: offs before ons."""
        scale = 60 / score.bpm * self.sample_rate * self.factor / _BLOCK
        events = []
        for note in score.notes:
            start = round(note.start * scale)
            if start < blocks:
                end = max(start + 1, round(note.end * scale))
                events.append((start, 1, note.channel, note.pitch, note.velocity))
                events.append((min(end, blocks), 0, note.channel, note.pitch, 0))
        return sorted(events)


@lru_cache(maxsize=2)
def renderer(soundfont: Path, sample_rate: int) -> Renderer:
    """The renderer of this process: loading a soundfont takes a second."""
    return Renderer(soundfont, sample_rate)


def decimate(audio: Float32[np.ndarray, " T"], factor: int) -> Float32[np.ndarray, " t"]:
    """Every factor-th sample of the low-passed audio."""
    if factor == 1:
        return audio
    taps = lowpass(factor)
    size = len(audio) // factor
    padded = np.pad(audio, (len(taps) // 2, len(taps)))
    phases = [np.ascontiguousarray(padded[phase::factor]) for phase in range(factor)]
    out = np.zeros(size, np.float32)
    for i, tap in enumerate(taps):
        if abs(tap) > 1e-7:  # every second one is zero when the rate is halved
            out += tap * phases[i % factor][i // factor :][:size]
    return out


@lru_cache
def lowpass(factor: int, reach: int = 24) -> Float32[np.ndarray, " taps"]:
    """A windowed sinc with its edge at the new Nyquist frequency; `reach` is in new samples."""
    time = np.arange(-reach * factor, reach * factor + 1) / factor
    taps = np.sinc(time) * np.kaiser(len(time), 8.0)
    return (taps / taps.sum()).astype(np.float32)


def trimmed(audio: Float32[np.ndarray, " T"], samples: int, step: int = 1) -> Float32[np.ndarray, " t"]:
    """So many samples from the first attack on, of which whole steps are cut."""
    loud = np.abs(audio) > 0.02 * np.abs(audio).max()
    first = min(int(loud.argmax()), len(audio) - samples) // step * step
    return audio[first : first + samples]


def level(audio: Float32[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
    """As loud as the limits of peak and mean power allow."""
    peak, rms = float(np.abs(audio).max()), float(np.sqrt(np.mean(audio**2)))
    return (audio * min(_PEAK / max(peak, 1e-9), _RMS / max(rms, 1e-9))).astype(np.float32)
