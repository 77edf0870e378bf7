"""Jukebox's checkpoints both ways: against the originals' files, bit for bit, and what is refused."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith import cli
from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig
from tunesmith.convert import jukebox, jukebox_settings
from tunesmith.convert.checkpoints import convert_checkpoint
from tunesmith.convert.folders import read_json, write_json
from tunesmith.convert.jukebox_hub import modern_config, prior_preset, vqvae_preset
from tunesmith.convert.jukebox_keys import prior_rows, vqvae_rows
from tunesmith.errors import CheckpointError, IncompatiblePartsError, RequestError
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig

State = dict[str, Tensor]
Package = dict[str, Any]

WHOLE = ("full_model/1b_lyrics_style", "full_model/5b_lyrics_style")
PRIORS = (
    "prior_plain/merged",
    "prior_plain/shared_res_scale",
    "prior_sep_enc_dec",
    "prior_single_enc_dec",
    "upsampler/level_0",
    "upsampler/level_1",
)
CASES = (*WHOLE, *PRIORS, "vqvae")

# The reference folders weren't written from the checkpoints' settings throughout.
DIFFERING = {"init_scale", "transformers_version", "torch_dtype", "dtype"}
UPSAMPLERS_ONLY = {"lyric_vocab_size", "alignment_head", "alignment_layer", "encoder_loss_fraction", "max_nb_genres"}


def weights(folder: Path) -> State:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def packages(folder: Path) -> dict[str, Package]:
    files = sorted(folder.glob("*.pth.tar"))
    return {file.name.removeprefix("checkpoint_"): torch.load(file, weights_only=True) for file in files}


def state(package: Package) -> State:
    return {name.removeprefix("module."): tensor for name, tensor in package["model"].items()}


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def assert_agree(found: Any, wanted: Any, lyrics: bool = True) -> None:
    """Every setting that both have is equal, but for the named ones."""
    if isinstance(found, list) and found and isinstance(found[0], dict):
        for one, other in zip(found, wanted, strict=True):
            assert_agree(one, other)
        return
    lyrics = found.get("nb_relevant_lyric_tokens", 1) > 0
    for key in (found.keys() & wanted.keys()) - DIFFERING - (set() if lyrics else UPSAMPLERS_ONLY):
        if (isinstance(found[key], dict) and key != "bandwidth") or key == "prior_config_list":
            assert_agree(found[key], wanted[key])
        else:
            assert found[key] == wanted[key], key


@pytest.fixture
def original(goldens: Path) -> Path:
    """The original's files of a small model with separate lyrics."""
    return goldens / "jukebox" / WHOLE[1]


@pytest.fixture
def edited(goldens: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a prior's checkpoint with a change."""

    def edit(change: Callable[[Package], object], case: str = "prior_sep_enc_dec", name: str = "prior.pth.tar") -> Path:
        (file,) = (goldens / "jukebox" / case).glob("*.pth.tar")
        package = torch.load(file, weights_only=True)
        change(package)
        torch.save(package, tmp_path / name)
        return tmp_path / name

    return edit


# ------------------------------------------------------------------------------------------------- the originals' files


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_become_their_twins(goldens: Path, tmp_path: Path, case: str):
    folder = goldens / "jukebox" / case
    convert_checkpoint(folder, tmp_path / "out")
    assert_same(weights(tmp_path / "out"), weights(folder / "hf"))
    assert_agree(read_json(tmp_path / "out/config.json"), read_json(folder / "hf/config.json"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("start", ["twin", "converted"])
def test_twins_become_checkpoints_again(goldens: Path, tmp_path: Path, case: str, start: str):
    folder = goldens / "jukebox" / case
    twin = folder / "hf" if start == "twin" else convert_checkpoint(folder, tmp_path / "converted")
    convert_checkpoint(twin, tmp_path / "back")
    found, wanted = packages(tmp_path / "back"), packages(folder)
    assert found.keys() == wanted.keys()
    for name, package in wanted.items():
        assert_same(state(found[name]), state(package))
        assert found[name]["hps"]["fp16_params"] == package["hps"]["fp16_params"]
        assert (tmp_path / "back" / name).read_bytes()[:2] != b"PK", "torch 1.4 reads no zip files"
    convert_checkpoint(tmp_path / "back", tmp_path / "again")
    assert_same(weights(tmp_path / "again"), weights(folder / "hf"))
    if start == "converted":
        assert read_json(tmp_path / "again/config.json") == read_json(twin / "config.json")


@pytest.mark.parametrize("case", PRIORS)
def test_a_single_prior_loads_alone(goldens: Path, tmp_path: Path, case: str):
    folder = goldens / "jukebox" / case
    convert_checkpoint(folder, tmp_path / "out")
    prior = JukeboxPrior.from_pretrained(tmp_path / "out")
    assert_same(prior.state_dict(), weights(folder / "hf"))
    twin = JukeboxPriorConfig.from_pretrained(folder / "hf")
    assert (prior.config.level, prior.config.hop_length) == (twin.level, twin.hop_length)


def test_a_vqvae_loads_alone(goldens: Path, tmp_path: Path):
    folder = goldens / "jukebox/vqvae"
    convert_checkpoint(folder / "checkpoint_vqvae.pth.tar", tmp_path / "out")
    model = JukeboxVQVAE.from_pretrained(tmp_path / "out").eval()
    codes = model.encode(load_file(folder / "inputs.safetensors")["audio"])
    wanted = load_file(folder / "outputs.safetensors")
    assert all(torch.equal(codes[level], wanted[f"codes_level{level}"]) for level in range(3))
    hps = json.loads((folder / "hps.json").read_text())
    assert model.config.bandwidth == hps["bandwidth"]
    assert (model.config.spectral, model.config.linf_k, model.config.sampling_rate) == (0.15, 300, 8000)


def test_one_file_of_several_converts_alone(original: Path, tmp_path: Path):
    convert_checkpoint(original / "checkpoint_prior_level_1.pth.tar", tmp_path / "out")
    assert JukeboxPrior.from_pretrained(tmp_path / "out").config.level == 1


@pytest.mark.parametrize("rename", ["vqvae.pt", "anything", "state.bin"])
def test_what_a_file_is_its_content_says(goldens: Path, tmp_path: Path, rename: str):
    (tmp_path / rename).write_bytes((goldens / "jukebox/vqvae/checkpoint_vqvae.pth.tar").read_bytes())
    convert_checkpoint(tmp_path / rename, tmp_path / "out", to="huggingface")
    assert read_json(tmp_path / "out/config.json")["model_type"] == "jukebox_vqvae"


def test_zip_files_and_prefixes_are_read(edited: Callable[..., Path], goldens: Path, tmp_path: Path):
    def prefix(package: Package) -> None:
        package["model"] = {f"module.{name}": tensor for name, tensor in package["model"].items()}
        del package["opt"], package["step"]

    file = edited(prefix)
    assert file.read_bytes()[:2] == b"PK"
    convert_checkpoint(file, tmp_path / "out")
    assert_same(weights(tmp_path / "out"), weights(goldens / "jukebox/prior_sep_enc_dec/hf"))


@pytest.mark.parametrize("order", [0, 1, 3, 4, 5])
def test_every_order_of_attention_goes_there_and_back(edited: Callable[..., Path], tmp_path: Path, order: int):
    file = edited(lambda package: package["hps"].update(attn_order=order, spread=2), "prior_plain/merged")
    convert_checkpoint(convert_checkpoint(file, tmp_path / "out"), tmp_path / "back")
    assert packages(tmp_path / "back")["prior_level_2.pth.tar"]["hps"]["attn_order"] == order


# ------------------------------------------------------------------------------------------- settings and presets


def small_vqvae(folder: Path, hps: Package | None) -> Path:
    """A file with random weights of the preset small_vqvae."""
    rows = vqvae_rows(JukeboxVQVAEConfig(**vqvae_preset("small_vqvae")))
    tensors = {row.theirs: torch.randn(row.shape) for row in rows}
    torch.save({"model": tensors} | ({} if hps is None else {"hps": hps}), folder / "checkpoint_step_7.pth.tar")
    return folder / "checkpoint_step_7.pth.tar"


@pytest.mark.parametrize("preset", [None, "small_vqvae"])
@pytest.mark.parametrize("hps", [None, {}, {"commit": 0.5}])
def test_a_file_without_settings_has_its_presets(tmp_path: Path, preset: str | None, hps: Package | None):
    convert_checkpoint(small_vqvae(tmp_path, hps), tmp_path / "out", preset=preset)
    config = read_json(tmp_path / "out/config.json")
    assert config["commit"] == (0.5 if hps else 0.02)
    wanted = vqvae_preset("small_vqvae")
    assert {key: wanted[key] for key in config.keys() & wanted.keys() - {"commit"}}.items() <= (
        config | {"architectures": None, "dtype": None}
    ).items()


def test_presets_that_dont_fit(tmp_path: Path, edited: Callable[..., Path]):
    file = small_vqvae(tmp_path, None)
    for preset in ("vqvae", "5b"):
        with pytest.raises(CheckpointError, match=f"no settings of its own.*aren't those of the preset '{preset}'"):
            convert_checkpoint(file, tmp_path / "out", preset=preset)
    with pytest.raises(RequestError, match="no preset '6b'; there are 5b, 5b_lyrics, 1b_lyrics, vqvae"):
        convert_checkpoint(file, tmp_path / "out", preset="6b")
    with pytest.raises(CheckpointError, match="aren't those of any preset; give the preset that"):
        convert_checkpoint(edited(lambda package: package.pop("hps")), tmp_path / "out")


@pytest.mark.parametrize("name", ["upsampler_level_0", "upsampler_level_1", "prior_5b_lyrics", "prior_1b_lyrics"])
@pytest.mark.parametrize("preset", [None, "set", "part"])
def test_released_files_without_settings_are_known(tmp_path: Path, name: str, preset: str | None):
    """By their tensors, here without values, and the upsamplers also by the file's name or the preset's."""
    config = prior_preset(name)
    forms = {row.theirs: torch.empty(row.shape, device="meta") for row in prior_rows(JukeboxPriorConfig(**config))}
    level = 2 - config["level"]
    named = {None: None, "part": name, "set": "1b_lyrics" if "1b" in name else "5b_lyrics"}[preset]
    file = "checkpoint.pth.tar" if preset == "part" else f"prior_level_{level}.pth.tar"
    found = jukebox._read_prior(tmp_path / file, {}, forms, named, None).config
    for key in found.keys() - {"architectures", "encoder_config"}:
        assert found[key] == config[key], key
    for key in found["encoder_config"] or {}:
        wanted = {"nb_relevant_lyric_tokens": 512, "n_ctx": 512, "lyric_vocab_size": 80}.get(key)
        assert found["encoder_config"][key] == (wanted or config["encoder_config"][key]), key


def test_a_priors_own_word_on_its_vqvae_is_taken_if_its_tensors_agree(edited: Callable[..., Path], tmp_path: Path):
    shapes = {"levels": 2, "downs_t": (5, 2), "strides_t": (2, 2)}
    file = edited(lambda package: package["hps"].update(shapes), "upsampler/level_0")
    convert_checkpoint(file, tmp_path / "out")
    prior = JukeboxPrior.from_pretrained(tmp_path / "out")
    assert (prior.config.level, prior.config.res_downs_t, prior.config.hop_length) == (1, [5, 2], 32)
    file = edited(lambda package: package["hps"].update(level=5), "upsampler/level_0")
    with pytest.raises(CheckpointError, match="doesn't say which VQ-VAE it belongs to"):
        convert_checkpoint(file, tmp_path / "other")


# ---------------------------------------------------------------------------------------- what others wrote


def hub_config(**settings: Any) -> Package:
    """As the hub's of 5b-lyrics: numbered priors, one with wrong blocks, one with wrong genres."""
    parts = {f"prior_{i}": prior_preset(name) for i, name in enumerate(("prior_5b_lyrics", "upsampler_level_1"))}
    parts["prior_2"] = prior_preset("upsampler_level_0") | {"max_nb_genres": 1, "timing_dims": 64, "mask": False}
    parts["prior_0"] |= {"blocks": 64}
    return {"model_type": "jukebox", "nb_priors": 3, "vqvae_config": vqvae_preset("vqvae"), **parts, **settings}


def test_released_models_have_our_presets_whatever_the_hub_says():
    config = modern_config(hub_config(transformers_version="4.26.0.dev0"), "hub")
    names = ("prior_5b_lyrics", "upsampler_level_1", "upsampler_level_0")
    assert config["prior_config_list"] == [prior_preset(name) for name in names]
    assert not any(name.startswith("prior_") and name[6:].isdecimal() for name in config)
    assert modern_config(hub_config(), "hub")["prior_config_list"] == config["prior_config_list"]
    listed = {**hub_config(), "prior_config_list": [hub_config()[f"prior_{i}"] for i in range(3)]}
    assert modern_config(listed, "hub")["prior_config_list"] == config["prior_config_list"]
    ours = modern_config(hub_config(transformers_version="5.17.0"), "ours")
    assert ours["prior_config_list"][0]["blocks"] == 64


def test_tables_of_ids_come_along(goldens: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tables = str(goldens / "jukebox/labels/tables")
    assert cli.run(["convert", str(original), str(tmp_path / "out"), "--ids", tables]) == 0
    assert read_json(tmp_path / "out/artists.json")["alan_jackson.v2"] == 145
    assert read_json(tmp_path / "out/genres.json")["country rock"] == 546
    assert read_json(tmp_path / "out/lyrics.json")["A"] == 1
    settings = read_json(tmp_path / "out/tokenizer_config.json")
    assert (settings["tokenizer_class"], settings["version"]) == ("JukeboxTokenizer", ["v2", "v2", "v2"])
    convert_checkpoint(original / "hf", tmp_path / "again", to="huggingface", ids=tables)
    assert read_json(tmp_path / "again/artists.json") == read_json(tmp_path / "out/artists.json")
    assert cli.run(["convert", str(original), str(tmp_path / "other"), "--ids", str(original)]) == 2
    assert "has no id tables" in capsys.readouterr().err
    with pytest.raises(RequestError, match="belong to a Jukebox in Hugging Face's layout"):
        convert_checkpoint(original / "hf", tmp_path / "other", ids=tables)
    assert not (tmp_path / "other").exists()


def test_settings_of_tokenizers_that_came_along_stay(goldens: Path, original: Path, tmp_path: Path):
    tables, source = goldens / "jukebox/labels/tables", shutil.copytree(original / "hf", tmp_path / "source")
    write_json({"version": ["v2", "v2", "v2"], "n_genres": 4, "unk_token": "?"}, source / "tokenizer_config.json")
    convert_checkpoint(source, tmp_path / "out", to="huggingface", ids=tables)
    assert read_json(tmp_path / "out/tokenizer_config.json") == read_json(source / "tokenizer_config.json")
    convert_checkpoint(original / "checkpoint_vqvae.pth.tar", tmp_path / "codec", ids=tables)  # which reads no labels
    assert not (tmp_path / "codec/tokenizer_config.json").exists()


def test_settings_that_are_left_out_are_defaults(goldens: Path, tmp_path: Path):
    """As save_pretrained leaves them out, and tied weights too."""
    folder = goldens / "jukebox/upsampler/level_1"
    saved = tmp_path / "saved"
    JukeboxPrior.from_pretrained(folder / "hf").save_pretrained(saved, max_shard_size="50KB")
    config = read_json(saved / "config.json")
    write_json({k: v for k, v in config.items() if k not in ("mask", "res_strides_t")}, saved / "config.json")
    convert_checkpoint(saved, tmp_path / "back")
    (package,) = packages(folder).values()
    assert_same(state(packages(tmp_path / "back")["prior_level_1.pth.tar"]), state(package))


def test_other_models_keep_their_settings(goldens: Path):
    config = read_json(goldens / "jukebox" / WHOLE[1] / "hf/config.json")
    assert_agree(modern_config(config, "hub"), config)
    del config["prior_config_list"]
    with pytest.raises(CheckpointError, match="lacks vqvae_config or prior_config_list"):
        modern_config(config, "hub")


def pickled(source: Path, folder: Path) -> Path:
    """A folder as the hub has it: shards of pickled tensors, numbered priors, tied weights saved once."""
    folder.mkdir(parents=True)
    config = read_json(source / "config.json")
    priors = config.pop("prior_config_list")
    write_json({**config, **{f"prior_{i}": prior for i, prior in enumerate(priors)}}, folder / "config.json")
    tensors = weights(source)
    kept = sorted(name for name in tensors if name not in ("priors.1.prior.fc_proj_out.weight",))
    half = len(kept) // 2
    files = {"pytorch_model-00001-of-00002.bin": kept[:half], "pytorch_model-00002-of-00002.bin": kept[half:]}
    for file, names in files.items():
        torch.save({name: tensors[name] for name in names}, folder / file)
    index = {name: file for file, names in files.items() for name in names}
    write_json({"metadata": {}, "weight_map": index}, folder / "pytorch_model.bin.index.json")
    write_json({"unknown": 0}, folder / "artists.json")
    return folder


def test_a_cached_hub_id_is_converted(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub/models--openai--jukebox-1b-lyrics"
    pickled(original / "hf", home / "snapshots/abc")
    (home / "refs").mkdir()
    (home / "refs/main").write_text("abc")
    assert cli.run(["convert", "openai/jukebox-1b-lyrics", str(tmp_path / "out")]) == 0
    for name, package in packages(original).items():
        assert_same(state(packages(tmp_path / "out")[name]), state(package))
    again = tmp_path / "again"
    assert cli.run(["convert", "openai/jukebox-1b-lyrics", str(again), "--to", "huggingface"]) == 0
    wanted = {k: v for k, v in weights(original / "hf").items() if k != "priors.1.prior.fc_proj_out.weight"}
    assert_same(weights(again), wanted)
    assert_agree(read_json(again / "config.json"), read_json(original / "hf/config.json"))
    assert read_json(again / "artists.json") == {"unknown": 0}
    assert capsys.readouterr().out.split() == [str(tmp_path / "out"), str(again)]


def test_large_models_are_written_in_shards(original: Path, tmp_path: Path):
    convert_checkpoint(original, tmp_path / "out", max_shard_size="100KB")
    index = read_json(tmp_path / "out/model.safetensors.index.json")
    shards = sorted(tmp_path.glob("out/*.safetensors"))
    assert [shard.name for shard in shards] == sorted(set(index["weight_map"].values()))
    assert len(shards) > 5
    assert_same(weights(tmp_path / "out"), weights(original / "hf"))
    convert_checkpoint(tmp_path / "out", tmp_path / "back")
    for name, package in packages(original).items():
        assert_same(state(packages(tmp_path / "back")[name]), state(package))


# ----------------------------------------------------------------------------------------------------- bad checkpoints


class Intruder:
    """Unpickled the ordinary way, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which the command line refuses a source, leaving nothing behind."""
    assert cli.run(["convert", str(source), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))
    return said


@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
@pytest.mark.parametrize("place", ["hps", "model"])
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, place: str
):
    trace, file = tmp_path / "trace", tmp_path / "vqvae.pth.tar"
    package: Package = {"hps": {"levels": 3}, "model": {"bottleneck.level_blocks.0.k": torch.zeros(2, 2)}}
    package[place]["intruder"] = Intruder(trace)
    if form == "raw":
        file.write_bytes(pickle.dumps(package))
    else:
        torch.save(package, file, _use_new_zipfile_serialization=form == "zip")
    said = refused(file, tmp_path, capsys)
    assert "isn't a file of plain tensors" in said
    assert "no code in it is run" in said
    assert not trace.exists()
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists(), "the pickle was harmless, so this test shows nothing"


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_truncated_file_is_refused(
    goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: float, form: str
):
    package = torch.load(goldens / "jukebox/vqvae/checkpoint_vqvae.pth.tar", weights_only=True)
    file = tmp_path / "vqvae.pth.tar"
    torch.save(package, file, _use_new_zipfile_serialization=form == "zip")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    assert "incomplete" in refused(file, tmp_path, capsys)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p["model"].pop("prior.x_out.weight"), "lacks prior.x_out.weight"),
        (lambda p: p["model"].pop("prior.x_emb.weight"), "lacks prior.x_emb.weight"),
        (lambda p: p["model"].update({"prior.more": torch.zeros(1)}), "has unexpected prior.more"),
        (lambda p: p["hps"].update(prior_depth=20), "lacks prior.transformer._attn_mods.19.attn.c_attn.b"),
        (lambda p: p["hps"].update(prime_width=28), "has misshapen prime_prior.pos_emb.pos_emb"),
        (lambda p: p["hps"].update(attn_order=13), "attn_order = 13, which can't be played"),
        (lambda p: p["hps"].update(prior_width="wide"), "'wide' for 'prior_width', which makes no sense"),
        (lambda p: p["hps"].update(heads=1.5), "1.5 for 'heads', which makes no sense"),
        (lambda p: p["hps"].update(y_bins=(7, "x")), "for 'y_bins'; whole numbers are needed"),
        (lambda p: p["hps"].update(pos_init=True), "pos_init = True, which can't be played; only False"),
        (lambda p: p["hps"].update(level="top"), "call it prior_level_N.pth.tar"),
        (lambda p: p.update(model={"conv1.weight": torch.zeros(2)}), "neither a VQ-VAE nor a prior under `model`"),
        (lambda p: p.update(model=3), "isn't a checkpoint of Jukebox"),
    ],
)
def test_broken_checkpoints_are_refused(
    edited: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, sentence: str
):
    assert sentence in refused(edited(change), tmp_path, capsys)


def test_other_families_are_refused(goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save([torch.zeros(3)], tmp_path / "data.pth.tar")
    assert "isn't a checkpoint of Jukebox" in refused(tmp_path / "data.pth.tar", tmp_path, capsys)
    other = tmp_path / "llama"
    other.mkdir()
    write_json({"model_type": "llama"}, other / "config.json")
    save_file({"a": torch.zeros(1)}, other / "model.safetensors")
    assert "family 'llama'" in refused(other, tmp_path, capsys)
    twin = goldens / "jukebox/vqvae/hf"
    (other / "config.json").write_bytes((twin / "config.json").read_bytes())
    assert "lacks bottleneck.level_blocks.0.codebook" in refused(other, tmp_path, capsys)


def test_a_set_is_found_where_the_originals_code_keeps_all(original: Path, tmp_path: Path):
    for folder, names in (("5b", ("vqvae", "prior_level_0", "prior_level_1")), ("5b_lyrics", ("prior_level_2",))):
        (tmp_path / "models" / folder).mkdir(parents=True)
        for name in names:
            link = tmp_path / "models" / folder / f"{name}.pth.tar"
            link.symlink_to(original / f"checkpoint_{name}.pth.tar")
    convert_checkpoint(tmp_path / "models", tmp_path / "out", preset="5b_lyrics")
    assert_same(weights(tmp_path / "out"), weights(original / "hf"))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        convert_checkpoint(tmp_path / "models", tmp_path / "other")


def test_a_full_disk_is_seen_before_writing(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    room = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with pytest.raises(RequestError, match=r"0\.0 GB are to be written.*make room"):
        convert_checkpoint(original, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_half_models_are_refused(original: Path, tmp_path: Path):
    for name in ("vqvae", "prior_level_0", "prior_level_2"):
        (tmp_path / f"{name}.pth.tar").symlink_to(original / f"checkpoint_{name}.pth.tar")
    with pytest.raises(CheckpointError, match=r"a whole model needs the VQ-VAE, .*level 1, .*one by one"):
        convert_checkpoint(tmp_path, tmp_path / "out")
    (tmp_path / "more.pth.tar").symlink_to(original / "checkpoint_prior_level_0.pth.tar")
    with pytest.raises(CheckpointError, match=r"prior_level_0\.pth\.tar and more\.pth\.tar|more.* and prior_level_0"):
        convert_checkpoint(tmp_path, tmp_path / "out")


def test_parts_of_different_models_are_refused(original: Path, goldens: Path, tmp_path: Path):
    for level in (0, 1, 2):
        name = f"checkpoint_prior_level_{level}.pth.tar"
        (tmp_path / name).symlink_to(original / name)
    (tmp_path / "vqvae.pth.tar").symlink_to(goldens / "jukebox/vqvae/checkpoint_vqvae.pth.tar")
    with pytest.raises(IncompatiblePartsError, match=r"36 codes a level, but vqvae\.pth\.tar has 32"):
        convert_checkpoint(tmp_path, tmp_path / "out")


def test_directions_that_make_no_sense(goldens: Path, tmp_path: Path):
    folder = goldens / "jukebox/vqvae"
    with pytest.raises(RequestError, match="already in the layout 'openai'; it can only become 'huggingface'"):
        convert_checkpoint(folder, tmp_path / "out", to="openai")
    with pytest.raises(RequestError, match="can only become 'openai'"):
        convert_checkpoint(folder / "hf", tmp_path / "out", to="audiocraft")
    with pytest.raises(RequestError, match="'huge' is no size of a file; give one like '2GB'"):
        convert_checkpoint(folder, tmp_path / "out", max_shard_size="huge")


# -------------------------------------------------------------------------------------- memory, and being interrupted

CONVERT = """
import resource, sys
from tunesmith.convert import checkpoints
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
checkpoints.convert_checkpoint(sys.argv[1], sys.argv[2], max_shard_size="8MB")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three parts of 40 MB, in the serialisation that can't be mapped, and a VQ-VAE."""
    folder = tmp_path_factory.mktemp("large")
    codec = JukeboxVQVAEConfig(res_conv_width=8, res_conv_depth=1).to_dict()
    shared = {"hidden_size": 512, "num_layers": 12, "n_heads": 1, "n_ctx": 64, "blocks": 8, "merged_decoder": False}
    shared |= {"nb_relevant_lyric_tokens": 0, "is_encoder_decoder": False, "metadata_dims": [4, 9]}
    shared |= {"attention_pattern": "raw_column_previous_row_attention"}
    priors = [JukeboxPriorConfig(**shared, level=level).to_dict() for level in range(3)]
    hps = [jukebox_settings.write_vqvae(codec), *map(jukebox_settings.write_prior, priors)]
    rows = [vqvae_rows(JukeboxVQVAEConfig(**codec)), *(prior_rows(JukeboxPriorConfig(**prior)) for prior in priors)]
    for number, (settings, tensors) in enumerate(zip(hps, rows, strict=True)):
        model = {row.theirs: torch.randn(row.shape) for row in tensors}
        if number:
            model["prior.x_out.weight"] = model["prior.x_emb.weight"]
        package = {"hps": settings, "model": model}
        torch.save(package, folder / f"part_{number}.pth.tar", _use_new_zipfile_serialization=False)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss has other units")
def test_no_more_than_a_part_and_a_shard_are_in_memory(large: Path, tmp_path: Path):
    part = max(file.stat().st_size for file in large.iterdir()) >> 20
    assert part > 30
    for source, destination in ((large, tmp_path / "ours"), (tmp_path / "ours", tmp_path / "theirs")):
        command = [sys.executable, "-c", CONVERT, str(source), str(destination)]
        used = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert used < part + 8 + 8, f"{destination.name}: {used} MB for parts of {part} MB and shards of 8 MB"
    for name, package in packages(tmp_path / "theirs").items():
        wanted = packages(large)[f"part_{3 - int(name[12]) if 'level' in name else 0}.pth.tar"]
        assert_same(state(package), state(wanted))


KILLED = """
import os, signal, sys
from tunesmith.convert import checkpoints, jukebox
whole = jukebox.iterate
def half(part, prefix):
    for i, pair in enumerate(whole(part, prefix)):
        if i == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        yield pair
jukebox.iterate = half
checkpoints.convert_checkpoint(sys.argv[1], sys.argv[2])
"""


def test_a_killed_conversion_leaves_nothing_half_written(original: Path, tmp_path: Path):
    destination = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(original), str(destination)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert not destination.exists()
    convert_checkpoint(original, destination)
    assert_same(weights(destination), weights(original / "hf"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("twin", [False, True])
def test_a_failed_conversion_leaves_nothing(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, twin: bool
):
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(jukebox.torch if twin else jukebox, "save" if twin else "iterate", failing)
    with pytest.raises((KeyboardInterrupt, RequestError), match=r"out can't be written: No space left on device|^$"):
        convert_checkpoint(original / "hf" if twin else original, tmp_path / "out")
    assert not list(tmp_path.iterdir())
