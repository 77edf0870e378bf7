import struct
import zlib

import numpy as np
import soundfile
import torch

import listen

RATE = 16000


def sine(seconds=2.0, frequency=1000.0):
    return 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * RATE)) / RATE)


def decode(data):
    """A PNG of unfiltered RGB rows -> pixels."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], place = body, place + 12 + size
    columns, rows = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, 1 + 3 * columns)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:].reshape(rows, columns, 3)


def test_png_round_trip():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode(listen.png(pixels)), pixels)


def test_a_sine_is_one_bright_line():
    levels = listen.spectrogram(sine(), RATE)
    assert (levels.argmax(0) == levels[:, 0].argmax()).all()
    assert -7 < levels.max() < -4  # half of full scale
    pixels = listen.picture(levels, 2.0, RATE)
    assert pixels.shape == (2 * len(levels), levels.shape[1], 3)
    brightest = pixels[:, 20].astype(int).sum(1).argmax()
    assert brightest == pixels.shape[0] - 2 * (levels[:, 0].argmax() + 1)


def test_the_command(tmp_path, monkeypatch, capsys):
    wav, picture = tmp_path / "a.wav", tmp_path / "a.png"
    soundfile.write(wav, sine().numpy(), RATE)
    monkeypatch.setattr("sys.argv", ["listen.py", str(wav), "--png", str(picture)])
    listen.main()
    printed = capsys.readouterr().out
    assert "2.00 s at 16000 Hz" in printed
    assert "verdict     clipped" in printed  # a sine's crest is 3 dB, below that of any music
    assert decode(picture.read_bytes()).shape[2] == 3
