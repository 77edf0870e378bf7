"""The benchmarks run, with tiny models: what they measure is another matter."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tunesmith.nn import engine

FOLDER = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module(name)


@pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")
def test_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One case by two processes, as always; of the others each side once, here."""
    cpu = benchmark("cpu", monkeypatch)
    monkeypatch.setattr(cpu, "bandwidth", lambda threads: 10.0)
    results = tmp_path / "out.json"
    cpu.main(["--tiny", "--quick", "--only", "encodec, 10", "--threads", "1", "--results", str(results)])
    assert "| encodec, 1 s, batch 1, float32 / float32 |" in capsys.readouterr().out
    assert not results.exists()
    cpu.save_models(tmp_path, {"musicgen", "upsampler"}, tiny=True)
    for case in cpu.CASES:
        short = cpu.replace(case, seconds=8 if case.what == "upsampler" else 0.1)
        for side in ("ours", "theirs"):
            precision = getattr(short, side)
            if precision is not None and (case.what, side) != ("upsampler", "theirs"):
                assert cpu.SERVE[case.what](side, precision, short, tmp_path)() > 0
        assert case.what == "encodec" or float(cpu.fraction(short, 0.001, 1.0, tmp_path)) > 0


def test_tables_tell_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = benchmark("cpu", monkeypatch)
    rows = {
        cpu.Case("musicgen", "int8", None, batch=batch).name: {"ours": seconds}
        for batch, seconds in ((1, 2.0), (16, 8.0))
    }
    assert cpu.throughput(rows) == ("musicgen, 10 s, batch 16, int8 / alone: 4.00 x the music a second of one song")


def test_quality(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("quality", monkeypatch).main(["--tiny", "--steps", "9"])
    told = capsys.readouterr().out
    assert told.count("int8: ") == told.count("int4: ") == 2
    assert "within 0.01" in told


def test_musicgen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("musicgen", monkeypatch).main(["--size", "tiny", "--quick", "--threads", "1"])
    assert "median ratio" in capsys.readouterr().out
