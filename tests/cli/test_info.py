"""`tunesmith info` shows what is in a file and what a model is."""

import json
import math

import numpy as np
import pytest
import torch

from tiny import save_tiny_folder
from tiny_jukebox import save_tiny_jukebox
from tunesmith import cli, hub
from tunesmith.audio import Clip
from tunesmith.nn import engine

RECIPE = {"tunesmith": "0.1.0", "request": {"prompt": ["søde 🎵", "b"], "seed": 3, "audio_prompt": []}}


@pytest.fixture
def song(tmp_path):
    time = np.arange(48000) / 16000
    samples = 0.5 * np.sin(2 * math.pi * 440 * time, dtype=np.float32)
    return Clip(np.stack([samples, samples]), 16000, RECIPE).save(tmp_path / "song.flac")


def test_a_songs_length_level_and_recipe(song, capsys):
    assert cli.run(["info", str(song)]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["seconds", "3.0"] in lines
    assert ["rate", "16000"] in lines
    assert ["loudness", "lufs  -14.0"] in lines
    assert ["prompt", "søde 🎵, b"] in lines
    assert ["seed", "3"] in lines


def test_json_is_exact(song, capsys):
    assert cli.run(["info", str(song), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.pop("peak_db") < -1
    assert facts == {
        "file": str(song),
        "seconds": 3.0,
        "rate": 16000,
        "channels": 2,
        "loudness_lufs": -14.0,
        "recipe": RECIPE,
    }


def test_silence_has_no_level(tmp_path, capsys):
    path = Clip(np.zeros((1, 100), np.float32), 8000).save(tmp_path / "a.wav")
    assert cli.run(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["loudness_lufs"] is facts["peak_db"] is facts["recipe"] is None


def test_what_the_machine_has(capsys):
    assert cli.run(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__
    assert facts["cpu_kernels"] == engine.instructions() or facts["cpu_kernels"].startswith("none: ")
    assert cli.run(["info"]) == 0
    assert f"cpu kernels     {facts['cpu_kernels']}" in capsys.readouterr().out


def test_a_models_facts(tmp_path, capsys):
    folder = save_tiny_folder(tmp_path)
    assert cli.run(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rate"], facts["channels"], facts["frames_per_second"], facts["seconds_at_most"]) == (2000, 1, 50, 30)
    assert facts["hash"] == hub.weights_hash(folder)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.wav", "no audio file"),
        ("smal", "did you mean 'small'"),
        ("/no/folder", "no model folder"),
        ("x" * 300, "no model"),
        ("~nobody/x", "no model"),
    ],
)
def test_what_is_not_there_is_a_sentence(name, sentence, capsys):
    assert cli.run(["info", name]) == 2
    assert sentence in capsys.readouterr().err


def test_a_jukebox_and_its_levels(tmp_path, capsys):
    folder = save_tiny_jukebox(tmp_path / "model")
    assert cli.run(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["codes_per_second"] == [125, 250, 500]
    assert facts["lyric_characters"] == 8
