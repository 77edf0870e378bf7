"""`tunesmith assemble` in processes of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tiny import save_tiny_folder
from tiny_jukebox import save_tiny_jukebox


def tunesmith(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunesmith", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_both_families(tmp_path: Path) -> None:
    jukebox, musicgen = save_tiny_jukebox(tmp_path / "j"), save_tiny_folder(tmp_path / "m")
    done = tunesmith("assemble", tmp_path / "a", "--vqvae", jukebox, "--prior", jukebox, "--upsampler", jukebox)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'a'}\n", "")
    done = tunesmith("assemble", tmp_path / "b", "--codec", musicgen, "--lm", musicgen)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'b'}\n", "")
    assert tunesmith("info", tmp_path / "a").stdout.count("rate") == 1
    played = tunesmith("generate", "rock", "--model", tmp_path / "b", "--seconds", 0.2, "--out", tmp_path / "x.wav")
    assert played.returncode == 0, played.stderr


@pytest.mark.parametrize(
    "flags", [(), ("--vqvae", "x"), ("--codec", "x"), ("--codec", "x", "--lm", "x", "--prior", "x", "--vqvae", "x")]
)
def test_parts_of_one_model_are_asked_for(tmp_path: Path, flags: tuple[str, ...]) -> None:
    done = tunesmith("assemble", tmp_path / "a", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("tunesmith: Name the parts of one model")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    whole = save_tiny_folder(tmp_path / "m")
    done = tunesmith("assemble", whole, "--codec", whole, "--lm", whole)
    assert done.returncode == 2
    assert "already exists" in done.stderr
