"""Each measurement of the small Jukebox's evaluation, on small things."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate_pocket_jukebox as study
import make_jukebox_card
import pack_pocket_jukebox
from evaluate_pocket_jukebox import Told
from pocket_protocol import judge
from tiny_jukebox import save_tiny_jukebox, tiny_jukebox, tiny_labels, tiny_tokenizer
from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig
from tunesmith.conditioning.labels import cut_window, with_timing
from tunesmith.pipelines.jukebox_song import JukeboxPipeline
from tunesmith.training.corpus.singing import ARTISTS, GENRES, SungCorpus, plan_for
from tunesmith.training.corpus.singing_lyrics import PLACES
from tunesmith.training.corpus.split import split_of

TOLD = [
    Told("Ada Finch", "hymn", "one two three"),
    Told("Bruno Oak", "march", "four five six"),
    Told("Ada Finch", "lament", "seven eight"),
]


@pytest.fixture(scope="module")
def codec() -> JukeboxVQVAE:
    torch.manual_seed(0)
    config = JukeboxVQVAEConfig(
        sampling_rate=8000, levels=2, nb_discrete_codes=16, embed_dim=8, res_downs_t=[2, 1], res_strides_t=[4, 2],
        multipliers=None, res_conv_width=8, res_conv_depth=1,
    )  # fmt: skip
    model = JukeboxVQVAE(config).train()
    for _ in range(3):
        model(torch.randn(2, 4096, 1))
    return model.eval()


# ---- the protocol ---------------------------------------------------------------------------------------------------


def test_gates_are_those_of_the_protocol_and_the_study_measures_them() -> None:
    rules = study.protocol()
    measures = {gate["measure"] for gate in rules["gates"] + rules["aims"]}
    assert {name.split(".")[0] for name in measures} == set(study.PARTS)
    for label in ("artist", "genre", "lyrics"):
        assert {f"labels.{label}.withheld_minus_true.lower", f"labels.{label}.wrong_minus_withheld.lower"} <= measures
    limits = {gate["measure"]: gate.get("at_most") for gate in rules["gates"]}
    assert limits["choice.generated.p"] == limits["choice.top.p"] == {"cpu": 0.01, "gpu": 0.01}
    assert limits["size.megabytes"]["cpu"] <= 12
    assert rules["choice"]["groups"] * rules["choice"]["lines"] >= 50
    assert not any(verdict["passed"] for verdict in judge({}, rules["gates"], "cpu"))


def test_what_is_asked_for_was_never_sung_in_training() -> None:
    groups = study.asked(study.protocol(), seed=1)
    plans = [plan for group in groups for plan in group]
    assert [len({plan.line.text for plan in group}) for group in groups] == [10] * 10
    assert {plan.line.syllables for plan in plans} == {PLACES}
    assert all(split_of(f"verse / {plan.line.work}") == "test" for plan in plans)
    assert {plan.artist for plan in plans} == set(ARTISTS)
    assert {plan.genre for plan in plans} == set(GENRES)
    again = study.asked(study.protocol(), seed=1)
    assert again == groups != study.asked(study.protocol(), seed=2)


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["artist", "genre", "lyrics"])
def test_a_wrong_label_is_another_one(label: str) -> None:
    for seed in range(5):
        for song, other in zip(TOLD, study.wrong(TOLD, label, random.Random(seed)), strict=True):
            assert getattr(song, label) != getattr(other, label)
            assert {name for name in vars(song) if vars(song)[name] != vars(other)[name]} == {label}
    lines = [song.lyrics for song in study.wrong(TOLD, "lyrics", random.Random(0))]
    assert lines[:2] == ["four five six", "one two three"]  # as many words, where there are such


def test_bits_are_compared_song_by_song() -> None:
    def bits(told: Any) -> torch.Tensor:
        """Knows artists only; a wrong one costs a bit, none half a bit."""
        costs = {"": 0.5}
        pairs = enumerate(zip(told, TOLD, strict=True))
        return torch.tensor([3.0 + i + costs.get(s.artist, float(s.artist != t.artist)) for i, (s, t) in pairs])

    found = study.label_bits(TOLD, bits, random.Random(0))
    assert found["artist"]["true"] == 4.0
    assert found["artist"]["withheld_minus_true"] == {"mean": 0.5, "lower": 0.5}
    assert found["artist"]["wrong_minus_withheld"] == {"mean": 0.5, "lower": 0.5}
    assert found["lyrics"]["withheld_minus_true"] == {"mean": 0.0, "lower": 0.0}
    assert found["songs"] == 3


def test_the_lower_end_needs_more_than_a_good_mean() -> None:
    certain = study.interval(torch.tensor([0.9, 1.0, 1.1, 1.0]))
    doubtful = study.interval(torch.tensor([5.0, -3.0, 4.0, -2.0]))
    assert certain["mean"] == doubtful["mean"] == 1.0
    assert certain["lower"] > 0.8
    assert doubtful["lower"] < 0


@pytest.mark.parametrize("joined", [False, True])
def test_bits_of_songs_average_to_the_priors_loss(joined: bool) -> None:
    prior = tiny_jukebox(joined).priors[0]
    codes = torch.randint(24, (3, 16), generator=torch.Generator().manual_seed(0))
    rows = with_timing(tiny_labels(["la la", "oh", "so blue"])[0], sample_length=128, total_length=128, offset=0)
    rows = cut_window(rows, start=0, length=128, n_genres=1, n_tokens=8).labels
    with torch.no_grad():
        expected = prior(codes, rows).music_loss
    bits = study.bits_of(prior, tiny_tokenizer(), codes)
    told = [Told("Salt", "Folk Rock", words) for words in ("la la", "oh", "so blue")]
    found = bits(told)
    assert found.mean() == pytest.approx(float(expected), rel=1e-5)
    assert not torch.equal(found, bits([Told("", "Folk Rock", song.lyrics) for song in told]))
    assert not torch.equal(found, bits([Told("Salt", "Folk Rock", "") for _ in told]))


# ---- codec ----------------------------------------------------------------------------------------------------------


def test_spectral_convergence_in_decibels() -> None:
    audio = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0))
    assert study.convergence_db(audio, 0.9 * audio) == pytest.approx(-20.0, abs=0.01)
    assert study.convergence_db(audio, torch.zeros_like(audio)) == pytest.approx(0.0, abs=1e-4)


def test_a_level_is_judged_by_its_own_codes(codec: JukeboxVQVAE) -> None:
    audio = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0)) * 0.1
    figures = study.level_figures(audio, audio.flip(0), codec, 1)
    codes, again = study.round_trip(codec, audio, 1)
    assert codes.shape == (2, 8192 // 32)
    assert torch.equal(again, codec.decode([codes], 1, 2)[..., 0])
    assert figures["codes_per_second"] == 250
    assert 1 <= figures["perplexity"] <= 16
    assert figures["perplexity_share"] == pytest.approx(figures["perplexity"] / 16)
    assert figures["usage"] == len(codes.unique()) / 16
    assert figures["mel_share"] > 0


def test_neighbours_share_singer_and_genre_and_nothing_else() -> None:
    plans = [SungCorpus(0, "test").plan(i) for i in range(20)]
    for plan, other in zip(plans, study.neighbours(plans, random.Random(0)), strict=True):
        assert (plan.artist, plan.genre) == (other.artist, other.genre)
        assert plan.tune != other.tune
        assert plan.line != other.line


# ---- forced choice --------------------------------------------------------------------------------------------------


class Hears:
    """Judges by the length of a line: it likes the one with as many letters as the clip's level says."""

    def scores(self, audio: np.ndarray, lines: list[str]) -> np.ndarray:
        return np.array([-abs(len(line) - 100 * float(np.abs(audio).mean())) for line in lines])


def test_songs_are_judged_in_the_order_of_the_groups() -> None:
    words = ["I saw a moon be-side the sea", "the moon will find the ship at night"]
    groups = [[plan_for("Ada Finch", "hymn", line) for line in words], [plan_for("Ada Finch", "hymn", words[1])] * 2]
    levels = [len(plan.line.text) / 100 for group in groups for plan in group]
    audio = np.repeat(np.array(levels)[:, None], 4000, axis=1)
    scores = study.line_scores(Hears(), audio, groups, 8000)
    assert scores.shape == (2, 2, 2)
    assert scores[0].argmax(1).tolist() == [0, 1]


def test_the_judge_tells_lines_apart(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx", reason="pip install pocketsphinx")
    pytest.importorskip("pyworld", reason="pip install tunesmith[singing]")
    from analysers.lines import RATE, LineJudge
    from tunesmith.errors import MissingDependencyError

    words = ["a rose of silk is bright and cold", "the king will hear the bells at dawn"]
    try:
        song = SungCorpus(0, "test", RATE).render(plan_for("Emil Stone", "hymn", words[0]))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    heard = LineJudge()
    assert all(map(heard.knows, words))
    assert not heard.knows("a xqzt of gold")
    scores = heard.scores(song.audio.astype(np.float64), words)
    assert scores[0] > scores[1]


def test_the_model_sings_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "SECONDS", 0.128)
    pipeline = JukeboxPipeline("tiny", save_tiny_jukebox(tmp_path))
    for table in pipeline.tokenizer.tables.values():
        names = {"artist": ["ada finch", "ada_finch"], "genre": ["hymn"]}[table.kind]
        table.ids.update(dict.fromkeys(names, 1))
    plans = [plan_for("Ada Finch", "hymn", "I saw a moon be-side the sea")] * 2
    made = study.sung(pipeline, plans, study.protocol(), seed=5)
    assert made.shape == (2, 128)
    assert np.array_equal(made, study.sung(pipeline, plans, study.protocol(), seed=5))
    assert not np.array_equal(made[0], made[1])


# ---- the study ------------------------------------------------------------------------------------------------------


def test_what_was_made_is_kept_until_it_depends_on_something_else(tmp_path: Path) -> None:
    one, made = study.Study(model="x", work=tmp_path), []

    def make() -> np.ndarray:
        made.append(1)
        return np.arange(3)

    for parts in ([1], [1], [2]):
        assert one._kept("numbers", parts, make).tolist() == [0, 1, 2]
    assert len(made) == 2
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_sizes_are_of_all_files(tmp_path: Path) -> None:
    save_tiny_jukebox(tmp_path / "model")
    found = study.Study(model=str(tmp_path / "model"), work=tmp_path).size()
    assert found["megabytes"] == sum(file.stat().st_size for file in (tmp_path / "model").iterdir()) / 1e6


def test_results_carry_their_verdicts(tmp_path: Path) -> None:
    save_tiny_jukebox(tmp_path / "model")
    result = study.evaluate(study.Study(model=str(tmp_path / "model"), work=tmp_path), ["size"], "cpu")
    verdicts = {gate["measure"]: gate["passed"] for gate in result["gates"]}
    assert verdicts["size.megabytes"]
    assert not verdicts["choice.generated.p"]  # what was not measured has not passed
    assert len(result["protocol"]["sha256"]) == 64
    json.dumps(result)


# ---- box and card ---------------------------------------------------------------------------------------------------


def test_the_box_holds_the_model_in_half_the_space(tmp_path: Path) -> None:
    whole, box = save_tiny_jukebox(tmp_path / "whole"), tmp_path / "box"
    settings = {f"schedule.{name}": 1 for name in ("batch", "learning_rate", "curve", "seed")}
    (tmp_path / "recipe.json").write_text(json.dumps({"settings": settings}))
    pack_pocket_jukebox.pack(whole, dict.fromkeys(("vqvae", "prior", "upsampler"), tmp_path), box, "2 CPU cores")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, box)]
    assert sizes[1] < 0.7 * sizes[0]  # half, but for the names of so many small tensors
    before, after = (JukeboxPipeline("tiny", folder) for folder in (whole, box))
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    codes = torch.randint(24, (2, 16), generator=torch.Generator().manual_seed(0))
    one, other = (pipeline.model.decode([codes] * 3) for pipeline in (before, after))
    assert one.dtype == other.dtype == torch.float32
    assert torch.allclose(one, other, atol=1e-2)
    facts = json.loads((box / "training.json").read_text())
    assert facts["hardware"] == "2 CPU cores"
    assert facts["prior"]["parameters"] == sum(p.numel() for p in before.model.priors[0].parameters())


def test_the_card_says_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = study.protocol()
    level = dict.fromkeys(
        ("codes_per_second", "mel_db", "mel_share", "convergence_db", "si_sdr", "perplexity", "usage"), 0.123
    )
    bits = {"true": 5, "withheld": 6, "wrong": 7}
    heard = {"share": 0.37, "permuted": 0.1, "p": 0.0004}
    found = {
        "codec": {"bottom": level, "top": level},
        "labels": {"songs": 9, "artist": bits, "genre": bits, "lyrics": bits},
        "choice": {"songs": 100, "generated": heard},
        "gates": judge({"choice": {"generated": heard}}, rules["gates"], "cpu"),
        "aims": [],
        "protocol": {"sha256": "abc", "quick": False, "trained_on": "cpu"},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    monkeypatch.setattr("sys.argv", ["make_jukebox_card.py", str(tmp_path)])
    make_jukebox_card.main()
    page = (tmp_path / "README.md").read_text()
    assert "| generated | 37% | 10% | 0.0004 |" in page
    assert "| lyrics | 5 | 6 | 7 |" in page
    assert "0.123" in page
    assert "Falls short: size of the model's folder (MB) is not measured" in page
