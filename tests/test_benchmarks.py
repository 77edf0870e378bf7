"""The benchmarks run, with tiny models: what they measure is another matter."""

import sys
from argparse import Namespace
from dataclasses import replace
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
    """One case by two processes, as always; of the others each of our sides once, here."""
    cpu = benchmark("cpu", monkeypatch)
    monkeypatch.setattr(cpu, "bandwidth", lambda threads: 10.0)
    results = tmp_path / "out.json"
    cpu.main(["--tiny", "--quick", "--only", "encodec, 10", "--threads", "1", "--results", str(results)])
    assert "| encodec, 2 s | ours int8: " in capsys.readouterr().out
    assert not results.exists()
    cpu.save_models(tmp_path, {"musicgen", "upsampler"}, tiny=True)
    for case in cpu.CASES:
        short = cpu.replace(case, size=8 if case.what == "upsampler" else 0.1)
        for side in (side for side in short.sides if side.who == "ours"):
            run = cpu.SERVE[case.what](side, short.size, tmp_path)
            assert all(run() > 0 for _ in range(2))
            assert case.what == "encodec" or cpu.reading(short, side, tmp_path) > 0


def test_rows_compare_music_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = benchmark("cpu", monkeypatch)
    many, one = cpu.ours("int8", 16), cpu.ours("int8")
    seconds = {many.name: [8.0, 10.0, 6.0], one.name: [2.0, 2.0, 2.0]}
    found = {"seconds": seconds, "reads": {many.name: 40.0, one.name: 10.0}, "bandwidth": 50.0}
    [row] = cpu.rows(cpu.Case("many songs", ((many, one),)), found)
    assert row == "| many songs, 10 s | ours int8 x 16: 8.000 s | ours int8: 2.000 s | 4.00 | 0.10 |"


def test_rows_without_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = benchmark("cpu", monkeypatch)
    pair = cpu.ours("int8"), cpu.theirs("float32")
    found = {"seconds": {pair[0].name: [0.5]}, "reads": {pair[0].name: None}, "bandwidth": 50.0}
    assert cpu.rows(cpu.Case("upsampler", (pair,), size=64), found) == [
        "| upsampler, 64 codes before | ours int8: 0.500 s |  |  |  |"
    ]


@pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")
def test_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    step = benchmark("step", monkeypatch)
    monkeypatch.setattr(step, "bandwidth", lambda threads: 10.0)
    step.main(["--tiny", "--songs", "1", "3", "--threads", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:3] in ("| 1", "| 3")]
    assert [row.count(" ms") for row in rows] == [5, 5]


def test_quality(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("quality", monkeypatch).main(["--tiny", "--steps", "9"])
    told = capsys.readouterr().out
    assert told.count("int8: ") == told.count("int4: ") == 2
    assert "within 0.01" in told


def test_musicgen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("musicgen", monkeypatch).main(["--size", "tiny", "--quick", "--threads", "1"])
    assert "median ratio" in capsys.readouterr().out


def test_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each side that is at hand once, here; the table says so where their losses differ."""
    training = benchmark("training", monkeypatch)
    figures: dict[str, list[float]] = {}
    for what, side in (("prior", "ours"), ("musicgen", "theirs"), ("musicgen", "ours")):
        sizes = Namespace(width=64, layers=1, batch=1, frames=6, codes=32, folder=tmp_path / what)
        if side == "theirs" or what == "prior":
            tokens = training.SAVED[what](sizes.folder, sizes)
        step = training.stepper(what, side, sizes)
        seconds, figures[side], again = step()[0], step(), step()
        assert seconds > 0
        assert again[1] < figures[side][1]  # it learns
    told = training.table("musicgen", tokens, figures, [figures] * 3)
    assert "pairs of steps), the same loss" in told
    training.main(["--plan", "5b"])
    assert "GB in each process" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_without_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark("gpu", monkeypatch).main([])
    assert end.value.code == 2
    assert capsys.readouterr().err == "There is no GPU here that torch can use, so there is nothing to measure.\n"


def test_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One case by two processes, as always; of the others each of our sides once, here."""
    gpu = benchmark("gpu", monkeypatch)
    for name in ("STEPS", "LIMIT"):
        monkeypatch.setattr(gpu, name, 2)
    gpu.save_models(tmp_path, {case.what for case in gpu.CASES}, tiny=True)
    for case in gpu.CASES:
        short = replace(case, size=8 if gpu.kind_of(case.what) == "upsampler" else 0.1)
        for side in (side for side in short.sides if side.who == "ours" and "fused" not in side.precision):
            few = replace(side, batch=min(side.batch, 2))
            assert gpu.SERVE[gpu.kind_of(case.what)](case.what, few, short.size, tmp_path)() > 0
            said = gpu.reading(short, few, tmp_path)
            assert said is None or said > 0
    encodec = next(case for case in gpu.CASES if case.what == "encodec")
    monkeypatch.setattr(gpu, "CASES", [replace(encodec, size=0.5)])
    gpu.main(["--tiny", "--rounds", "2", "--results", str(tmp_path / "out.json")])
    told = capsys.readouterr().out
    assert "| encodec, 0.5 s | ours float32: " in told
    assert "TFLOP/s of products in bfloat16" in told
    assert not (tmp_path / "out.json").exists()
