"""`tunesmith generate` for a Jukebox, and `resume`, `upsample`, `continue`, `align`, `features`."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from chromium import open_page
from tiny_jukebox import HOPS, RATE, save_tiny_jukebox
from tunesmith import cli
from tunesmith.audio import Clip
from tunesmith.errors import RequestError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.pipelines.jukebox import JukeboxModel
from tunesmith.pipelines.jukebox_song import JukeboxPipeline
from tunesmith.pipelines.song import load
from tunesmith.requests import JukeboxRequest

LYRICS = "la la la\noh so blue"
SONG = ("--lyrics", LYRICS, "--artist", "Salt", "--genre", "folk rock", "--song-seconds", "3")
KILLING = Path(__file__).parents[1] / "killing.py"
LEVELS = ("top", "middle", "bottom")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_jukebox(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def pipeline(model: Path) -> JukeboxPipeline:
    loaded = load(model)
    assert isinstance(loaded, JukeboxPipeline)
    return loaded


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: JukeboxPipeline) -> Path:
    """An empty folder to work in; the model is loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tunesmith.pipelines.song.load", lambda *_: pipeline)
    return tmp_path


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three takes."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert (
        tunesmith("generate", "--model", model, *SONG, "--seconds", 0.2, "--takes", 3, "--seed", 3, "--out", folder)
        == 0
    )
    return folder


def tunesmith(*arguments: object) -> int:
    return cli.run(list(map(str, arguments)))


def codes(run: Path, take: int) -> list[list[int]]:
    tensors = load_file(run / "takes" / f"{take}.safetensors")
    return [tensors[f"codes.{level}"].tolist() for level in range(3)]


def lengths(run: Path, take: int) -> list[int]:
    return [len(level) * hop for level, hop in zip(codes(run, take), HOPS, strict=True)]


# generate -------------------------------------------------------------------------------------------------------------


def test_a_run_has_all_that_is_promised(whole: Path) -> None:
    for level in LEVELS:
        for take in (1, 2, 3):
            clip = Clip.read(whole / level / f"take-{take}.wav")
            assert clip.rate == RATE
            assert clip.samples.shape == (1, 200)
            assert clip.recipe is not None
            assert clip.recipe["level"] == level
            assert JukeboxRequest.from_dict(clip.recipe["request"]).seed == take + 2
        assert (whole / level / "index.html").is_file()
    assert json.loads((whole / "lyrics" / "take-1.json").read_text())["lyrics"] == LYRICS
    assert (whole / "lyrics" / "take-2.lrc").is_file()
    assert load_file(whole / "lyrics" / "take-3.safetensors")["alignment"].shape == (25, len(LYRICS))
    assert not list(whole.rglob("*.part"))


def test_codes_are_those_of_the_model(whole: Path, pipeline: JukeboxPipeline) -> None:
    labels = pipeline.tokenizer("Salt", "Folk Rock", LYRICS, total_length=3 * RATE)["input_ids"]
    wanted = pipeline.model.ancestral_sample(labels, 3, sample_length=200, seeds=[3, 4, 5])
    assert [codes(whole, take + 1) for take in range(3)] == [
        [level[take].tolist() for level in wanted] for take in range(3)
    ]


def test_loaded_by_name_it_makes_the_same_clips(whole: Path, pipeline: JukeboxPipeline) -> None:
    fields = {"artist": "Salt", "genre": "folk rock", "song_seconds": 3, "seconds": 0.2}
    clips = pipeline.generate(LYRICS, **fields, takes=2, seed=4)
    assert isinstance(clips, list)
    alone = pipeline.generate(LYRICS, **fields, seed=5)
    assert isinstance(alone, Clip)
    assert np.array_equal(clips[1].samples, alone.samples)
    assert alone.recipe is not None
    assert alone.recipe["request"]["lyrics"] == LYRICS
    assert np.abs(alone.level().samples - Clip.read(whole / "bottom" / "take-3.wav").samples).max() < 1e-4


@pytest.mark.parametrize("prompt", [np.zeros((1, 50)), [torch.zeros(1, 50)], [3]])
def test_audio_prompts_of_other_types_are_a_sentence(pipeline: JukeboxPipeline, prompt: Any) -> None:
    with pytest.raises(RequestError, match=r"audio_prompt has type \w+; give a file, a Clip, or a list of those"):
        pipeline.generate("la", audio_prompt=prompt)


def test_every_flag_reaches_the_run(here: Path, model: Path) -> None:
    Path("words.txt").write_text("\ufeffoh\nso blue", encoding="utf-8")
    Clip(np.full((2, 2400), 0.1, np.float32), 4000).save("a.flac")
    flags = "--lyrics words.txt --artist Salt --genre folk --seconds 0.3 --song-seconds 4 --offset 1 --takes 2 --seed 9"
    more = "--audio-prompt a.flac,a.flac --prompt-seconds 0.1 --draft --hop-fraction 0.125,0.5,0.25 --temperature 0.9"
    rest = "--top-k 9,8,7 --top-p 0.8 --sample-rate 2000 --out b --level none --chunk-size 2 --max-batch-size 1"
    assert tunesmith("generate", "--model", model, *shlex.split(f"{flags} {more} {rest}")) == 0
    settings = json.loads(Path("b/run.json").read_text())
    assert (settings["depth"], settings["loudness"], settings["chunk_size"], settings["max_batch_size"]) == (
        1,
        "none",
        [2],
        [1],
    )
    assert JukeboxRequest.from_dict(settings["takes"][1]) == JukeboxRequest(
        lyrics="oh\nso blue",
        artist="Salt",
        genre=("folk",),
        seconds=0.3,
        song_seconds=4,
        offset=1,
        audio_prompt=(Path("a.flac"),),
        prompt_seconds=0.1,
        seed=10,
        draft=True,
        hop_fraction=(0.125, 0.5, 0.25),
        temperature=0.9,
        top_k=(9, 8, 7),
        top_p=0.8,
        sample_rate=2000,
    )
    assert Clip.read("b/top/take-2.wav").rate == 2000
    assert not Path("b/middle").exists()


def test_like_repeats_a_take(here: Path, whole: Path, capsys) -> None:
    assert tunesmith("generate", "--like", whole / "top" / "take-2.wav", "--out", "again") == 0
    assert codes(Path("again"), 1) == codes(whole, 2)
    assert "differ" not in capsys.readouterr().err


def recipe(file: Path | str) -> dict[str, Any]:
    found = Clip.read(file).recipe
    assert found is not None
    return found


def test_like_repeats_an_upsampled_take_with_its_prompt(here: Path, model: Path, capsys) -> None:
    Clip(np.full((1, 400), 0.1, np.float32), 4000).save("a.wav")
    flags = ("--seconds", 0.2, "--takes", 3, "--seed", 3, "--draft", "--out", "draft", "--audio-prompt", "a.wav")
    assert tunesmith("generate", "--model", model, *SONG, *flags) == 0
    upsample = ("upsample", "draft", "--pick", 3, "--temperature", "0.99,0.5,0.5", "--sample-rate", 2000)
    assert tunesmith(*upsample) == 0
    made = recipe("draft/bottom/take-3.wav")
    assert (made["request"]["seed"], made["request"]["draft"], "history" in made) == (5, False, False)
    assert tunesmith("generate", "--like", "draft/bottom/take-3.wav", "--out", "again") == 0
    assert codes(Path("again"), 1) == codes(Path("draft"), 3)
    assert recipe("again/bottom/take-1.wav") == made
    assert "differ" not in capsys.readouterr().err
    Clip(np.full((1, 300), 0.1, np.float32), 4000).save("a.wav")
    assert tunesmith("generate", "--like", "draft/bottom/take-3.wav", "--draft", "--out", "other") == 0
    assert "The audio prompt is not the one of 'draft/bottom/take-3.wav'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        ("continue RUN --seconds 0.3 --pick 2", [25, 50, 100]),
        ("continue RUN --seconds 0.3 --pick 2 --from top --prompt-seconds 0.1", [12, 0, 0]),
        ("upsample RUN --temperature 0.5 --pick 2 --sample-rate 2000", [25, 50, 100]),
    ],
)
def test_a_take_made_in_steps_says_which_and_is_not_repeated(here, whole: Path, step: str, kept, capsys) -> None:
    subprocess.run(["cp", "-r", str(whole), "copy"], check=True)
    assert tunesmith(*step.replace("RUN", "copy").split()) == 0
    made = recipe("copy/bottom/take-2.wav")
    assert made["request"]["seconds"] == (0.2 if step.startswith("upsample") else 0.3)
    [before] = made["history"]
    assert before["request"] == recipe(whole / "bottom/take-2.wav")["request"]
    assert before["codes"] == dict(zip(LEVELS, kept, strict=True))
    assert "history" not in recipe("copy/bottom/take-1.wav")
    assert tunesmith("generate", "--like", "copy/bottom/take-2.wav", "--out", "again") == 2
    assert "'copy/bottom/take-2.wav' was made in steps (`tunesmith info` shows them" in capsys.readouterr().err
    assert not Path("again").exists()
    assert tunesmith("info", "copy/bottom/take-2.wav") == 0
    assert "history" in capsys.readouterr().out


def test_like_of_a_continued_clip_needs_a_file(here: Path, pipeline: JukeboxPipeline, capsys) -> None:
    clip = Clip(np.full((1, 100), 0.1, np.float32), RATE)
    pipeline.generate("la", seconds=0.2, draft=True, audio_prompt=clip, seed=1).save("sung.wav")
    assert tunesmith("generate", "--like", "sung.wav", "--out", "again") == 2
    assert "'sung.wav' continues audio that was in no file; save that, and name --audio-prompt" in (
        capsys.readouterr().err
    )
    clip.save("clip.wav")
    assert tunesmith("generate", "--like", "sung.wav", "--audio-prompt", "clip.wav", "--out", "again") == 0


def test_like_needs_the_same_model(here: Path, whole: Path, pipeline: JukeboxPipeline, monkeypatch, capsys) -> None:
    monkeypatch.setitem(vars(pipeline), "hash", "0")
    assert tunesmith("generate", "--like", whole / "top" / "take-2.wav", "--draft", "--out", "again") == 0
    assert f"The model is not the one of {str(whole / 'top' / 'take-2.wav')!r}" in capsys.readouterr().err


def test_prompts_are_tiled_and_kept(here: Path, model: Path, pipeline: JukeboxPipeline) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 8000)).astype(np.float32)
    Clip(noise, 8000).save("a.wav")  # stereo, 8 kHz
    Clip(noise[:1, :3000] * 0, 8000).save("b.wav")  # silent, shorter
    flags = ("--audio-prompt", "a.wav,b.wav", "--prompt-seconds", 0.06, "--takes", 3, "--seconds", 0.2, "--seed", 1)
    assert tunesmith("generate", "--model", model, *SONG, *flags) == 0
    for take, file in ((1, "a.wav"), (2, "b.wav"), (3, "a.wav")):
        prompt = Clip.read(file, 0.06).remix(1).resample(RATE).samples[:, : 7 * 8]
        wanted = [level[0].tolist() for level in pipeline.model.encode(torch.from_numpy(prompt.T[None].copy()))]
        found = codes(Path("song"), take)
        assert [level[: len(start)] for level, start in zip(found, wanted, strict=True)] == wanted
    assert [lengths(Path("song"), take) for take in (1, 2, 3)] == [[200] * 3] * 3


# Runs that survive ----------------------------------------------------------------------------------------------------


def in_other_processes(*arguments: object) -> dict[str, object]:
    command = [sys.executable, str(KILLING), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result | {"told": done.stderr}


def test_killed_at_any_moment_it_ends_in_the_same_codes(model: Path, tmp_path: Path) -> None:
    song = ("generate", "--model", model, *SONG, "--seconds", 0.64, "--seed", 1)
    result = in_other_processes(tmp_path, "kill", 20, *song)
    assert result["killed"] in (20, 21)
    assert set(result["same"]) == {True}
    assert len(set(result["where"])) > 4  # kills met different states


def test_a_full_disk_leaves_a_run_that_can_be_resumed(model: Path, tmp_path: Path) -> None:
    result = in_other_processes(
        tmp_path, "full", 8000, "generate", "--model", model, *SONG, "--seconds", 0.2, "--seed", 1
    )
    assert result["status"] == 2
    assert f"The run is kept: make room, then `tunesmith resume {tmp_path}/1`." in str(result["told"])
    assert result["kept"]["1.codes.0"] == 25  # the top level fitted
    assert (result["resumed"], result["same"]) == (0, True)


def test_two_processes_share_the_takes(model: Path, whole: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    flags = ["--seconds", "0.2", "--takes", "3", "--seed", "3", "--out", str(tmp_path / "run")]
    command = [*launcher, "-m", "tunesmith", "generate", "--model", str(model), *SONG, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert [codes(tmp_path / "run", take) for take in (1, 2, 3)] == [codes(whole, take) for take in (1, 2, 3)]
    assert len(list((tmp_path / "run").glob("*/take-*.wav"))) == 9


def change(file: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Other tensors in a file; None leaves one out."""
    save_file({name: tensor for name, tensor in (load_file(file) | tensors).items() if tensor is not None}, file)


def change_settings(run: Path, **values: object) -> None:
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: (run / "run.json").unlink(), "is no run"),
        (lambda run: (run / "run.json").write_text('{"tunesmith": '), "damaged"),
        (lambda run: (run / "run.json").write_text('{"speed": 1}'), "damaged"),
        (lambda run: (run / "labels.safetensors").write_bytes(b"x"), "missing or damaged"),
        (lambda run: (run / "takes" / "1.safetensors").unlink(), "missing or damaged"),
        (lambda run: change(run / "takes" / "1.safetensors", {"codes.1": None}), "damaged"),
        (lambda run: change(run / "takes" / "1.safetensors", {"seed.0": torch.zeros(2)}), "damaged"),
        (lambda run: change(run / "labels.safetensors", {"labels.0": None}), "damaged"),
        (lambda run: change(run / "labels.safetensors", {"labels.2": torch.zeros(2, 9)}), "damaged"),
        (lambda run: change_settings(run, levels="3"), "damaged"),
        (lambda run: change_settings(run, depth=4), "damaged"),
        (lambda run: change_settings(run, takes=[]), "damaged"),
        (lambda run: change_settings(run, picked=[3]), "damaged"),
        (lambda run: change_settings(run, history=[[1], [], []]), "damaged"),
        (lambda run: change_settings(run, history=[[]]), "damaged"),
        (lambda run: change_settings(run, audio_hashes=[1, 2, 3]), "damaged"),
        (lambda run: (run / "lyrics" / "take-1.json").write_text("{"), "'copy/lyrics/take-1.json' is damaged; delete"),
        (lambda run: (run / "lyrics" / "take-1.json").write_text("[]"), "'copy/lyrics/take-1.json' is damaged"),
        (lambda run: (run / "lyrics" / "take-2.json").write_bytes(b"\xff"), "`tunesmith resume copy` aligns"),
        (
            lambda run: (run / "lyrics" / "take-2.json").write_text('{"lyrics": "a", "words": [], "lines": []}'),
            "'copy/lyrics/take-2.json' is damaged",
        ),
        (lambda run: change_settings(run, model=5), "damaged"),
        (lambda run: run.rename("moved") and Path("copy").touch(), "is no run"),
    ],
)
def test_a_damaged_run_is_a_sentence(here: Path, whole: Path, damage, sentence, capsys) -> None:
    subprocess.run(["cp", "-r", str(whole), "copy"], check=True)
    damage(Path("copy"))
    assert tunesmith("resume", "copy") == 2
    assert sentence in capsys.readouterr().err


def test_damaged_lyrics_are_aligned_anew_once_deleted(here: Path, whole: Path) -> None:
    subprocess.run(["cp", "-r", str(whole), "copy"], check=True)
    file = Path("copy/lyrics/take-1.json")
    before = file.read_text()
    file.unlink()
    assert tunesmith("resume", "copy") == 0
    assert file.read_text() == before


# Draft, listen, pick, upsample; continue ------------------------------------------------------------------------------


def test_picked_takes_of_a_draft_become_what_they_would_have_been(here: Path, model: Path, whole: Path) -> None:
    flags = ("--seconds", 0.2, "--takes", 3, "--seed", 3, "--draft", "--out", "draft")
    assert tunesmith("generate", "--model", model, *SONG, *flags) == 0
    assert not Path("draft/bottom").exists()
    assert tunesmith("upsample", "draft", "--pick", "1,3") == 0
    assert [codes(Path("draft"), take) for take in (1, 3)] == [codes(whole, take) for take in (1, 3)]
    assert lengths(Path("draft"), 2) == [200, 0, 0]
    assert sorted(path.name for path in Path("draft/bottom").glob("*.wav")) == ["take-1.wav", "take-3.wav"]


def test_takes_sampled_otherwise_are_not_gone_on_with_together(here: Path, model: Path, capsys) -> None:
    flags = ("--seconds", 0.1, "--takes", 2, "--draft", "--out", "draft")
    assert tunesmith("generate", "--model", model, *flags) == 0
    assert tunesmith("upsample", "draft", "--pick", 1, "--temperature", 0.1) == 0
    before = codes(Path("draft"), 2)
    assert tunesmith("upsample", "draft", "--pick", "1,2") == 2
    assert "differ in temperature" in capsys.readouterr().err
    assert codes(Path("draft"), 2) == before
    assert tunesmith("upsample", "draft", "--pick", "2") == 0


@pytest.mark.parametrize(("flags", "kept"), [((), 3), (("--from", "top"), 1), (("--from", "middle"), 2)])
def test_a_longer_song_begins_with_the_shorter(here: Path, whole: Path, flags, kept) -> None:
    subprocess.run(["cp", "-r", str(whole), "copy"], check=True)
    assert tunesmith("continue", "copy", "--seconds", 0.3, "--pick", 2, *flags) == 0
    assert lengths(Path("copy"), 2) == [296] * 3
    for level in range(kept):
        before = codes(whole, 2)[level]
        assert codes(Path("copy"), 2)[level][: len(before)] == before
    assert Clip.read("copy/bottom/take-2.wav").samples.shape[1] == 296
    assert load_file("copy/lyrics/take-2.safetensors")["alignment"].shape[0] == 37
    assert codes(Path("copy"), 1) == codes(whole, 1)
    assert Clip.read("copy/bottom/take-1.wav").samples.shape[1] == 200


def test_a_prompt_of_a_run_may_be_shorter(here: Path, whole: Path) -> None:
    subprocess.run(["cp", "-r", str(whole), "copy"], check=True)
    assert tunesmith("continue", "copy", "--seconds", 0.2, "--prompt-seconds", 0.1, "--temperature", "0.5") == 0
    assert codes(Path("copy"), 1)[0][:12] == codes(whole, 1)[0][:12]
    assert codes(Path("copy"), 1)[0] != codes(whole, 1)[0]
    assert lengths(Path("copy"), 1) == [200] * 3


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("continue RUN --seconds 0.1", "final length"),
        ("continue RUN --seconds 3.5", "ask for less"),
        ("continue RUN --seconds 2 --prompt-seconds 1", "at most 0.2"),
        ("upsample RUN --pick 2,4", "takes from 1 to 3"),
        ("upsample RUN --hop-fraction 0.5,0.2,0.5", "hop_fraction is 0.2"),
        ("upsample", "Name the folder of a run"),
        ("align RUN --layer 1 --head 0", "doesn't attend to lyrics"),
        ("align RUN --layer 3 --search", "leave --layer and --head out"),
        ("align", "Name the folder of a run"),
        ("align RUN --lyrics la", "--lyrics goes with --audio"),
        ("align RUN --model other", "--model goes with --codes or --audio"),
        ("upsample RUN --dtype float16", "--dtype goes with --codes"),
        ("continue RUN --seconds 1 --seed 3", "--seed goes with --codes"),
        ("resume nowhere", "is no run"),
    ],
)
def test_what_can_not_be_done_to_a_run_leaves_it_alone(
    here: Path, whole: Path, command: str, sentence: str, capsys
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert tunesmith(*shlex.split(command.replace("RUN", str(whole)))) == 2
    assert sentence in capsys.readouterr().err
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


# Codes of the original implementation ---------------------------------------------------------------------------------


def save_original(path: Path, run: Path, pipeline: JukeboxPipeline, levels: int = 3) -> Path:
    """The run as the original saves it: finest first, labels of a window, whole lyrics beside."""
    takes = [codes(run, take) for take in (1, 2)]
    rows = pipeline.tokenizer("Salt", "Folk Rock", LYRICS, total_length=3 * RATE, sample_length=512)["input_ids"]
    tokens = pipeline.tokenizer.alphabet.encode(LYRICS)
    info = {"artist": "Salt", "genre": "Folk Rock", "lyrics": LYRICS, "full_tokens": tokens}
    tops = [torch.cat([rows[0][:, :5], torch.tensor([tokens[:8]])], 1), rows[1], rows[2]]
    zs = [torch.tensor([take[i] if i < levels else [] for take in takes], dtype=torch.long) for i in range(3)]
    package = {
        "zs": [zs[level] for level in (2, 1, 0)],
        "labels": [{"y": tops[level].expand(2, -1), "info": [info, info]} for level in (2, 1, 0)],
        "sampling_kwargs": [{"temp": 0.99, "fp16": True, "max_batch_size": 16, "chunk_size": 32}] * 3,
        "x": torch.zeros(2, 576, 1),
    }
    torch.save(package, path)
    return path


def test_codes_of_the_original_are_upsampled(here: Path, model: Path, whole: Path, pipeline: JukeboxPipeline) -> None:
    save_original(Path("data.pth.tar"), whole, pipeline, levels=1)
    assert tunesmith("upsample", "--codes", "data.pth.tar", "--model", model, "--seed", 3, "--out", "run") == 0
    assert [codes(Path("run"), take) for take in (1, 2)] == [codes(whole, take) for take in (1, 2)]
    assert Path("run/index.html").is_file()


def test_codes_of_the_original_are_continued(here: Path, model: Path, whole: Path, pipeline: JukeboxPipeline) -> None:
    save_original(Path("data.pth.tar"), whole, pipeline)
    assert tunesmith("continue", "--codes", "data.pth.tar", "--model", model, "--seconds", 0.3, "--out", "run") == 0
    assert lengths(Path("run"), 2) == [296] * 3
    for before, after in zip(codes(whole, 2), codes(Path("run"), 2), strict=True):
        assert after[: len(before)] == before


@pytest.mark.parametrize(
    "flags", ["continue --seconds 0.1", "upsample --pick 3", "upsample --hop-fraction 0.2", "align --layer 0"]
)
def test_what_can_not_be_done_to_codes_leaves_no_run(
    here: Path, model: Path, whole: Path, pipeline: JukeboxPipeline, flags: str
) -> None:
    save_original(Path("data.pth.tar"), whole, pipeline)
    assert tunesmith(*flags.split(), "--codes", "data.pth.tar", "--model", model) == 2
    assert [path.name for path in here.iterdir()] == ["data.pth.tar"]


def test_codes_of_the_original_are_aligned(here: Path, model: Path, whole: Path, pipeline: JukeboxPipeline) -> None:
    save_original(Path("data.pth.tar"), whole, pipeline)
    assert tunesmith("align", "--codes", "data.pth.tar", "--model", model, "--out", "run") == 0
    assert recipe("run/bottom/take-2.wav")["history"] == [{"file": "data.pth.tar"}]
    for take in (1, 2):
        file = f"lyrics/take-{take}.safetensors"
        torch.testing.assert_close(load_file(f"run/{file}"), load_file(whole / file))
    assert Path("run/bottom/take-2.wav").is_file()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no file"),
        ({"zs": []}, "isn't a data.pth.tar"),
        ({"zs": [torch.zeros(1, 2)], "labels": []}, "codes of 1 levels"),
        ({"zs": os.system}, "no code in it is run"),
    ],
)
def test_other_files_with_codes_are_refused(here: Path, model: Path, content, sentence, capsys) -> None:
    if content is not None:
        torch.save(content, "data.pth.tar")
    assert tunesmith("align", "--codes", "data.pth.tar", "--model", model) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("song").exists()


# Alignment and the page -----------------------------------------------------------------------------------------------


def test_another_head_aligns_otherwise_and_the_search_tells_which(here: Path, whole: Path, capsys) -> None:
    subprocess.run(["cp", "-r", str(whole), "copy"], check=True)
    matrices = []
    for head in (0, 1):
        assert tunesmith("align", "copy", "--layer", 3, "--head", head) == 0
        matrices.append(load_file("copy/lyrics/take-1.safetensors")["alignment"])
    assert not torch.equal(*matrices)
    torch.testing.assert_close(matrices[1], load_file(whole / "lyrics" / "take-1.safetensors")["alignment"])
    capsys.readouterr()
    assert tunesmith("align", "copy", "--search") == 0
    best = capsys.readouterr().out.splitlines()[1].split()
    torch.testing.assert_close(load_file("copy/lyrics/take-1.safetensors")["alignment"], matrices[int(best[1])])


def test_any_audio_is_aligned(here: Path, model: Path, whole: Path) -> None:
    audio = whole / "bottom" / "take-1.wav"
    assert tunesmith("align", "--audio", audio, "--lyrics", LYRICS, "--model", model, "--search", "--out", "heard") == 0
    assert load_file("heard/lyrics/take-1.safetensors")["alignment"].shape == (25, len(LYRICS))
    assert recipe("heard/top/take-1.wav")["history"] == [{"file": str(audio)}]


def test_audio_without_words_is_not_aligned(here: Path, model: Path, whole: Path, capsys) -> None:
    assert tunesmith("align", "--audio", whole / "bottom" / "take-1.wav", "--model", model) == 2
    assert "There are no words to align" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.fixture
def page_folder(whole: Path, tmp_path: Path) -> Path:
    """A run whose words follow one another every 30 ms."""
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "run")], check=True)
    run = tmp_path / "run"
    for file in run.glob("*/*.wav"):  # browsers play nothing below 3000 Hz
        Clip.read(file).resample(8000).save(file)
    words = [{"text": w, "start": 0.03 * i, "end": 0.03 * i + 0.03} for i, w in enumerate(LYRICS.split())]
    (run / "lyrics" / "take-1.json").write_text(json.dumps({"lyrics": LYRICS, "words": words, "lines": []}))
    return run


def test_the_page_plays_every_take_and_lights_the_lyrics(page_folder: Path) -> None:
    from tunesmith.pipelines.jukebox_song import write_pages
    from tunesmith.pipelines.runs import Run

    write_pages(Run.open(page_folder))
    loaded = "new Promise((done) => player.readyState ? done() : (player.onloadedmetadata = done))"
    lit = "[...document.querySelectorAll('.{}')].map((word) => word.textContent)"
    with open_page(page_folder / "index.html") as page:
        assert page.evaluate("document.title") == "Salt · folk rock"
        assert page.evaluate(lit.format("word")) == LYRICS.split()
        assert page.evaluate(lit.format("sung")) == []
        page.evaluate(loaded)
        seek = "new Promise((done) => { player.onseeked = () => setTimeout(done, 50); player.currentTime = 0.07; })"
        page.evaluate(seek)
        assert page.evaluate(lit.format("sung")) == ["la", "la", "la"]
        assert page.evaluate(lit.format("now")) == ["la"]
        page.evaluate("player.currentTime = 0")
        page.evaluate("new Promise((done) => { player.onended = done; player.play(); })")
        assert page.evaluate(lit.format("sung")) == LYRICS.split()
        for level in LEVELS:
            for take in (1, 2, 3):
                page.evaluate(f"choose({{level: '{level}', take: {take}}})")
                page.evaluate(loaded)
                assert page.evaluate("player.src").endswith(f"/{level}/take-{take}.wav")
                assert page.evaluate("player.duration") == pytest.approx(0.2)
        assert page.errors() == []
        assert all(address.startswith(("file:", "data:")) for address in page.requests())
        page.screenshot(page_folder / "page.png")
        assert (page_folder / "page.png").stat().st_size > 5000


# Features -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 2])
def test_features_are_the_activations(pipeline: JukeboxPipeline, level: int) -> None:
    audio = torch.rand(2, 640, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prior = pipeline.model.priors[level]
    frames = pipeline.features(audio, layer=2, pool=None, level=level)
    own = pipeline.model.encode(audio)[level]
    assert frames.shape == (2, own.shape[1], 16)
    labels = torch.tensor([[640, 0, prior.config.window_length, 0, *[-1] * prior.config.max_nb_genres]])
    lyrics = torch.zeros(1, prior.config.nb_relevant_lyric_tokens, dtype=torch.long)
    rows = torch.cat([labels, lyrics], 1).expand(2, -1)
    upper = pipeline.model.encode(audio)[level - 1][:, :8] if level else None
    wanted = prior.activations(own[:, :16], rows, upper, layer=2)
    torch.testing.assert_close(frames[:, :16], wanted)
    pooled = pipeline.features(audio, layer=2, level=level)
    torch.testing.assert_close(pooled, frames.mean(1))
    torch.testing.assert_close(pipeline.features(audio, layer=2, pool="max", level=level), frames.amax(1))


def test_features_load_one_prior(model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = JukeboxPrior.from_pretrained.__func__

    def watch(cls, *args, **kwargs):
        read.append(kwargs.get("level"))
        return original(cls, *args, **kwargs)

    monkeypatch.setattr(JukeboxPrior, "from_pretrained", classmethod(watch))
    monkeypatch.setattr(JukeboxModel, "save_pretrained", None)
    audio = whole / "bottom" / "take-1.wav"
    for out in ("f.npz", "f.safetensors"):
        assert tunesmith("features", audio, "--model", model, "--layer", 1, "--out", tmp_path / out) == 0
    assert read == [0, 0]
    found = load_file(tmp_path / "f.safetensors")[str(audio)].numpy()
    assert found.shape == (16,)
    assert np.array_equal(np.load(tmp_path / "f.npz")[str(audio)], found)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_features_refuse_before_any_work(pipeline: JukeboxPipeline, level: int, monkeypatch, request) -> None:
    if request.config.getoption("--jaxtyping-packages", None):
        pytest.skip("run-time type checks refuse the shape first")
    monkeypatch.setattr(JukeboxModel, "encode", lambda *_: pytest.fail("the audio was encoded"))
    monkeypatch.setattr(JukeboxModel, "open_prior", lambda *_: pytest.fail("a prior was loaded"))
    longest = 10 * RATE - 1
    labels = torch.tensor([[640, 0, 0, 0, *[-1] * pipeline.config.prior_configs[level].max_nb_genres]])
    for audio, options, sentence in (
        (torch.zeros(1, longest + 1, 1), {"layer": 1}, "The audio lasts 10 s; this model knows songs below 10 s"),
        (torch.zeros(1, 640, 1), {"layer": 99}, "layer is 99; this prior has layers 0 "),
        (torch.zeros(1, 900, 1), {"layer": 1, "labels": labels}, "start at sample .* of a song of 640 samples"),
        (torch.zeros(1, 640, 1), {"layer": 1, "labels": labels.index_fill(1, torch.tensor(3), 9)}, "artists from 9"),
        (torch.zeros(640), {"layer": 1}, r"shape \[640\]"),
    ):
        with pytest.raises(RequestError, match=sentence):
            pipeline.features(audio, level=level, **options)


def test_features_of_files_of_any_name(here: Path, model: Path, whole: Path) -> None:
    names = ["file", "odd-\udcff.wav"]  # numpy.savez has an argument "file"; not every name is Unicode
    for name in names:
        shutil.copy(whole / "bottom" / "take-1.wav", name)
    for out in ("f.npz", "f.safetensors"):
        assert tunesmith("features", *names, "--model", model, "--layer", 1, "--out", out) == 0
    assert sorted(np.load("f.npz")) == sorted(load_file("f.safetensors")) == ["file", r"odd-\udcff.wav"]


@pytest.mark.parametrize(
    ("flags", "sentence"), [("--out f.npz", "Name one audio file"), ("a.wav --out d.npz", "is a folder; name a file")]
)
def test_features_that_could_not_be_written_are_not_made(here: Path, model: Path, flags, sentence, capsys) -> None:
    Path("d.npz").mkdir()
    assert tunesmith("features", *flags.split(), "--model", model, "--layer", 1) == 2
    assert sentence in capsys.readouterr().err


def test_features_of_the_longest_audio(pipeline: JukeboxPipeline) -> None:
    assert pipeline.features(torch.zeros(1, 10 * RATE - 1, 1), layer=1).shape == (1, 16)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.wav").write_text("not audio")
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "nan.wav", np.full(4000, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(folder / "none.wav", np.zeros(0, np.float32), 8000)
    soundfile.write(folder / "short.wav", np.zeros(40, np.float32), 8000)
    soundfile.write(folder / "long.wav", np.zeros(8000, np.float32), 8000)
    return folder


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--audio-prompt BAD/text.wav", "is not audio"),
        ("--audio-prompt BAD/empty.wav", "is empty"),
        ("--audio-prompt BAD/nan.wav", "not finite"),
        ("--audio-prompt BAD/none.wav", "holds no audio"),
        ("--audio-prompt BAD/absent.wav", "There is no audio file"),
        ("--audio-prompt BAD/short.wav", "shorter than one code"),
        ("--audio-prompt BAD/long.wav", "as long as the 0.2 s asked for"),
        ("--lyrics nowhere.txt", "no text file"),
        ("--hop-fraction 0.5,0.5,0.2", "hop_fraction is 0.2"),
        ("--hop-fraction 0.5,0.5", "2 values for 3 levels"),
        ("--song-seconds 100", "song_seconds is 100 s; songs of this model last at least 0.02 s and less than 10 s."),
        ("--song-seconds 0.016 --seconds 0.016", "song_seconds is 0.016 s; songs of this model last at least 0.02 s"),
        ("--seconds 11", "seconds and offset end at 11 s; songs of this model last"),
        ("--offset 10", "seconds and offset end at 10.2 s; songs of this model last"),
        ("--song-seconds 5 --offset 4.9", "song_seconds is 5"),
        ("--seconds 0", "seconds is 0"),
        ("--genre folk,rock,jazz", "genres"),
        ("--max-batch-size 0", "max_batch_size is (0,)"),
        ("--chunk-size -1", "chunk_size is (-1,)"),
        ("--out .", "give --out a name"),
        ("--device tpu", "no device"),
        ("--dtype int8", "no dtype"),
    ],
)
def test_bad_input_is_a_sentence_before_any_work(
    model: Path, bad: Path, tmp_path: Path, flags, sentence, capsys
) -> None:
    words = ["--seconds", "0.2", "--out", str(tmp_path / "run"), *shlex.split(flags.replace("BAD", str(bad)))]
    assert tunesmith("generate", "--model", model, *words) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert len([line for line in told.splitlines() if line.startswith("tunesmith:")]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lyrics", ["", "x" * 20_000, "雨が降る、雨が降る", "\x00\ud800 ☃", "\n\n"])
def test_lyrics_in_any_script_and_length_are_sung(here: Path, model: Path, lyrics: str) -> None:
    assert tunesmith("generate", "--model", model, "--lyrics", lyrics, "--seconds", 0.2, "--draft") == 0
    assert Path("song/index.html").is_file()


def test_unknown_names_are_a_warning_with_the_closest(here: Path, model: Path, capsys, request) -> None:
    if request.config.getoption("--jaxtyping-packages", None):  # which comes between caller and called
        pytest.skip("warnings name another caller under run-time type checks")
    flags = ("--artist", "The Mynt", "--genre", "folk", "--seconds", 0.2, "--draft")
    assert tunesmith("generate", "--model", model, *flags) == 0
    assert "The model knows no artist 'the mynt' (v3 rules) and takes it as unknown: the closest are 'the mint'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("words", ["'a waltz' --model MODEL", "--draft --model=MODEL --seed -1 'a waltz' --takes 2"])
def test_a_jukebox_reads_no_prompt(model: Path, words: str, capsys) -> None:
    assert tunesmith("generate", *shlex.split(words.replace("MODEL", str(model)))) == 2
    assert "A Jukebox reads no prompt like 'a waltz'; say --lyrics, --artist and --genre." in capsys.readouterr().err


def test_flags_of_a_jukebox_without_one_are_a_sentence(capsys) -> None:
    assert tunesmith("generate", "--lyrics", "la") == 2
    assert "--lyrics is for a Jukebox; name one with --model" in capsys.readouterr().err


def test_a_disk_that_is_full_at_once_leaves_nothing(here: Path, model: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunesmith.pipelines.runs.write_atomically", full)
    assert tunesmith("generate", "--model", model, "--seconds", 0.2) == 2
    assert "'song' can't be written: No space left on device." in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize("damage", ["cut", "lacking"])
def test_a_bad_checkpoint_leaves_nothing(model: Path, tmp_path: Path, damage: str, capsys) -> None:
    shutil.copytree(model, tmp_path / "bad")
    weights, run = tmp_path / "bad" / "model.safetensors", tmp_path / "run"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        tensors = load_file(weights)
        del tensors["priors.2.prior.pos_emb.pos_emb"]
        save_file(tensors, weights, {"format": "pt"})
    assert tunesmith("generate", "--model", tmp_path / "bad", "--seconds", 0.2, "--out", run) == 2
    assert ("model.safetensors" if damage == "cut" else "priors.2.prior.pos_emb.pos_emb") in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_folder_below_the_home_folder(here: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert tunesmith("generate", "--model", model, "--seconds", 0.1, "--draft", "--out", "~/run") == 0
    assert tunesmith("resume", "~/run") == 0
    assert [path.name for path in here.iterdir()] == ["run"]


def test_runs_are_not_overwritten_and_models_not_confused(here: Path, model: Path, whole: Path, capsys) -> None:
    assert tunesmith("generate", "--model", model, "--out", whole) == 2
    assert "exists already and holds a run" in capsys.readouterr().err
    subprocess.run(["cp", "-r", str(whole), "copy"], check=True)
    settings = json.loads(Path("copy/run.json").read_text())
    Path("copy/run.json").write_text(json.dumps(settings | {"model_hash": "0"}))
    assert tunesmith("resume", "copy") == 2
    assert "has changed since" in capsys.readouterr().err
