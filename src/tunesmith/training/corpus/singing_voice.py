"""A voice that sings: eSpeak NG says the words, WORLD takes them apart and puts them together on other pitches.

Vowels are stretched until a syllable fills its note; consonants keep their length.  eSpeak NG runs in a process of its
own, says all words of a voice in a fixed order and ends: what it says depends on what it said before.
"""

import ctypes
import ctypes.util
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from tunesmith.audio import resample
from tunesmith.errors import MissingDependencyError

RATE = 16_000
"""Samples per second of the voice; WORLD hears nothing above half of it."""
FRAME = 0.005
"""Seconds of a frame of WORLD."""
VERSION = 1
"""Of what is kept in the cache."""
_VOWELS = frozenset("aeiouAEIOU@3V0Q")
_LEGATO = 0.97
"""How much of its note a syllable fills."""
_CONSONANTS = 0.45
"""The largest share of a note that consonants take."""
_VIBRATO, _VIBRATO_RATE, _VIBRATO_AFTER = 0.01, 5.5, 0.2
"""Depth relative to the pitch, in Hz, and seconds of a note before it sets in."""


@dataclass(frozen=True)
class Singer:
    """A voice of eSpeak NG, and what becomes of it."""

    voice: str
    """eSpeak NG's name, as in "en-us+f2"."""
    tonic: int
    """MIDI pitch about which this singer sings."""
    size: float = 1.0
    """Length of the vocal tract: above 1 all resonances lie lower."""
    breath: float = 0.0
    """How much of the voiced sound is noise, 0 to 1."""


class Phoneme(NamedTuple):
    """One sound of a word, in seconds."""

    start: float
    end: float
    vowel: bool


@dataclass(frozen=True, eq=False)
class Spoken:
    """A word as WORLD sees it."""

    phonemes: tuple[Phoneme, ...]
    voiced: np.ndarray  # bool [frames]
    envelope: Float[np.ndarray, "frames bins"]
    aperiodicity: Float[np.ndarray, "frames bins"]

    def syllables(self, count: int) -> list[tuple[Phoneme, ...]]:
        """The phonemes of each of so many syllables: a consonant between vowels belongs to the later one."""
        vowels = [i for i, phoneme in enumerate(self.phonemes) if phoneme.vowel] or [0]
        if len(vowels) < count:  # said in fewer syllables than are written: the last one is sung again
            return self.syllables(len(vowels)) + [(self.phonemes[vowels[-1]],)] * (count - len(vowels))
        groups = np.array_split(vowels, count)
        cuts = [max(int(group[0]) - 1, int(last[-1]) + 1) for last, group in pairwise(groups)]
        bounds = [0, *cuts, len(self.phonemes)]
        return [self.phonemes[a:b] for a, b in pairwise(bounds)]


class Sung(NamedTuple):
    """A note for a syllable; seconds and a MIDI pitch."""

    start: float
    end: float
    pitch: float


def sing(
    singer: Singer, words: Iterable[tuple[str, Sequence[Sung]]], seconds: float, vocabulary: tuple[str, ...]
) -> Float64[np.ndarray, " T"]:
    """Samples at `RATE` of words with a note for each of their syllables.

    vocabulary: all words that will ever be asked for, in a fixed order.
    Raises MissingDependencyError without eSpeak NG or WORLD.
    """
    world, bins = _world(), 513
    frames = round(seconds / FRAME)
    pitch = np.zeros(frames)
    envelope, aperiodicity = np.full((frames, bins), 1e-12), np.ones((frames, bins))
    for word, notes in words:
        spoken = hear(singer.voice, word, vocabulary)
        for phonemes, note in zip(spoken.syllables(len(notes)), notes, strict=True):
            target, source = _frames(phonemes, note, frames)
            source = source.clip(0, len(spoken.voiced) - 1)
            envelope[target], aperiodicity[target] = spoken.envelope[source], spoken.aperiodicity[source]
            pitch[target] = np.where(spoken.voiced[source], _glide(note, target * FRAME), 0.0)
    envelope = _resized(envelope, singer.size)
    aperiodicity = aperiodicity + singer.breath * (1 - aperiodicity)
    samples: np.ndarray = world.synthesize(pitch, envelope, aperiodicity, RATE, FRAME * 1000)
    return np.pad(samples, (0, max(0, round(seconds * RATE) - len(samples))))[: round(seconds * RATE)]


def _frames(phonemes: Sequence[Phoneme], note: Sung, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Which frames of the song a syllable fills, and with which frames of the word."""
    lengths = np.array([phoneme.end - phoneme.start for phoneme in phonemes])
    vowel = np.array([phoneme.vowel for phoneme in phonemes])
    room, rest = (note.end - note.start) * _LEGATO, lengths[~vowel].sum()
    if vowel.any():
        lengths = lengths * np.where(vowel, 1.0, min(1.0, _CONSONANTS * room / max(rest, 1e-9)))
        lengths[vowel] *= (room - lengths[~vowel].sum()) / lengths[vowel].sum()
    ends = note.start + np.concatenate([[0.0], lengths.cumsum()])
    said = np.array([phonemes[0].start, *(phoneme.end for phoneme in phonemes)])
    target = np.arange(round(ends[0] / FRAME), min(frames, round(ends[-1] / FRAME)))
    return target, np.interp(target * FRAME, ends, said / FRAME).astype(int)


def _glide(note: Sung, time: np.ndarray) -> np.ndarray:
    """The pitch in Hz over a note, with vibrato once it has lasted a while."""
    since = time - note.start
    depth = _VIBRATO * ((since - _VIBRATO_AFTER) / 0.2).clip(0, 1)
    swing: np.ndarray = 440 * 2 ** ((note.pitch - 69) / 12) * (1 + depth * np.sin(2 * np.pi * _VIBRATO_RATE * since))
    return swing


def _resized(envelope: np.ndarray, size: float) -> np.ndarray:
    """The spectral envelope [frames, bins] of a vocal tract that is longer by a factor."""
    if size == 1.0:
        return envelope
    place = np.arange(envelope.shape[1]) * size
    low = place.astype(int).clip(max=envelope.shape[1] - 2)
    part = (place - low).clip(0, 1)
    resized = np.exp((1 - part) * np.log(envelope[:, low]) + part * np.log(envelope[:, low + 1]))
    return np.ascontiguousarray(resized)


# What is said ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def hear(voice: str, word: str, vocabulary: tuple[str, ...]) -> Spoken:
    """A word of the vocabulary as a voice says it."""
    samples, phonemes = _said(voice, vocabulary)[word]
    world = _world()
    rough, time = world.dio(samples, RATE, f0_floor=60.0, frame_period=FRAME * 1000)
    pitch = world.stonemask(samples, rough, time, RATE)
    envelope = world.cheaptrick(samples, pitch, time, RATE, fft_size=1024).astype(np.float32)
    aperiodicity = world.d4c(samples, pitch, time, RATE, fft_size=1024).astype(np.float32)
    return Spoken(phonemes, pitch > 0, envelope, aperiodicity)


@lru_cache
def _said(voice: str, vocabulary: tuple[str, ...]) -> dict[str, tuple[np.ndarray, tuple[Phoneme, ...]]]:
    """Samples at `RATE` and phonemes of every word; kept in the cache folder."""
    key = hashlib.sha256(json.dumps([VERSION, voice, *vocabulary]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tunesmith", f"voice-{key}.npz")
    if not cache.exists():
        command = [sys.executable, "-m", __name__, voice, str(cache), *vocabulary]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MissingDependencyError(done.stderr.strip().splitlines()[-1])
    with np.load(cache) as kept:
        phonemes = json.loads(str(kept["phonemes"]))
        return {
            word: (kept[f"word {i}"].astype(np.float64) / 32768, tuple(Phoneme(*each) for each in phonemes[i]))
            for i, word in enumerate(vocabulary)
        }


def _world() -> Any:
    try:
        import pyworld
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Singing needs the vocoder WORLD; install it with `pip install tunesmith[singing]`."
        ) from error
    return pyworld


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("type", "message", "text_position", "length", "audio_position", "sample")),
        ("user", ctypes.c_void_p),
        ("id", _Id),
    ]


_END, _PHONEME = 0, 7  # espeak_EVENT_TYPE
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_SPEED, _WORD_GAP = 1, 7  # espeak_PARAMETER


class Speaker:
    """eSpeak NG, with one voice; one a process."""

    def __init__(self, voice: str, speed: int = 120) -> None:
        """speed: words per minute."""
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise MissingDependencyError("Singing needs eSpeak NG; install it with `apt-get install libespeak-ng1`.")
        self._library = library = ctypes.CDLL(name)
        self.rate = library.espeak_Initialize(_SYNCHRONOUS, 500, None, _PHONEME_EVENTS)
        if self.rate <= 0 or library.espeak_SetVoiceByName(voice.encode()):
            raise MissingDependencyError(
                f"eSpeak NG has no voice {voice!r}; install its data with `apt-get install espeak-ng-data`."
            )
        library.espeak_SetParameter(_SPEED, speed, 0)
        self._samples: list[np.ndarray] = []
        self._starts: list[tuple[float, str]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = kind(self._take)  # kept, or it would be collected
        library.espeak_SetSynthCallback(self._callback)

    def say(self, word: str) -> tuple[np.ndarray, list[Phoneme]]:
        """int16 samples at `rate`, and the phonemes without the silence at the end."""
        self._samples, self._starts = [], []
        text = word.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        samples = np.concatenate(self._samples)
        starts = [*self._starts, (len(samples) / self.rate, "_")]
        return samples, [
            Phoneme(start, end, not _VOWELS.isdisjoint(name))
            for (start, name), (end, _) in pairwise(starts)
            if name and name[0] not in "_|"
        ]

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _END:
            if events[i].type == _PHONEME:
                self._starts.append((events[i].audio_position / 1000, events[i].id.string.decode("utf-8", "ignore")))
            i += 1
        return 0


def _say_all(voice: str, file: Path, words: Sequence[str]) -> None:
    """Say the words in their order and write them down, at `RATE`."""
    speaker = Speaker(voice)
    said = [speaker.say(word) for word in words]
    samples = {
        f"word {i}": np.round(32767 * resample(wave[None] / np.float32(32768), speaker.rate, RATE)[0]).clip(
            -32768, 32767
        )
        for i, (wave, _) in enumerate(said)
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("wb") as opened:
        whole: Any = {name: wave.astype(np.int16) for name, wave in samples.items()}
        np.savez_compressed(opened, phonemes=json.dumps([phonemes for _, phonemes in said]), **whole)
    part.replace(file)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tunesmith.training.corpus.singing_voice VOICE FILE WORD...`; 2 for what can't be done."""
    voice, file, *words = sys.argv[1:] if arguments is None else arguments
    try:
        _say_all(voice, Path(file), words)
    except MissingDependencyError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
