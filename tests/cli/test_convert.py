"""`tunesmith convert`, both ways; what it does is tested in tests/convert."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from tunesmith.cli import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("convert") / "model")


def test_there_and_back(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["convert", str(folder), str(tmp_path / "export")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'export'}\n"
    assert "tunesmith: audiocraft has no text encoder of width 24" in err
    (tmp_path / "export/text_encoder").rename(tmp_path / "t5")
    arguments = ["convert", str(tmp_path / "export"), str(tmp_path / "back"), "--text-encoder", str(tmp_path / "t5")]
    assert run([*arguments, "--to", "huggingface"]) == 0
    found, wanted = (load_file(path / "model.safetensors") for path in (tmp_path / "back", folder))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("source", "destination", "sentence"),
    [
        ("{folder}", "{tmp}", "already exists and isn't an empty folder"),
        ("{folder}", "{tmp}/no/out", "in which out is to be made, doesn't exist"),
        ("{tmp}/nothing", "{tmp}/out", "There is no model"),
        ("musicgen-smal", "{tmp}/out", "did you mean"),
        ("{tmp}/state_dict.bin", "{tmp}/out", "isn't a file of plain tensors"),
        ("{tmp}/empty", "{tmp}/out", "holds no checkpoint"),
    ],
)
def test_mistakes_are_a_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, destination: str, sentence: str
):
    (tmp_path / "state_dict.bin").write_text("not a checkpoint")
    (tmp_path / "empty").mkdir()
    places = {"folder": folder, "tmp": tmp_path}
    assert run(["convert", source.format(**places), destination.format(**places)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("tunesmith: ")
    assert re.search(sentence, err)
    assert not (tmp_path / "out").exists()
