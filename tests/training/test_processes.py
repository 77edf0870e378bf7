"""Several processes: DDP is one process with all the items, FSDP the same in shards that any number can go on from."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tunesmith
from tiny import save_tiny_folder
from tiny_runs import train_on_chords, train_on_noise
from tiny_songs import small_folder

SCRIPT = str(Path(__file__).parents[1] / "tiny_runs.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHARED = {"ema": "device", "save_every": 2}


@dataclass(frozen=True)
class Pair:
    """What two processes left: folders named after runs, and what they printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Every run of this module that takes two processes, one after the other in the same two, for they begin slowly."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("two")
    model, songs = save_tiny_folder(folder / "musicgen"), small_folder(folder / "songs")
    train_on_chords(folder / "encodec", batch=2, steps=1)
    shutil.copytree(folder / "encodec", folder / "one encodec")
    runs: dict[str, dict[str, Any]] = {
        "vqvae": {"batch": 2},
        "prior": {"batch": 2},
        "shards": {"batch": 2, "fsdp": True, **SHARED},
        "encodec": {"batch": 1, "steps": 2, "log_every": 1},
        "finetune": {"batch": 1, "steps": 2, "model": str(model), "data": str(songs)},
    }
    kinds = {"shards": "prior"}
    jobs = [{"kind": kinds.get(name, name), "run": str(folder / name), "settings": s} for name, s in runs.items()]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [*TORCHRUN, SCRIPT, str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return Pair(folder, done.stdout)


def losses(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "losses.json").read_text())
    return found


def model(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model/model.safetensors")


def heard(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the keys' bias: attention doesn't feel it, its gradient is noise, and Adam goes by the sign of that."""
    return {name: t[[*range(4), *range(8, 12)]] if name.endswith("c_attn.bias") else t for name, t in tensors.items()}


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_two_processes_are_one_with_the_double_batch(two: Pair, tmp_path: Path, kind: str) -> None:
    one, other = train_on_noise(kind, tmp_path, batch=4), two.folder / kind
    for a, b in zip(losses(one), losses(other), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        # The spread of latents is each process's own, around its own mean, as in the original.
        for name in set(a) - {"step", "epoch", "pn"}:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-7), name
    a, b = (torch.load(folder / "gradients.pt", weights_only=True) for folder in (one, other))
    assert a
    assert a.keys() == b.keys()
    norm = torch.stack([gradient.norm() for gradient in a.values()]).norm()
    assert all((gradient - b[name]).norm() <= 1e-6 * norm for name, gradient in a.items())
    if kind == "vqvae":  # what codebooks learnt is the same everywhere, and the sum over all items
        a, b = model(one), model(other)
        books = [name for name in a if "k_elem" in name]
        assert books
        assert all(torch.allclose(a[name], b[name], rtol=1e-5) for name in books)


def test_shards_are_the_same_model_and_resume_on_one_process(two: Pair, tmp_path: Path) -> None:
    whole, shards = train_on_noise("prior", tmp_path / "whole", batch=4, **SHARED), two.folder / "shards"
    assert (shards / "checkpoint-2/shards/.metadata").exists()
    shutil.copytree(shards / "checkpoint-2", tmp_path / "resumed/checkpoint-2")
    resumed = train_on_noise("prior", tmp_path / "resumed", batch=4, ema="device", fsdp=True)
    wanted = {record["step"]: record["loss"] for record in losses(whole)}
    for folder in (shards, resumed):
        assert {r["step"]: r["loss"] for r in losses(folder)} == pytest.approx(wanted, rel=1e-5)
        assert all(torch.allclose(t, heard(model(folder))[name], atol=1e-6) for name, t in heard(model(whole)).items())
    assert model(whole).keys() == model(shards).keys() == model(resumed).keys()


def test_a_codec_and_its_judges_too(two: Pair) -> None:
    """From a checkpoint on, which one process made: k-means and restarts take their vectors of the first process."""
    runs = train_on_chords(two.folder / "one encodec", batch=2, steps=2, log_every=1), two.folder / "encodec"
    records = [[json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()] for run in runs]
    assert [len(lines) for lines in records] == [2, 2]
    own = {"elapsed", "used_codes"}  # of each one's own items
    for ours, theirs in zip(*records, strict=True):
        shared = {name: value for name, value in theirs.items() if name not in own}
        assert {name: ours[name] for name in shared} == pytest.approx(shared, rel=1e-4, abs=1e-6)
    states = [torch.load(run / "checkpoint-2" / "training.pt", weights_only=True) for run in runs]
    for optimizer in ("optimizer", "judge_optimizer"):
        # What gradients are summed up in, for weights themselves feel the sign of the smallest of them.
        ours, theirs = (
            torch.cat([each["exp_avg"].flatten() for each in state[optimizer]["state"].values()]) for state in states
        )
        assert (ours - theirs).norm() < 1e-4 * ours.norm()


def test_two_processes_make_one_adapter(two: Pair) -> None:
    assert two.printed.count("held-out loss after") == 1
    tunesmith.load(two.folder / "musicgen", adapter=two.folder / "finetune" / "adapter")
