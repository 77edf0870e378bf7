"""Audio in memory and in files: `Clip` reads, writes, resamples, remixes, levels, plays and shows itself; `Sound` is a
file that is read in parts.

This is the only file that touches audio files.  The recipe of a generated song (model, versions, settings, seed)
travels inside the file as ASCII JSON: in the comment of flac, ogg and mp3, and in wav in a RIFF chunk of our own, which
other programs skip.

How loud files are.  `save`, `play` and the notebook player bring a clip to -14 LUFS (ITU-R BS.1770-4), the level of the
streaming services, with one gain for the whole clip: no limiter, no compressor.  The gain is held back where the true
peak would pass -1 dBFS, so nothing ever clips; very quiet clips (below -50 LUFS) are left alone.  Other strategies:
`peak`, `rms`, `none` (only turned down, if it would clip) and `clip` (samples as they are, cut at full scale).
"""

import base64
import io
import json
import math
import os
import secrets
import struct
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, BinaryIO, Literal, get_args, no_type_check

import numpy as np
from jaxtyping import Complex128, Float32, Float64

from tunesmith.errors import AudioFileError, MissingDependencyError, RequestError

Samples = Float32[np.ndarray, "C T"]
Strategy = Literal["loudness", "peak", "rms", "none", "clip"]

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
"""Suffix of a file that can be written -> libsndfile's name of its format."""
READABLE = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".m4a", ".aac")
"""Suffixes of files that can be read; the last two with the package av."""
BY_AV = (".m4a", ".aac")
RATES = (1000, 1_000_000)
"""No audio file has fewer or more samples per second."""
BLOCK = 2**18
"""Samples that are read or written at once."""
RUN_UPS = {"MP3": 16 * 1152, "OGG": 2 * 8192}
"""Samples that are decoded before the place that is wanted; other formats need none."""
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
HOLDS: dict[str, tuple[Container[int], int]] = {
    "WAV": (range(1, 2**31), 1024),
    "FLAC": (range(1, 655_351), 8),
    "OGG": (range(1, 200_001), 255),
    "MP3": (MP3_RATES, 2),
}
"""The sample rates that a format can hold, and how many channels."""
LOUDNESS = -14.0
"""Target of the strategy `loudness`, LUFS."""
RMS = -18.0
"""Target of the strategy `rms`, dB of full scale."""
CEILING = -1.0
"""No true peak passes this, dB of full scale; the slack is for the overshoot of lossy formats."""
QUIETEST = -50.0
"""What is quieter than this (LUFS) is not turned up: that would only bring up noise."""
RECIPE_CHUNK = b"tsmh"
"""Id of our RIFF chunk."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A piece of audio: samples (full scale is 1), samples per second, and how it was made, if tunesmith made it.

    `clip[2.5:5]` is the part from second 2.5 to second 5; it has no recipe, for a part can't be repeated.
    """

    samples: Samples
    rate: int
    recipe: dict[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        samples = np.ascontiguousarray(np.atleast_2d(self.samples), dtype=np.float32)
        if samples.ndim != 2 or 0 in samples.shape:
            raise RequestError(f"Samples have the shape [channels, samples], not {list(samples.shape)}.")
        if not np.isfinite(samples).all():
            raise RequestError("Some samples are not finite numbers (NaN or infinity); an audio clip can't hold them.")
        if self.rate < 1:
            raise RequestError(f"The rate is {self.rate}; it must be at least 1 sample per second.")
        object.__setattr__(self, "samples", samples)

    @classmethod
    def read(cls, path: str | Path, seconds: float | int | None = None) -> "Clip":
        """Read a file (wav, flac, ogg, opus, mp3, aiff, ...), or its first `seconds`.

        m4a and aac need the package av.  Raises AudioFileError, MissingDependencyError.
        """
        path = Path(path)
        if path.suffix.lower() in BY_AV:
            with Sound(path) as sound:
                whole = sound.read(0, sound.frames if seconds is None else math.ceil(seconds * sound.rate), short=True)
            return cls(whole, sound.rate)
        with _opened(path) as stream, _decoder(path, stream) as sound:
            rate, comment = int(sound.samplerate), str(sound.comment)
            if not RATES[0] <= rate <= RATES[1]:
                raise AudioFileError(f"{str(path)!r} says that it has {rate} samples per second; it is damaged.")
            samples = _decoded(path, sound, None if seconds is None else math.ceil(seconds * rate))
        if not np.isfinite(samples).all():
            raise AudioFileError(f"{str(path)!r} holds samples that are not finite numbers (NaN or infinity).")
        return cls(samples, rate, _parse_recipe(_wav_chunk(path) or comment))

    @property
    def channels(self) -> int:
        """1 is mono, 2 is stereo."""
        return int(self.samples.shape[0])

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return float(self.samples.shape[1] / self.rate)

    def __getitem__(self, part: slice) -> "Clip":
        """The part between two times in seconds."""
        if not isinstance(part, slice) or part.step is not None:
            raise RequestError("Cut a clip with clip[start:stop], both in seconds.")
        if not all(t is None or math.isfinite(t) for t in (part.start, part.stop)):
            raise RequestError(f"Cut a clip between times in seconds, not at {part.start} and {part.stop}.")
        start, stop = (None if t is None else round(t * self.rate) for t in (part.start, part.stop))
        return replace(self, samples=self.samples[:, start:stop], recipe=None)

    def resample(self, rate: int) -> "Clip":
        """The same sound at another rate; round(duration * rate) samples.  Raises AudioFileError."""
        if rate == self.rate:
            return self
        if not RATES[0] <= rate <= RATES[1]:
            raise AudioFileError(
                f"Sound can be resampled to {RATES[0]} to {RATES[1]} samples per second, not to {rate}."
            )
        length = max(1, round(self.samples.shape[1] * rate / self.rate))
        samples = resample(self.samples, self.rate, rate)[:, :length]
        missing = length - samples.shape[1]
        return replace(self, samples=np.pad(samples, ((0, 0), (0, missing))), rate=rate)

    def remix(self, channels: int) -> "Clip":
        """To mono: the mean.  From mono to more: the same in each.  From many to two: the mean in both."""
        if channels == self.channels:
            return self
        mono = self.samples.mean(0, keepdims=True)
        return replace(self, samples=np.repeat(mono, channels, axis=0))

    @property
    def loudness(self) -> float:
        """Integrated loudness in LUFS (ITU-R BS.1770-4, gated); -inf for silence."""
        return _loudness(self.samples, self.rate)

    @property
    def peak(self) -> float:
        """True peak in dB of full scale (BS.1770-4 annex 2: at 4 times the rate); -inf for silence."""
        return _decibels(_true_peak(self.samples))

    @property
    def rms(self) -> float:
        """Root mean square in dB of full scale; -inf for silence."""
        return _decibels(float(np.sqrt(np.mean(np.square(self.samples, dtype=np.float64)))))

    def level(self, strategy: Strategy = "loudness") -> "Clip":
        """The clip as loud as the strategy says (module docstring); never above the ceiling, but with `clip`."""
        if strategy == "clip":
            return replace(self, samples=self.samples.clip(-1, 1))
        if strategy not in get_args(Strategy):
            raise RequestError(f"There is no level {strategy!r}; known are {', '.join(get_args(Strategy))}.")
        gain = self._gain(strategy)
        return self if gain == 0 else replace(self, samples=self.samples * np.float32(10 ** (gain / 20)))

    def _gain(self, strategy: Strategy) -> float:
        """In dB."""
        if strategy == "none":
            return min(0.0, -self.peak)
        loudness = self.loudness
        wanted = {"loudness": LOUDNESS - loudness, "peak": math.inf, "rms": RMS - self.rms}[strategy]
        gain = min(wanted, CEILING - self.peak)
        return 0.0 if gain > 0 and loudness < QUIETEST else gain

    def save(self, path: str | Path, level: Strategy = "loudness") -> Path:
        """Write wav, flac (16 bit), ogg or mp3, as the suffix says; the file appears whole or not at all.

        Raises AudioFileError.
        """
        path = check_writable(path)
        clip, file_format = self.level(level), FORMATS[path.suffix.lower()]
        data = clip.encode(file_format)
        if level != "clip" and (overshoot := _overshoot(data)) > 1:  # lossy formats can't keep peaks exactly
            data = replace(clip, samples=clip.samples * np.float32(0.95 / overshoot)).encode(file_format)
        write_atomically(path, data)
        return path

    def encode(self, file_format: str = "WAV") -> bytes:
        """The bytes of a file, the recipe inside; samples as they are."""
        text = "" if self.recipe is None else json.dumps(self.recipe)
        soundfile, buffer, is_wav = _library("soundfile"), io.BytesIO(), file_format == "WAV"
        _check_fits(self, file_format)
        quality = {"compression_level": 0.1, "bitrate_mode": "VARIABLE"} if file_format == "MP3" else {}
        with soundfile.SoundFile(buffer, "w", self.rate, self.channels, format=file_format, **quality) as sound:
            if text and not is_wav:
                sound.comment = text
            for start in range(0, self.samples.shape[1], self.rate):  # one huge write overflows the Vorbis encoder
                sound.write(self.samples[:, start : start + self.rate].T)
        return _with_chunk(buffer.getvalue(), text.encode("ascii")) if text and is_wav else buffer.getvalue()

    def play(self, level: Strategy = "loudness", wait: bool = True) -> None:
        """Play on the default device.

        Raises MissingDependencyError without the package sounddevice, AudioFileError without a device.
        """
        try:
            import sounddevice
        except (ImportError, OSError):  # OSError: the package is there, the PortAudio library is not
            raise MissingDependencyError(
                "Playing needs the package sounddevice and the PortAudio library: "
                "pip install 'tunesmith[play]', and on Debian apt install libportaudio2."
            ) from None
        try:
            sounddevice.play(self.level(level).samples.T, self.rate, blocking=wait)
        except sounddevice.PortAudioError as error:
            raise AudioFileError(f"There is no audio device to play on ({error}); save the clip instead.") from None

    def _repr_html_(self) -> str:
        """A player for notebooks, with the audio inside the page."""
        data = base64.b64encode(self.level().encode("WAV")).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'


no_type_check(Clip.__init__)  # which checks its own types


def resample(samples: Samples, old: int, new: int) -> Float32[np.ndarray, "C _"]:
    """The same sound at another rate, a sample more or less than the ratio says."""
    return np.asarray(_library("soxr").resample(samples.T, old, new), dtype=np.float32).reshape(-1, len(samples)).T


class Sound:
    """An audio file that is open to be read in parts, exact to the sample: a part equals that part of the whole.

    Not to be shared between threads or, when open, between processes.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises AudioFileError, and MissingDependencyError for m4a and aac without the package av."""
        self.path = Path(path)
        stream = _opened(self.path)
        try:
            kind = _AvParts if self.path.suffix.lower() in BY_AV else _SoundfileParts
            self._parts: _AvParts | _SoundfileParts = kind(self.path, stream)
            if not RATES[0] <= self.rate <= RATES[1]:
                raise AudioFileError(f"{str(path)!r} says that it has {self.rate} samples per second; it is damaged.")
        except BaseException:
            stream.close()
            raise
        self._stream = stream

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self._parts.rate

    @property
    def channels(self) -> int:
        """1 is mono, 2 is stereo."""
        return self._parts.channels

    @property
    def frames(self) -> int:
        """Samples per channel, as the file says; of m4a and aac they are counted, which decodes all."""
        return self._parts.frames

    def read(self, start: int, count: int, short: bool = False) -> Samples:
        """`count` samples of each channel from `start` on: [C, count]; fewer where the file ends, if `short` allows.

        Raises AudioFileError for a damaged part, for samples that aren't finite numbers, and for a file that ends too
        early.
        """
        samples = self._parts.read(start, count)
        if samples.shape[1] < count and not (short and samples.shape[1]):
            raise AudioFileError(
                f"{str(self.path)!r} is damaged: it ends {count - samples.shape[1]} samples too early."
            )
        if not np.isfinite(samples).all():
            raise AudioFileError(f"{str(self.path)!r} holds samples that are not finite numbers (NaN or infinity).")
        return samples

    def blocks(self, count: int = BLOCK) -> Iterator[Samples]:
        """The whole file, `count` samples at a time.  Raises AudioFileError."""
        for start in range(0, self.frames, count):
            yield self.read(start, min(count, self.frames - start))

    def close(self) -> None:
        """Let go of the file."""
        self._parts.close()
        self._stream.close()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self.close()

    def __enter__(self) -> "Sound":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _SoundfileParts:
    """Parts of what libsndfile decodes; it seeks to the sample in every format, but some need a run-up."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.sound = path, _decoder(path, stream)
        self.rate, self.channels = int(self.sound.samplerate), int(self.sound.channels)
        self.frames = int(self.sound.frames)

    def read(self, start: int, count: int) -> Samples:
        try:
            return np.ascontiguousarray(_part(self.sound, start, count).T)
        except (_library("soundfile").SoundFileError, RuntimeError) as error:
            raise AudioFileError(f"{str(self.path)!r} is damaged: {error}") from None

    def close(self) -> None:
        self.sound.close()


def _part(sound: Any, start: int, count: int) -> Float32[np.ndarray, "_ C"]:
    """`count` samples from `start` on, or what there is of them.

    An mp3's frames borrow bits from those before, and Vorbis' overlap: without a run-up, what is first decoded is
    noise.  (They need one also where the last read ended, for soundfile seeks there.)
    """
    if (run_up := 0 if sound.subtype == "OPUS" else RUN_UPS.get(sound.format, 0)) == 0:
        sound.seek(start)
        return np.asarray(sound.read(count, dtype="float32", always_2d=True))
    before = max(start - run_up, 0)
    with _hushed():
        sound.seek(before)
        return np.asarray(sound.read(start - before + count, dtype="float32", always_2d=True)[start - before :])


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing on the process's stderr: mpg123 writes a line there for every frame whose bits it hasn't seen."""
    with _HUSH, Path(os.devnull).open("wb") as nothing:
        own = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)


_HUSH = Lock()  # two threads at it would restore each other's nothing


class _AvParts:
    """Parts of what FFmpeg decodes.  A bare .aac has no index, so it is decoded from its beginning each time."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.av = path, _library("av", "m4a and aac files need the package av: pip install 'tunesmith[av]'.")
        try:
            self.container = self.av.open(stream, "r")
            audio = self.container.streams.audio[0]
        except (self.av.FFmpegError, IndexError):
            raise AudioFileError(f"{str(path)!r} is not audio that can be read.") from None
        self.audio, self.rate, self.channels = audio, int(audio.rate), int(audio.channels)
        self.seekable = path.suffix.lower() != ".aac"

    @cached_property
    def frames(self) -> int:
        return max((at + samples.shape[1] for at, samples in self._decoded(0)), default=0)

    def read(self, start: int, count: int) -> Samples:
        found: list[Samples] = []
        for at, samples in self._decoded(start):
            found.append(samples[:, max(start - at, 0) : max(start + count - at, 0)])
            if at + samples.shape[1] >= start + count:
                break
        return np.concatenate(found, axis=1) if found else np.zeros((self.channels, 0), np.float32)

    def _decoded(self, start: int) -> Iterator[tuple[int, Samples]]:
        """Pieces from a moment before `start` on (a codec needs what comes before), and where each begins."""
        base, position = self.audio.time_base, 0
        before = max(start / self.rate - 0.2, 0.0) if self.seekable else 0.0
        try:
            self.container.seek(int(before / base), stream=self.audio)
            for frame in self.container.decode(self.audio):
                if self.seekable and frame.pts is not None:
                    position = round(frame.pts * base * self.rate)
                yield position, _full_scale(frame.to_ndarray(), self.channels)
                position += frame.samples
        except self.av.FFmpegError as error:
            raise AudioFileError(f"{str(self.path)!r} is damaged: {error}.") from None

    def close(self) -> None:
        self.container.close()


def _full_scale(samples: np.ndarray, channels: int) -> Samples:
    """Planar or interleaved samples of any type as [C, n] in -1..1."""
    if len(samples) != channels:
        samples = samples.reshape(-1, channels).T
    scale = 1.0 if samples.dtype.kind == "f" else 1.0 / -float(np.iinfo(samples.dtype).min)
    return np.asarray(samples * scale, dtype=np.float32)


def check_writable(path: str | Path) -> Path:
    """The path, if an audio file can be written there; asked before the work begins.  Raises AudioFileError."""
    try:
        path = Path(path).expanduser()
    except RuntimeError:
        raise AudioFileError(f"{str(path)!r} names the home of a user that there isn't.") from None
    if path.suffix.lower() not in FORMATS:
        raise AudioFileError(f"{str(path)!r} has no known audio format; end it with {', '.join(FORMATS)}.")
    if not path.parent.is_dir():
        raise AudioFileError(f"There is no folder {str(path.parent)!r} to write {path.name!r} to; make it first.")
    if path.is_dir():
        raise AudioFileError(f"{str(path)!r} is a folder; name a file.")
    for place in (path.parent, path):
        if place.exists() and _read_only(place):
            raise AudioFileError(f"{str(path)!r} can't be written: {str(place)!r} is read-only.")
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """The file is whole or absent, whatever happens meanwhile.  Raises AudioFileError (disk full, ...)."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise AudioFileError(f"{str(path)!r} can't be written: {error.strerror}.") from None
    finally:
        with suppress(OSError):  # a name that is too long, say, which the sentence above has told
            part.unlink()


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe inside a file, if tunesmith made it.  Raises AudioFileError."""
    path = Path(path)
    with _opened(path) as stream, _decoder(path, stream) as sound:
        comment = str(sound.comment)
    return _parse_recipe(_wav_chunk(path) or comment)


def _read_only(path: Path) -> bool:
    """A mode without any write bit counts, also for root."""
    return not os.access(path, os.W_OK) or not path.stat().st_mode & 0o222


def _library(name: str, without: str | None = None) -> ModuleType:
    """Imported late: machines that only train on codes do without."""
    try:
        return import_module(name)
    except (ImportError, OSError):
        sentence = without or f"Audio files need the package {name}: pip install {name}."
        raise MissingDependencyError(sentence) from None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.expanduser().open("rb")
    except FileNotFoundError:
        raise AudioFileError(f"There is no audio file {str(path)!r}.") from None
    except IsADirectoryError:
        raise AudioFileError(f"{str(path)!r} is a folder, not an audio file.") from None
    except (OSError, ValueError) as error:
        raise AudioFileError(f"{str(path)!r} can't be read: {error}.") from None


def _decoder(path: Path, stream: BinaryIO) -> Any:
    """A soundfile.SoundFile."""
    soundfile = _library("soundfile")
    if os.fstat(stream.fileno()).st_size == 0:
        raise AudioFileError(f"{str(path)!r} is empty.")
    try:
        return soundfile.SoundFile(stream)
    except (soundfile.SoundFileError, TypeError):  # TypeError: headerless .raw, whose rate nobody knows
        raise AudioFileError(f"{str(path)!r} is not audio that can be read; use wav, flac, ogg or mp3.") from None


def _decoded(path: Path, sound: Any, frames: int | None) -> Samples:
    """Read block by block: a damaged header may promise more than any memory holds."""
    blocks: list[Samples] = []
    done, wanted = 0, math.inf if frames is None else frames
    try:
        while done < wanted and len(block := _part(sound, done, int(min(wanted - done, BLOCK)))):
            blocks.append(block)
            done += len(block)
    except _library("soundfile").SoundFileError as error:
        raise AudioFileError(f"{str(path)!r} is damaged: {error}") from None
    if not blocks:
        raise AudioFileError(f"{str(path)!r} holds no audio: its length is 0.")
    return np.ascontiguousarray(np.concatenate(blocks).T)


def _check_fits(clip: Clip, file_format: str) -> None:
    (rates, channels), name = HOLDS[file_format], file_format.lower()
    if clip.rate not in rates:
        raise AudioFileError(f"{name} can't hold {clip.rate} samples per second; call resample(48000) first.")
    if clip.channels > channels:
        raise AudioFileError(f"{name} can't hold {clip.channels} channels, at most {channels}; call remix(2) first.")


def _overshoot(data: bytes) -> float:
    """The largest sample of an encoded file."""
    return float(np.abs(_library("soundfile").read(io.BytesIO(data), dtype="float32")[0]).max())


# The recipe -----------------------------------------------------------------------------------------------------------


def _parse_recipe(text: str | bytes) -> dict[str, Any] | None:
    """Comments of other programs are no recipes."""
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) and "tunesmith" in recipe else None


def _with_chunk(wav: bytes, text: bytes) -> bytes:
    """Append our chunk to a RIFF file (id, length, text, padded to an even length) and correct the whole's length."""
    body = wav + RECIPE_CHUNK + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    return body[:4] + struct.pack("<I", len(body) - 8) + body[8:]


def _wav_chunk(path: Path) -> bytes:
    """The text of our chunk, or nothing."""
    with _opened(path) as stream:
        riff = stream.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            return b""
        while len(header := stream.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == RECIPE_CHUNK:
                return stream.read(length)
            stream.seek(length + length % 2, os.SEEK_CUR)
    return b""


# Loudness -------------------------------------------------------------------------------------------------------------


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf


def _true_peak(samples: Samples) -> float:
    """At least the largest sample; between samples, as band-limited interpolation sees it."""
    stream = _library("soxr").ResampleStream(1, 4, len(samples), dtype="float32")
    peak = float(np.abs(samples).max())
    for start in range(0, samples.shape[1], 2**18):
        stop = start + 2**18
        finer = stream.resample_chunk(samples[:, start:stop].T, last=stop >= samples.shape[1])
        peak = max(peak, float(np.abs(finer).max(initial=0.0)))
    return peak


def _k_response(rate: int, length: int) -> Complex128[np.ndarray, "_"]:
    """The K-weighting at the frequencies of a real FFT (BS.1770-4 annex 1, figures 2 and 4).

    The recommendation gives coefficients for 48 kHz only; these are its analogue filters, a high shelf of +4 dB above
    1.7 kHz and a high pass at 38 Hz, under the bilinear transform, which gives the same coefficients there.
    """
    z = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
    k, q, high = math.tan(math.pi * 1681.974450955533 / rate), 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    shelf = np.polyval([high - middle * k / q + k * k, 2 * (k * k - high), high + middle * k / q + k * k], z)
    shelf /= np.polyval([1 - k / q + k * k, 2 * (k * k - 1), 1 + k / q + k * k], z)
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    # The recommendation leaves the numerator 1, -2, 1 as it is, so the denominator is divided by its first term.
    first = 1 + k / q + k * k
    high_pass = (1 - z) ** 2 / np.polyval([(1 - k / q + k * k) / first, 2 * (k * k - 1) / first, 1], z)
    return np.asarray(shelf * high_pass)


def _k_weighted(samples: Samples, rate: int) -> Iterator[Float64[np.ndarray, "C _"]]:
    """The K-weighted signal minute by minute, for little memory; each sees the half second before it.

    The filter forgets far faster than that.
    """
    minute, context = 600 * _hop(rate), rate // 2
    for start in range(0, samples.shape[1], minute):
        before = min(start, context)
        piece = samples[:, start - before : start + minute]
        length = 1 << (piece.shape[1] + context).bit_length()
        filtered = np.fft.irfft(np.fft.rfft(piece, length) * _k_response(rate, length), length)
        yield filtered[:, before : piece.shape[1]]


def _hop(rate: int) -> int:
    """Blocks of 400 ms overlap by three quarters, so all sums are made of pieces of 100 ms."""
    return max(1, round(rate / 10))


def _loudness(samples: Samples, rate: int) -> float:
    """BS.1770-4: K-weighting, mean square in blocks, gates at -70 LUFS and 10 LU below the mean of what remains.

    Front channels weigh 1 each.  What is shorter than one block is one block.
    """
    hop = _hop(rate)
    squares = [np.square(piece).sum(0) for piece in _k_weighted(samples, rate)]
    energy = np.concatenate(squares)
    whole = len(energy) // hop
    if whole < 4:
        blocks = energy.mean(keepdims=True)
    else:
        hops = energy[: whole * hop].reshape(whole, hop).mean(1)
        blocks = np.lib.stride_tricks.sliding_window_view(hops, 4).mean(1)
    loud = blocks[blocks > _power(-70)]
    if len(loud):
        loud = loud[loud > loud.mean() / 10]
    return -0.691 + 10 * math.log10(loud.mean()) if len(loud) else -math.inf


def _power(lufs: float | int) -> float:
    return float(10 ** ((lufs + 0.691) / 10))
