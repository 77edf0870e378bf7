import struct

import numpy as np
import pytest
import torch

from analysers import checkpoint, musicnn
from analysers.pitch_and_pulse import Essentia, tonic_number

RATE = 16000


def varint(number):
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def message(**fields):
    """A protocol buffer; f1=..., integers or bytes."""
    parts = []
    for name, value in fields.items():
        number = int(name[1:])
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


def block(pairs):
    """Keys are written in full but for the prefix that they share with the key before."""
    data, last = b"", b""
    for key, value in pairs:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return data + struct.pack("<II", 0, 1)


def table(pairs):
    data = block(pairs)
    index = block([(b"z", varint(0) + varint(len(data)))])
    trailer = b"\0" + b"cccc"
    handles = varint(0) + varint(0) + varint(len(data) + 5) + varint(len(index))
    return data + trailer + index + trailer + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def test_read_checkpoint_by_hand(tmp_path):
    kernel, steps = np.arange(6, dtype="<f4").reshape(2, 3), np.arange(40, dtype="<i8")
    store = steps.tobytes() + kernel.tobytes()
    shape = message(f2=message(f1=2)) + message(f2=message(f1=3))
    entry = message(f1=1, f2=shape, f4=320, f5=24) + varint(6 << 3 | 5) + b"cccc"
    (tmp_path / "index").write_bytes(
        table([(b"", b"header"), (b"dense/kernel", entry), (b"dense/step", message(f1=9, f5=320))])
    )
    (tmp_path / "data").write_bytes(store)
    tensors = checkpoint.read_checkpoint(tmp_path / "index", tmp_path / "data")
    assert list(tensors) == ["dense/kernel"]
    np.testing.assert_array_equal(tensors["dense/kernel"], kernel)


def test_what_is_no_table_is_refused():
    good = table([(b"key", b"value")])
    assert list(checkpoint.read_table(good)) == [(b"key", b"value")]
    with pytest.raises(ValueError, match="no sorted string table"):
        list(checkpoint.read_table(good[:-1]))
    compressed = bytearray(good)
    compressed[good.index(b"\0cccc")] = 1
    with pytest.raises(ValueError, match="compressed"):
        list(checkpoint.read_table(bytes(compressed)))


def test_log_mel_of_a_sine_peaks_in_its_band():
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    mel = musicnn.log_mel(sine)
    assert mel.shape == (1 + RATE // 256, 96)
    # Half the rate is 45.25 mel on Slaney's scale and 1000 Hz is 15 mel: 15 / 45.25 * 97 - 1 = 31.2.
    assert mel[30].argmax() == 31
    assert musicnn.log_mel(torch.zeros(RATE)).abs().max() == 0


@pytest.mark.parametrize(("seconds", "count"), [(3, 2), (2.99, 1), (6, 3), (10, 4)])
def test_patches_cover_the_clip(seconds, count):
    audio = torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(0))
    mel, patches = musicnn.log_mel(audio), musicnn.patches(audio)
    assert patches.shape == (count, 187, 96)
    torch.testing.assert_close(patches[0], mel[:187])
    torch.testing.assert_close(patches[-1], mel[-187:])


def test_musicnn_equals_the_original():
    """Probabilities that the package computed with TensorFlow 2.15 for the same sound."""
    weights = musicnn.installed_weights()
    if weights is None:
        pytest.skip("musicnn is not installed (pip install --no-deps musicnn)")
    time = torch.arange(4 * RATE, dtype=torch.float64) / RATE
    pluck = 0.3 * torch.sin(2 * torch.pi * 440 * time) * torch.exp(-6 * (time % 0.5))
    sound = (pluck + 0.2 * torch.sin(2 * torch.pi * (200 + 100 * time) * time)).float()
    tags, embeddings = musicnn.MusicNN(weights).hear(sound)
    expected = {"flute": [0.73606, 0.87934], "slow": [0.20956, 0.30337], "electronic": [0.01543, 0.01977]}
    for tag, values in expected.items():
        assert tags[:, musicnn.TAGS.index(tag)].tolist() == pytest.approx(values, abs=2e-5)
    assert embeddings[0, :4].tolist() == pytest.approx([-0.08, -0.0329, -0.0923, -0.1861], abs=1e-4)


def test_essentia_hears_a_plain_cadence():
    pytest.importorskip("essentia", reason="essentia is not installed (pip install essentia; AGPL, a test tool only)")
    beat = np.arange(RATE // 2) / RATE  # 120 bpm
    chords = [(60, 64, 67), (65, 69, 72), (67, 71, 74), (60, 64, 67)] * 5
    clip = np.concatenate(
        [
            sum(np.sin(2 * np.pi * 440 * 2 ** ((n - 69) / 12) * beat) for n in chord) * np.exp(-5 * beat)
            for chord in chords
        ]
    )
    ears = Essentia(RATE)
    assert ears.key(clip * 0.2) == (0, "major")
    assert ears.tempo(clip * 0.2) == pytest.approx(120, rel=0.02)


@pytest.mark.parametrize(("name", "number"), [("C", 0), ("Eb", 3), ("D#", 3), ("B", 11)])
def test_tonic_number(name, number):
    assert tonic_number(name) == number
