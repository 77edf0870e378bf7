"""Several processes: DDP is one process with all the items, FSDP the same in shards that any number can go on from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = str(Path(__file__).parents[1] / "tiny_runs.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def go(folder: Path, processes: int, kind: str, *settings: str) -> Path:
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    done = subprocess.run([*launcher, SCRIPT, kind, str(folder), *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def losses(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "losses.json").read_text())
    return found


def model(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model/model.safetensors")


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_two_processes_are_one_with_the_double_batch(tmp_path: Path, kind: str) -> None:
    one, two = go(tmp_path / "one", 1, kind, "batch=4"), go(tmp_path / "two", 2, kind, "batch=2")
    for a, b in zip(losses(one), losses(two), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        # The spread of latents is each process's own, around its own mean, as in the original.
        for name in set(a) - {"step", "epoch", "pn"}:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-7), name
    a, b = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, two))
    assert a.keys() == b.keys()
    norm = torch.stack([gradient.norm() for gradient in a.values()]).norm()
    assert all((gradient - b[name]).norm() <= 1e-6 * norm for name, gradient in a.items())
    if kind == "vqvae":  # what codebooks learnt is the same everywhere, and the sum over all items
        a, b = model(one), model(two)
        books = [name for name in a if "k_elem" in name]
        assert books
        assert all(torch.allclose(a[name], b[name], rtol=1e-5) for name in books)


def test_shards_are_the_same_model_and_resume_on_one_process(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", 1, "prior", "batch=4", "ema=device", "save_every=2")
    shards = go(tmp_path / "shards", 2, "prior", "batch=2", "ema=device", "save_every=2", "fsdp=true")
    assert (shards / "checkpoint-2/shards/.metadata").exists()
    (tmp_path / "resumed").mkdir()
    shutil.copytree(shards / "checkpoint-2", tmp_path / "resumed/checkpoint-2")
    resumed = go(tmp_path / "resumed", 1, "prior", "batch=4", "ema=device", "fsdp=true")
    wanted = {record["step"]: record["loss"] for record in losses(whole)}
    for folder in (shards, resumed):
        assert {r["step"]: r["loss"] for r in losses(folder)} == pytest.approx(wanted, rel=1e-5)
        assert all(torch.allclose(t, model(folder)[name], atol=1e-4) for name, t in model(whole).items())
    assert model(whole).keys() == model(shards).keys() == model(resumed).keys()
