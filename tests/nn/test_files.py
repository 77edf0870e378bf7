"""Models that aren't there, or are broken: a sentence, whichever class loads them and in whichever way."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tiny_jukebox import save_tiny_jukebox
from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig
from tunesmith.convert.folders import read_forms
from tunesmith.errors import CheckpointError, ModelNotFoundError, RequestError, TunesmithError
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.nn.files import fault, read_state
from tunesmith.nn.pretrained import explained
from tunesmith.pipelines.jukebox import JukeboxConfig, JukeboxModel

LOADERS: dict[str, Callable[[Any], Any]] = {
    "model": JukeboxModel.from_pretrained,
    "model on disk": lambda name: JukeboxModel.from_pretrained(name, device_map="disk"),
    "prior": JukeboxPrior.from_pretrained,
    "VQ-VAE": JukeboxVQVAE.from_pretrained,
}
CONFIGS = [JukeboxConfig, JukeboxPriorConfig, JukeboxVQVAEConfig]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_jukebox(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "broken")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def pickled(folder: Path) -> Path:
    """The same weights in PyTorch's format."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def sharded(folder: Path, index: Any) -> None:
    pickled(folder).unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json, so it isn't a model folder"),
    "half a config": (lambda f: cut(f / "config.json"), "config.json can't be read as JSON"),
    "no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json can't be read as JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json isn't a JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors; fetch it again"),
    "half a file": (lambda f: cut(f / "model.safetensors"), "probably incomplete, fetch it again"),
    "half a .bin": (lambda f: cut(pickled(f)), "pytorch_model.bin can't be read as a PyTorch file"),
    "an empty .bin": (lambda f: pickled(f).write_bytes(b""), "pytorch_model.bin can't be read as a PyTorch file"),
    "text": (lambda f: pickled(f).write_text("hello"), "pytorch_model.bin can't be read as a PyTorch file"),
    "a list in a .bin": (lambda f: torch.save([1], pickled(f)), "something else than tensors by name"),
    "a shard too few": (lambda f: sharded(f, {"weight_map": {"vqvae": "part.bin"}}), "has no part.bin; fetch it again"),
    "an empty index": (lambda f: sharded(f, {}), "doesn't say which file holds which tensor"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_model_gets_a_sentence(name: str, loader: str, folder: Path) -> None:
    damage, sentence = FAULTS[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=sentence):
        LOADERS[loader](folder)


@pytest.mark.parametrize("load", [*LOADERS.values(), *(config.from_pretrained for config in CONFIGS)])
def test_a_model_that_is_not_there_gets_a_sentence(
    load: Callable[[Any], Any], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (whole / "nothing", "a/b/c", ""):
        with pytest.raises(ModelNotFoundError, match="There is no model folder"):
            load(name)
    with pytest.raises(ModelNotFoundError, match="'owner/nothing', its download is not on this machine"):
        load("owner/nothing")
    with pytest.raises(RequestError, match="give its folder or its name"):
        load(None)


def test_a_files_name_is_no_models(whole: Path) -> None:
    for load in LOADERS.values():
        with pytest.raises(CheckpointError, match="is a file; give the folder"):
            load(whole / "model.safetensors")


def test_errors_that_are_not_the_folders_are_passed_on(whole: Path) -> None:
    assert fault(whole) is None
    with pytest.raises(ZeroDivisionError), explained(whole):
        raise ZeroDivisionError
    with pytest.raises(TunesmithError, match="as it was"), explained(whole / "nothing"):
        raise TunesmithError("as it was")


def test_weights_are_tensors_by_name(folder: Path) -> None:
    path = pickled(folder)
    assert all(isinstance(value, Tensor) for value in read_state(path).values())
    assert read_forms(folder).keys() == read_state(path).keys()
    torch.save({"step": 3}, path)
    with pytest.raises(CheckpointError, match="something else than tensors by name"):
        read_forms(folder)
