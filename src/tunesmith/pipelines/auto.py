"""`AutoConfig`, `AutoProcessor`, `AutoTokenizer`: our model types to our classes, everything else to transformers."""

from os import PathLike
from typing import Any

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.codecs.vqvae import JukeboxVQVAEConfig
from tunesmith.conditioning.tokenizer import JukeboxTokenizer
from tunesmith.models.jukebox import JukeboxPriorConfig
from tunesmith.models.musicgen import MusicgenDecoderConfig
from tunesmith.nn.pretrained import bundled
from tunesmith.pipelines.jukebox_config import JukeboxConfig
from tunesmith.pipelines.musicgen import MusicgenConfig
from tunesmith.pipelines.processor import MusicgenProcessor

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    kind.model_type: kind
    for kind in (
        EncodecConfig,
        JukeboxConfig,
        JukeboxPriorConfig,
        JukeboxVQVAEConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
    )
}
PROCESSORS: dict[str, type[transformers.ProcessorMixin]] = {
    MusicgenConfig.model_type: MusicgenProcessor,
    MusicgenProcessor.__name__: MusicgenProcessor,
}

# What says where to look, as opposed to what to change.
_PLACES = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def model_type(name_or_path: str | PathLike[str], options: dict[str, Any]) -> str:
    """The `model_type` in the config.json of a checkpoint."""
    return str(PreTrainedConfig.get_config_dict(name_or_path, **_places(options))[0].get("model_type"))


def processor_type(name_or_path: str | PathLike[str], options: dict[str, Any]) -> str:
    """The class that the processor's own file names, or the model type where there is none."""
    settings: dict[str, Any] = transformers.ProcessorMixin.get_processor_dict(name_or_path, **_places(options))[0]
    return str(settings.get("processor_class") or model_type(name_or_path, options))


def tokenizer_type(name_or_path: str | PathLike[str], options: dict[str, Any]) -> str:
    """The class that the tokenizer's own file names, or ours for a Jukebox without one; else nothing."""
    settings = get_tokenizer_config(name_or_path, **_places(options))
    if named := settings.get("tokenizer_class"):
        return str(named)
    try:
        return JukeboxTokenizer.__name__ if model_type(name_or_path, options).startswith("jukebox") else ""
    except OSError:  # a tokenizer alone
        return ""


def _places(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in _PLACES if key in options}


class AutoConfig(transformers.AutoConfig):
    """The configuration class that a checkpoint names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> PreTrainedConfig:
        """The configuration of a checkpoint."""
        name = bundled(pretrained_model_name_or_path)
        kind: Any = CONFIGS.get(model_type(name, kwargs), super())
        return kind.from_pretrained(name, **kwargs)

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """A fresh configuration of a model type."""
        kind = CONFIGS.get(model_type)
        return super().for_model(model_type, *args, **kwargs) if kind is None else kind(*args, **kwargs)


class AutoProcessor(transformers.AutoProcessor):
    """The processor class that belongs to a checkpoint's model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> Any:
        """The processor of a checkpoint."""
        name = bundled(pretrained_model_name_or_path)
        kind: Any = PROCESSORS.get(processor_type(name, kwargs), super())
        return kind.from_pretrained(name, **kwargs)


class AutoTokenizer(transformers.AutoTokenizer):
    """The tokenizer class that belongs to a checkpoint's model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """The tokenizer of a checkpoint."""
        name = bundled(pretrained_model_name_or_path)
        if tokenizer_type(name, kwargs) == JukeboxTokenizer.__name__:
            return JukeboxTokenizer.from_pretrained(name, *args, **kwargs)
        return super().from_pretrained(name, *args, **kwargs)
