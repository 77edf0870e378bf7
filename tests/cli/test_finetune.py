"""`tunesmith finetune` says in a sentence what can't be done, before anything is made."""

from pathlib import Path

import pytest

from tiny import save_tiny_folder
from tiny_songs import small_folder
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


def test_a_model_is_not_shared_among_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `accelerate launch --use_fsdp` says to its processes; `train` has a sharing of its own."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, songs = save_tiny_folder(tmp_path / "model"), small_folder(tmp_path / "songs", songs=2, rate=2000)
    assert run(["finetune", str(model), "--data", str(songs), "--out", str(tmp_path / "out")]) == 2
    assert "can't share a model among processes (FSDP)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    tiny = "sr=2000 downs_t=1,1 l_bins=16 width=4 depth=1 sample_length=1024 steps=1"
    assert run(["train", "small_vqvae", "--data", str(songs), "--run", str(tmp_path / "run"), "--set", tiny]) == 2
    assert "give --set fsdp=true" in capsys.readouterr().err


def test_models_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finetune", "./no-such-model"]) == 2
    assert "There is no model folder './no-such-model'" in capsys.readouterr().err
