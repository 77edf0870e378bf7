"""tunesmith makes and continues music with autoregressive models over audio codes, and trains them.

    import tunesmith

    model = tunesmith.load("tunesmith/pocket")
    model.generate("80s pop with bassy drums", seconds=10, seed=7).save("song.wav")

Every public name is loaded on first use (PEP 562): `import tunesmith` costs nothing, and imports neither torch nor
transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it, sorted by name.
_EXPORTS: dict[str, str] = {
    "AudioChunk": "tunesmith.events",
    "AudioFileError": "tunesmith.errors",
    "AutoConfig": "tunesmith.pipelines.auto",
    "AutoProcessor": "tunesmith.pipelines.auto",
    "AutoTokenizer": "tunesmith.pipelines.auto",
    "CheckpointError": "tunesmith.errors",
    "Clip": "tunesmith.audio",
    "EncodecConfig": "tunesmith.codecs.encodec",
    "EncodecFeatureExtractor": "tunesmith.codecs.encodec",
    "EncodecModel": "tunesmith.codecs.encodec",
    "Finished": "tunesmith.events",
    "IncompatiblePartsError": "tunesmith.errors",
    "JukeboxConfig": "tunesmith.pipelines.jukebox_config",
    "JukeboxModel": "tunesmith.pipelines.jukebox",
    "JukeboxPipeline": "tunesmith.pipelines.jukebox_song",
    "JukeboxPrior": "tunesmith.models.jukebox",
    "JukeboxPriorConfig": "tunesmith.models.jukebox_config",
    "JukeboxRequest": "tunesmith.requests",
    "JukeboxTokenizer": "tunesmith.conditioning.tokenizer",
    "JukeboxVQVAE": "tunesmith.codecs.vqvae",
    "JukeboxVQVAEConfig": "tunesmith.codecs.vqvae",
    "LevelDone": "tunesmith.events",
    "MissingDependencyError": "tunesmith.errors",
    "ModelNotFoundError": "tunesmith.errors",
    "MusicgenConfig": "tunesmith.pipelines.musicgen",
    "MusicgenDecoderConfig": "tunesmith.models.musicgen",
    "MusicgenForCausalLM": "tunesmith.models.musicgen",
    "MusicgenForConditionalGeneration": "tunesmith.pipelines.musicgen",
    "MusicgenModel": "tunesmith.models.musicgen",
    "MusicgenPipeline": "tunesmith.pipelines.song",
    "MusicgenPreTrainedModel": "tunesmith.models.musicgen",
    "MusicgenProcessor": "tunesmith.pipelines.processor",
    "MusicgenRequest": "tunesmith.requests",
    "Progress": "tunesmith.events",
    "RequestError": "tunesmith.errors",
    "RunError": "tunesmith.errors",
    "Sampling": "tunesmith.requests",
    "T5Config": "transformers",
    "T5EncoderModel": "transformers",
    "T5Tokenizer": "transformers",
    "TunesmithError": "tunesmith.errors",
    "UnknownLabelWarning": "tunesmith.conditioning.tokenizer",
    "WindowDone": "tunesmith.events",
    "convert_checkpoint": "tunesmith.convert.checkpoints",
    "load": "tunesmith.pipelines.song",
    "set_seed": "transformers",
}

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
