"""docs/data.md runs from top to bottom: what one block makes, the next one reads."""

import re
import shlex
from pathlib import Path

import pytest

from tunesmith import cli
from tunesmith.training.metadata import NAMES

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    printed = []
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "docs/data.md", "exec"), names)
            continue
        for line in code.splitlines():
            capsys.readouterr()
            assert cli.run(shlex.split(line, comments=True)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
            printed.append(capsys.readouterr().out)
    check, first, second = printed
    assert "waltz.flac: sounds the same as waltz copy.wav" in check
    assert "march (1)" in check
    assert "3 songs in 1 files, 0 of which were there already" in first
    assert "3 songs in 1 files, 1 of which were there already" in second


def test_the_table_has_each_field() -> None:
    rows = re.findall(r"^\| (`[^|]+)\|([^|]*)\|", PAGE, re.MULTILINE)
    told = {name for row in rows for cell in row for name in re.findall(r"`(\w+)`", cell)}
    assert {name for names in NAMES.values() for name in names} - {"artists"} <= told
