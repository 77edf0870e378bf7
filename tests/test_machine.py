"""What a machine has."""

from pathlib import Path

import pytest

from tunesmith import machine


def test_free_memory() -> None:
    free = machine.free_memory("cpu")
    assert free is None or 2**20 < free < 2**50


def test_files_that_were_read_take_no_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("memory.max", "9000\n"),
        ("memory.current", "8000\n"),
        ("memory.stat", "anon 900\ninactive_file 7000\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CONTAINER", tmp_path)
    assert machine.free_memory() == 8000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() != 8000


def test_there_is_a_processor() -> None:
    assert machine.processors() >= 1
