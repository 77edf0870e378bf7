"""What docs/songs.md and the README say of Jukebox runs, with a small model and a hundredth of the seconds."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_jukebox import save_tiny_jukebox
from tunesmith import cli
from tunesmith.audio import Clip
from tunesmith.conditioning.tokenizer import UnknownLabelWarning

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "songs.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORTER = {"20": "0.2", "40": "0.3", "180": "3", "12": "0.06"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def shorter(text: str) -> str:
    """Fewer seconds, in flags and in Python."""
    return re.sub(r"(seconds[ =])(\d+)", lambda found: found[1] + SHORTER[found[2]], text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_jukebox(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Words, recordings, and codes that the original saved, as the page names them."""
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("Green leaves, oh\nso green")
    for seed, name in enumerate(("recording.wav", "awesome-mix.wav")):
        noise = np.random.default_rng(seed).uniform(-1, 1, (2, 8000)).astype(np.float32)
        Clip(noise, 8000).save(name)
    for level in (0, 2):
        Path(f"level_{level}").mkdir()
        info = {"artist": "salt", "genre": "folk", "lyrics": "oh", "full_tokens": [41, 34]}
        y = [[3000, 0, window, 1, *[0] * slots] for window, slots in ((32, 5), (64, 5), (128, 1 + 8))]
        lengths = (100, 50, 25) if level == 0 else (0, 0, 25)
        package = {
            "zs": [torch.ones(1, length, dtype=torch.long) for length in lengths],
            "labels": [{"y": torch.tensor([row]), "info": [info]} for row in y],
        }
        torch.save(package, f"level_{level}/data.pth.tar")
    return tmp_path


@pytest.mark.filterwarnings("ignore::tunesmith.UnknownLabelWarning")
def test_every_command_runs(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 0
    for block in blocks("sh"):
        for line in shorter(block).replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace("jukebox-1b-lyrics", str(model)))
            assert words.pop(0) == "tunesmith"
            assert cli.run(words) == 0, f"{line}\n{capsys.readouterr().err}"
            count += 1
    assert count == 16
    assert len(Clip.read("continued/bottom/take-1.wav").samples[0]) == 296
    assert len(Clip.read("sample/bottom/take-1.wav").samples[0]) == 296
    assert np.load("features.npz")["recording.wav"].shape == (16,)


@pytest.mark.filterwarnings("ignore::tunesmith.UnknownLabelWarning")
def test_the_readmes_commands_run(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fences = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    [block] = [text for text in fences if "--model jukebox-1b-lyrics" in text]
    lines = block.splitlines()
    assert [line.split()[1] for line in lines] == ["generate", "upsample", "resume"]
    for line in (f"{lines[0]} --seconds 0.2", *lines[1:]):
        words = shlex.split(line.replace("jukebox-1b-lyrics", str(model)), comments=True)
        assert cli.run(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    assert Clip.read("song/bottom/take-2.wav").duration == 0.2


def test_the_python_runs(here: Path, model: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        with pytest.warns(UnknownLabelWarning):
            exec(compile(shorter(block).replace("jukebox-1b-lyrics", str(model)), "songs.md", "exec"), names)
    assert Clip.read("leaves.wav").duration == 0.2
    assert names["vector"].shape == (16,)
    assert names["frames"].shape == (25, 16)
