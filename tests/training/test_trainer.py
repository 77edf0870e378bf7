"""The trainer on tiny models: schedules, averages, tests, sounds, checkpoints; kills, full disks and broken numbers."""

import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from tiny_jukebox import tiny_jukebox
from tiny_runs import SETTINGS, Noise, objective
from tunesmith.codecs.vqvae import JukeboxVQVAE
from tunesmith.errors import MissingDependencyError, RequestError, RunError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.training import callbacks
from tunesmith.training.callbacks import spectrogram
from tunesmith.training.jukebox import PriorObjective, VQVAEObjective
from tunesmith.training.optimizers import adamw, optimizer_of
from tunesmith.training.runs import MetricTrainer, train
from tunesmith.training.schedule import Schedule, learning_rate, updates


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def schedule(**changes: Any) -> Schedule:
    return Schedule(**SETTINGS | changes)


def run(folder: Path, kind: str = "prior", items: Dataset[Any] | None = None, **changes: Any) -> MetricTrainer:
    return train(objective(kind), items or Noise(kind), folder, schedule(**changes))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[tuple[int, dict[str, float]]]:
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [(r["step"], {n: v for n, v in r.items() if n != "elapsed"}) for r in records if "loss" in r]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


# ------------------------------------------------------------------------------------------------ learning rate


def test_curves() -> None:
    linear = schedule(curve="linear", warmup=2, decay_start=4, decay_steps=4, steps=100)
    assert [learning_rate(linear, step) for step in (0, 1, 2, 4, 5, 7, 8, 9)] == [0, 0.5, 1, 1, 0.75, 0.25, 0, 0]
    assert updates(linear) == 8  # training ends where the line meets zero
    halved = schedule(curve="exponential", warmup=0, decay_steps=3, decay_factor=0.5)
    assert [learning_rate(halved, step) for step in (0, 2, 3, 6)] == [1, 1, 0.5, 0.25]
    cosine = schedule(curve="cosine", warmup=0, steps=4)
    assert [round(learning_rate(cosine, step), 3) for step in range(5)] == [1, 0.854, 0.5, 0.146, 0]
    assert learning_rate(schedule(curve="constant", warmup=4), 1) == 0.25


def test_annealing_begins_at_any_step(tmp_path: Path) -> None:
    run(tmp_path / "long", steps=3)
    settings = schedule(curve="linear", decay_start=3, decay_steps=2, steps=99)
    trainer = train(
        objective("prior"), Noise("prior"), tmp_path / "end", settings, start=tmp_path / "long/checkpoint-3"
    )
    assert trainer.state.global_step == 5
    assert [record["learning_rate"] for _, record in losses(tmp_path / "end")] == [1e-3, 5e-4]


# ---------------------------------------------------------------------------------------------------- updates


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    calm = {"epsilon": 1e-2}  # or Adam makes much of the noise in gradients that are zero, as those of keys' biases
    run(tmp_path / "whole", batch=4, **calm)
    run(tmp_path / "parts", batch=2, accumulate=2, **calm)
    whole, parts = weights(tmp_path / "whole/checkpoint-4"), weights(tmp_path / "parts/checkpoint-4")
    assert all(torch.allclose(tensor, parts[name], atol=1e-6) for name, tensor in whole.items())
    for (_, a), (_, b) in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)


def test_large_gradients_are_clipped_or_skipped(tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in objective("prior").model.named_parameters()}
    trainer = run(tmp_path / "skipped", skip_above=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in trainer.own.model.named_parameters())
    assert losses(tmp_path / "skipped")[-1][1]["skipped"] == 4.0
    free, tight = run(tmp_path / "free"), run(tmp_path / "tight", clip=1e-3)
    assert losses(tmp_path / "tight")[0][1]["grad_norm"] == losses(tmp_path / "free")[0][1]["grad_norm"] > 1
    assert not torch.equal(*(next(t.own.model.parameters()) for t in (free, tight)))


def test_weight_decay_for_all_or_for_matrices() -> None:
    model = objective("prior").model
    for everything in (True, False):
        groups = adamw(model, schedule(weight_decay=0.1, decay_all=everything)).param_groups
        decays = {p.ndim > 1: group["weight_decay"] for group in groups for p in group["params"]}
        assert decays == {True: 0.1, False: 0.1 if everything else 0.0}


def test_eight_bits_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.optim", "bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="torchao or bitsandbytes"):
        adamw(objective("prior").model, schedule(optimizer="adamw8bit"))


def test_muon_moves_a_prior_and_resumes(tmp_path: Path) -> None:
    run(tmp_path / "whole", optimizer="muon", steps=4)
    run(tmp_path / "parted", optimizer="muon", steps=4, budget_seconds=0.0)
    run(tmp_path / "parted", optimizer="muon", steps=4)
    assert losses(tmp_path / "parted")[-1] == losses(tmp_path / "whole")[-1]
    whole, plain = weights(tmp_path / "whole/checkpoint-4"), run(tmp_path / "plain", steps=4)
    name = "prior.transformer._attn_mods.0.mlp.c_fc.weight"
    assert not torch.equal(whole[name], plain.own.model.state_dict()[name])


def test_muon_is_refused_where_it_can_not_be() -> None:
    with pytest.raises(RequestError, match="has no transformer; take adamw"):
        optimizer_of(objective("vqvae").model, schedule(optimizer="muon"))
    with pytest.raises(RequestError, match="fsdp"):
        optimizer_of(objective("prior").model, schedule(optimizer="muon", fsdp=True))


@pytest.mark.parametrize("kind", ["prior", "vqvae"])
def test_bfloat16_is_close(tmp_path: Path, kind: str) -> None:
    run(tmp_path / "full", kind, steps=1)
    run(tmp_path / "half", kind, steps=1, bfloat16=True)
    (_, full), (_, half) = losses(tmp_path / "full")[0], losses(tmp_path / "half")[0]
    assert half["loss"] == pytest.approx(full["loss"], rel=0.02)
    assert {tensor.dtype for tensor in weights(tmp_path / "half/checkpoint-1").values()} == {torch.float32}


def test_checkpointing_changes_memory_alone(tmp_path: Path) -> None:
    run(tmp_path / "kept")
    run(tmp_path / "anew", checkpointing=True)
    for (_, kept), (_, anew) in zip(losses(tmp_path / "kept"), losses(tmp_path / "anew"), strict=True):
        assert anew == pytest.approx(kept, rel=1e-5)


def test_frozen_parts_rest(tmp_path: Path) -> None:
    """A codec inside an objective is neither woken, nor moved by the optimizer, nor saved."""
    whole = tiny_jukebox()
    before = {name: tensor.clone() for name, tensor in whole.vqvae.state_dict().items()}
    goal = PriorObjective(whole.priors[2], whole.vqvae)
    labels = torch.tensor([5000, 0, 32, 1, 1, -1, -1, -1, -1])
    data = Noise("vqvae", count=8)
    data.items = [{"audio": item["audio"][:32], "labels": labels} for item in data.items]
    train(goal.train(), data, tmp_path, schedule())
    assert not whole.vqvae.training
    assert same(before, dict(whole.vqvae.state_dict()))
    assert not any("encoders" in name for name in weights(tmp_path / "checkpoint-4"))


# ---------------------------------------------------------------------------------------- averages, tests, sounds


@pytest.mark.parametrize("where", ["device", "cpu"])
def test_averages_are_saved_beside_raw_weights(tmp_path: Path, where: str) -> None:
    trainer = run(tmp_path, ema=where, ema_decay=0.5, save_every=1)
    name = "prior.pos_emb.pos_emb"
    last = weights(tmp_path / "checkpoint-4")[name]
    averages = [weights(tmp_path / f"checkpoint-{step}/ema")[name] for step in (3, 4)]
    assert torch.allclose(averages[1], 0.5 * averages[0] + 0.5 * last, atol=1e-7)
    trainer.export(tmp_path / "model")
    assert torch.equal(weights(tmp_path / "model")[name], averages[1])
    assert torch.equal(JukeboxPrior.from_pretrained(tmp_path / "checkpoint-4").prior.pos_emb.pos_emb, last)


def test_a_short_runs_average_forgets_how_it_began(tmp_path: Path) -> None:
    """1 - 2 / 8000 alone would leave nearly nothing but the first weights."""
    run(tmp_path, ema="device", save_every=1)
    name = "prior.pos_emb.pos_emb"
    states = [weights(tmp_path / f"checkpoint-{step}")[name] for step in (3, 4)]
    averages = [weights(tmp_path / f"checkpoint-{step}/ema")[name] for step in (3, 4)]
    assert torch.allclose(averages[1], averages[0] * 5 / 14 + states[1] * 9 / 14, atol=1e-7)


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    train(objective("prior"), Noise("prior"), tmp_path, schedule(steps=6, test_every=2), test=Noise("prior", 3))
    tests = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    found = {record["step"]: record["test_loss"] for record in tests if "test_loss" in record}
    assert sorted(found) == [2, 4, 6]
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["test_loss"] == min(found.values()) == found[best["step"]]
    assert {"test_bpd", "test_gen_loss", "test_prime_loss"} <= set(tests[-2])
    loaded = JukeboxPrior.from_pretrained(tmp_path / "best")
    data = Noise("prior", 3)
    with torch.no_grad():
        loss = torch.stack(
            [loaded(i["codes"][None], i["labels"][None], i["above"][None]).loss for i in data.items]
        ).mean()
    assert loss.item() == pytest.approx(best["test_loss"], rel=1e-5)


def test_short_epochs_are_not_all_tested(tmp_path: Path) -> None:
    short = schedule(steps=8, batch=2, log_every=3)
    train(objective("prior"), Noise("prior", 4), tmp_path, short, test=Noise("prior", 3))
    found = [json.loads(line) for line in read(tmp_path / "history.jsonl")]
    assert [record["step"] for record in found if "test_loss" in record] == [3, 6, 8]


def test_figures_and_sounds_reach_the_board(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    goal = objective("vqvae")
    assert isinstance(goal, VQVAEObjective)
    goal.heard = Noise("vqvae", 1).items[0]["audio"][None]
    train(goal, Noise("vqvae"), tmp_path, schedule(steps=2, sample_every=2, sample_seconds=1.0))
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "audio": 0, "scalars": 0})
    board.Reload()
    levels = [f"{name}_loss_l{i}" for name in ("recons", "spectral", "multispectral") for i in (1, 2, 3)]
    quantizer = ["fit", "pn", "entropy", "usage", "used_curr", "dk", "commit_loss"]
    others = ["loss", "spectral_convergence", "l1_loss", "l2_loss", "linf_loss", "grad_norm", "learning_rate"]
    assert {*levels, *quantizer, *others} <= set(board.Tags()["scalars"])
    assert set(board.Tags()["audio"]) == {"in_0", *(f"out_0_level_{i}" for i in range(3))}
    assert "out_0_level_2_spectrogram" in board.Tags()["images"]
    assert len(list((tmp_path / "samples/step-2").glob("*.wav"))) == 4


def test_time_left_is_told_where_figures_are_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(callbacks, "QUIET", 0.0)
    run(tmp_path, steps=3, log_every=100)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 1/3  [\d.]+ s left", lines[0])
    assert len(read(tmp_path / "history.jsonl")) == 1  # of the end


def test_a_spectrogram_shows_where_the_sound_is() -> None:
    tone = torch.sin(torch.arange(8000) * 2 * torch.pi * 0.125)  # an eighth of the rate: a quarter of the way up
    picture = spectrogram(tone, bands=64)
    assert picture.shape[0] == 65
    assert picture.mean(1).argmax() == 64 - 16
    assert 0 <= picture.min() <= picture.max() <= 1


def test_priors_are_heard(tmp_path: Path) -> None:
    whole, shown = tiny_jukebox(), torch.utils.data.default_collate(Noise("prior", 2).items)
    goal = PriorObjective(whole.priors[2], whole.vqvae, shown)
    sounds = goal.samples(2, seconds=0.02)
    assert {name: len(sound) for name, sound in sounds.items()} == {"sample_0": 20, "sample_1": 20}


# ------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("kind", ["prior", "vqvae"])
def test_interrupted_equals_uninterrupted_over_epochs(tmp_path: Path, kind: str) -> None:
    """Ten steps of three batches an epoch, logged in threes, stopped after each fourth step: bit for bit the same."""
    settings = {"steps": 10, "batch": 8, "log_every": 3, "ema": "device", "test_every": 5}
    held = Noise(kind, 3)
    train(objective(kind), Noise(kind), tmp_path / "whole", schedule(**settings), test=held)
    for stop in (4, 8, 10):
        part = schedule(**settings | {"save_every": 4})
        train(objective(kind), Noise(kind), tmp_path / "parts", part, test=held, callbacks=[stopping(stop)])
    for name in ("checkpoint-10", "checkpoint-10/ema"):
        assert same(weights(tmp_path / "whole" / name), weights(tmp_path / "parts" / name))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def stopping(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= state.global_step >= step

    return Stop()


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """A process killed without warning twice, in the middle of steps and perhaps of saving."""
    settings: dict[str, Any] = {"steps": 12, "save_every": 2, "log_every": 2, "ema": "device"}
    for lines in (1, 3):
        child = os.fork()
        if not child:
            run(tmp_path / "killed", "vqvae", Noise("vqvae", slow=0.05), **settings)
            os._exit(0)
        wait_for(lambda: len(read(tmp_path / "killed/history.jsonl")) >= lines)  # noqa: B023  # called at once
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for name in ("killed", "whole"):
        run(tmp_path / name, "vqvae", **settings)
    for name in ("checkpoint-12", "checkpoint-12/ema"):
        assert same(weights(tmp_path / "killed" / name), weights(tmp_path / "whole" / name))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def read(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------- what goes wrong


class Spoilt(Noise):
    """Item 5 and those after it are not numbers."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = super().__getitem__(index)
        return {"audio": item["audio"] * float("nan")} if index > 20 else item


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JukeboxVQVAE, "_check_audio", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"stopped being a number in step \d+.*checkpoint-\d+.*lower learning_rate"):
        run(tmp_path, "vqvae", items=Spoilt("vqvae"), steps=20, save_every=1)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert all(tensor.isfinite().all() for tensor in weights(last).values())


def test_a_full_disk_leaves_the_checkpoint_before_intact(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-2").iterdir()}
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            run(tmp_path, steps=4)
        except RunError as error:
            os._exit(7 if "checkpoint-2 is intact" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-2").iterdir()} == before
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert run(tmp_path, steps=4).state.global_step == 4


def test_memory_that_does_not_suffice_is_told_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(JukeboxPrior, "forward", exhausted)
    with pytest.raises(RunError, match=r"batches of 2\. Set, in this order: batch=1 accumulate=2, checkpointing=true"):
        run(tmp_path)


def test_other_errors_are_not_taken_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(JukeboxPrior, "forward", broken)
    with pytest.raises(RuntimeError, match="something else"):
        run(tmp_path)
