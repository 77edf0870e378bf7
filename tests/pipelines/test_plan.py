"""What a request means for a model is settled without torch, and what doesn't fit is one sentence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tunesmith.audio import Clip
from tunesmith.errors import AudioFileError, RequestError
from tunesmith.hub import Facts
from tunesmith.pipelines.plan import plan
from tunesmith.requests import MusicgenRequest

FACTS = Facts(rate=2000, channels=1, hop=40, window_frames=1500)
STEREO = Facts(rate=2000, channels=2, hop=40, window_frames=1500)


def noise(seconds, rate=2000, channels=1):
    samples = np.random.default_rng(0).normal(size=(channels, round(seconds * rate))) * 0.1
    return Clip(samples.astype(np.float32), rate)


def planned(seconds=10.0, facts=FACTS, clip=None, **settings):
    clips = {} if clip is None else {Path("a"): clip}
    return plan(MusicgenRequest(seconds=seconds, audio_prompt=tuple(clips), **settings), facts, clips)


@pytest.mark.parametrize(
    ("seconds", "frames", "samples"), [(10, 500, 20000), (0.1, 5, 200), (1.234, 62, 2468), (30, 1500, 60000)]
)
def test_lengths_are_exact(seconds, frames, samples):
    [song] = planned(seconds)
    assert (song.frames, song.samples, song.audio, song.audio_hash) == (frames, samples, None, None)


def test_each_song_has_its_own_request():
    songs = planned(prompt=("a", "b"), takes=2, seed=5)
    assert [(song.request.prompt[0], song.request.seed) for song in songs] == [("a", 5), ("a", 6), ("b", 7), ("b", 8)]


@pytest.mark.parametrize("facts", [FACTS, STEREO])
@pytest.mark.parametrize("clip", [noise(2), noise(2, 48000), noise(2, 8000, 2), noise(2, 1000, 6)])
def test_any_audio_prompt_fits_the_model(facts, clip):
    [song] = planned(facts=facts, clip=clip)
    assert song.audio.rate == 2000
    assert song.audio.samples.shape == (facts.channels, 4000)


def test_the_audio_prompt_is_cut_to_whole_frames():
    [song] = planned(clip=noise(1.019))
    assert song.audio.samples.shape == (1, 2000)
    assert np.array_equal(song.audio.samples, noise(1.019).samples[:, :2000])


def test_only_the_beginning_of_the_audio_prompt_is_used():
    [song] = planned(clip=noise(25), prompt_seconds=1.5)
    assert song.audio.duration == 1.5


def test_one_file_is_read_once_for_all_takes(tmp_path, monkeypatch):
    path = noise(2).save(tmp_path / "a.wav")
    read, calls = Clip.read, []
    monkeypatch.setattr(Clip, "read", lambda *given: calls.append(given) or read(*given))
    songs = plan(MusicgenRequest(audio_prompt=(path,), takes=3), FACTS)
    assert len(calls) == 1
    assert songs[0].audio is songs[2].audio
    assert len(songs[0].audio_hash) == 64


def test_the_hash_tells_audio_prompts_apart():
    first, second = planned(clip=noise(2))[0], planned(clip=noise(1))[0]
    assert first.audio_hash == planned(clip=noise(2))[0].audio_hash != second.audio_hash


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seconds": 31}, "31 s were asked for, but this model makes at most 30 s in one piece; ask for at most 30"),
        ({"seconds": 40, "clip": noise(12)}, "the audio prompt takes 12 s of it, so at most 18 s of new music remain"),
        ({"seconds": 50, "clip": noise(45)}, "leaves nothing of it; use less of it with prompt_seconds"),
        ({"seconds": 10, "clip": noise(10)}, "as long as the 10 s asked for, which count it"),
        ({"seconds": 10, "clip": noise(3600)}, "as long as the 10 s"),
        ({"seconds": 10, "clip": noise(0.01)}, "shorter than one frame of 0.02 s"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, sentence):
    with pytest.raises(RequestError, match=sentence) as caught:
        planned(**settings)
    assert "\n" not in str(caught.value)


def test_missing_files_are_a_sentence():
    with pytest.raises(AudioFileError, match="no audio file"):
        plan(MusicgenRequest(audio_prompt=(Path("none.wav"),)), FACTS)


def test_planning_imports_no_torch():
    code = (
        "import sys; from tunesmith.pipelines import plan, song; song.check_device('cpu');"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
