"""Imports go one way, and docs/architecture.md shows the way and the files that are there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tunesmith"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_imports_go_one_way():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_page_shows_the_layers():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [re.findall(r"\w+", layer) for layer in contract["layers"]]
    present = [[name for name in layer if exists(name)] for layer in layers]
    assert f"`{' > '.join(' | '.join(layer) for layer in present if layer)}`" in PAGE


def exists(name: str) -> bool:
    """Whether a layer, which may still lie ahead (in parentheses in the contract), is there."""
    return any(SOURCE.glob(f"{name}.py")) or any(SOURCE.glob(f"{name}/__init__.py"))


def test_the_page_shows_each_package():
    packages = {folder.name for folder in SOURCE.iterdir() if any(folder.glob("*.py"))}
    assert packages <= set(re.findall(r"^  (\w+)/", PAGE, re.MULTILINE))


def test_what_the_page_names_is_there():
    tree = PAGE.partition("```\n")[2].partition("```")[0]
    folder, missing = "", []
    for line in tree.splitlines()[1:]:
        if found := re.match(r"  (\w+)/", line):
            folder = found[1]
        names = [name for name in re.findall(r"[\w*]+\.py|csrc/|corpus/", line) if name != "__init__.py"]
        missing += [name for name in names if not any(SOURCE.glob(name)) and not any((SOURCE / folder).glob(name))]
    assert not missing
