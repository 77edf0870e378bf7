"""Clips and their files: what is written can be read, by us and by others; what can't be used is a sentence."""

import json
import math
import sys
import types
import wave
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import soundfile
from scipy import signal

from tunesmith.audio import CEILING, FORMATS, LOUDNESS, Clip, check_writable, read_recipe, write_atomically
from tunesmith.errors import AudioFileError, MissingDependencyError, RequestError

RATE = 16000
LONG_RECIPE = {"tunesmith": "0.1.0", "prompt": "smörgåsbord 🎵 of fiddles " * 2000, "seed": 7}


@pytest.fixture
def unchecked(monkeypatch):
    """Users have no run-time type checker; under pytest's flag it would speak before our sentences do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def tone(seconds=2.0, rate=RATE, hertz=440.0, amplitude=0.5, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    wave = amplitude * np.sin(2 * np.pi * hertz * time + np.arange(channels)[:, None])
    return Clip(wave.astype(np.float32), rate)


def noise(seconds=4.0, rate=RATE, channels=1, amplitude=0.1):
    samples = np.random.default_rng(0).normal(size=(channels, round(seconds * rate)))
    return Clip((amplitude * samples).astype(np.float32), rate)


def with_recipe(clip, recipe=LONG_RECIPE):
    return Clip(clip.samples, clip.rate, recipe)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*FORMATS, ".WAV"])
@pytest.mark.parametrize("channels", [1, 2])
def test_written_files_read_back_with_their_recipe(tmp_path, suffix, channels):
    clip = with_recipe(tone(channels=channels))
    path = clip.save(tmp_path / f"song{suffix}", level="none")
    back = Clip.read(path)
    assert (back.rate, back.channels, back.duration) == (RATE, channels, 2.0)
    assert back.recipe == read_recipe(path) == LONG_RECIPE
    exact = suffix.lower() in (".wav", ".flac")
    assert np.abs(back.samples - clip.samples).max() < (2**-15 if exact else 0.2)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_recipes_are_ascii_json_in_the_file(tmp_path):
    clip = with_recipe(tone())
    for suffix in (".flac", ".ogg", ".mp3"):
        with soundfile.SoundFile(clip.save(tmp_path / f"song{suffix}")) as sound:
            assert sound.comment.isascii()
            assert json.loads(sound.comment) == LONG_RECIPE


@pytest.mark.parametrize("length", range(1, 5))
def test_other_programs_read_our_wav(tmp_path, length):
    clip = with_recipe(tone(), {"tunesmith": "x" * length})
    path = clip.save(tmp_path / "song.wav", level="none")
    with wave.open(str(path)) as other:
        assert (other.getnframes(), other.getframerate(), other.getsampwidth()) == (2 * RATE, RATE, 2)
        pcm = np.frombuffer(other.readframes(-1), dtype="<i2")
    assert np.array_equal(pcm, soundfile.read(path, dtype="int16")[0])
    assert path.stat().st_size % 2 == 0
    assert int.from_bytes(path.read_bytes()[4:8], "little") == path.stat().st_size - 8


def test_comments_of_others_are_no_recipes(tmp_path):
    for comment in ("recorded at home", '{"title": "x"}', "[1]", None):
        with soundfile.SoundFile(tmp_path / "a.flac", "w", RATE, 1) as sound:
            if comment:
                sound.comment = comment
            sound.write(np.zeros(100))
        assert read_recipe(tmp_path / "a.flac") is None


def test_read_the_first_seconds_only(tmp_path):
    path = tone(seconds=3).save(tmp_path / "a.flac")
    assert Clip.read(path, seconds=0.5).duration == 0.5
    assert Clip.read(path, seconds=99).duration == 3


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_format_is_read(tmp_path, subtype):
    clip = tone()
    soundfile.write(tmp_path / "a.wav", clip.samples.T, RATE, subtype=subtype)
    assert np.abs(Clip.read(tmp_path / "a.wav").samples - clip.samples).max() < 0.03


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_every_rate_is_read_and_resampled(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate=rate).samples.T, rate)
    clip = Clip.read(tmp_path / "a.wav").resample(RATE)
    assert clip.rate == RATE
    assert clip.samples.shape == (1, 2 * RATE)
    middle = slice(RATE // 2, RATE)
    assert np.abs(clip.samples[:, middle] - tone().samples[:, middle]).max() < 1e-3


def write_bytes(data):
    return lambda path: path.write_bytes(data)


def write_samples(samples):
    return lambda path: soundfile.write(path, samples, RATE, subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("missing.wav", lambda path: None, "There is no audio file"),
        ("folder.wav", lambda path: path.mkdir(), "is a folder"),
        ("empty.wav", write_bytes(b""), "is empty"),
        ("text.wav", write_bytes(b"These are only words.\n" * 200), "is not audio that can be read"),
        ("text.mp3", write_bytes(b"These are only words.\n" * 200), "is not audio that can be read"),
        ("headerless.raw", write_bytes(bytes(1000)), "is not audio that can be read"),
        ("header.wav", write_bytes(b"RIFF\x24\0\0\0WAVE"), "is not audio that can be read"),
        ("nothing.wav", write_samples(np.zeros((0, 1))), "holds no audio"),
        ("nan.wav", write_samples(np.full((9, 1), np.nan)), "not finite numbers"),
        ("inf.wav", write_samples(np.full((9, 1), np.inf)), "not finite numbers"),
    ],
)
def test_unusable_files_are_sentences(tmp_path, name, make, sentence):
    make(tmp_path / name)
    with pytest.raises(AudioFileError, match=sentence) as caught:
        Clip.read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_no_system_allows():
    with pytest.raises(AudioFileError, match="can't be read"):
        Clip.read("a\0b.wav")


def test_truncated_files_keep_what_is_there_or_are_a_sentence(tmp_path):
    for suffix in FORMATS:
        path = noise().save(tmp_path / f"a{suffix}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        try:
            assert 0 < Clip.read(path).duration <= 4
        except AudioFileError as error:
            assert "\n" not in str(error)  # noqa: PT017  # either is right


def test_headers_that_promise_too_much(tmp_path):
    path = tone().save(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    for offset, sentence in ((24, "samples per second"), (40, None)):  # the rate; the length of the samples
        changed = data.copy()
        changed[offset : offset + 4] = b"\xff\xff\xff\x7f"
        path.write_bytes(changed)
        if sentence is None:
            assert Clip.read(path).duration < 2.1
        else:
            with pytest.raises(AudioFileError, match=sentence):
                Clip.read(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_are_read_or_are_a_sentence(tmp_path, suffix):
    whole = with_recipe(noise(1)).save(tmp_path / f"a{suffix}").read_bytes()
    random, path = np.random.default_rng(0), tmp_path / f"b{suffix}"
    for i in range(60):
        data = bytearray(whole)
        for _ in range(random.integers(1, 40)):
            data[random.integers(0, (64, 400, len(data))[i % 3])] = random.integers(0, 256)
        path.write_bytes(data)
        try:
            assert math.isfinite(Clip.read(path).resample(8000).duration)
        except AudioFileError as error:
            assert "\n" not in str(error)  # noqa: PT017  # either is right


def test_writable_paths(tmp_path):
    assert check_writable(tmp_path / "new.wav") == tmp_path / "new.wav"
    (tmp_path / "old.flac").touch()
    assert check_writable(str(tmp_path / "old.flac")) == tmp_path / "old.flac"
    assert check_writable("~/x.wav").is_absolute() == Path("~/x.wav").expanduser().is_absolute()


@pytest.mark.parametrize("name", ["song", "song.xyz", "song.wav.gz", "no/such/folder/song.wav", "folder.wav"])
def test_unwritable_paths_are_sentences(tmp_path, name):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioFileError) as caught:
        check_writable(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(AudioFileError):
        tone().save(tmp_path / name)


def test_read_only_places_are_sentences_also_for_root(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    old = tmp_path / "old.wav"
    old.write_bytes(b"keep me")
    locked.chmod(0o555)
    old.chmod(0o444)
    try:
        for path in (locked / "song.wav", old):
            with pytest.raises(AudioFileError, match="read-only"):
                tone().save(path)
    finally:
        locked.chmod(0o755)
    assert old.read_bytes() == b"keep me"


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "song.wav").mkdir()
    with pytest.raises(AudioFileError, match="can't be written"):
        write_atomically(tmp_path / "song.wav", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["song.wav"]


@pytest.mark.parametrize(
    ("name", "rate", "channels", "match"),
    [
        ("a.mp3", 50_000, 1, "mp3 can't hold 50000 samples per second"),
        ("a.mp3", 48_000, 6, "mp3 can't hold 6 channels, at most 2"),
        ("a.ogg", 400_000, 1, "ogg can't hold 400000 samples per second"),
        ("a.flac", 48_000, 9, "flac can't hold 9 channels, at most 8"),
        ("a.flac", 1_000_000, 1, "flac can't hold 1000000 samples"),
        ("a.wav", 48_000, 1100, "wav can't hold 1100 channels"),
    ],
)
def test_formats_say_what_they_cannot_hold(tmp_path, name, rate, channels, match):
    with pytest.raises(AudioFileError, match=match):
        Clip(np.zeros((channels, 100), np.float32), rate).save(tmp_path / name)


@pytest.mark.parametrize("rate", [0, -1, 2_000_000])
def test_rates_that_sound_cannot_have(rate):
    with pytest.raises(AudioFileError, match="can be resampled to 1000 to 1000000"):
        tone().resample(rate)


def test_times_that_are_none():
    with pytest.raises(RequestError, match="between times in seconds"):
        tone()[float("nan") :]


def test_the_home_of_nobody():
    with pytest.raises(AudioFileError, match="home of a user"):
        tone().save("~nobody-at-all/a.wav")


def test_without_soundfile_there_is_a_sentence(tmp_path, monkeypatch):
    path = tone().save(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingDependencyError, match="pip install soundfile"):
        Clip.read(path)


# Clips ----------------------------------------------------------------------------------------------------------------


def test_construction():
    assert Clip(np.zeros(5, dtype=np.float64), RATE).samples.shape == (1, 5)
    for samples in (np.zeros((1, 2, 3)), np.zeros((1, 0)), np.full((1, 3), np.nan)):
        with pytest.raises(RequestError):
            Clip(samples.astype(np.float32), RATE)
    with pytest.raises(RequestError, match="rate"):
        Clip(np.zeros((1, 3), np.float32), 0)


def test_parts_are_cut_in_seconds_and_have_no_recipe(unchecked):
    clip = with_recipe(tone(seconds=3))
    part = clip[0.5:2]
    assert part.duration == 1.5
    assert part.recipe is None
    assert np.array_equal(part.samples, clip.samples[:, RATE // 2 : 2 * RATE])
    assert clip[-1:].duration == 1
    for wrong in (slice(0, 1, 2), 3):
        with pytest.raises(RequestError):
            clip[wrong]
    with pytest.raises(RequestError):
        clip[9:]


def test_remix_takes_means_and_copies():
    stereo = Clip(np.array([[1.0, 0.0], [0.0, 0.5]], np.float32), RATE)
    assert stereo.remix(1).samples.tolist() == [[0.5, 0.25]]
    assert stereo.remix(1).remix(2).samples.tolist() == [[0.5, 0.25]] * 2
    assert stereo.remix(2) is stereo
    assert tone(channels=6).remix(2).samples.shape == (2, 2 * RATE)


@pytest.mark.parametrize("rate", [8000, 22050, 24000, 32000, 48000])
def test_resampled_lengths_are_exact(rate):
    assert tone(seconds=1.2345).resample(rate).samples.shape[1] == round(round(1.2345 * RATE) * rate / RATE)
    assert Clip(np.ones((1, 1), np.float32), 48000).resample(8000).samples.shape == (1, 1)


# Loudness -------------------------------------------------------------------------------------------------------------


def reference_loudness(samples, rate):
    """BS.1770-4 read slowly: filters as recursions with the coefficients for 48 kHz, blocks in a loop, two gates."""
    assert rate == 48000
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285], [1, -1.69065929318241, 0.73248077421585]
    high_pass = [1.0, -2.0, 1.0], [1, -1.99004745483398, 0.99007225036621]
    weighted = signal.lfilter(*high_pass, signal.lfilter(*shelf, samples.astype(np.float64)))
    starts = range(0, samples.shape[1] - 19200 + 1, 4800)
    power = np.array([(weighted[:, s : s + 19200] ** 2).mean(1).sum() for s in starts])
    loud = power[-0.691 + 10 * np.log10(power) > -70]
    gate = -0.691 + 10 * np.log10(loud.mean()) - 10
    loud = loud[-0.691 + 10 * np.log10(loud) > gate]
    return -0.691 + 10 * np.log10(loud.mean())


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [1.0, 5.05, 70.0])
def test_loudness_is_the_recommendations(channels, seconds):
    clip = noise(seconds=seconds, rate=48000, channels=channels)
    samples = clip.samples * np.linspace(0.0001, 1, clip.samples.shape[1], dtype=np.float32) ** 4
    assert Clip(samples, 48000).loudness == pytest.approx(reference_loudness(samples, 48000), abs=1e-3)


def test_loudness_of_the_calibration_tone():
    assert tone(seconds=5, rate=48000, hertz=997, amplitude=1).loudness == pytest.approx(-3.01, abs=0.02)
    assert tone(seconds=5, rate=32000, hertz=997, amplitude=1).loudness == pytest.approx(-3.01, abs=0.02)
    assert Clip(np.zeros((1, RATE), np.float32), RATE).loudness == -math.inf
    assert math.isfinite(tone(seconds=0.1).loudness)


def test_peaks_between_samples_are_seen():
    time = np.arange(48000)
    clip = Clip(np.sin(np.pi / 2 * time + np.pi / 4).astype(np.float32)[None], 48000)  # samples at +-0.707 only
    assert np.abs(clip.samples).max() < 0.71
    assert clip.peak == pytest.approx(0.0, abs=0.3)
    assert (
        Clip(np.zeros((1, 100), np.float32), RATE).peak == Clip(np.zeros((1, 100), np.float32), RATE).rms == -math.inf
    )


def test_levels(unchecked):
    quiet = noise(amplitude=0.01)
    assert quiet.level().loudness == pytest.approx(LOUDNESS, abs=0.01)
    assert quiet.level("peak").peak == pytest.approx(CEILING, abs=0.01)
    assert quiet.level("rms").rms == pytest.approx(-18, abs=0.01)
    assert quiet.level("none") is quiet
    assert np.abs(noise(amplitude=1).level("clip").samples).max() == 1
    with pytest.raises(RequestError, match="loudness, peak, rms"):
        quiet.level("louder")


@pytest.mark.parametrize("level", ["loudness", "peak", "rms", "none"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_files_never_clip(tmp_path, level, suffix):
    clicks = np.zeros((2, 3 * RATE), np.float32)
    clicks[:, ::4000] = 30.0
    clip = Clip(clicks + noise(3, channels=2, amplitude=0.01).samples, RATE)
    path = clip.save(tmp_path / f"a{suffix}", level=level)
    assert np.abs(soundfile.read(path)[0]).max() <= 1
    assert Clip.read(path).peak < 0.5


def test_silence_and_hiss_are_left_alone():
    silence = Clip(np.zeros((1, RATE), np.float32), RATE)
    hiss = noise(amplitude=1e-4)
    for level in ("loudness", "peak", "rms", "none"):
        assert silence.level(level) is silence
        assert hiss.level(level) is hiss


# Playing --------------------------------------------------------------------------------------------------------------


def test_playing_without_the_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependencyError, match="sounddevice"):
        tone().play()


def fake_sounddevice(monkeypatch, play):
    module = types.SimpleNamespace(play=play, PortAudioError=type("PortAudioError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def test_playing_hands_levelled_samples_to_the_device(monkeypatch):
    played = []
    fake_sounddevice(monkeypatch, lambda samples, rate, blocking: played.append((samples, rate, blocking)))
    tone().play(wait=False)
    [(samples, rate, blocking)] = played
    assert (samples.shape, rate, blocking) == ((2 * RATE, 1), RATE, False)
    assert Clip(samples.T, rate).loudness == pytest.approx(LOUDNESS, abs=0.01)


def test_playing_without_a_device_is_a_sentence(monkeypatch):
    def play(*_, **__):
        raise module.PortAudioError("Error querying device -1")

    module = fake_sounddevice(monkeypatch, play)
    with pytest.raises(AudioFileError, match="no audio device"):
        tone().play()


def test_notebooks_get_a_player(tmp_path):
    import base64

    from IPython.core.formatters import DisplayFormatter

    data, _ = DisplayFormatter().format(with_recipe(tone()))
    before, after = '<audio controls src="data:audio/wav;base64,', '"></audio>'
    page = data["text/html"]
    assert page.startswith(before)
    assert page.endswith(after)
    (tmp_path / "a.wav").write_bytes(base64.b64decode(page.removeprefix(before).removesuffix(after)))
    assert Clip.read(tmp_path / "a.wav").duration == 2
