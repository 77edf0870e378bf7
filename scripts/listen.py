"""Listen with numbers: level, silence, clipping, noise and onsets of a sound file, and its spectrogram as a picture.

python scripts/listen.py song.wav --png song.png
"""

import argparse
import struct
import zlib
from pathlib import Path

import numpy as np
import soundfile
import torch

from tunesmith.evaluation.codec import decibels, mel_edges, mel_filters, power_spectrum
from tunesmith.evaluation.sanity import measure, problems

# Dark to light: black, violet, red, orange, pale yellow, at equal steps of level.
_COLOURS = np.array([[0, 0, 8], [60, 15, 110], [170, 45, 95], [245, 125, 30], [252, 250, 180]], dtype=float)
_LOWEST_DB, _BANDS, _WIDTH = -74.0, 192, 1000
_CELL = 2  # pixels of height that a band takes


def spectrogram(audio: torch.Tensor, rate: int) -> np.ndarray:
    """[T] -> levels in dBFS [bands, columns], low bands first, at most 1000 columns."""
    window = 2048 if rate < 32000 else 4096
    power = mel_filters(rate, window, _BANDS) @ power_spectrum(audio, window)
    step = -(-power.shape[1] // _WIDTH)
    power = torch.nn.functional.max_pool1d(power[None], step, ceil_mode=True)[0]
    return decibels(power, _LOWEST_DB).numpy()


def picture(levels: np.ndarray, seconds: float, rate: int) -> np.ndarray:
    """Levels -> pixels [rows, columns, 3], high bands on top, with ticks at each second and at 250, 1000, 4000 Hz."""
    place = (np.clip(levels, _LOWEST_DB, 0) / -_LOWEST_DB + 1) * (len(_COLOURS) - 1)
    below = np.minimum(place.astype(int), len(_COLOURS) - 2)
    pixels = _COLOURS[below] + (place - below)[..., None] * (_COLOURS[below + 1] - _COLOURS[below])
    pixels = pixels[::-1].repeat(_CELL, axis=0)
    for second in range(1, int(seconds) + 1):
        column = int(second / seconds * pixels.shape[1])
        pixels[-6:, column - 1 : column] = 255
    edges = mel_edges(rate, _BANDS).numpy()
    for frequency in (250, 1000, 4000):
        row = pixels.shape[0] - int(np.searchsorted(edges, frequency)) * _CELL
        pixels[max(row, 0), :12] = 255
    return pixels.round().astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """RGB pixels [rows, columns, 3] as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns, _ = pixels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)  # each row begins with its filter: none
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")


def report(audio: torch.Tensor, rate: int) -> str:
    """What a person would want to know before opening the file."""
    found = measure(audio, rate)
    lines = [
        f"{len(audio) / rate:.2f} s at {rate} Hz",
        f"level       {found.rms_dbfs:7.1f} dBFS   crest {found.crest_db:.1f} dB",
        f"silent      {found.silent_share:7.1%} of the time",
        f"clipped     {found.clipped_share:7.2%} of the samples",
        f"flatness    {found.flatness:7.3f}   (tones 0, white noise 0.56)",
        f"onsets      {found.onsets_per_second:7.2f} per second",
        f"verdict     {', '.join(problems(found)) or 'sound'}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--png", type=Path, help="write the spectrogram here")
    options = parser.parse_args()
    samples, rate = soundfile.read(options.file, dtype="float32", always_2d=True)
    audio = torch.from_numpy(samples.mean(1))
    print(report(audio, rate))
    if options.png:
        options.png.write_bytes(png(picture(spectrogram(audio, rate), len(audio) / rate, rate)))


if __name__ == "__main__":
    main()
