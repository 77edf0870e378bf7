"""What the README says runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", blocks("README.md", "python"))
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert any(tmp_path.iterdir())


def test_make_targets_of_the_readme_exist() -> None:
    named = {word for block in blocks("README.md", "sh") for word in re.findall(r"^make (\w+)", block, re.MULTILINE)}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named == {"song", "test"}
    assert named <= targets
