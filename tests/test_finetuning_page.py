"""Each command of docs/finetuning.md runs, with few steps and small models under the names of large ones."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_jukebox import save_tiny_jukebox, tiny_jukebox, tiny_tokenizer
from tunesmith import cli, hub
from tunesmith.audio import Clip
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.training import finetune

PAGE = Path(__file__).parents[1] / "docs" / "finetuning.md"
SHORT = {"--seconds": "1", "--steps": "2", "--set": "steps=1"}
CODEC = (
    "num_filters=2 hidden_size=8 num_lstm_layers=1 codebook_size=16 batch=1 sample_length=4096 adversarial.filters=2"
)
"""Settings that make the recipe's codec small."""


def blocks(language: str) -> list[str]:
    parts = PAGE.read_text(encoding="utf-8").split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


def command(line: str) -> list[str]:
    words, previous = [], ""
    for word in shlex.split(line):
        words.append(SHORT.get(previous, word))
        previous = word
    if words[1] == "train":
        words += ["--set", CODEC]
    if "--model" in words and "--artist" in words:  # the small Jukebox has 1000 samples a second
        words = [*(words[: words.index("--seconds")] if "--seconds" in words else words), "--seconds", "0.1"]
        words += ["--out", "song2"] if "--out" not in words else []
    assert words[0] == "tunesmith"
    return words[1:]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's names mean something."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "mine").mkdir()
    rows = []
    for i in range(4):
        noise = torch.randn(1, 24_000, generator=torch.Generator().manual_seed(i)).numpy() / 10
        Clip(noise, 16_000).save(folder / "mine" / f"{i}.wav", level="none")
        words = {"text": "a slow waltz", "artist": "My Band", "genre": "country", "lyrics": "la la oh so blue"}
        rows.append({"file_name": f"{i}.wav", **words})
    (folder / "mine" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "words.txt").write_text("la la la\n")
    save_tiny_jukebox(folder / "openai" / "jukebox-1b-lyrics")
    prior: Any = tiny_jukebox().priors[0]
    prior.save_pretrained(folder / "runs" / "prior" / "model")
    tokenizer = JukeboxTokenizer(version=["v3"], n_genres=[1], max_n_lyric_tokens=8)
    tokenizer.tables = tiny_tokenizer().tables
    tokenizer.save_pretrained(folder / "runs" / "prior" / "model")
    (folder / "tuned-lm").mkdir()
    (folder / "tuned-lm" / "model").symlink_to(hub.bundled()["tunesmith/pocket"])
    return folder


def test_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setattr(finetune, "HEARD_SECONDS", 0.5)
    for line in filter(None, "".join(blocks("sh")).splitlines()):
        assert cli.run(command(line)) == 0, f"{line}\n{capsys.readouterr().err}"
    for code in blocks("python"):
        exec(compile(code, str(PAGE), "exec"), {})
    made = ("tuned/adapter", "tuned/before.wav", "tuned/after.wav", "tuned/result.json", "waltz.wav", "jig.wav")
    assert all((place / name).exists() for name in (*made, "tuned-1b/adapter", "song", "song2", "runs/codec/model"))
