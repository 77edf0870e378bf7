"""The automatic classes: ours for our models, transformers' for the rest."""

from pathlib import Path

import pytest
import transformers

import tunesmith
from tiny import save_tiny_folder, tiny_processor
from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.models.musicgen import MusicgenDecoderConfig
from tunesmith.pipelines.auto import AutoConfig, AutoProcessor
from tunesmith.pipelines.musicgen import MusicgenConfig
from tunesmith.pipelines.processor import MusicgenProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_our_configs(folder: Path, tmp_path: Path) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is MusicgenConfig
    EncodecConfig().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path, sampling_rate=8000)) is EncodecConfig
    assert type(AutoConfig.for_model("musicgen_decoder", dropout=0.2)) is MusicgenDecoderConfig


def test_other_configs_are_transformers(tmp_path: Path) -> None:
    transformers.BertConfig(hidden_size=24).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is transformers.BertConfig
    assert loaded.hidden_size == 24
    assert type(AutoConfig.for_model("bert")) is transformers.BertConfig


def test_our_processor(folder: Path, tmp_path: Path) -> None:
    assert type(AutoProcessor.from_pretrained(folder)) is MusicgenProcessor
    tiny_processor().save_pretrained(tmp_path)  # without a model's config.json
    assert type(AutoProcessor.from_pretrained(tmp_path)) is MusicgenProcessor


def test_other_processors_are_transformers(tmp_path: Path) -> None:
    transformers.WhisperFeatureExtractor().save_pretrained(tmp_path)
    transformers.WhisperConfig().save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)).__module__.startswith("transformers.models.whisper")


def test_public_names() -> None:
    assert tunesmith.AutoConfig is AutoConfig
    assert tunesmith.T5Config is transformers.T5Config
    for name in ("MusicgenForConditionalGeneration", "MusicgenForCausalLM", "MusicgenModel", "MusicgenProcessor"):
        assert getattr(tunesmith, name).__name__ == name
