"""`tunesmith convert` there and back again, by content."""

import shutil

import pytest
import torch

from tiny import save_tiny_folder
from tiny_jukebox import save_tiny_jukebox
from tunesmith import cli
from tunesmith.pipelines.song import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_there_and_back_by_content(folder, tmp_path, capsys):
    export, back = tmp_path / "export", tmp_path / "back"
    assert cli.run(["convert", str(folder), str(export)]) == 0
    assert (export / "state_dict.bin").is_file()
    assert cli.run(["convert", str(export), str(back), "--max-shard-size", "100KB"]) == 0
    assert capsys.readouterr().out.split() == [str(export), str(back)]
    assert len(list(back.glob("model-*.safetensors"))) > 1
    ours, theirs = (load(path, quantize="none").model.state_dict() for path in (folder, back))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_text_encoder_can_be_given(folder, tmp_path):
    export, back = tmp_path / "export", tmp_path / "back"
    assert cli.run(["convert", str(folder), str(export)]) == 0
    shutil.rmtree(export / "text_encoder")
    assert cli.run(["convert", str(export), str(back)]) == 2
    assert not back.exists()
    assert cli.run(["convert", str(export), str(back), "--text-encoder", str(folder)]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "out"], "no model 'nowhere'"),
        (["FOLDER", "FOLDER"], "already exists"),
        (["FOLDER", "none/out"], "doesn't exist"),
        (["FOLDER", "out", "--to", "huggingface"], "is already in the layout 'huggingface'"),
        (["FOLDER", "out", "--max-shard-size", "1GB"], "Files in the layout 'audiocraft' come in one piece"),
        (["FOLDER", "out", "--max-shard-size", "huge"], "'huge' is no size of a file"),
        (["FOLDER", "out", "--preset", "5b"], "A preset says what files of OpenAI's Jukebox are"),
        (["FOLDER", "out", "--preset", "5c"], "There is no preset '5c'"),
        (["FOLDER", "out", "--text-encoder", "FOLDER"], "A text encoder goes with a language model of audiocraft's"),
    ],
)
def test_what_is_wrong_is_a_sentence(folder, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["convert", *(str(folder) if a == "FOLDER" else a for a in arguments)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_needed_is_a_sentence(folder, tmp_path, capsys):
    export, model = tmp_path / "export", save_tiny_jukebox(tmp_path / "jukebox")
    assert cli.run(["convert", str(folder), str(export)]) == 0
    assert cli.run(["convert", str(model), str(tmp_path / "openai")]) == 0
    for source, flags, sentence in (
        (export, ["--preset", "1b_lyrics"], "A preset says what files of OpenAI's Jukebox are"),
        (export / "compression_state_dict.bin", ["--text-encoder", str(folder)], "is a codec alone: leave it out."),
        (model, ["--preset", "vqvae"], "A preset says what files of OpenAI's Jukebox are"),
        (model, ["--text-encoder", str(folder)], f"{model} is none: leave it out."),
        (tmp_path / "openai", ["--text-encoder", str(folder)], "A text encoder goes with a language model"),
    ):
        assert cli.run(["convert", str(source), str(tmp_path / "out"), *flags]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
