"""The whole evaluation of a tiny random model, with made-up ears and a made-up corpus."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate_pocket
import pocket_material
import pocket_protocol
import tiny
from analysers.musicnn import TAGS
from analysers.panel import SANITY, Calibration, Hearing, drum_strength, lead_odds
from tunesmith.audio import Clip

RATE = tiny.SAMPLING_RATE
COUNTS = pocket_material.Counts(prompts=8, single=2, held_out=2, training=3, takes=2, memory=2)


def hearing(count, **changes):
    """Noise of a plausible form, the same every time."""
    rng = np.random.default_rng(count)
    sound = dict(zip(SANITY, [-20.0, 15.0, 0.0, 0.0, 0.02, 2.0], strict=True))
    found = Hearing(
        tempo=rng.uniform(60, 150, count),
        tonic=rng.integers(0, 12, count),
        minor=rng.integers(0, 2, count),
        tags=rng.uniform(0.01, 0.9, (count, 50)),
        embeddings=rng.normal(size=(count, 2, 5)),
        sanity=np.tile([sound[name] for name in SANITY], (count, 1)),
    )
    return replace(found, **changes)


class FakeCorpus:
    def __init__(self, seconds):
        self.samples = int(seconds * RATE)

    def _audio(self, index):
        return 0.3 * np.random.default_rng(index).standard_normal(self.samples).astype(np.float32)

    def example(self, index):
        return SimpleNamespace(audio=self._audio(index), caption=f"slow jig {index}")

    def compose(self, index, **fixed):
        assert set(fixed) in ({"key", "bpm", "lead", "drums"}, {"style"})
        return SimpleNamespace(audio=self._audio(index))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("models") / "pocket")


@pytest.fixture
def study(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_pocket.Study, "corpus", lambda self, split, seed: FakeCorpus(self.seconds))
    rules = pocket_protocol.protocol()
    rules["control"] = {**rules["control"], "seconds": 2}

    def listen(clips, key_and_tempo):
        assert clips.dtype == np.int16
        assert clips.shape[1] == 2 * 16000
        return hearing(len(clips))

    return evaluate_pocket.Study(model=str(folder), work=tmp_path, counts=COUNTS, listen=listen, rate=RATE, rules=rules)


@pytest.mark.filterwarnings("ignore:The model doesn't know")
def test_every_question_is_answered_and_every_gate_is_judged(study):
    results = evaluate_pocket.evaluate(study, list(evaluate_pocket.QUESTIONS), "cpu", quick=False)
    measured = {gate["measure"] for gate in results["gates"] if gate["value"] is not None}
    # Made-up ears may score other prompts as high as the own: such a control score is no number.
    assert {gate["measure"] for gate in results["gates"]} - measured <= {
        f"control.{axis}.score" for axis in ("tempo", "key", "lead", "drums")
    }
    assert results["language"]["tokens"] == 2 * 4 * 100
    assert len(results["codec"]["perplexity"]) == 4
    assert results["sanity"] == {
        "clips": 8, "failed": 0, "failures": [], "onset_share": 1.0, "median_rms_dbfs": -20.0, "median_flatness": 0.02
    }  # fmt: skip
    # The same noise was "heard" in renders and in generated clips: own equals ceiling on every axis.
    assert all(axis["own"] == axis["ceiling"] for name, axis in results["control"].items() if "score" in axis)
    assert "FAIL  codec SI-SDR (dB)" in evaluate_pocket.table(results)

    def deaf(clips, key_and_tempo):
        raise AssertionError("what was heard is kept")

    again = evaluate_pocket.evaluate(replace(study, listen=deaf), ["control", "distance"], "cpu", quick=False)
    assert again["control"] == results["control"]
    assert again["distance"] == results["distance"]
    assert again["gates"][0]["value"] is None  # the language question was not asked this time


@pytest.mark.filterwarnings("ignore:The model doesn't know")
def test_drawn_codes_are_those_of_the_generated_clips(study):
    clips, codes = study.clips("generated"), torch.from_numpy(study.drawn_codes())
    assert codes.shape == (2, 4, 100)
    for clip, drawn in zip(clips, codes, strict=False):
        decoded = Clip(study._song.model.decode_audio(drawn[None])[0].numpy(), RATE)
        np.testing.assert_array_equal(pocket_material.as_int16([pocket_material.mono(decoded)])[0], clip)


def test_soundness_is_judged_by_the_protocols_limits(study):
    bad = hearing(8)
    bad.sanity[3, SANITY.index("rms_dbfs")] = -60.0
    bad.sanity[5, SANITY.index("flatness")] = 0.5
    study.listen = lambda clips, key_and_tempo: bad
    assert [entry["problems"] for entry in study._insane("ceiling")] == [["silent"], ["noise"]]


def test_calibration_takes_a_tags_usual_strength_away():
    tags = np.full((4, 50), 0.1)
    tags[:, TAGS.index("guitar")] = [0.8, 0.8, 0.8, 0.9]
    tags[:, TAGS.index("choral")] = [0.01, 0.3, 0.01, 0.01]
    tags[:, TAGS.index("choir")] = 0.001
    leads = {"guitar": ["guitar"], "choir": ["choir", "choral"]}
    odds = lead_odds(tags, leads)
    assert odds["choir"][1] == pytest.approx(np.log(0.3 / 0.7))
    usual = {name: float(values.mean()) for name, values in odds.items()}
    heard = Calibration(leads=leads, usual=usual, drums=0.15).heard(hearing(4, tags=tags))
    assert [max(h.leads, key=h.leads.__getitem__) for h in heard] == ["guitar", "choir", "guitar", "guitar"]
    assert drum_strength(tags).tolist() == pytest.approx([0.2] * 4)


def test_hearing_round_trip(tmp_path):
    found = hearing(3)
    found.save(tmp_path / "a.npz")
    np.testing.assert_equal(vars(Hearing.load(tmp_path / "a.npz")), vars(found))
    assert found.sanities()[0].onsets_per_second == 2.0
