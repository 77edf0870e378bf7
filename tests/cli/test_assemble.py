"""`tunesmith assemble`: what it makes, and what it asks for."""

from pathlib import Path

import pytest

from tiny import save_tiny_folder
from tiny_jukebox import save_tiny_jukebox
from tunesmith import cli


def tunesmith(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


def test_both_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jukebox, musicgen = save_tiny_jukebox(tmp_path / "j"), save_tiny_folder(tmp_path / "m")
    capsys.readouterr()
    assert tunesmith("assemble", tmp_path / "a", "--vqvae", jukebox, "--prior", jukebox, "--upsampler", jukebox) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'a'}\n", "")
    assert tunesmith("assemble", tmp_path / "b", "--codec", musicgen, "--lm", musicgen) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'b'}\n", "")
    assert tunesmith("info", tmp_path / "a") == 0
    assert capsys.readouterr().out.count("rate") == 1
    sung = ("generate", "rock", "--model", tmp_path / "b", "--seconds", 0.2, "--out", tmp_path / "x.wav")
    assert tunesmith(*sung) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [(), ("--vqvae", "x"), ("--codec", "x"), ("--codec", "x", "--lm", "x", "--prior", "x", "--vqvae", "x")]
)
def test_parts_of_one_model_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    assert tunesmith("assemble", tmp_path / "a", *flags) == cli.WRONG
    assert capsys.readouterr().err.startswith("tunesmith: Name the parts of one model")


def test_what_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = save_tiny_folder(tmp_path / "m")
    assert tunesmith("assemble", whole, "--codec", whole, "--lm", whole) == cli.WRONG
    assert "already exists" in capsys.readouterr().err
