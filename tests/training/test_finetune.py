"""Fine-tuning of both families on a few tones: what is learnt is kept, loads, and leaves the rest alone."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tiny import save_tiny_folder
from tiny_jukebox import save_tiny_jukebox
from tunesmith import cli
from tunesmith.audio import Clip
from tunesmith.errors import (
    CheckpointError,
    IncompatiblePartsError,
    MissingDependencyError,
    ModelNotFoundError,
    RequestError,
    RunError,
)
from tunesmith.pipelines.jukebox import JukeboxModel
from tunesmith.training.finetune import Tuning, finetune, level_of
from tunesmith.training.runs import Schedule

pytestmark = pytest.mark.filterwarnings("ignore::tunesmith.UnknownLabelWarning")

RATES = {"musicgen": 2000, "jukebox": 1000, "joined": 1000}
NEW = {"artist": "Мой Хор", "genre": "новый жанр", "lyrics": "ля ля ля\nla la"}
OLD = {"artist": "Salt", "genre": "Country", "lyrics": "oh so blue"}


def songs(folder: Path, rate: int, count: int = 6, seconds: float = 1.0) -> Path:
    folder.mkdir()
    rows = []
    for i in range(count):
        tone = np.sin(2 * np.pi * (60 + 20 * i) * np.arange(int(seconds * rate)) / rate)
        Clip(0.4 * tone[None].astype(np.float32), rate).save(folder / f"s{i}.wav", level="none")
        rows.append({"file_name": f"s{i}.wav", "text": "slow rock tune", **(NEW if i % 2 else OLD)})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(autouse=True)
def _short_sounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.training.finetune.HEARD_SECONDS", 1.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "musicgen": save_tiny_folder(folder / "musicgen"),
        "jukebox": save_tiny_jukebox(folder / "jukebox"),
        "joined": save_tiny_jukebox(folder / "joined", joined=True),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("data")
    return lambda kind: folder / kind if (folder / kind).exists() else songs(folder / kind, RATES[kind])


def schedule(**changes: Any) -> Schedule:
    settings: dict[str, Any] = {"steps": 6, "batch": 2, "warmup": 0, "weight_decay": 0.0, "clip": 1.0, "log_every": 2}
    return Schedule(**{**settings, "learning_rate": 1e-2, "beta1": 0.9, **changes})


def tuning(model: Path, data: Path, run: Path, **changes: Any) -> Tuning:
    return Tuning(**{"model": str(model), "data": data, "run": run, "rank": 4, "schedule": schedule(), **changes})


def quiet(sentence: str) -> None:
    pass


@pytest.fixture(scope="module")
def tuned(
    models: dict[str, Path], data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run of an adapter for a model, made once."""
    folder = tmp_path_factory.mktemp("tuned")

    def run(kind: str) -> Path:
        if not (folder / kind).exists():
            like = {} if kind == "musicgen" else {"Мой Хор": "Salt"}
            finetune(tuning(models[kind], data(kind), folder / kind, like=like), quiet)
        return folder / kind

    return run


def sing(pipeline: Any, words: dict[str, str], **options: Any) -> np.ndarray:
    samples: np.ndarray = pipeline.generate(**words, seconds=0.1, seed=1, **options).samples
    return samples


# Both families --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [("musicgen", "dora"), ("musicgen", "full"), ("jukebox", "dora"), ("joined", "lora")],
)
def test_held_out_songs_are_known_better(
    kind: str, method: str, models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    result = finetune(tuning(models[kind], data(kind), tmp_path / "run", method=method), quiet)
    assert result["held_out_loss_after"] < 0.9 * result["held_out_loss_before"]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    before, after = (Clip.read(tmp_path / "run" / f"{name}.wav") for name in ("before", "after"))
    assert before.samples.shape == after.samples.shape
    assert not np.array_equal(before.samples, after.samples)
    words = {"prompt": "rock"} if kind == "musicgen" else OLD
    plain = tunesmith.load(models[kind])
    if method == "full":
        tuned = tunesmith.load(tmp_path / "run" / "model")
    else:
        tuned = tunesmith.load(models[kind], adapter=tmp_path / "run" / "adapter")
    assert not np.array_equal(sing(plain, words), sing(tuned, words))


def test_an_adapter_is_what_was_trained(models: dict[str, Path], tuned: Callable[[str], Path]) -> None:
    """Merged weights are those of the run's end: W + 2 B A."""
    adapter = tuned("musicgen") / "adapter"
    learnt = load_file(adapter / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in learnt} == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    name = "decoder.model.decoder.layers.0.self_attn.q_proj"
    down, up = (learnt[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    models_of = [tunesmith.load(models["musicgen"], adapter=a, quantize="none").model for a in (None, adapter)]
    plain, merged = (model.get_submodule(name).weight for model in models_of)
    assert type(models_of[1].get_submodule(name)).__name__ == "Linear"  # no adapter is in the way
    assert torch.allclose(merged, plain + 2 * up @ down, atol=1e-6)
    assert not any(p.requires_grad for p in models_of[1].parameters())


def test_the_recipe_in_the_file_names_the_adapter(
    models: dict[str, Path], tuned: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tuned("musicgen") / "adapter"
    pipeline = tunesmith.load(models["musicgen"], adapter=adapter)
    clip = pipeline.generate("rock", seconds=0.2, seed=3)
    clip.save(tmp_path / "a.wav")
    assert clip.recipe["adapter"] == str(adapter)
    assert cli.run(["generate", "--like", str(tmp_path / "a.wav"), "--out", str(tmp_path / "b.wav")]) == 0
    assert "differ" not in capsys.readouterr().err
    assert np.array_equal(Clip.read(tmp_path / "a.wav").samples, Clip.read(tmp_path / "b.wav").samples)


def test_a_run_in_pieces_learns_what_a_whole_one_does(
    models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    results = []
    for name, budgets in (("whole", [None]), ("pieces", [1e-9, 1e-9, None])):
        for budget in budgets:
            asked = tuning(
                models["jukebox"], data("jukebox"), tmp_path / name, schedule=schedule(budget_seconds=budget)
            )
            result = finetune(asked, quiet)
        results.append(result)
    assert results[0] == results[1]
    learnt = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "pieces")]
    assert all(torch.equal(learnt[0][name], learnt[1][name]) for name in learnt[0])
    checkpoint = load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors")
    assert all("lora" in name or "emb" in name or "lm_head" in name for name in checkpoint)  # and nothing frozen


@pytest.mark.parametrize("kind", ["musicgen", "jukebox"])
def test_layers_that_are_computed_anew_change_nothing(
    kind: str, models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    losses = []
    for anew in (False, True):
        when = schedule(steps=2, checkpointing=anew)
        result = finetune(tuning(models[kind], data(kind), tmp_path / str(anew), schedule=when), quiet)
        losses.append(result["held_out_loss_after"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# Jukebox --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jukebox", "joined"])
def test_new_names_and_letters_have_rows_of_their_own(
    kind: str, models: dict[str, Path], tuned: Callable[[str], Path]
) -> None:
    adapter = tuned(kind) / "adapter"
    facts = json.loads((adapter / "tunesmith.json").read_text())
    assert (facts["artists"], facts["genres"], facts["characters"], facts["sizes"]) == ([2], [0], 2, [4, 5])
    pipeline = tunesmith.load(models[kind], adapter=adapter)
    assert pipeline.tokenizer.tables["artist", "v3"].ids["мой хор"] == 5
    assert pipeline.tokenizer.alphabet.decode(pipeline.tokenizer.alphabet.encode("ля ля")) == "ля ля"
    plain, tuned = tunesmith.load(models[kind]).model.priors[0], pipeline.model.priors[0]
    old, new = (prior.metadata_embedding.artist_emb.weight for prior in (plain, tuned))
    assert torch.equal(new[:5], old)  # the known ones stay
    assert not torch.equal(new[5], old[2])  # the new one has learnt
    assert (new[5] - old[2]).norm() < (new[5] - old[0]).norm()
    assert (facts["alignment"][0], pipeline.config.prior_configs[0].alignment_layer) == (facts["alignment"][0],) * 2
    assert sing(pipeline, NEW).shape == (1, 96)
    for prior in pipeline.model.priors[1:]:
        assert prior.config.metadata_dims == [4, 5]


def test_priors_on_disk_are_adapted_when_their_turn_comes(
    models: dict[str, Path], tuned: Callable[[str], Path]
) -> None:
    sounds = []
    for one_at_a_time in (True, False):
        pipeline = tunesmith.load(models["jukebox"], adapter=tuned("jukebox") / "adapter")
        pipeline.one_prior_at_a_time = one_at_a_time
        sounds.append(sing(pipeline, NEW))
    assert np.array_equal(*sounds)


def test_an_upsampler_is_tuned_alone(models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path) -> None:
    result = finetune(tuning(models["jukebox"], data("jukebox"), tmp_path, level=1), quiet)
    assert result["held_out_loss_after"] < result["held_out_loss_before"]
    plain, tuned = tunesmith.load(models["jukebox"]), tunesmith.load(models["jukebox"], adapter=tmp_path / "adapter")
    drafts = [sing(pipeline, OLD, draft=True) for pipeline in (plain, tuned)]
    assert np.array_equal(*drafts)  # the top is as it was
    assert not np.array_equal(sing(plain, OLD), sing(tuned, OLD))
    # Level 2 reads the same tables, so it has rows for what is new there.
    assert [p.config.metadata_dims for p in tuned.model.priors] == [p.metadata_dims for p in tuned.config.prior_configs]


def test_a_whole_model_has_the_new_names_too(
    models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    finetune(tuning(models["jukebox"], data("jukebox"), tmp_path, method="full"), quiet)
    model = JukeboxModel.from_pretrained(tmp_path / "model")
    assert [prior.config.metadata_dims for prior in model.priors] == [[5, 6], [4, 5], [4, 5]]
    assert sing(tunesmith.load(tmp_path / "model"), NEW).shape == (1, 96)


def test_a_run_of_generate_goes_on_with_its_adapter(
    models: dict[str, Path], tuned: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = tuned("jukebox") / "adapter"
    flags = ["--artist", "Salt", "--lyrics", "oh so blue", "--seconds", "0.1", "--seed", "1", "--draft"]
    where = ["--model", models["jukebox"], "--adapter", adapter, "--out", tmp_path / "song"]
    for words in (["generate", *where, *flags], ["upsample", tmp_path / "song"]):
        assert cli.run([str(word) for word in words]) == 0
    settings = json.loads((tmp_path / "song" / "run.json").read_text())
    assert settings["adapter"] == str(adapter)
    assert (tmp_path / "song" / "bottom").is_dir()


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_an_adapter_belongs_to_its_model(models: dict[str, Path], tuned: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(tuned("musicgen") / "adapter", tmp_path / "adapter"))
    other = save_tiny_folder(tmp_path / "other", initializer_factor=0.1)
    with pytest.raises(IncompatiblePartsError, match=r"weights of .* are others"):
        tunesmith.load(other, adapter=adapter)
    with pytest.raises(IncompatiblePartsError, match=r"for a musicgen.*is a jukebox"):
        tunesmith.load(models["jukebox"], adapter=adapter)
    with pytest.raises(CheckpointError, match="is no adapter"):
        tunesmith.load(models["musicgen"], adapter=tmp_path)
    (adapter / "tunesmith.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        tunesmith.load(models["musicgen"], adapter=adapter)


def test_changed_settings_are_told(models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path) -> None:
    asked = tuning(models["musicgen"], data("musicgen"), tmp_path, schedule=schedule(steps=2))
    finetune(asked, quiet)
    with pytest.raises(RunError, match="rank was 4 and is now 8"):
        finetune(replace(asked, rank=8), quiet)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "magic"}, "no method 'magic'"),
        ({"rank": 0}, "rank is 0"),
        ({"seconds": 0.0}, "seconds is 0"),
        ({"schedule": Schedule(fsdp=True)}, "can't share a model"),
    ],
)
def test_nonsense_is_refused_at_once(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        tuning(tmp_path, tmp_path, tmp_path, **changes)


def test_names_that_nobody_has_are_refused(
    models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    for like, sentence in (({"Nobody": "Salt"}, "no song of the data"), ({"Мой Хор": "Sale"}, "closest: 'salt'")):
        with pytest.raises(RequestError, match=sentence):
            finetune(tuning(models["jukebox"], data("jukebox"), tmp_path, like=like), quiet)


def test_what_does_not_learn_must_not_decay(
    models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path
) -> None:
    decaying = tuning(models["jukebox"], data("jukebox"), tmp_path, schedule=schedule(weight_decay=0.1))
    with pytest.raises(RequestError, match=r"weight_decay is 0\.1"):
        finetune(decaying, quiet)


def test_broken_songs_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    folder = songs(tmp_path / "songs", 2000, count=3)
    (folder / "s1.wav").write_bytes(b"junk")
    told: list[str] = []
    finetune(tuning(models["musicgen"], folder, tmp_path / "run", schedule=schedule(steps=1)), told.append)
    assert any(sentence.startswith("s1.wav is left out: ") for sentence in told)


def test_one_song_is_not_enough(models: dict[str, Path], tmp_path: Path) -> None:
    folder = songs(tmp_path / "one", 2000, count=1)
    with pytest.raises(RequestError, match=r"1 song.*two at least"):
        finetune(tuning(models["musicgen"], folder, tmp_path / "run"), quiet)


def test_short_songs_are_followed_by_silence(models: dict[str, Path], tmp_path: Path) -> None:
    told: list[str] = []
    folder = songs(tmp_path / "short", 2000, count=3, seconds=0.3)
    asked = tuning(models["musicgen"], folder, tmp_path / "run", seconds=0.5, schedule=schedule(steps=1))
    finetune(asked, told.append)
    assert "3 of 3 songs are shorter than 0.5 s and are followed by silence." in told


def test_without_peft_there_is_a_sentence(
    models: dict[str, Path], data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tunesmith\[train\]'"):
        finetune(tuning(models["musicgen"], data("musicgen"), tmp_path), quiet)


def test_levels_have_names(models: dict[str, Path]) -> None:
    assert [level_of(str(models["jukebox"]), name) for name in (None, "top", "middle", "bottom")] == [0, 0, 1, 2]
    with pytest.raises(RequestError, match="no level 'lowest'"):
        level_of(str(models["jukebox"]), "lowest")
    with pytest.raises(RequestError, match="--level is for a Jukebox"):
        level_of(str(models["musicgen"]), "top")
    with pytest.raises(ModelNotFoundError):
        level_of("nobody/nothing/here", None)
