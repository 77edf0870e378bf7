"""Short songs in files, each with a melody of its own, for tests of training data.

write_song(path, seconds=2.0, rate=8000, channels=1, seed=0)    of the format that the suffix says
small_folder(path)                                              six of them, described in metadata.jsonl
"""

import json
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

RATE = 8000


def melody(seconds: float, rate: int, channels: int, seed: int, noise: float = 0.01) -> Float32[np.ndarray, "T C"]:
    """Tones that come and go, and a little noise; the sides differ."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    sides = []
    for _ in range(channels):
        pitches, speeds = random.uniform(100, 0.3 * rate, 4), random.uniform(0.3, 3, 4)
        tones = [
            np.sin(2 * np.pi * f * time) * np.sin(2 * np.pi * s * time) for f, s in zip(pitches, speeds, strict=True)
        ]
        sides.append(0.1 * sum(tones) + random.normal(0, noise, len(time)))
    return np.stack(sides, 1).astype(np.float32)


def write_song(path: Path, seconds: float = 2.0, rate: int = RATE, channels: int = 1, seed: int = 0) -> Path:
    """Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    by_av = path.suffix in (".m4a", ".aac")
    samples = melody(seconds, rate, channels, seed, noise=0.0 if by_av else 0.01)  # decoders of AAC invent noise anew
    if by_av:
        _by_av(path, samples, rate)
    elif path.suffix == ".opus":
        soundfile.write(path, samples, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, samples, rate, **({"bitrate_mode": "VARIABLE"} if path.suffix == ".mp3" else {}))
    return path


def small_folder(folder: Path, songs: int = 6, seconds: float = 2.0, **options: int) -> Path:
    """Songs 0.flac, 1.flac, ... and what is known of them."""
    rows = []
    for i in range(songs):
        write_song(folder / f"{i}.flac", seconds, seed=i, **options)
        rows.append(
            {"file_name": f"{i}.flac", "text": f"song {i}", "artist": "Salt", "genre": "country", "lyrics": "la " * i}
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _by_av(path: Path, samples: Float32[np.ndarray, "T C"], rate: int) -> None:
    import av

    layout = ("mono", "stereo")[samples.shape[1] - 1]
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else "adts") as file:
        stream = file.add_stream("aac", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.rate = rate
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
