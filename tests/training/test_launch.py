"""From folders to models: every kind of recipe in miniature, what users do wrong, and the walk-through of the docs."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny import save_tiny_folder, tiny_musicgen, tiny_processor
from tiny_songs import write_song
from tunesmith import cli
from tunesmith.codecs.vqvae import JukeboxVQVAE
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.convert.fingerprint import codes_hash
from tunesmith.errors import AudioFileError, IncompatiblePartsError, RequestError, RunError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.pipelines.alignment import lyric_layers
from tunesmith.pipelines.jukebox import JukeboxConfig
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import load_tokenizer
from tunesmith.training.encode import Job, encode_songs
from tunesmith.training.folders import open_songs
from tunesmith.training.launch import Order, TextCollator, launch
from tunesmith.training.recipes import compose

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
RATE = 2000
VQVAE: dict[str, Any] = {
    "sr": RATE,
    "l_bins": 16,
    "emb_width": 8,
    "width": 4,
    "depth": 1,
    "downs_t": [2, 1],
    "sample_length": 2048,
    "steps": 2,
    "batch": 2,
    "log_every": 1,
    "save_every": 1,
}
PRIOR: dict[str, Any] = {
    "n_ctx": 64,
    "prior_width": 16,
    "prior_depth": 3,
    "blocks": 4,
    "steps": 2,
    "batch": 2,
    "log_every": 1,
}
CONDITIONER: dict[str, Any] = {"cond_width": 8, "cond_depth": 1}
LYRICS: dict[str, Any] = {"n_tokens": 16, "min_duration": 1, "prior_depth": 16, "heads": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write(path: Path, seconds: float = 3.0, seed: int = 0) -> Path:
    return write_song(path, seconds, rate=RATE, seed=seed)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four songs of three seconds with labels and lyrics, one of which is in Greek."""
    folder = tmp_path_factory.mktemp("songs")
    lyrics = ("la la la", "oh so blue", "", "θάλασσα")
    rows = [
        {"file_name": f"s{i}.wav", "artist": f"Band {i % 2}", "genre": "Folk", "lyrics": words, "text": "slow piano"}
        for i, words in enumerate(lyrics)
    ]
    for i in range(4):
        write(folder / f"s{i}.wav", seed=i)
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def order(name: str, songs: Path, run: Path, settings: dict[str, Any], **options: Any) -> Order:
    return Order(recipe=compose(name, settings), data=songs, run=run, **options)


@pytest.fixture(scope="module")
def codec(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("vqvae")
    launch(order("small_vqvae", songs, run, VQVAE), tell=lambda _: None)
    return run


def test_a_codec_is_estimated_trained_and_measured(songs: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    folder = launch(order("small_vqvae", songs, tmp_path, VQVAE), tell=told.append)
    model = JukeboxVQVAE.from_pretrained(folder)
    assert set(model.config.bandwidth) == {"l1", "l2", "spec"}
    assert model.config.bandwidth["l2"] > 0
    count = sum(p.numel() for p in model.parameters())
    assert re.search(rf"{count:,} parameters.*Memory about .* a step, .* an epoch", str(told[0]))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("small_prior", {}),
        ("small_upsampler", CONDITIONER),
        ("small_labelled_prior", {"min_duration": 1}),
        ("small_single_enc_dec_prior", LYRICS),
        ("small_sep_enc_dec_prior", {**LYRICS, "prime_width": 16, "prime_depth": 2, "prime_blocks": 4}),
    ],
)
def test_priors_of_every_kind(songs: Path, codec: Path, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    asked = order(f"{name},all_fp16,cpu_ema", songs, tmp_path, {**PRIOR, **settings}, codec=str(codec))
    folder = launch(asked, tell=lambda _: None)
    model = JukeboxPrior.from_pretrained(folder)
    assert model.config.level == (name == "small_upsampler")
    assert model.config.music_vocab_size == 16
    if model.config.metadata_conditioning:
        assert (tmp_path / "best/artists.json").read_text() == (folder / "artists.json").read_text()
        tokenizer = JukeboxTokenizer.from_pretrained(folder)
        assert tokenizer.tables["artist", "v3"].ids == {"unknown": 0, "band 0": 1, "band 1": 2}
        assert list(model.config.metadata_dims) == [2, 3]
    if model.config.nb_relevant_lyric_tokens:
        assert tokenizer.alphabet.decode(tokenizer.alphabet.encode("θάλασσα")) == "θάλασσα"
        assert model.config.lyric_vocab_size == 79 + len(set("θάλασσα"))
        assert model.config.alignment_layer in lyric_layers(model)
        assert model.config.alignment_head in (0, 1)


def test_trained_parts_make_a_model_if_they_speak_the_same_codes(
    songs: Path, codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layer and head that follow the words come along; a prior that names none is told of."""
    lyrics = {**PRIOR, **LYRICS, "steps": 1, "prime_width": 16, "prime_depth": 2, "prime_blocks": 4}
    asked = order("small_sep_enc_dec_prior", songs, tmp_path / "prior", lyrics, codec=str(codec))
    prior = launch(asked, tell=lambda _: None)
    lower = order("small_upsampler", songs, tmp_path / "lower", PRIOR | CONDITIONER | {"steps": 1}, codec=str(codec))
    parts = ["--prior", str(prior), "--upsampler", str(launch(lower, tell=lambda _: None))]
    vqvae, made = codec / "model", str(tmp_path / "made")
    assert JukeboxPrior.from_pretrained(prior).config.codes_hash == codes_hash(vqvae)
    capsys.readouterr()
    assert cli.run(["assemble", made, "--vqvae", str(vqvae), *parts]) == 0
    assert capsys.readouterr() == (f"{made}\n", "")
    names = ("alignment_layer", "alignment_head")
    found = [JukeboxConfig.from_pretrained(made).prior_configs[0], JukeboxPrior.from_pretrained(prior).config]
    assert [getattr(found[0], name) for name in names] == [getattr(found[1], name) for name in names] != [None, None]
    other = JukeboxVQVAE.from_pretrained(vqvae)
    other.bottleneck.level_blocks[0].codebook.add_(0.1)
    other.save_pretrained(tmp_path / "other")
    assert cli.run(["assemble", f"{made} 2", "--vqvae", str(tmp_path / "other"), *parts]) == cli.WRONG
    assert "codes of another VQ-VAE" in capsys.readouterr().err
    config = json.loads((prior / "config.json").read_text())
    (prior / "config.json").write_text(json.dumps(config | dict.fromkeys(names)))
    insisted = ["--vqvae", str(tmp_path / "other"), "--other-codec"]
    assert cli.run(["assemble", f"{made} 2", *parts, *insisted]) == 0
    assert "`tunesmith align SONG --search` finds them" in capsys.readouterr().err


def test_codes_of_another_codec_are_refused(songs: Path, codec: Path, tmp_path: Path) -> None:
    list(encode_songs(Job(songs=open_songs(songs), out=tmp_path / "codes", codec=str(codec / "model"))))
    launch(order("small_prior", tmp_path / "codes", tmp_path / "a", PRIOR, codec=str(codec)), tell=lambda _: None)
    other = JukeboxVQVAE.from_pretrained(codec / "model")
    other.bottleneck.level_blocks[0].codebook.add_(0.1)
    other.save_pretrained(tmp_path / "other")
    asked = order("small_prior", tmp_path / "codes", tmp_path / "b", PRIOR, codec=str(tmp_path / "other"))
    with pytest.raises(IncompatiblePartsError, match="other' is another codec"):
        launch(asked, tell=lambda _: None)


def test_a_prior_goes_on_from_a_checkpoint_and_anneals(songs: Path, codec: Path, tmp_path: Path) -> None:
    launch(order("small_prior", songs, tmp_path / "a", PRIOR, codec=str(codec)), tell=lambda _: None)
    end = {**PRIOR, "steps": 99, "curve": "linear", "decay_steps": 2}
    origin = str(tmp_path / "a")
    launch(order("small_prior", songs, tmp_path / "b", end, codec=str(codec), origin=origin), tell=lambda _: None)
    records = [json.loads(line) for line in (tmp_path / "b/history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [3, 4]


def test_weights_alone_are_a_start(songs: Path, codec: Path, tmp_path: Path) -> None:
    still = {**PRIOR, "lr": 0.0}
    first = launch(order("small_prior", songs, tmp_path / "a", PRIOR, codec=str(codec)), tell=lambda _: None)
    asked = order("small_prior", songs, tmp_path / "b", still, codec=str(codec), origin=str(first))
    again = launch(asked, tell=lambda _: None)
    a, b = (load_file(folder / "model.safetensors") for folder in (first, again))
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_musicgen_from_parts(songs: Path, tmp_path: Path) -> None:
    whole = save_tiny_folder(tmp_path / "whole")
    text = tiny_musicgen().text_encoder
    text.save_pretrained(tmp_path / "text")
    tiny_processor().tokenizer.save_pretrained(tmp_path / "text")
    settings = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "num_codebooks": 4,
        "vocab_size": 32,
        "sample_length": 2000,
        "steps": 2,
        "batch": 2,
        "log_every": 1,
        "sample_every": 2,
        "sample_seconds": 0.2,
    }
    asked = order(
        "musicgen-small", songs, tmp_path / "run", settings, codec=str(whole), text_encoder=str(tmp_path / "text")
    )
    folder = launch(asked, tell=lambda _: None)
    assert str(tmp_path) not in (folder / "config.json").read_text()
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    before = MusicgenForConditionalGeneration.from_pretrained(whole)
    assert model.config.decoder.codes_hash == codes_hash(whole)
    pairs = zip(model.audio_encoder.parameters(), before.audio_encoder.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)  # codec and text encoder rest
    said = [load_tokenizer(place)("slow piano").input_ids for place in (folder, tmp_path / "run/best")]
    assert said[0] == said[1] != []
    records = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert {"loss", "ce", "ppl", "ce_q1", "ce_q4"} <= set(records[0])
    assert list((tmp_path / "run/samples/step-2").glob("sample_0.wav"))


def test_withheld_texts_are_masked(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tiny_folder(tmp_path))
    items = [{"audio": torch.zeros(4), "text": "slow piano"}, {"audio": torch.zeros(4), "text": None}]
    batch = TextCollator(tokenizer)(items)
    assert batch["attention_mask"].sum(1).tolist() == [int((batch["input_ids"][0] != 0).sum()), 0]


# -------------------------------------------------------------------------------------------------- bad input


def test_changed_settings_are_told_exactly(songs: Path, tmp_path: Path) -> None:
    asked = order("small_vqvae", songs, tmp_path, VQVAE)
    launch(asked, tell=lambda _: None)
    other = order("small_vqvae", songs, tmp_path, {**VQVAE, "lr": 1e-5, "l_mu": 0.9, "steps": 3, "log_every": 2})
    with pytest.raises(RunError) as error:
        launch(other, tell=lambda _: None)
    for told in ("learning_rate was 0.0003 and is now 1e-05", "vqvae.lmu was unset and is now 0.9", "steps was 2"):
        assert told in str(error.value)
    assert "log_every" not in str(error.value)
    told = []
    launch(replace(asked, recipe=compose("small_vqvae", {**VQVAE, "log_every": 2})), tell=told.append)
    assert any("log_every was 1 and is now 2" in str(line) for line in told)
    launch(replace(other, recipe=compose("small_vqvae", {**VQVAE, "lr": 1e-5}), changed=True), tell=lambda _: None)


def test_one_short_song(tmp_path: Path) -> None:
    write(tmp_path / "songs/only.wav", seconds=0.5)
    told: list[Any] = []
    launch(order("small_vqvae", tmp_path / "songs", tmp_path / "run", VQVAE), tell=told.append)
    assert any("1 of 1 songs are shorter than a crop of 1.02 s" in str(line) for line in told)


def test_damaged_songs_are_named(tmp_path: Path) -> None:
    """What can't be opened before the run, and what turns out to be damaged after it."""
    folder = tmp_path / "songs"
    for i in range(4):
        write(folder / f"s{i}.wav")
    (folder / "s0.wav").write_bytes(b"junk")
    whole = write(folder / "s1.flac")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    told: list[Any] = []
    launch(order("small_vqvae", folder, tmp_path / "run", VQVAE | {"steps": 6}), tell=told.append)
    assert str(told[0]).startswith("s0.wav is left out: ")
    assert re.fullmatch(
        r"s1\.flac is damaged: \d+ of its crops could not be read and were replaced by others\.", told[-1]
    )


@pytest.mark.parametrize(
    ("name", "settings", "options", "error", "sentence"),
    [
        ("small_prior", {}, {}, RequestError, "--vqvae"),
        ("small_prior", {"level": 2}, {"codec": "CODEC"}, RequestError, r"level is 2; this VQ-VAE has 0 .* to 1"),
        ("small_prior", {"sample_length": 99}, {"codec": "CODEC"}, RequestError, "sample_length is 99, but a window"),
        ("vqvae,small_prior", {}, {"codec": "CODEC"}, IncompatiblePartsError, "sampling_rate 2000.*says 44100"),
        ("small_labelled_prior", {}, {"codec": "CODEC"}, AudioFileError, "No song .* between 60 and 600 s"),
        ("musicgen-small", {}, {}, RequestError, "--codec"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    songs: Path,
    codec: Path,
    tmp_path: Path,
    name: str,
    settings: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    sentence: str,
) -> None:
    given = {key: str(codec) if value == "CODEC" else value for key, value in options.items()}
    asked = order(name, songs, tmp_path, {**(PRIOR if "prior" in name else {}), **settings}, **given)
    with pytest.raises(error, match=sentence):
        launch(asked, tell=lambda _: None)
    assert not (tmp_path / "model").exists()


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    with pytest.raises(AudioFileError, match="holds no audio files"):
        launch(order("small_vqvae", tmp_path / "songs", tmp_path / "run", VQVAE), tell=lambda _: None)


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command_shows_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "list"]) == 0
    assert "small_upsampler" in capsys.readouterr().out.splitlines()
    assert cli.run(["train", "small_vqvae,small_prior", "--set", "bs=3 lr=1e-4", "--level", "0", "--show"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert {"schedule.batch=3", "schedule.learning_rate=0.0001", "level=0", "kind=prior"} <= set(shown)
    assert cli.run(["train", "small_vqvae", "--set", "bs"]) == cli.WRONG
    assert "KEY=VALUE" in capsys.readouterr().err


SHRUNK = {
    "encodec-32khz": "sampling_rate=2000 hidden_size=8 num_filters=4 upsampling_ratios=2,4,5 num_lstm_layers=1 "
    "codebook_size=16 target_bandwidths=[0.8] sample_length=1024 adversarial.windows=256,128 filters=4",
    "musicgen-small": "hidden_size=16 num_hidden_layers=1 num_attention_heads=2 ffn_dim=32 sample_length=2000 warmup=2",
}


@pytest.mark.parametrize("recipe", SHRUNK)
def test_a_command_that_is_killed_goes_on(songs: Path, tmp_path: Path, recipe: str) -> None:
    """A process of its own, killed without warning, and the same command again: as if nothing had been."""
    parts = save_tiny_folder(tmp_path / "parts") if recipe.startswith("musicgen") else None
    codec = [] if parts is None else ["--codec", str(parts), "--text-encoder", str(parts)]
    words = ["train", recipe, "--data", str(songs), *codec, "--set", SHRUNK[recipe]]
    words += ["--set", "steps=30 batch=2 save_every=2 log_every=3", "--run"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "tunesmith", *words, str(killed)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: (killed / "checkpoint-2").exists() or process.poll() is not None)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(killed / "model")
    assert "step 2/30 " not in done.stdout  # it began behind the checkpoint
    assert cli.run([*words, str(whole)]) == 0
    one, other = (load_file(run / "model/model.safetensors") for run in (killed, whole))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert figures(killed) == figures(whole)


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def figures(run: Path) -> list[dict[str, float]]:
    """All that was logged but for times and speeds."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]


SPEEDS = ("elapsed", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


def walk() -> list[list[str]]:
    """The commands of the walk-through."""
    block = re.search(r"## Ten minutes on a CPU.*?```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].replace("\\\n", " ").splitlines()]


MINIATURE = {"steps": "2", "n_ctx": "64", "prior_width": "16", "prior_depth": "3", "cond_width": "8", "cond_depth": "1"}
SMALL = {
    "small_vqvae": "sr=2000 downs_t=2,1 l_bins=16 width=4 depth=1 sample_length=2048 sample_every=2",
    "small_prior": "blocks=4",
    "small_upsampler": "blocks=4",
}


def in_miniature(words: Sequence[str]) -> list[str]:
    """Tiny sizes in place of small ones, and a codec of two kilohertz."""
    given = [re.sub(r"(\w+)=(\S+)", lambda m: f"{m[1]}={MINIATURE.get(m[1], m[2])}", word) for word in words]
    last = given[1].split(",")[-1] if given[0] == "train" else ""
    more = ["--set", SMALL[last]] if last else []
    codec = ["--set", f"{SMALL['small_vqvae'].split(' sample')[0]}"] if last.startswith("small_") else []
    seconds = [word if previous != "--seconds" else "0.5" for previous, word in zip(["", *given], given, strict=False)]
    return [*seconds, *codec, *more]


def test_the_walk_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folder -> check -> VQ-VAE -> prior -> upsampler -> song; the songs are ours, for they take long to make."""
    monkeypatch.chdir(tmp_path)
    commands = walk()
    assert [words[:3] for words in commands[:2]] == [["mkdir", "songs"], ["tunesmith", "generate", commands[1][2]]]
    for i in range(4):
        write(tmp_path / f"songs/waltz-{i}.wav", seed=i)
    for words in commands[2:]:
        assert cli.run(in_miniature(words[1:])) == 0, shlex.join(words)
    assert list((tmp_path / "runs/vqvae/samples").rglob("out_0_level_1.wav"))
    assert (tmp_path / "my-song/level 0/take-1.wav").stat().st_size > 1000
    # What the page adds further down, in the same folder.
    text = PAGE.read_text()
    [anneal] = re.findall(r"^    tunesmith (train .*\\\n.*)$", text, re.MULTILINE)
    words = in_miniature(shlex.split(anneal.replace("\\\n", " ").replace("decay_steps=10000", "decay_steps=1")))
    same = " ".join(f"{name}={value}" for name, value in MINIATURE.items() if name.startswith(("n_ctx", "prior")))
    assert cli.run([*words, "--set", f"{same} steps=99"]) == 0
    assert (tmp_path / "runs/prior-end/checkpoint-3").is_dir()
    [code] = re.findall(r"\n\n((?:    .*\n|\n)*    launch\(.*\n)", text)
    shutil.rmtree(tmp_path / "runs/vqvae")
    exec(textwrap.dedent(code).replace('{"batch": 2}', repr(VQVAE)), {})
    assert (tmp_path / "runs/vqvae/model").is_dir()
