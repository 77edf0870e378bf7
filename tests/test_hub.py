"""Names become folders without the network; broken folders are one sentence before torch is imported."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import save_tiny_folder, tiny_config
from tunesmith import hub
from tunesmith.convert.checkpoints import convert_checkpoint
from tunesmith.errors import CheckpointError, ModelNotFoundError
from tunesmith.models.musicgen import SECONDS
from tunesmith.pipelines.song import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache; the network is off (conftest.py)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache, repository, source, leave_out=()):
    """A repository as the hub's client leaves it in its cache: blobs, and a snapshot of links with their names."""
    root = cache / ("models--" + repository.replace("/", "--"))
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "blobs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for file in source.iterdir():
        if file.name not in leave_out:
            blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_folder_is_itself(folder, monkeypatch):
    assert hub.find(folder) == folder
    monkeypatch.chdir(folder.parent)
    assert hub.find("model") == Path("model")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert hub.find("~/model") == folder


def test_bundled_models_are_found_by_name(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ASSETS", tmp_path)
    assert hub.bundled() == {"tunesmith/model": folder}
    assert hub.find("tunesmith/model") == hub.find("model") == folder


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smal", "'small'"),
        ("steroe-small", "'stereo-small'"),
        ("tunesmith/pockett", ""),
        ("zzzz", "owner/name"),
        ("", "owner/name"),
        (" ", "owner/name"),
    ],
)
def test_unknown_names_get_the_closest_ones(name, hint):
    with pytest.raises(ModelNotFoundError, match=f"no model '{name}'") as caught:
        hub.find(name)
    assert hint in str(caught.value)


def test_the_bundled_name_is_suggested(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ASSETS", tmp_path)
    with pytest.raises(ModelNotFoundError, match="did you mean 'tunesmith/model'"):
        hub.find("tunesmith/modle")


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none", "a/b/c", Path("none")])
def test_missing_folders_are_a_sentence(name):
    with pytest.raises(ModelNotFoundError, match="no model folder"):
        hub.find(name)


@pytest.mark.parametrize("name", [*hub.UNPLAYABLE, *hub.UNPLAYABLE.values()])
def test_what_can_not_be_played_yet_is_told_before_it_is_downloaded(cache, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("it was downloaded"))
    with pytest.raises(CheckpointError, match=f"'{name}' follows a melody or a style .* can't play yet; use one of "):
        load(name)
    with pytest.raises(ModelNotFoundError) as caught:
        hub.find("zzzz")
    assert "melody" not in str(caught.value)


def test_melody_models_are_found_to_be_converted(cache, saved, folder):
    snapshot = cached(cache, "facebook/musicgen-melody", saved)
    assert hub.find("melody") == hub.find("facebook/musicgen-melody") == snapshot
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "musicgen_melody"}))
    with pytest.raises(CheckpointError, match="a MusicGen that follows a melody, which tunesmith can't play yet"):
        load(folder)


# The hub --------------------------------------------------------------------------------------------------------------


def test_cached_downloads_need_no_network(cache, saved):
    snapshot = cached(cache, "someone/their-model", saved)
    assert hub.find("someone/their-model") == snapshot
    assert hub.check(snapshot).rate == 2000


def test_short_names_are_released_checkpoints(cache, saved):
    snapshot = cached(cache, "facebook/musicgen-stereo-small", saved)
    assert hub.find("stereo-small") == hub.find("facebook/musicgen-stereo-small") == snapshot
    assert len(hub.RELEASED) == 8


def test_offline_and_not_cached_is_a_sentence(cache):
    with pytest.raises(ModelNotFoundError, match="'facebook/musicgen-small' is not on this machine") as caught:
        hub.find("small")
    assert "\n" not in str(caught.value)


def test_offline_and_half_cached_is_a_sentence(cache, saved):
    cached(cache, "someone/half", saved, leave_out=("model.safetensors",))
    with pytest.raises(ModelNotFoundError, match="only half"):
        hub.find("someone/half")


def test_names_that_the_hub_would_refuse(cache):
    with pytest.raises(ModelNotFoundError, match="The hub has no model 'a b/c'"):
        hub.find("a b/c")


def test_online_the_rest_is_downloaded(cache, saved, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(repository, local_files_only=False, allow_patterns=()):
        asked.append((repository, local_files_only, "*.bin" in allow_patterns))
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.find("medium") == saved
    assert asked == [("facebook/musicgen-medium", True, False), ("facebook/musicgen-medium", False, False)]


def test_pickled_weights_are_downloaded_only_where_there_are_no_others(cache, folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    asked = []

    def download(repository, local_files_only, allow_patterns):
        asked.append("*.bin" in allow_patterns)
        if asked[-1]:
            (folder / "pytorch_model.bin").touch()
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.find("someone/old") == folder
    assert asked == [False, False, True]


def test_a_repository_that_is_not_there(cache, monkeypatch):
    from types import SimpleNamespace

    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    def download(repository, local_files_only=False, allow_patterns=()):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, status_code=404, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelNotFoundError, match="hub has no model 'facebook/musicgen-smal'; did you mean 'small'"):
        hub.find("facebook/musicgen-smal")


# Checks ---------------------------------------------------------------------------------------------------------------


def test_facts_are_the_models(folder):
    facts = hub.check(folder)
    assert (facts.rate, facts.channels, facts.hop, facts.window_frames) == (2000, 1, 40, 1500)
    assert facts.window_seconds == hub.WINDOW_SECONDS == SECONDS
    assert [facts.frames(s) for s in (0.1, 0.02, 0.0201, 10, 3.3)] == [5, 1, 1, 500, 165]
    assert facts == hub.Facts.of(tiny_config().to_dict())


def test_left_out_values_have_the_classes_defaults():
    from tunesmith.pipelines.musicgen import MusicgenConfig

    assert hub.Facts.of({}) == hub.Facts.of(MusicgenConfig().to_dict())
    small = hub.Facts.of({"decoder": {"max_position_embeddings": 103}})
    assert small.window_frames == 100


def test_broken_folders_are_one_sentence(folder):
    def refused(sentence):
        with pytest.raises(CheckpointError, match=sentence) as caught:
            hub.check(folder)
        assert "\n" not in str(caught.value)

    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        refused("is damaged|is incomplete")
    weights.write_bytes(b"<html>Not found</html>" * 100)
    refused("is damaged")
    weights.unlink()
    refused("has no weights")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    refused("model-00001-of-00002.safetensors is missing")
    config = folder / "config.json"
    for text in ("", "{", "[]", "\udcff".encode(errors="surrogateescape")):
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
        refused("is damaged")
    config.write_text('{"model_type": "gpt2"}')
    refused("family 'gpt2'")
    config.unlink()
    refused("has no config.json")


def test_senseless_configurations_are_a_sentence(folder):
    for broken in (
        {"decoder": 3},
        {"audio_encoder": {"upsampling_ratios": [0]}},
        {"decoder": {"audio_channels": "two"}},
    ):
        config = json.loads((folder / "config.json").read_text()) | broken
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="make no sense"):
            hub.check(folder)


def test_a_file_is_no_folder(folder):
    with pytest.raises(CheckpointError, match="is a file"):
        hub.check(folder / "model.safetensors")


def test_exports_of_audiocraft_are_converted_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="text encoder of width 24"):
        export = convert_checkpoint(folder, tmp_path / "export", to="audiocraft")
    ours = hub.locate(export)
    assert hub.check(ours) == hub.check(folder)
    assert hub.locate(export / "state_dict.bin").parent == ours.parent
    assert hub.locate(folder) == folder
    monkeypatch.setattr("tunesmith.convert.checkpoints.convert_checkpoint", None)
    assert hub.locate(export) == ours


# Hashes ---------------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_file(folder):
    assert hub.weights_hash(folder) == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_hash_of_shards_is_that_of_their_list(folder):
    shutil.copy(folder / "model.safetensors", folder / "b")
    (folder / "model.safetensors").rename(folder / "a")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "b", "y": "a"}}))
    listed = subprocess.run(["sha256sum", "a", "b"], cwd=folder, capture_output=True, check=True).stdout
    assert hub.weights_hash(folder) == hashlib.sha256(listed).hexdigest()


def test_the_hubs_sums_are_taken_from_its_cache(cache, saved):
    snapshot = cached(cache, "someone/model", saved)
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(b"changed, but nobody looks")
    assert hub.weights_hash(snapshot) == blob.name


def test_sums_of_large_files_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model.safetensors"
    with file.open("wb") as large:
        large.truncate(2**27 + 1)
    first = hub.weights_hash(tmp_path)
    [memo] = (tmp_path / "cache" / "tunesmith" / "sha256").iterdir()
    assert memo.read_text() == first
    memo.write_text("remembered")
    assert hub.weights_hash(tmp_path) == "remembered"
    os.utime(file, ns=(1, 1))
    assert hub.weights_hash(tmp_path) == first


def test_a_cache_that_cannot_be_written_is_no_matter(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with (tmp_path / "model.safetensors").open("wb") as large:
        large.truncate(2**27 + 1)
    assert len(hub.weights_hash(tmp_path)) == 64


def test_the_hub_imports_no_torch():
    code = "import sys, tunesmith.hub as h; h.bundled(); print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
