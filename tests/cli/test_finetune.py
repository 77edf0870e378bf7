"""`tunesmith finetune` says in a sentence what can't be done, before anything is made."""

from pathlib import Path

import pytest

from tiny import save_tiny_folder
from tunesmith.cli import run


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--like", "My Band"], "write NEW=OLD"),
        (["--like", "=Queen"], "write NEW=OLD"),
        (["--level", "top"], "--level is for a Jukebox"),
        (["--rank", "0"], "rank is 0"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    model = save_tiny_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run(["finetune", str(model), "--out", "tuned", *flags]) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("tunesmith: ") == 1
    assert not list(tmp_path.glob("tuned/*.safetensors"))


def test_models_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finetune", "./no-such-model"]) == 2
    assert "There is no model folder './no-such-model'" in capsys.readouterr().err
