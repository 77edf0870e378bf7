"""What README and docs say runs: Python blocks as they are, commands with fewer seconds, clips and steps."""

import ctypes.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import tunesmith
from tunesmith import cli
from tunesmith.errors import MissingDependencyError
from tunesmith.training.corpus.render import find_soundfont, renderer

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("songs.md", "data.md", "finetuning.md")
"""Pages that have a test of their own: test_songs_page.py, test_data_page.py, test_finetuning_page.py."""
NAMES = sorted(page.name for page in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", *(f"docs/{name}" for name in NAMES if name not in ELSEWHERE)]
BY_HAND = (
    "make",
    "pip",
    "apt-get",
    "python scripts/",
)  # make song and make test run us; scripts have tests of their own
ABSENT = {"facebook/musicgen-small", "openai/jukebox-1b-lyrics"}
SHORT = {"--seconds": "1", "--clips": "2", "--songs": "2", "--steps": "2", "--takes": "2"}
SHORT |= {"--shards": "1", "--warmup": "1", "--batch": "2"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def commands(page: str) -> Iterator[list[str]]:
    """The command lines of a page's shell blocks, one after another, with what takes long shortened."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith(("#", *BY_HAND)):
                yield list(shortened(shlex.split(line, comments=True)))


def shortened(words: list[str]) -> Iterator[str]:
    previous = ""
    for word in words:
        yield SHORT.get(previous, word)
        previous = word
    long = words[1:2] == ["generate"] or words[2:4] == ["tunesmith.training", "lm"]
    if long and not {"--seconds", "--like"} & set(words):
        yield from ("--seconds", "1")


def run(words: list[str]) -> int:
    """`tunesmith ...` and `python -m ...` in this process: a new one would spend most of its time importing torch."""
    if words[0] == "tunesmith":
        return cli.run(words[1:])
    assert words[:2] == ["python", "-m"]
    module = import_module(words[2])
    main = import_module(f"{words[2]}.__main__").main if hasattr(module, "__path__") else module.main
    return main(words[3:]) or 0


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("page", [page for page in pages_with("sh") if list(commands(page))])
def test_commands_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = list(commands(page))
    if any("tunesmith.training.corpus" in line for line in lines):
        need_the_corpus()
    if any("tunesmith.training.corpus.singing_folder" in line for line in lines):
        need_the_singers()
    for words in lines:
        expected = cli.WRONG if ABSENT & {*words} else 0  # not downloaded: a sentence
        assert run(words) == expected, f"{shlex.join(words)}\n{capsys.readouterr().err}"


def need_the_corpus() -> None:
    """Skip, saying so, where the system packages for rendering are missing."""
    try:
        renderer(find_soundfont(), 16_000)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    if shutil.which("abc2midi") is None:
        pytest.skip("abc2midi is not installed (apt-get install abcmidi)")


def need_the_singers() -> None:
    """Likewise for singing."""
    if ctypes.util.find_library("espeak-ng") is None:
        pytest.skip("eSpeak NG is not installed (apt-get install libespeak-ng1 espeak-ng-data)")
    if find_spec("pyworld") is None:
        pytest.skip("WORLD is not installed (pip install tunesmith[singing])")


def test_each_page_is_covered() -> None:
    assert {"README.md", "docs/training.md", "docs/corpus.md"} <= set(pages_with("sh"))
    assert all(list(commands(page)) for page in ("README.md", "docs/training.md", "docs/corpus.md"))


def test_make_targets_of_the_readme_exist() -> None:
    named = {word for block in blocks("README.md", "sh") for word in re.findall(r"^make (\w+)", block, re.MULTILINE)}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named == {"song", "test"}
    assert named <= targets


@pytest.mark.parametrize("command", [*cli.COMMANDS, "generate --model jukebox-1b-lyrics", "data check", "data encode"])
def test_the_page_of_commands_has_each_flag(command: str) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith", *command.split(), "--help"], capture_output=True, encoding="utf-8"
    )
    assert set(re.findall(r"--[a-z][a-z-]*", section)) == set(re.findall(r"--[a-z][a-z-]*", shown.stdout))


def test_versions_agree() -> None:
    assert f'version = "{tunesmith.__version__}"' in (ROOT / "pyproject.toml").read_text()
