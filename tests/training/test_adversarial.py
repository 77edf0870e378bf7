"""The adversarial codec objective: its parts by hand, a run that learns, stops, goes on and is shared."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_runs import JUDGED, JUDGED_SETTINGS, Chords, codec
from tunesmith.codecs.encodec import EncodecModel
from tunesmith.errors import RequestError, RunError
from tunesmith.training.adversarial import CodecTraining, Endless, train_encodec
from tunesmith.training.balancer import Balancer
from tunesmith.training.discriminators import (
    Judges,
    SpectrogramJudge,
    Verdict,
    feature_loss,
    generator_loss,
    judge_loss,
)
from tunesmith.training.losses import MultiScaleMel, mel_triangles
from tunesmith.training.runs import Schedule


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def schedule(**changes: Any) -> Schedule:
    return Schedule(**JUDGED_SETTINGS | changes)


# Parts ----------------------------------------------------------------------------------------------------------------


def test_a_judge_sees_real_and_imaginary_parts_of_unit_windows() -> None:
    judge, audio = SpectrogramJudge(64, channels=2, filters=4), torch.randn(3, 2, 200)
    seen = judge.spectrogram(audio)
    window = torch.hann_window(64)
    frame = audio[1, 0, 32 : 32 + 64] * window / window.square().sum().sqrt()
    expected = torch.fft.rfft(frame)
    assert seen.shape == (3, 4, 9, 33)
    assert torch.allclose(seen[1, 0, 2], expected.real, atol=1e-5)
    assert torch.allclose(seen[1, 2, 2], expected.imag, atol=1e-5)


def test_the_sizes_of_the_original_judges() -> None:
    judges = Judges()
    assert [judge.window for judge in judges.judges] == [1024, 2048, 512, 256, 128]
    verdict = judges.judges[0](torch.randn(1, 1, 4096))
    assert [tuple(f.shape) for f in verdict.features] == [
        (1, 32, 13, 513), (1, 32, 13, 257), (1, 32, 13, 129), (1, 32, 13, 65), (1, 32, 13, 65),
    ]  # fmt: skip
    assert verdict.logits.shape == (1, 1, 13, 65)
    weights = sum(p.numel() for p in judges.judges[0].parameters())
    by_hand = (2 * 27 + 1) * 32 + 3 * ((32 * 27 + 1) * 32 + 32) + (32 * 9 + 1) * 32 + 32 + (32 * 9 + 1) + 1
    assert weights == by_hand


def test_losses_of_judges_by_hand() -> None:
    def verdict(*logits: float) -> Verdict:
        values = torch.tensor(logits).view(1, 1, 1, -1)
        return Verdict(values, [values, 2 * values])

    real, fake = [verdict(2.0, 0.0), verdict(1.0, 1.0)], [verdict(-3.0, 0.0), verdict(1.0, 0.0)]
    assert judge_loss(real, fake).item() == pytest.approx((0.5 + 0.5 + 0 + 1.5) / 2)
    assert generator_loss(fake).item() == pytest.approx((1.5 - 0.5) / 2)
    assert feature_loss(real, fake).item() == pytest.approx((2.5 + 5 + 0.5 + 1) / 4)


def test_the_balancer_gives_each_loss_its_share() -> None:
    output = torch.zeros(2, 3, requires_grad=True)
    pull = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 5.0]])
    losses = {"loud": (1000 * pull * output).sum(), "quiet": (1e-3 * output.sum(1)).sum(), "off": output.sum()}
    balancer = Balancer({"loud": 3.0, "quiet": 1.0, "off": 0.0})
    gradient, shares = balancer(losses, output)
    expected = 0.75 * pull / 5 + 0.25 / math.sqrt(3)
    assert torch.allclose(gradient, expected)
    assert shares["loud"].item() == pytest.approx(5e6 / (5e6 + math.sqrt(3)))
    assert set(shares) == {"loud", "quiet"}


def test_the_balancer_averages_norms_over_steps_and_remembers_them() -> None:
    balancer = Balancer({"one": 1.0}, decay=0.5)
    for size, average in ((1.0, 1.0), (4.0, (0.5 * 1 + 4) / 1.5), (2.0, (0.25 * 1 + 0.5 * 4 + 2) / 1.75)):
        again = Balancer({"one": 1.0}, decay=0.5)
        again.load_state_dict(balancer.state_dict())
        for each in (balancer, again):
            output = torch.zeros(1, 1, requires_grad=True)
            gradient, _ = each({"one": size * output.sum()}, output)
            assert gradient.item() == pytest.approx(size / average)


def test_mel_differences_by_hand() -> None:
    triangles = mel_triangles(2000, 64, 4, 64.0)
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (64, 1000))
    peak = 700 * (10 ** ((low + (high - low) / 5) / 2595) - 1)
    assert triangles.shape == (4, 33)
    assert 1 - abs(triangles[0].argmax().item() * 31.25 - peak) / 31.25 >= 0.5
    assert triangles[:, 0].sum() == 0
    mel, sound = MultiScaleMel(2000, windows=(64,), bands=4), torch.randn(2, 1, 640)
    assert mel(sound, sound).item() == 0
    padded = torch.nn.functional.pad(sound, (24, 24), "reflect")[:, 0]
    window = torch.hann_window(64)
    frames = torch.fft.rfft(padded.unfold(1, 64, 16) * window).abs().square() / window.square().sum()
    one = frames @ triangles.T
    four = 4 * one
    expected = ((four - one).abs().mean() + ((1e-5 + four).log10() - (1e-5 + one).log10()).square().mean()) / 2
    assert mel(sound, 2 * sound).item() == pytest.approx(expected.item(), rel=1e-5)


def test_items_come_in_a_new_order_every_epoch() -> None:
    data = Chords()
    numbers = Endless(data, seed=1)
    seen = [numbers[n]["audio"] for n in range(18)]
    orders = []
    for epoch in range(3):
        data.set_epoch(epoch)
        items = [data[i]["audio"] for i in range(6)]
        orders.append([next(i for i in range(6) if torch.equal(items[i], x)) for x in seen[epoch * 6 : epoch * 6 + 6]])
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert torch.equal(Endless(data, seed=1)[13]["audio"], seen[13])


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_codec_learns_alone_and_then_against_judges() -> None:
    training = CodecTraining(codec(), replace(JUDGED, judge_after=60), schedule(ema="none"), torch.device("cpu"))
    audio = torch.stack([Chords()[i]["audio"] for i in range(4)])[:, None]
    first, *_, alone = (training.step(audio) for _ in range(60))
    last = training.step(audio)
    assert alone["mel"] < 0.6 * first["mel"]
    assert alone["si_sdr"] > first["si_sdr"] + 10
    assert "judges" not in alone
    assert set(last) >= {"adversarial", "features", "wave", "mel", "judges", "commitment", "used_codes", "share_wave"}
    assert sum(last[f"share_{name}"] for name in ("adversarial", "features", "wave", "mel")).item() == pytest.approx(1)


def test_judges_learn_to_tell_and_the_codec_can_hear_them() -> None:
    training = CodecTraining(codec(), JUDGED, schedule(), torch.device("cpu"))
    real = torch.stack([Chords()[i]["audio"] for i in range(4)])[:, None]
    fake = torch.randn(real.shape, generator=torch.Generator().manual_seed(0)) / 4
    losses = [training._teach_judges(real, fake)["judges"].item() for _ in range(50)]
    assert losses[0] == pytest.approx(2, abs=0.2)
    assert losses[-1] < 0.5
    assert generator_loss(training.judges(fake)) > 0.5 > -0.5 > generator_loss(training.judges(real))


def test_stereo_and_without_judges() -> None:
    training = CodecTraining(codec(2), replace(JUDGED, adversarial=0.0, features=0.0), schedule(), torch.device("cpu"))
    figures = training.step(torch.randn(2, 2, 1024) / 10)
    assert training.judge_optimizer is None
    assert set(figures) == {"wave", "mel", "share_wave", "share_mel", "commitment", "si_sdr", "used_codes"}


def history(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "elapsed"} for line in lines]


def test_a_run_in_pieces_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train_encodec(codec(), Chords(), whole, schedule(save_every=2), JUDGED, test=Chords())
    for stops in range(1, 6):
        train_encodec(codec(), Chords(), pieces, schedule(budget_seconds=1e-9), JUDGED)
        assert (pieces / f"checkpoint-{stops}").is_dir()
    assert sorted(path.name for path in pieces.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    ends = [EncodecModel.from_pretrained(run / "model").state_dict() for run in (whole, pieces)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    states = [torch.load(run / "checkpoint-5" / "training.pt", weights_only=True) for run in (whole, pieces)]
    assert all(torch.equal(states[0]["judges"][name], states[1]["judges"][name]) for name in states[0]["judges"])
    raw = EncodecModel.from_pretrained(whole / "checkpoint-5").state_dict()
    assert not torch.equal(raw["encoder.layers.0.conv.bias"], ends[0]["encoder.layers.0.conv.bias"])  # averaged
    logged = history(whole)
    assert [line["step"] for line in logged if "mel" in line] == [2, 4, 5]
    assert {"test_mel", "test_si_sdr"} <= set(logged[-1])
    assert not list(tmp_path.rglob(".*"))


def test_a_killed_run_logs_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        train_encodec(codec(), Deadly(), tmp_path / "killed", schedule(save_every=3), JUDGED)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-3"]
    for run in ("killed", "whole"):
        train_encodec(codec(), Chords(), tmp_path / run, schedule(save_every=3), JUDGED)
    ends = [EncodecModel.from_pretrained(tmp_path / run / "model").state_dict() for run in ("whole", "killed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert history(tmp_path / "killed") == history(tmp_path / "whole")


class Deadly(Chords):
    """The ninth item, of the fifth step, ends the process without warning."""

    served = 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.served += 1
        if self.served == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_what_is_no_number_is_not_saved(tmp_path: Path) -> None:
    train_encodec(codec(), Chords(), tmp_path, schedule(steps=2), JUDGED)
    with pytest.raises(RunError, match=r"stopped being a number.*checkpoint-2.*lower learning_rate"):
        train_encodec(codec(), Chords(broken=True), tmp_path, schedule(steps=4, log_every=100), JUDGED)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_short_crops_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="200 samples and the longest window has 512"):
        train_encodec(codec(), Chords(samples=200), tmp_path, schedule(), JUDGED)
    with pytest.raises(RequestError, match="2 channels"):
        train_encodec(codec(2), Chords(), tmp_path, schedule(), JUDGED)
