"""audiocraft's exported checkpoints, in both directions.

An export is `state_dict.bin` (the language model) beside `compression_state_dict.bin` (the codec).  Each is a
dictionary with `best_state` (flat tensors) and `xp.cfg` (settings as YAML text); the codec's file may instead only
name a codec under `pretrained`.  The text encoder is no part of it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tunesmith import __version__
from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.convert import configurations
from tunesmith.convert.folders import Converted, read_pickle
from tunesmith.convert.keymaps import (
    CHROMA_WINDOW,
    STACK,
    TEXT_PROJECTION,
    codec_rows,
    language_model_rows,
    to_ours,
    to_theirs,
)
from tunesmith.convert.settings import Settings
from tunesmith.errors import CheckpointError
from tunesmith.models.musicgen import MusicgenDecoderConfig

LANGUAGE_MODEL = "state_dict.bin"
CODEC = "compression_state_dict.bin"
EXPORT = " If it is a training checkpoint, export it first: audiocraft.utils.export, export_lm or export_encodec."

Package = Mapping[str, Any]


def read_package(path: Path) -> Package:
    """The dictionary of an exported file; raises `CheckpointError` for any other file, without executing any of it."""
    package = read_pickle(path, hint=EXPORT)
    whole = (
        isinstance(package, dict)
        and isinstance(package.get("best_state"), dict)
        and isinstance(package.get("xp.cfg"), str)
    )
    if whole or (isinstance(package, dict) and isinstance(package.get("pretrained"), str)):
        return dict(package)
    raise CheckpointError(
        f"{path} isn't an exported checkpoint, which has `best_state` and `xp.cfg`. Export a training checkpoint with "
        "audiocraft.utils.export (export_lm or export_encodec) first."
    )


def is_language_model(package: Package) -> bool:
    """Whether an export is a language model's (else it holds a codec or names one)."""
    return "pretrained" not in package and any(name.startswith("transformer.layers.") for name in _state(package))


def read_codec(package: Package, source: object) -> Converted:
    """An EnCodec in our layout; raises `CheckpointError` for another architecture."""
    config = configurations.read_codec(Settings(package["xp.cfg"], source))
    return Converted(config, to_ours(codec_rows(EncodecConfig(**config)), _state(package), source), None, "encodec")


def codec_name(package: Package, source: object) -> str:
    """The released codec to which a codec file without weights, or a language model's settings, point."""
    named = package.get("pretrained") or Settings(package["xp.cfg"], source).need("compression_model_checkpoint", str)
    return str(named).removeprefix("//pretrained/")


def read_language_model(package: Package, codec: Converted, source: object) -> Converted:
    """A composite model in our layout that still lacks its text encoder: its configuration has only `_name_or_path`.

    Raises `CheckpointError` for a model that can't be played here (style conditioning, another codebook pattern, ...).
    """
    settings = Settings(package["xp.cfg"], source)
    config = configurations.read_language_model(settings, codec.config)
    state = {name.replace(".mha.", "."): tensor for name, tensor in _state(package).items()}
    state.pop(CHROMA_WINDOW, None)  # a constant
    text_width = state[f"{TEXT_PROJECTION}.weight"].shape[-1] if f"{TEXT_PROJECTION}.weight" in state else 0
    tensors = to_ours(_rows(config, text_width), state, source)
    if text_width == config["decoder"]["hidden_size"]:
        tensors = _without_projection(tensors, source)
    config["text_encoder"]["d_model"] = text_width
    tensors |= {f"audio_encoder.{name}": tensor for name, tensor in _fitting(codec, config).items()}
    return Converted(config, tensors, configurations.read_generation(settings, config), "musicgen")


def write_codec(codec: Converted, path: Path) -> None:
    """Write a `compression_state_dict.bin`; warns where the codec has chunks, which audiocraft's haven't."""
    config = EncodecConfig(**codec.config)
    if config.chunk_length_s is not None:
        warnings.warn("audiocraft's codecs have no chunks: there, this one codes its audio in one piece.", stacklevel=1)
    _write(to_theirs(codec_rows(config), codec.tensors, path.name), configurations.write_codec(config), path)


def write_language_model(model: Converted, path: Path) -> None:
    """Write a `state_dict.bin`: a composite model without its codec and its text encoder.

    Warns where audiocraft has no such text encoder.
    """
    settings = configurations.write_language_model(model.config, model.generation_config or {})
    text_width = model.config["text_encoder"].get("d_model", 512)  # T5's default
    if text_width not in configurations.TEXT_ENCODERS.values():
        message = (
            f"audiocraft has no text encoder of width {text_width}: only tunesmith finds the one beside this export."
        )
        warnings.warn(message, stacklevel=1)
    tensors = _without_parts(model, text_width)
    state = to_theirs(_rows(model.config, text_width), tensors, path.name)
    if "num_chroma" in model.config:
        state[CHROMA_WINDOW] = torch.hann_window(2**configurations.CHROMA_WINDOW)
    _write(state, settings, path)


def part(model: Converted, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors, under its own names, of a composite model's `audio_encoder` or `text_encoder`."""
    prefix = f"{name}."
    tensors = {key.removeprefix(prefix): tensor for key, tensor in model.tensors.items() if key.startswith(prefix)}
    return model.config[name], tensors


def _rows(config: dict[str, Any], text_width: int) -> Any:
    return language_model_rows(MusicgenDecoderConfig(**config["decoder"]), text_width, config.get("num_chroma"))


def _state(package: Package) -> dict[str, Tensor]:
    """`best_state`, flat; old files nest it under `model` and keep the conditioners' tensors beside it."""
    state = package["best_state"]
    nested = isinstance(state.get("model"), dict)
    flat = dict(state["model"] if nested else state)
    conditioners = (state if nested else package).get("condition_provider") or {}
    flat |= {f"condition_provider.{name}": tensor for name, tensor in conditioners.items()}
    return {name: tensor for name, tensor in flat.items() if isinstance(tensor, Tensor)}


def _without_parts(model: Converted, text_width: int) -> dict[str, Tensor]:
    """Decoder and projections, with what our layout can leave out: tied heads, a projection between equal widths."""
    parts = ("audio_encoder.", "text_encoder.")
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.startswith(parts)}
    decoder = MusicgenDecoderConfig(**model.config["decoder"])
    if decoder.tie_word_embeddings:
        for k in range(decoder.num_codebooks):
            tensors[f"decoder.lm_heads.{k}.weight"] = tensors[f"{STACK}.embed_tokens.{k}.weight"][:-1]
    if text_width == (width := decoder.hidden_size):
        tensors = {"enc_to_dec_proj.weight": torch.eye(width), "enc_to_dec_proj.bias": torch.zeros(width)} | tensors
    return tensors


def _without_projection(tensors: dict[str, Tensor], source: object) -> dict[str, Tensor]:
    """Our layout has no projection between equal widths; an identity can be left out, any other can't be expressed."""
    weight, bias = tensors.pop("enc_to_dec_proj.weight"), tensors.pop("enc_to_dec_proj.bias")
    if bias.any() or not torch.equal(weight.float(), torch.eye(len(weight))):
        raise CheckpointError(
            f"{source} projects a text encoder as wide as itself ({len(weight)}), which our layout can't express."
        )
    return tensors


def _fitting(codec: Converted, config: dict[str, Any]) -> dict[str, Tensor]:
    """The codec's tensors without codebooks that the language model doesn't use."""
    books = EncodecConfig(**config["audio_encoder"]).num_quantizers
    spare = tuple(f"quantizer.layers.{k}." for k in range(books, EncodecConfig(**codec.config).num_quantizers))
    return {name: tensor for name, tensor in codec.tensors.items() if not spare or not name.startswith(spare)}


def _write(state: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> None:
    package = {
        "best_state": dict(state),
        "xp.cfg": yaml.safe_dump(settings, sort_keys=False),
        "version": f"tunesmith-{__version__}",
        "exported": True,
    }
    torch.save(package, path)
