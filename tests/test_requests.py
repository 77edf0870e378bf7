"""Requests refuse nonsense in one sentence, survive JSON, and expand to songs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import RequestError
from tunesmith.requests import MAX_SEED, MAX_SONGS, JukeboxRequest, MusicgenRequest, Sampling

SONG = MusicgenRequest(
    prompt=("a jig", "søde 🎵 日本語 שיר"),
    audio_prompt=(Path("a.wav"),),
    prompt_seconds=2.0,
    seconds=5,
    seed=3,
    takes=2,
    sampling=Sampling(temperature=0.9, top_k=50, top_p=0.9, guidance=1),
)


def test_defaults_are_the_documented_ones():
    assert Sampling().to_dict() == {"temperature": 1.0, "top_k": 250, "top_p": 0.0, "guidance": 3.0}
    request = MusicgenRequest()
    assert (request.seconds, request.takes, request.seed, request.prompt, request.audio_prompt) == (10, 1, None, (), ())


def test_one_text_or_file_is_a_tuple_of_one():
    request = MusicgenRequest(prompt="a jig", audio_prompt="a.wav")
    assert (request.prompt, request.audio_prompt) == (("a jig",), (Path("a.wav"),))
    assert MusicgenRequest(prompt=["a", "b"]).prompt == ("a", "b")


@pytest.mark.parametrize("request_", [SONG, MusicgenRequest()])
def test_json_round_trip(request_):
    assert MusicgenRequest.from_dict(json.loads(json.dumps(request_.to_dict()))) == request_


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"secons": 1}, "no setting 'secons'; did you mean 'seconds'"),
        ({"sampling": {"top-k": 1}}, "no setting 'top-k'; did you mean 'top_k'"),
        ({"zzz": 1}, "known are prompt, audio_prompt"),
        ({"seconds": "ten"}, "seconds is 'ten'"),
        ({"seconds": None}, "seconds is None"),
        ({"sampling": 3}, "made from a dictionary"),
        ({"prompt": {"a": 1}}, "prompt is"),
    ],
)
def test_dictionaries_are_checked(values, sentence):
    with pytest.raises(RequestError, match=sentence):
        MusicgenRequest.from_dict(values)
    with pytest.raises(RequestError, match="dictionary"):
        MusicgenRequest.from_dict([1])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seconds", [0, -1, math.nan, math.inf, 1e9, 10**400, "10", True, None]),
        ("takes", [0, -1, 1.5, True, MAX_SONGS + 1]),
        ("seed", [-1, 0.5, 2**64, True, "7"]),
        ("prompt", ["", " \n", 3, [1], "a" * 20_001, "\udc80 broken"]),
        ("audio_prompt", [3, [3]]),
        ("prompt_seconds", [0, -1, math.nan, 99.0]),
        ("sampling", [None, {"top_k": 3}]),
    ],
)
def test_nonsense_is_one_sentence(name, values):
    for value in values:
        with pytest.raises(RequestError) as caught:
            MusicgenRequest(**({"audio_prompt": "a.wav"} | {name: value}))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200 or name == "prompt"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-1, math.nan, math.inf, "1"]),
        ("top_k", [-1, 2.5, True]),
        ("top_p", [-0.1, 1.1, math.nan]),
        ("guidance", [0.5, -3, math.nan, 1e9]),
    ],
)
def test_sampling_is_checked(name, values):
    for value in values:
        with pytest.raises(RequestError, match=f"{name} is"):
            Sampling(**{name: value})


@pytest.mark.parametrize("text", ["🎻🎵", "日本の祭り", "أغنية", "a" * 10_000, "two\nlines\tand\0zero", "x"])
def test_every_script_is_allowed(text):
    assert MusicgenRequest(prompt=(text,)).prompt == (text,)


def test_numbers_of_numpy_become_plain_ones():
    request = MusicgenRequest(seconds=np.float32(0.5), seed=np.int64(7), takes=np.uint8(2))
    assert json.loads(json.dumps(request.to_dict())) == MusicgenRequest(seconds=0.5, seed=7, takes=2).to_dict()
    song = JukeboxRequest(top_k=(np.int64(5), 6, 7), temperature=np.float64(0.5))
    assert json.loads(json.dumps(song.to_dict()))["top_k"] == [5, 6, 7]


def test_counts_must_agree():
    with pytest.raises(RequestError, match="2 texts and 3 audio prompts"):
        MusicgenRequest(prompt=("a", "b"), audio_prompt=(Path("x"),) * 3)
    with pytest.raises(RequestError, match="no audio_prompt"):
        MusicgenRequest(prompt_seconds=1)
    with pytest.raises(RequestError, match="1500 songs"):
        MusicgenRequest(prompt=("a",) * 3, takes=500)


def test_songs_have_one_text_one_take_and_their_own_seed():
    songs = SONG.songs()
    assert len(songs) == SONG.count == 4
    assert [song.prompt for song in songs] == [("a jig",)] * 2 + [SONG.prompt[1:]] * 2
    assert [song.seed for song in songs] == [3, 4, 5, 6]
    assert all(song.takes == 1 and song.audio_prompt == (Path("a.wav"),) for song in songs)
    assert songs[1].songs() == (songs[1],)


def test_songs_pair_texts_and_files():
    songs = MusicgenRequest(prompt=("a", "b"), audio_prompt=(Path("x"), Path("y")), seed=0).songs()
    assert [(song.prompt, song.audio_prompt) for song in songs] == [(("a",), (Path("x"),)), (("b",), (Path("y"),))]
    files = MusicgenRequest(audio_prompt=(Path("x"), Path("y")), seed=0, takes=2).songs()
    assert [song.audio_prompt[0].name for song in files] == ["x", "x", "y", "y"]


def test_seeds():
    assert MusicgenRequest().songs()[0].seed != MusicgenRequest().songs()[0].seed
    [song] = MusicgenRequest(seed=MAX_SEED).songs()
    assert song.seed == MAX_SEED
    with pytest.raises(RequestError, match="seed"):
        MusicgenRequest(seed=MAX_SEED, takes=2)


def test_requests_cost_no_heavy_imports():
    code = "import sys, tunesmith.requests; print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# Jukebox --------------------------------------------------------------------------------------------------------------


def test_a_jukebox_request_goes_there_and_back():
    request = JukeboxRequest(
        lyrics="la", artist="a", genre="rock", seconds=3, song_seconds=60, audio_prompt=["a.wav", "b.wav"], seed=1
    )
    assert request.genre == ("rock",)
    assert request.audio_prompt == (Path("a.wav"), Path("b.wav"))
    assert JukeboxRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_takes_have_their_own_seeds_and_prompts_in_turn():
    songs = JukeboxRequest(audio_prompt=("a.wav", "b.wav"), takes=3, seed=5).songs()
    assert [song.seed for song in songs] == [5, 6, 7]
    assert [song.audio_prompt[0].name for song in songs] == ["a.wav", "b.wav", "a.wav"]
    assert len(JukeboxRequest(audio_prompt=("a.wav", "b.wav")).songs()) == 2
    assert JukeboxRequest().songs()[0].seed is not None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lyrics": 3}, "lyrics is 3"),
        ({"lyrics": "x" * 20_001}, "20001 characters"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": 20, "offset": 5, "song_seconds": 24}, "from 25 to 3600"),
        ({"prompt_seconds": 1}, "there is no audio_prompt"),
        ({"audio_prompt": "a.wav", "seconds": 4, "prompt_seconds": 5}, "prompt_seconds is 5"),
        ({"hop_fraction": (0.5, 0)}, "hop_fraction is 0"),
        ({"hop_fraction": 1.5}, "for each level"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": (0.5,)}, "whole number"),
        ({"top_p": 2}, "top_p is 2"),
        ({"takes": 0}, "takes is 0"),
        ({"draft": 1}, "draft is 1"),
        ({"sample_rate": 10}, "sample_rate is 10"),
        ({"genre": 7}, "genre is 7"),
    ],
)
def test_what_no_jukebox_can_do_is_refused(wrong, sentence):
    with pytest.raises(RequestError, match=sentence):
        JukeboxRequest(**wrong)
