"""Whole checkpoints, both ways: equal tensors, equal sound, and folders that appear whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from tunesmith.codecs.encodec import EncodecModel
from tunesmith.convert import audiocraft, folders
from tunesmith.convert.checkpoints import convert_checkpoint, converted_folder, is_audiocraft, load_audiocraft
from tunesmith.errors import CheckpointError, IncompatiblePartsError, ModelNotFoundError, RequestError
from tunesmith.generation import patterns
from tunesmith.pipelines.auto import AutoProcessor
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration

LANGUAGE_MODELS = {"mono": "lm_mono", "stereo": "lm_stereo", "melody": "melody"}
CODECS = ("music_mono", "music_stereo", "causal24", "seg48")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    names = [name for name in (audiocraft.LANGUAGE_MODEL, audiocraft.CODEC) if (folder / name).is_file()]
    return {name: torch.load(folder / name, weights_only=True)["best_state"] for name in names}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].float(), tensor.float()), name


def assert_agree(found: Any, wanted: Any, path: str = "") -> None:
    """Every setting that both have is equal, but for the named ones."""
    for key in found.keys() & wanted.keys():
        if isinstance(found[key], dict):
            assert_agree(found[key], wanted[key], f"{path}{key}.")
        else:
            assert key in DIFFERING or found[key] == wanted[key], path + key


# The originals part here: dropout and lengths are not in (or not the same in) audiocraft's settings, nor are chunks.
DIFFERING = {"dropout", "max_position_embeddings", "max_length", "target_bandwidths", "chunk_length_s", "overlap"}
DIFFERING |= {"chunk_length", "n_samples", "_name_or_path", "activation_dropout"}


# ------------------------------------------------------------------------------------------------- the originals' files


@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_language_models_become_their_twins(goldens: Path, tmp_path: Path, case: str):
    twin = goldens / "musicgen" / LANGUAGE_MODELS[case] / "model"
    convert_checkpoint(goldens / "musicgen/audiocraft" / case / "checkpoint", tmp_path / "out", text_encoder=twin)
    found, wanted = weights(tmp_path / "out"), weights(twin)
    assert_same(found, wanted)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    for name in ("config.json", "generation_config.json"):
        ours, theirs = folders.read_json(tmp_path / "out" / name), folders.read_json(twin / name)
        assert_agree(ours, theirs)
        assert ours.keys() <= theirs.keys()
    preprocessor = folders.read_json(tmp_path / "out/preprocessor_config.json")
    assert_agree(preprocessor, folders.read_json(twin / "processor_config.json")["feature_extractor"])
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (twin / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("case", LANGUAGE_MODELS)
@pytest.mark.filterwarnings("ignore:audiocraft has no text encoder of width")
def test_twins_become_language_models_and_themselves_again(goldens: Path, tmp_path: Path, case: str):
    twin, original = goldens / "musicgen" / LANGUAGE_MODELS[case] / "model", goldens / "musicgen/audiocraft" / case
    convert_checkpoint(twin, tmp_path / "export")
    for name, state in states(original / "checkpoint").items():
        assert_same(states(tmp_path / "export")[name], state)
    convert_checkpoint(tmp_path / "export", tmp_path / "back")  # finds the text encoder beside
    assert_same(weights(tmp_path / "back"), weights(twin))


@pytest.mark.parametrize("case", CODECS)
@pytest.mark.filterwarnings("ignore:audiocraft's codecs have no chunks")
def test_codecs_become_their_twins_and_themselves_again(goldens: Path, tmp_path: Path, case: str):
    twin, original = (goldens / "musicgen/encodec" / case / name for name in ("model", "audiocraft_checkpoint"))
    convert_checkpoint(original, tmp_path / "out")
    assert_same(weights(tmp_path / "out"), weights(twin))
    for name in ("config.json", "preprocessor_config.json"):
        assert_agree(folders.read_json(tmp_path / "out" / name), folders.read_json(twin / name))
    convert_checkpoint(twin, tmp_path / "export")
    assert_same(states(tmp_path / "export")[audiocraft.CODEC], states(original)[audiocraft.CODEC])


@pytest.mark.filterwarnings("ignore:audiocraft's codecs have no chunks")
def test_old_weight_norm_names_are_read(goldens: Path, tmp_path: Path):
    case = goldens / "musicgen/encodec/causal24"
    convert_checkpoint(case / "model_legacy_names", tmp_path / "export")
    assert_same(states(tmp_path / "export")[audiocraft.CODEC], states(case / "audiocraft_checkpoint")[audiocraft.CODEC])


@pytest.mark.parametrize("case", ["mono", "stereo"])
def test_converted_language_models_compute_what_the_originals_do(goldens: Path, tmp_path: Path, case: str):
    twin, original = goldens / "musicgen" / LANGUAGE_MODELS[case], goldens / "musicgen/audiocraft" / case
    convert_checkpoint(original / "checkpoint", tmp_path / "out", text_encoder=twin / "model")
    model = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    wanted, prompts = load_file(original / "io.safetensors"), json.loads((twin / "meta.json").read_text())["prompts"]
    text = processor(text=prompts, padding=True, return_tensors="pt")
    torch.testing.assert_close(model.encode_text(**text), wanted["text.condition"], atol=1e-5, rtol=0)

    codes = load_file(twin / "io.safetensors")["codes"].long()  # B K T
    pattern = patterns.musicgen(codes.shape[2], codes.shape[1], model.config.decoder.audio_channels)
    for row, prompt in enumerate(prompts):
        grid = pattern.build(codes[row : row + 1], special=model.config.decoder.pad_token_id)
        logits = model(**processor(text=[prompt], return_tensors="pt"), decoder_input_ids=grid[0]).logits.detach()
        aligned = pattern.revert_logits(logits[None])
        torch.testing.assert_close(aligned, wanted[f"predictions_single{row}.logits"], atol=1e-4, rtol=0)

    steps = wanted["generate.tokens"].shape[2] + 3  # the delay's tail
    audio = model.generate(**text, do_sample=False, guidance_scale=3.0, max_new_tokens=steps, mask_text=False)
    torch.testing.assert_close(audio, wanted["generate.audio"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CODECS)
def test_converted_codecs_compute_what_the_originals_do(goldens: Path, tmp_path: Path, case: str):
    folder = goldens / "musicgen/encodec" / case
    convert_checkpoint(folder / "audiocraft_checkpoint", tmp_path / "out")
    model = EncodecModel.from_pretrained(tmp_path / "out").eval()
    io, wanted = load_file(folder / "io.safetensors"), load_file(folder / "audiocraft_io.safetensors")
    audio = wanted.get("in0.audio", io["in0.audio"])
    assert torch.equal(model.encode(audio).audio_codes[0], wanted["in0.codes"].long())


def test_a_pointer_is_followed_to_a_released_codec(goldens: Path, tmp_path: Path):
    twin, codec = goldens / "musicgen/lm_mono/model", goldens / "musicgen/audiocraft/mono/checkpoint"
    shutil.copy(codec / audiocraft.LANGUAGE_MODEL, tmp_path)
    shutil.copy(goldens / "musicgen/encodec/pointer_checkpoint" / audiocraft.CODEC, tmp_path)
    asked: list[str] = []

    def resolve(name: str) -> Path:
        asked.append(name)
        return codec / audiocraft.CODEC

    model = load_audiocraft(tmp_path, text_encoder=twin, resolve=resolve)
    assert asked == ["facebook/encodec_32khz"]
    assert_same(model.tensors, weights(twin))
    (tmp_path / audiocraft.CODEC).unlink()  # then the language model's own settings name it
    assert_same(load_audiocraft(tmp_path, text_encoder=twin, resolve=resolve).tensors, weights(twin))
    assert asked == ["facebook/encodec_32khz"] * 2
    with pytest.raises(ModelNotFoundError, match="comes without its codec and names 'facebook/encodec_32khz'"):
        load_audiocraft(tmp_path, text_encoder=twin)


# ----------------------------------------------------------------------------------------------------- small models


def test_there_and_back(folder: Path, exported: Path, tmp_path: Path):
    back = convert_checkpoint(exported, tmp_path / "back")
    assert back == tmp_path / "back"
    assert_same(weights(back), weights(folder))
    again = MusicgenForConditionalGeneration.from_pretrained(back)
    assert again.config.decoder.ffn_dim == 64
    assert again.generation_config.max_length == 1504
    assert_agree(folders.read_json(back / "config.json"), folders.read_json(folder / "config.json"))


def test_an_export_is_converted_into_the_cache_once(exported: Path, folder: Path, tmp_path: Path):
    first = converted_folder(exported, cache=tmp_path / "cache")
    assert_same(weights(first), weights(folder))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert converted_folder(exported, cache=tmp_path / "cache") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    changed = torch.load(copy / audiocraft.LANGUAGE_MODEL, weights_only=True)
    changed["best_state"]["out_norm.bias"] += 1
    torch.save(changed, copy / audiocraft.LANGUAGE_MODEL)
    other = converted_folder(copy, cache=tmp_path / "cache")
    bias = "decoder.model.decoder.layer_norm.bias"
    assert other != first
    assert torch.equal(weights(other)[bias], weights(first)[bias] + 1)


@pytest.mark.filterwarnings("ignore:audiocraft has no text encoder")
def test_what_a_source_is_its_content_says(folder: Path, exported: Path, tmp_path: Path):
    assert is_audiocraft(exported)
    assert not is_audiocraft(folder)
    renamed = tmp_path / "anything.th"
    shutil.copy(exported / audiocraft.LANGUAGE_MODEL, renamed)
    shutil.copy(exported / audiocraft.CODEC, tmp_path)
    assert_same(load_audiocraft(renamed, text_encoder=folder).tensors, weights(folder))
    codec = load_audiocraft(tmp_path / audiocraft.CODEC)
    assert codec.kind == "encodec"
    convert_checkpoint(tmp_path / audiocraft.CODEC, tmp_path / "codec")
    assert_same(weights(tmp_path / "codec"), codec.tensors)
    convert_checkpoint(folder / "model.safetensors", tmp_path / "again", to="audiocraft", resolve=lambda name: folder)
    assert_same(states(tmp_path / "again")[audiocraft.CODEC], states(exported)[audiocraft.CODEC])


def test_names_are_resolved(exported: Path, folder: Path, tmp_path: Path):
    names = {"someone/model": exported, "t5-base": folder}
    shutil.copytree(exported, tmp_path / "bare", ignore=shutil.ignore_patterns("text_encoder"))

    def resolve(name: str) -> Path:
        if name not in names:
            raise ModelNotFoundError(f"no {name}")
        return names[name]

    convert_checkpoint("someone/model", tmp_path / "out", resolve=resolve)
    assert_same(load_audiocraft(tmp_path / "bare", resolve=resolve).tensors, weights(folder))
    names["google-t5/t5-base"] = names.pop("t5-base")
    assert_same(load_audiocraft(tmp_path / "bare", resolve=resolve).tensors, weights(folder))
    del names["google-t5/t5-base"]
    with pytest.raises(ModelNotFoundError, match=r"without text encoder, and 't5-base' isn't at hand.*--text-encoder"):
        load_audiocraft(tmp_path / "bare", resolve=resolve)
    with pytest.raises(ModelNotFoundError, match="no someone/else"):
        convert_checkpoint("someone/else", tmp_path / "other", resolve=resolve)
    with pytest.raises(ModelNotFoundError, match="no file or folder someone/else"):
        convert_checkpoint("someone/else", tmp_path / "other")


def test_a_whole_t5_gives_its_encoder(exported: Path, folder: Path, tmp_path: Path):
    """With a decoder, a head, the tied embedding under another name, in an old pickle."""
    t5 = tmp_path / "t5"
    shutil.copytree(exported / "text_encoder", t5, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(exported / "text_encoder/model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    tensors |= {"decoder.final_layer_norm.weight": torch.zeros(24), "lm_head.weight": torch.zeros(3, 24)}
    torch.save(tensors, t5 / "pytorch_model.bin")
    assert_same(load_audiocraft(exported, text_encoder=t5).tensors, weights(folder))


def test_text_encoders_that_dont_fit_are_refused(exported: Path, folder: Path, tmp_path: Path):
    t5 = tmp_path / "t5"
    shutil.copytree(exported / "text_encoder", t5)
    tensors, config = load_file(t5 / "model.safetensors"), folders.read_json(t5 / "config.json")
    save_file({name: tensor for name, tensor in tensors.items() if "block.1" not in name}, t5 / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks encoder\.block\.1\.layer\.0\.SelfAttention\.k\.weight"):
        load_audiocraft(exported, text_encoder=t5)
    (t5 / "tokenizer.json").unlink()
    save_file(tensors, t5 / "model.safetensors")
    assert load_audiocraft(exported, text_encoder=t5).tokenizer is None
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        convert_checkpoint(exported, tmp_path / "out", text_encoder=t5)
    folders.write_json({**config, "d_model": 16}, t5 / "config.json")
    save_file({**tensors, "shared.weight": tensors["shared.weight"][:, :16].contiguous()}, t5 / "model.safetensors")
    with pytest.raises(CheckpointError, match="misshapen"):
        load_audiocraft(exported, text_encoder=t5)
    folders.write_json({**config, "model_type": "bert"}, t5 / "config.json")
    with pytest.raises(CheckpointError, match="no T5 text encoder, but a model of the family 'bert'"):
        load_audiocraft(exported, text_encoder=t5)


def test_a_text_encoder_of_another_width_is_refused(exported: Path, goldens: Path):
    with pytest.raises(IncompatiblePartsError, match="states of width 32, but the language model needs 24"):
        load_audiocraft(exported, text_encoder=goldens / "musicgen/lm_mono/model")


@pytest.mark.filterwarnings("ignore:audiocraft has no text encoder")
def test_equal_widths_are_projected_by_the_identity(tmp_path: Path):
    """audiocraft always projects, our layout never between equal widths."""
    folder = tiny.save_tiny_folder(tmp_path / "model", hidden_size=24)
    convert_checkpoint(folder, tmp_path / "export")
    state = states(tmp_path / "export")[audiocraft.LANGUAGE_MODEL]
    weight = state["condition_provider.conditioners.description.output_proj.weight"]
    assert torch.equal(weight, torch.eye(24))
    assert_same(load_audiocraft(tmp_path / "export").tensors, weights(folder))
    weight[0, 1] = 0.5
    package = torch.load(tmp_path / "export" / audiocraft.LANGUAGE_MODEL, weights_only=True) | {"best_state": state}
    torch.save(package, tmp_path / "export" / audiocraft.LANGUAGE_MODEL)
    with pytest.raises(CheckpointError, match=r"as wide as itself \(24\), which our layout can't express"):
        load_audiocraft(tmp_path / "export")


@pytest.mark.filterwarnings("ignore:audiocraft has no text encoder")
def test_tied_heads_are_written_out(tmp_path: Path):
    folder = tiny.save_tiny_folder(tmp_path / "model", tie_word_embeddings=True)
    convert_checkpoint(folder, tmp_path / "export")
    state = states(tmp_path / "export")[audiocraft.LANGUAGE_MODEL]
    assert torch.equal(state["linears.2.weight"], state["emb.2.weight"][:-1])


def test_a_text_encoder_that_audiocraft_hasnt_is_warned_of(folder: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match="no text encoder of width 24: only tunesmith finds the one beside"):
        convert_checkpoint(folder, tmp_path / "out")


def test_chunks_are_dropped_with_a_warning(exported: Path, tmp_path: Path):
    codec = convert_checkpoint(exported / audiocraft.CODEC, tmp_path / "codec")
    config = folders.read_json(codec / "config.json")
    folders.write_json({**config, "chunk_length_s": 1.0, "overlap": 0.01}, codec / "config.json")
    with pytest.warns(UserWarning, match="no chunks"):
        convert_checkpoint(codec, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:audiocraft has no text encoder")
def test_old_configurations_may_leave_defaults_out(folder: Path, exported: Path, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    config = folders.read_json(old / "config.json")
    for name in ("audio_channels", "activation_function", "dropout", "num_codebooks", "scale_embedding"):
        del config["decoder"][name]
    folders.write_json(config, old / "config.json")
    (old / "generation_config.json").unlink()
    convert_checkpoint(old, tmp_path / "export")
    assert_same(states(tmp_path / "export")[audiocraft.LANGUAGE_MODEL], states(exported)[audiocraft.LANGUAGE_MODEL])
    assert load_audiocraft(tmp_path / "export").generation_config["max_length"] == 1504
    del config["decoder"]
    folders.write_json(config, old / "config.json")
    with pytest.raises(CheckpointError, match="lacks one of text_encoder, audio_encoder, decoder"):
        convert_checkpoint(old, tmp_path / "out")


def test_large_models_are_written_in_shards(folder: Path, tmp_path: Path):
    tensors = {name: tensor.half() for name, tensor in weights(folder).items()}
    folders.write_tensors(tensors, tmp_path, shard=100_000)
    index = folders.read_json(tmp_path / "model.safetensors.index.json")
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    assert all((tmp_path / shard).stat().st_size < 120_000 for shard in shards)
    found = {name: tensor for shard in shards for name, tensor in load_file(tmp_path / shard).items()}
    assert_same(found, tensors)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    folders.write_json(folders.read_json(folder / "config.json"), tmp_path / "config.json")
    assert_same(folders.read_folder(tmp_path).tensors, tensors)
    (tmp_path / shards[0]).unlink()
    with pytest.raises(CheckpointError, match=f"is incomplete: it has no {shards[0]}"):
        folders.read_folder(tmp_path)


# ------------------------------------------------------------------------------------------------------- bad requests


def test_destinations_are_never_overwritten(exported: Path, tmp_path: Path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "song.wav").touch()
    with pytest.raises(RequestError, match="already exists and isn't an empty folder"):
        convert_checkpoint(exported, full)
    with pytest.raises(RequestError, match="already exists"):
        convert_checkpoint(exported, full / "song.wav")
    with pytest.raises(RequestError, match=r"in which out is to be made, doesn't exist"):
        convert_checkpoint(exported, tmp_path / "missing" / "out")
    (tmp_path / "empty").mkdir()
    assert (convert_checkpoint(exported, tmp_path / "empty") / "config.json").is_file()


def test_nothing_is_left_of_a_failure(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(exported, tmp_path / "out")
    monkeypatch.setattr(folders, "write_tensors", full)
    with pytest.raises(RequestError, match="out can't be written: No space left on device"):
        convert_checkpoint(exported, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cant_be_written_to(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders.os, "access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(RequestError, match="can't be written to; give another destination"):
        convert_checkpoint(exported, tmp_path / "out")


def test_directions_that_make_no_sense(folder: Path, exported: Path, tmp_path: Path):
    with pytest.raises(RequestError, match="already in the layout 'huggingface'; it can only become 'audiocraft'"):
        convert_checkpoint(folder, tmp_path / "out", to="huggingface")
    with pytest.raises(RequestError, match="already in the layout 'audiocraft'; it can only become 'huggingface'"):
        convert_checkpoint(exported, tmp_path / "out", to="audiocraft")
    with pytest.raises(RequestError, match="no layout 'onnx'"):
        convert_checkpoint(exported, tmp_path / "out", to="onnx")


def test_sources_that_are_none(folder: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        convert_checkpoint(tmp_path, tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    folders.write_json({"model_type": "llama"}, other / "config.json")
    with pytest.raises(CheckpointError, match="family 'llama'; MusicGen, EnCodec and Jukebox can be converted"):
        convert_checkpoint(other, tmp_path / "out")
    (other / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config\.json can't be read as JSON"):
        convert_checkpoint(other, tmp_path / "out")
    shutil.copy(folder / "config.json", other)
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be read"):
        convert_checkpoint(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
