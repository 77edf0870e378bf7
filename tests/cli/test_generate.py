"""`tunesmith generate`: files with recipes; what is wrong is one sentence and exit code 2, before torch is imported."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tiny import save_tiny_folder
from tunesmith import cli
from tunesmith.audio import Clip
from tunesmith.cli.generate import Options, output_paths, set_threads
from tunesmith.cli.progress import left, show, status
from tunesmith.events import Finished, Progress
from tunesmith.pipelines.song import load
from tunesmith.requests import MusicgenRequest, Sampling


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tunesmith(*arguments):
    return cli.run(["generate", *map(str, arguments)])


# Music ----------------------------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_file_with_its_recipe(model, here, capsys):
    assert tunesmith("a happy jig", "--model", model, "--seconds", 0.5, "--seed", 7) == 0
    assert capsys.readouterr().out == "song.wav  0.5 s  seed 7\n"
    clip = Clip.read("song.wav")
    assert clip.duration == 0.5
    assert clip.loudness == pytest.approx(-14, abs=0.1) or clip.peak == pytest.approx(-1, abs=0.1)
    request = MusicgenRequest.from_dict(clip.recipe["request"])
    assert request == MusicgenRequest(prompt=("a happy jig",), seconds=0.5, seed=7)


def test_every_flag_reaches_the_request(model, here):
    Clip(np.full((2, 800), 0.1, np.float32), 4000).save("a.flac", level="none")
    flags = "--seconds 1 --seed 3 --audio-prompt a.flac --prompt-seconds 0.1 --temperature 0.9 --top-k 9 --top-p 0.8"
    rest = "--guidance 2 --out b.flac --device cpu --dtype bfloat16 --level none"
    assert tunesmith("a jig", "--model", model, *flags.split(), *rest.split()) == 0
    recipe = Clip.read("b.flac").recipe
    assert recipe["dtype"] == "bfloat16"
    assert MusicgenRequest.from_dict(recipe["request"]) == MusicgenRequest(
        prompt=("a jig",),
        audio_prompt=(Path("a.flac"),),
        prompt_seconds=0.1,
        seconds=1.0,
        seed=3,
        sampling=Sampling(temperature=0.9, top_k=9, top_p=0.8, guidance=2.0),
    )


def test_several_prompts_and_takes_are_numbered(model, here, capsys):
    Path("more.txt").write_text("\ufeffrock\n\n  jazz piano \n", encoding="utf-8")
    flags = (
        "--model",
        model,
        "--seconds",
        0.1,
        "--seed",
        1,
        "--takes",
        4,
        "--out",
        "out.flac",
        "--prompts",
        "more.txt",
    )
    assert tunesmith("a jig", *flags) == 0
    names = [f"out-{i:02d}.flac" for i in range(1, 13)]
    assert sorted(path.name for path in here.glob("*.flac")) == names
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
    requests = [Clip.read(name).recipe["request"] for name in names]
    assert [request["prompt"][0] for request in requests] == ["a jig"] * 4 + ["rock"] * 4 + ["jazz piano"] * 4
    assert [request["seed"] for request in requests] == list(range(1, 13))


def test_numbers_have_as_many_digits_as_the_last():
    assert output_paths(Path("a/b.wav"), 1) == [Path("a/b.wav")]
    assert output_paths(Path("a/b.wav"), 9)[-1] == Path("a/b-9.wav")
    assert output_paths(Path("a/b.wav"), 100)[0] == Path("a/b-001.wav")


def test_without_a_prompt_only_when_asked(model, here):
    assert tunesmith("--unconditional", "--model", model, "--seconds", 0.1) == 0
    assert Clip.read("song.wav").recipe["request"]["prompt"] == []


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_like_repeats_a_song_exactly(model, here, suffix, capsys):
    Clip(np.full((1, 400), 0.1, np.float32), 2000).save("a.wav")
    assert tunesmith("a jig", "--model", model, "--seconds", 0.5, "--audio-prompt", "a.wav", "--out", "1" + suffix) == 0
    assert tunesmith("--like", "1" + suffix, "--out", "2" + suffix) == 0
    assert np.array_equal(Clip.read("1" + suffix).samples, Clip.read("2" + suffix).samples)
    assert "differ" not in capsys.readouterr().err
    assert tunesmith("--like=1" + suffix, "--out", "3" + suffix, "--seed", 5, "--seconds", 0.4) == 0
    changed = Clip.read("3" + suffix)
    assert (changed.duration, changed.recipe["request"]["seed"]) == (0.4, 5)
    assert changed.recipe["request"]["prompt"] == ["a jig"]


def test_like_says_when_the_model_or_the_audio_prompt_changed(model, here, capsys):
    Clip(np.full((1, 400), 0.1, np.float32), 2000).save("a.wav")
    assert tunesmith("a jig", "--model", model, "--seconds", 0.5, "--audio-prompt", "a.wav") == 0
    Clip(np.full((1, 300), 0.1, np.float32), 2000).save("a.wav")
    other = save_tiny_folder(here / "other", hidden_size=16)
    capsys.readouterr()
    assert tunesmith("--like", "song.wav", "--out", "b.wav", "--model", other) == 0
    notes = capsys.readouterr().err
    assert "The model is not the one of 'song.wav'; the music will differ." in notes
    assert "The audio prompt is not the one of 'song.wav'" in notes


def test_a_prompt_that_was_in_memory_has_to_be_given(model, here, capsys):
    prompt = Clip(np.full((1, 400), 0.1, np.float32), 2000)
    load(model).generate("a jig", audio_prompt=prompt, seconds=0.5).save("song.wav")
    assert tunesmith("--like", "song.wav", "--out", "b.wav") == cli.WRONG
    assert "was no file, but a clip in memory; give it as a file, with --audio-prompt." in capsys.readouterr().err
    prompt.save("a.wav", level="none")
    assert tunesmith("--like", "song.wav", "--out", "b.wav", "--audio-prompt", "a.wav") == 0


def test_unknown_words_are_one_note(model, here, capsys):
    assert tunesmith("a happy 🎵 jig", "a 🎵", "--model", model, "--seconds", 0.1) == 0
    assert "tunesmith: The model has no words for '🎵'.\n" in capsys.readouterr().err


# What is wrong --------------------------------------------------------------------------------------------------------


def bad_inputs(model, here):
    """Arguments -> what the sentence says."""
    rate = 2000
    samples = np.random.default_rng(0).normal(size=(rate * 40, 1)) * 0.1
    soundfile.write("long.wav", samples, rate)
    soundfile.write("nan.wav", np.full((rate, 1), np.nan), rate, subtype="FLOAT")
    Path("empty.wav").touch()
    Path("text.wav").write_text("la la la\n" * 50)
    Path("blank.txt").write_text("\n\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\xfa")
    soundfile.write("foreign.flac", samples[:100], rate)
    for name, maker in (("sung.flac", str(model)), ("lost.flac", "m")):
        Clip(samples[:100].T, rate, {"tunesmith": "0", "model": maker, "request": {"lyrics": "la"}}).save(name)
    (here / "locked").mkdir(mode=0o555)
    Path("old.wav").touch(mode=0o444)
    broken = {}
    for name, (file, content) in {
        "truncated": ("model.safetensors", (model / "model.safetensors").read_bytes()[:-5000]),
        "family": ("config.json", b'{"model_type": "gpt2"}'),
        "garbled": ("config.json", b"{"),
    }.items():
        broken[name] = here / name
        broken[name].mkdir()
        for source in model.iterdir():
            (broken[name] / source.name).write_bytes(source.read_bytes())
        (broken[name] / file).write_bytes(content)
    (here / "half").mkdir()
    (here / "half" / "config.json").write_text((model / "config.json").read_text())
    good = ["a jig", "--model", model]
    return [
        (["", "--model", model], "The prompt is empty"),
        (["  ", "--model", model], "The prompt is empty"),
        (["--model", model], "Say what you want to hear"),
        ([*good, "--unconditional"], "leave one of them out"),
        (["x" * 20_001, "--model", model], "at most 20000"),
        ([*good, "--seconds", 0], "seconds is 0.0"),
        ([*good, "--seconds", -1], "seconds is -1.0"),
        ([*good, "--seconds", "nan"], "seconds is nan"),
        ([*good, "--seconds", 1e9], "seconds is 1000000000.0"),
        ([*good, "--seconds", 60], "at most 30 s in one piece; ask for at most 30"),
        ([*good, "--seconds", 60, "--audio-prompt", "foreign.flac"], "new music remain"),
        ([*good, "--takes", 0], "takes is 0"),
        ([*good, "--seed", -1], "seed is -1"),
        ([*good, "--temperature", -1], "temperature is -1.0"),
        ([*good, "--top-k", -1], "top_k is -1"),
        ([*good, "--top-p", 2], "top_p is 2.0"),
        ([*good, "--guidance", 0], "guidance is 0.0"),
        ([*good, "--audio-prompt", "none.wav"], "There is no audio file 'none.wav'"),
        ([*good, "--audio-prompt", "empty.wav"], "is empty"),
        ([*good, "--audio-prompt", "text.wav"], "is not audio that can be read"),
        ([*good, "--audio-prompt", "nan.wav"], "not finite numbers"),
        ([*good, "--audio-prompt", "long.wav"], "as long as the 10 s asked for"),
        ([*good, "--audio-prompt", "long.wav", "--out", "long.wav"], "would be overwritten"),
        ([*good, "--prompts", "none.txt"], "no text file"),
        ([*good, "--prompts", "blank.txt"], "holds no prompts"),
        ([*good, "--prompts", "binary.txt"], "no text file"),
        ([*good, "--out", "none/song.wav"], "There is no folder 'none'"),
        ([*good, "--out", "song.xyz"], "no known audio format"),
        ([*good, "--out", "locked/song.wav"], "read-only"),
        ([*good, "--out", "old.wav"], "read-only"),
        ([*good, "--device", "gpu"], "no device 'gpu'"),
        ([*good, "--dtype", "int4"], "no dtype 'int4'"),
        (["a jig", "--model", "smal"], "did you mean 'small'"),
        (["a jig", "--model", "small"], "is not on this machine"),
        (["a jig", "--model", here / "nowhere"], "There is no model folder"),
        (["a jig", "--model", here / "truncated"], "is incomplete: "),
        (["a jig", "--model", here / "half"], "has no weights"),
        (["a jig", "--model", here / "family"], "family 'gpt2'"),
        (["a jig", "--model", here / "garbled"], "is not JSON"),
        (["--like", "none.wav"], "There is no audio file"),
        (["--like", "foreign.flac"], "holds no recipe"),
        (["a jig", "--model", "x" * 300], "There is no model"),
        (["a jig", "--model", "~nobody/x"], "There is no model folder"),
        ([*good, "--prompts", "~nobody/x.txt"], "no text file"),
        (["--like", "sung.flac"], f"'sung.flac' was made by a Jukebox, which {str(model)!r} isn't"),
        (["--like", "lost.flac"], "'lost.flac' was made by 'm', which isn't here; name it with --model"),
        (["--model", "smal"], "There is no model 'smal'; did you mean 'small'"),
        (["--lyrics", "la", "--model", "jukebox-1b-lyric"], "did you mean 'jukebox-1b-lyrics'"),
        (["--model", here / "nowhere"], "There is no model folder"),
        (["a jig", "--model", "melody"], "'melody' follows a melody or a style beside the text"),
        (["a jig", "--model", "facebook/musicgen-style"], "which tunesmith can't play yet; use one of "),
    ]


def test_everything_wrong_is_one_sentence_before_torch_is_imported(model, here, tmp_path_factory):
    cases = [[list(map(str, arguments)), sentence] for arguments, sentence in bad_inputs(model, here)]
    before = sorted(here.rglob("*"))
    script = (
        "import contextlib, io, json, sys\n"
        "from tunesmith import cli\n"
        "for arguments, sentence in json.load(sys.stdin):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        code = cli.run(['generate', *arguments])\n"
        "    loaded = sorted({'torch', 'transformers'} & set(sys.modules))\n"
        "    print(json.dumps([code, said.getvalue(), sentence, loaded]))\n"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path_factory.mktemp("hub")), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(cases), capture_output=True, text=True, env=environment
    )
    assert done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases)
    for code, said, sentence, loaded in results:
        assert (code, loaded) == (2, [])
        assert sentence in said
        assert said.startswith("tunesmith: ")
        assert said.count("\n") == 1
        assert "Traceback" not in said
    assert sorted(here.rglob("*")) == before


def test_pickles_with_code_are_one_sentence(model, here, capsys):
    import torch

    (here / "evil").mkdir()
    for source in model.glob("*.json"):
        (here / "evil" / source.name).write_bytes(source.read_bytes())

    class Evil:
        def __reduce__(self):
            return (Path.touch, (Path("pwned"),))

    torch.save({"a": Evil()}, here / "evil" / "pytorch_model.bin")
    assert tunesmith("a jig", "--model", here / "evil") == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("tunesmith: ")
    assert "no code in it is" in said[-1]
    assert not Path("pwned").exists()
    assert not Path("song.wav").exists()


@pytest.mark.parametrize("arguments", [["--secnds", "3"], ["--seconds", "ten"], ["--level", "loudest"], ["--seed"]])
def test_flags_that_make_no_sense_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        tunesmith("a jig", *arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# Real processes -------------------------------------------------------------------------------------------------------


def process(here, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith", "generate", *map(str, arguments)],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever starts the tests in the background of a shell makes its children deaf to Ctrl-C; ours must hear it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_interrupted_while_sampling_nothing_is_written(model, here):
    with process(here, "a jig", "--model", model, "--seconds", 30, "--takes", 8) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("sampling"):
                break
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "tunesmith: stopped"
    assert "Traceback" not in err
    assert list(here.iterdir()) == []


def test_interrupted_while_starting_nothing_is_written(model, here):
    with process(here, "a jig", "--model", model) as running:
        time.sleep(0.8)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode in (130, -signal.SIGINT)  # the latter: before our first line
    assert list(here.iterdir()) == []
    assert "tunesmith: stopped" in err or running.returncode == -signal.SIGINT


def test_a_whole_process_says_only_what_matters(model, here):
    with process(here, "a happy jig", "--model", model, "--seconds", 0.5, "--seed", 1) as running:
        out, err = running.communicate(timeout=120)
    assert running.returncode == 0
    assert out == "song.wav  0.5 s  seed 1\n"
    lines = err.splitlines()
    assert lines[0] == f"loading {model}"
    assert all(line.startswith("sampling ") for line in lines[1:])
    assert lines[-1] == "sampling 100% 0 s left"


# Parts ----------------------------------------------------------------------------------------------------------------


def test_help_is_each_fields_docstring(capsys, monkeypatch):
    from tunesmith.cli.flags import described

    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit) as stopped:
        cli.run(["generate", "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    docs = described(MusicgenRequest) | described(Sampling) | described(Options)
    for name, doc in docs.items():
        assert " ".join(doc.split()) in shown
        assert name == "prompt" or f"--{name.replace('_', '-')} " in shown


def test_time_left_in_words():
    def words(seconds):
        return left(Progress(stage="a", done=1, total=2, seconds_left=seconds))

    assert [words(s) for s in (None, 0.2, 9.7, 75.0)] == ["", "0 s left", "10 s left", "1 min 15 s left"]


def test_progress_off_a_terminal_is_a_line_for_each_tenth(capsys):
    events = [Progress(stage="sampling", done=i, total=200, seconds_left=1.0) for i in range(1, 201)]
    assert show([*events, Finished(result="done")]) == "done"
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["sampling 0% 1 s left", *(f"sampling {p}% 1 s left" for p in range(10, 101, 10))]


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with status("loading"):
        pass
    assert show([Progress(stage="sampling", done=1, total=2, seconds_left=3.0), Finished(result=1)]) == 1
    said = capsys.readouterr().err
    assert "sampling" in said
    assert "3 s left" in said


def test_flags_replace_what_the_recipe_says(here):
    request = MusicgenRequest(prompt=("a jig", "b"), audio_prompt=(Path("a.wav"),), seed=3)
    recipe = {"tunesmith": "0", "model": "m", "request": request.to_dict()}
    Clip(np.zeros((1, 9), np.float32), 2000, recipe).save("song.wav")
    same = cli.parse(["generate", "--like", "song.wav"])
    assert (same.request(), same.model) == (request, "m")
    changed = cli.parse(["generate", "rock", "--like", "song.wav", "--audio-prompt", "b.wav", "--model", "n"])
    assert (changed.request().prompt, changed.request().audio_prompt) == (("rock",), (Path("b.wav"),))
    assert (changed.model, changed.seed) == ("n", 3)
    changed = cli.parse(["generate", "--like", "none.wav", "--like", "song.wav", "--audio_prompt", "b.wav"])
    assert changed.request().audio_prompt == (Path("b.wav"),)  # the last time counts, and - and _ are the same


@pytest.mark.parametrize(("width", "wanted", "asked"), [(256, None, [1]), (1024, None, []), (256, "2", [])])
def test_small_models_sample_on_one_thread_unless_told(monkeypatch, width, wanted, asked):
    set_to = []
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    set_threads(width)
    assert set_to == asked
