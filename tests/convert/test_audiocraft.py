"""Reading audiocraft's files: what is refused, what old files look like, and that nothing in them runs."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tunesmith.convert import audiocraft, checkpoints, configurations
from tunesmith.convert.folders import read_pickle
from tunesmith.convert.settings import Settings
from tunesmith.errors import CheckpointError, IncompatiblePartsError

Package = dict[str, Any]
Edit = Callable[[Package, dict[str, Any]], None]


@pytest.fixture
def edited(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies an export with changes to a file's package and its settings."""

    def edit(*changes: Edit, file: str = audiocraft.LANGUAGE_MODEL) -> Path:
        folder = tmp_path / "edited"
        folder.mkdir()
        for entry in exported.iterdir():
            (folder / entry.name).symlink_to(entry)
        package = torch.load(exported / file, weights_only=True)
        settings = yaml.safe_load(package["xp.cfg"])
        for change in changes:
            change(package, settings)
        package["xp.cfg"] = yaml.safe_dump(settings)
        (folder / file).unlink()
        torch.save(package, folder / file)
        return folder

    return edit


def put(path: str, value: Any) -> Edit:
    """A change to one setting."""

    def change(_: Package, settings: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            settings = settings[parent]
        settings[last] = value

    return change


class Intruder:
    """Unpickled the ordinary way, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, form: str):
    trace, file = tmp_path / "trace", tmp_path / "state_dict.bin"
    package = {"best_state": {"emb.0.weight": torch.zeros(2), "x": Intruder(trace)}, "xp.cfg": "a: 1"}
    if form == "raw":
        file.write_bytes(pickle.dumps(package))
    else:
        torch.save(package, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        CheckpointError, match=r"isn't a file of plain tensors( \(it holds \w+\.mkdir\))?; no code in it is run"
    ):
        checkpoints.load_audiocraft(tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists(), "the pickle was harmless, so this test shows nothing"


class DictConfig(dict[str, Any]):
    """Stands for the settings object in a training checkpoint."""


def test_a_training_checkpoint_is_told_to_be_exported(tmp_path: Path):
    file = tmp_path / "checkpoint.th"
    torch.save({"model": {"a": torch.zeros(1)}, "xp.cfg": DictConfig(), "optimizer": {}}, file)
    with pytest.raises(CheckpointError, match=r"DictConfig.*training checkpoint, export it first.*export_lm"):
        checkpoints.load_audiocraft(file)
    torch.save({"model": {"a": torch.zeros(1)}, "optimizer": {}}, file)
    with pytest.raises(CheckpointError, match=r"no exported checkpoint|isn't an exported checkpoint.*Export"):
        checkpoints.load_audiocraft(file)


@pytest.mark.parametrize(
    "content", [b"", b"hello there\n", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    file = tmp_path / "state_dict.bin"
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"state_dict\.bin (can't be read as a PyTorch file|isn't a file of plain tensors)"
    ):
        checkpoints.load_audiocraft(tmp_path)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(exported: Path, tmp_path: Path, keep: float):
    whole = (exported / "state_dict.bin").read_bytes()
    (tmp_path / "state_dict.bin").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"can't be read as a PyTorch file.*incomplete"):
        checkpoints.load_audiocraft(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells what is mapped")
def test_tensors_are_mapped_to_the_file(exported: Path):
    state = read_pickle(exported / "state_dict.bin")["best_state"]
    assert str(exported / "state_dict.bin") in Path("/proc/self/maps").read_text()
    assert state


def test_old_files_are_read(exported: Path, edited: Callable[..., Path]):
    """A nested state, conditioners apart, `.mha.` names, the pattern under its old name, halves, no export mark."""

    def age(package: Package, settings: dict[str, Any]) -> None:
        state = {
            key.replace("_attn.", "_attn.mha."): value.half().float() for key, value in package["best_state"].items()
        }
        apart = {key: state.pop(key) for key in list(state) if key.startswith("condition_provider.")}
        apart = {key.removeprefix("condition_provider."): value for key, value in apart.items()}
        package["best_state"] = {"model": state, "condition_provider": apart, "compression_model": {}}
        del package["version"], package["exported"]
        settings["transformer_lm"]["q_modeling"] = settings["codebooks_pattern"]["modeling"]
        settings["codebooks_pattern"] = {"modeling": None, "delay": {"delays": [0, 9, 9, 9]}}
        settings["conditioners"]["args"] = {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}
        del settings["transformer_lm"]["kv_repeat"], settings["transformer_lm"]["qk_layer_norm_cross"]

    old, new = checkpoints.load_audiocraft(edited(age)), checkpoints.load_audiocraft(exported)
    assert old.config == new.config
    assert old.tensors.keys() == new.tensors.keys()
    for name, tensor in new.tensors.items():
        rounded = tensor if name.startswith(("text_encoder.", "audio_encoder.")) else tensor.half().float()
        assert torch.equal(old.tensors[name], rounded)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("lm_model", "transformer_lm_magnet"), "lm_model = 'transformer_lm_magnet'; only 'transformer_lm'"),
        (put("codebooks_pattern.modeling", "parallel"), "codebook pattern parallel"),
        (
            put("codebooks_pattern.delay.delays", [0, 2, 4, 6]),
            r"pattern delay \[0, 2, 4, 6\]; only delay \[0, 1, 2, 3\]",
        ),
        (put("codebooks_pattern.delay.flatten_first", 1), "flatten_first = 1"),
        (put("transformer_lm.norm_first", False), "norm_first = False; only True"),
        (put("transformer_lm.positional_embedding", "rope"), "positional_embedding = 'rope'"),
        (put("transformer_lm.activation", "swiglu"), "only 'gelu' or 'relu'"),
        (put("interleave_stereo_codebooks", {"use": True, "per_timestep": True}), "per_timestep = True"),
        (put("conditioners.self_wav", {"model": "style"}), "style-conditioned model, which isn't supported yet"),
        (put("conditioners.chords", {"model": "lut"}), "conditioned on chords, description in a way"),
        (put("fuser.cross", []), "conditioned on description in a way"),
        (put("fuser.sum", ["description"]), "conditioned on description in a way"),
        (put("dataset.segment_duration", "long"), "'long' for 'dataset.segment_duration'; a float is needed"),
        (put("transformer_lm.dim", "${nowhere}"), "no usable value for 'transformer_lm.dim'"),
        (put("transformer_lm.num_layers", 3), r"state_dict\.bin.*lacks transformer\.layers\.2\.cross_attention"),
        (put("transformer_lm.num_layers", 1), r"unexpected transformer\.layers\.1\.cross_attention"),
        (put("transformer_lm.hidden_scale", 4), r"misshapen transformer\.layers\.0\.linear1\.weight"),
    ],
)
def test_what_cant_be_played_is_refused(edited: Callable[..., Path], change: Edit, sentence: str):
    with pytest.raises(CheckpointError, match=sentence):
        checkpoints.load_audiocraft(edited(change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("compression_model", "dac"), "compression_model = 'dac'; only 'encodec'"),
        (put("encodec.quantizer", "no_quant"), "quantizer = 'no_quant'"),
        (put("seanet.norm", "spectral_norm"), "seanet.norm = 'spectral_norm'; only 'weight_norm' or 'time_group_norm'"),
        (put("seanet.decoder.n_filters", 5), "n_filters = 2 in its encoder and 5 in its decoder"),
        (put("seanet.decoder.final_activation", "Tanh"), "final_activation = 'Tanh'"),
        (put("rvq.n_q", 5), r"lacks quantizer\.vq\.layers\.4\._codebook\.cluster_size"),
    ],
)
def test_other_codecs_are_refused(edited: Callable[..., Path], change: Edit, sentence: str):
    with pytest.raises(CheckpointError, match=sentence):
        checkpoints.load_audiocraft(edited(change, file=audiocraft.CODEC))


def test_encoder_and_decoder_may_override_alike(edited: Callable[..., Path]):
    changes = [put("seanet.n_filters", 7), put("seanet.encoder.n_filters", 2), put("seanet.decoder.n_filters", 2)]
    codec = checkpoints.load_audiocraft(edited(*changes, file=audiocraft.CODEC) / audiocraft.CODEC)
    assert codec.config["num_filters"] == 2


def test_codebooks_that_the_language_model_ignores_are_dropped(exported: Path, tmp_path: Path):
    codec = audiocraft.read_codec(audiocraft.read_package(exported / audiocraft.CODEC), "codec")
    more = {
        name.replace("layers.3.", "layers.4."): t for name, t in codec.tensors.items() if "quantizer.layers.3." in name
    }
    config = configurations.with_codebooks(codec.config, 5)
    package = audiocraft.read_package(exported / audiocraft.LANGUAGE_MODEL)
    wide = checkpoints.Converted(config, codec.tensors | more, None, "encodec")
    model = audiocraft.read_language_model(package, wide, "lm")
    assert model.config["audio_encoder"].items() <= codec.config.items()
    assert model.config["audio_encoder"]["target_bandwidths"] == codec.config["target_bandwidths"]
    kept = {name.removeprefix("audio_encoder.") for name in model.tensors if name.startswith("audio_encoder.")}
    assert kept == codec.tensors.keys()


def test_a_codec_with_too_few_codebooks_is_refused(exported: Path, edited: Callable[..., Path]):
    def cut(package: Package, settings: dict[str, Any]) -> None:
        settings["rvq"]["n_q"] = 2
        spare = ("quantizer.vq.layers.2.", "quantizer.vq.layers.3.")
        package["best_state"] = {k: v for k, v in package["best_state"].items() if not k.startswith(spare)}

    with pytest.raises(
        IncompatiblePartsError, match="needs a codec with 4 codebooks of 32 codes; the given one has 2 of 32"
    ):
        checkpoints.load_audiocraft(edited(cut, file=audiocraft.CODEC))


@pytest.mark.parametrize("books", [1, 2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize(
    ("rate", "hop", "codes"), [(32000, 640, 2048), (24000, 320, 1024), (2000, 40, 64), (44100, 512, 1024)]
)
def test_bandwidths_pay_for_their_codebooks(books: int, rate: int, hop: int, codes: int):
    config = {"sampling_rate": rate, "upsampling_ratios": [hop], "codebook_size": codes}
    found = configurations.EncodecConfig(**configurations.with_codebooks(config, books))
    assert found.num_quantizers == books
    assert found.target_bandwidths[0] == pytest.approx(books * found.frame_rate * found.codebook_nbits / 1000)


@pytest.mark.parametrize(("width", "ffn"), [(48, 100), (1024, 4096), (24, 65), (36, 49)])
def test_feed_forward_widths_survive_their_ratio(width: int, ffn: int):
    decoder = {"hidden_size": width, "ffn_dim": ffn, "num_attention_heads": 1}
    config = {"model_type": "musicgen", "decoder": decoder, "audio_encoder": {}, "text_encoder": {"d_model": 768}}
    decoder |= {"num_codebooks": 4, "audio_channels": 1}
    written = configurations.write_language_model(config, {})
    assert int(written["transformer_lm"]["hidden_scale"] * width) == ffn


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ({"d_model": 768}, "t5-base"),
        ({"d_model": 1024}, "t5-large"),
        ({"d_model": 1024, "_name_or_path": "google-t5/t5-3b"}, "t5-3b"),
        ({"d_model": 512, "_name_or_path": "/somewhere/t5"}, "t5-small"),
        ({"d_model": 24, "_name_or_path": "t5-large"}, "t5-large"),
        ({"d_model": 24, "_name_or_path": "/somewhere/private"}, "t5-base"),
    ],
)
def test_text_encoders_have_audiocrafts_names(text: dict[str, Any], name: str):
    decoder = {"num_codebooks": 4, "audio_channels": 1}
    config = {"model_type": "musicgen", "decoder": decoder, "audio_encoder": {}, "text_encoder": text}
    settings = Settings(yaml.safe_dump(configurations.write_language_model(config, {})), "test")
    assert settings.get("conditioners.description.t5.name") == name


def test_settings_that_audiocraft_hasnt_are_refused():
    decoder = {"num_codebooks": 4, "audio_channels": 1, "activation_function": "silu"}
    config = {"model_type": "musicgen", "decoder": decoder, "audio_encoder": {}, "text_encoder": {"d_model": 768}}
    with pytest.raises(CheckpointError, match="neither scaled embeddings nor other activations"):
        configurations.write_language_model(config, {})
