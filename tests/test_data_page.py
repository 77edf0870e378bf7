"""docs/data.md runs from top to bottom: what one block makes, the next one reads."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.training.metadata import NAMES

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    printed = []
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "docs/data.md", "exec"), names)
            continue
        for line in code.splitlines():
            words = [sys.executable, "-m", "tunesmith", *shlex.split(line, comments=True)[1:]]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
    check, first, second = printed
    assert "waltz.flac: sounds the same as waltz copy.wav" in check
    assert "march (1)" in check
    assert "3 songs in 1 files, 0 of which were there already" in first
    assert "3 songs in 1 files, 1 of which were there already" in second


def test_the_table_has_each_field() -> None:
    rows = re.findall(r"^\| (`[^|]+)\|([^|]*)\|", PAGE, re.MULTILINE)
    told = {name for row in rows for cell in row for name in re.findall(r"`(\w+)`", cell)}
    assert {name for names in NAMES.values() for name in names} - {"artists"} <= told
