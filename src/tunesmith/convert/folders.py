"""Folders in our layout, which is Hugging Face's: reading one, writing one, finding a text encoder in one."""

import json
import math
import os
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.convert.configurations import CHROMA_HOP, CHROMA_WINDOW
from tunesmith.convert.keymaps import modern_names, refuse_misshapen
from tunesmith.errors import CheckpointError, RequestError
from tunesmith.models.musicgen import MusicgenDecoderConfig
from tunesmith.nn.files import CONFIG as CONFIG
from tunesmith.nn.files import WEIGHTS, present_files, read_state, weight_files
from tunesmith.nn.files import read_json as read_json
from tunesmith.nn.files import read_pickle as read_pickle
from tunesmith.nn.pretrained import readable_errors

Json = dict[str, Any]

SHARD = 5 * 10**9  # bytes; larger models are written as several files with an index
GENERATION, PREPROCESSOR = "generation_config.json", "preprocessor_config.json"
_DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}  # saved
TOKENIZER = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Converted:
    """A model as plain data: what a folder in our layout holds.

    config is its `config.json` and tensors its weights under our names, in the type in which they were stored (files of
    ours widen them to float32).  tokenizer is the folder with the text encoder's tokenizer files, where there is one.
    """

    config: Json
    tensors: dict[str, Tensor]
    generation_config: Json | None
    kind: Literal["musicgen", "encodec"]
    tokenizer: Path | None = None


class TextEncoder(NamedTuple):
    """A T5 encoder as plain data: its own configuration, its tensors under its own names, its tokenizer's folder."""

    config: Json
    tensors: dict[str, Tensor]
    tokenizer: Path | None


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has a configuration and weights in our layout."""
    return (folder / CONFIG).is_file() and bool(weight_files(folder))


def read_folder(folder: Path) -> Converted:
    """A MusicGen or EnCodec folder; raises `CheckpointError` for one that is broken or of another family."""
    config = read_json(folder / CONFIG)
    family = config.get("model_type")
    if family not in ("musicgen", "musicgen_melody", "encodec"):
        raise CheckpointError(
            f"{folder} is a model of the family {family!r}; MusicGen, EnCodec and Jukebox can be converted."
        )
    generation = folder / GENERATION
    return Converted(
        config if family == "encodec" else _with_defaults(config, folder),
        modern_names(_read_tensors(folder)),
        read_json(generation) if generation.is_file() else None,
        "encodec" if family == "encodec" else "musicgen",
        folder if has_tokenizer(folder) else None,
    )


def read_text_encoder(folder: Path) -> TextEncoder:
    """The T5 encoder in a T5 folder or in a composite folder; raises `CheckpointError` unless there is a whole one."""
    config = read_json(folder / CONFIG)
    prefix = "text_encoder." if "text_encoder" in config else ""
    config = config.get("text_encoder", config)
    if config.get("model_type") != "t5":
        raise CheckpointError(
            f"{folder} has no T5 text encoder, but a model of the family {config.get('model_type')!r}."
        )
    tensors = _read_tensors(folder, (f"{prefix}shared.", f"{prefix}encoder."))
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    tied = tensors.pop("encoder.embed_tokens.weight", None)
    if tied is not None:
        tensors.setdefault("shared.weight", tied)
    _refuse_half_encoder(config, tensors, folder)
    return TextEncoder(config, tensors, folder if has_tokenizer(folder) else None)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in TOKENIZER[:2])


def write_folder(converted: Converted, folder: Path, shard: int = SHARD) -> None:
    """Write `config.json`, weights (float32), generation and preprocessor configurations and tokenizer files."""
    write_json({**converted.config, "dtype": "float32"}, folder / CONFIG)
    write_json(_preprocessor(converted.config), folder / PREPROCESSOR)
    if converted.generation_config is not None:
        write_json(converted.generation_config, folder / GENERATION)
    copy_tokenizer(converted.tokenizer, folder)
    write_tensors(converted.tensors, folder, shard)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, shard: int = SHARD) -> None:
    """Write float32 safetensors: one file, or several of at most `shard` bytes with an index."""
    stream_tensors({name: tensor.to("meta") for name, tensor in tensors.items()}, tensors.items(), folder, shard)


def stream_tensors(
    forms: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], folder: Path, shard: int = SHARD
) -> None:
    """As `write_tensors`, of tensors that come one by one and needn't be in memory together.

    forms: the same tensors on the meta device; tensors may come in any order.
    """
    saved = {name: torch.empty_like(form, dtype=_saved(form)) for name, form in forms.items()}
    plan = split_torch_state_dict_into_shards(saved, max_shard_size=shard, filename_pattern="model{suffix}.safetensors")
    _refuse_full_disk(folder, sum(form.numel() * form.itemsize for form in saved.values()))
    starts: dict[str, int] = {}
    for file, names in plan.filename_to_tensors.items():
        header, places = _safetensors_header({name: saved[name] for name in names})
        (folder / file).write_bytes(header)
        starts |= places
    for name, tensor in tensors:
        assert tensor.shape == saved[name].shape, "tensors have the shape of their forms"
        with (folder / plan.tensor_to_filename[name]).open("r+b") as out:
            out.seek(starts.pop(name))
            out.write(tensor.detach().to(saved[name].dtype).reshape(-1).view(torch.uint8).numpy().data)
    assert not starts, "all forms have a tensor"
    if plan.is_sharded:
        write_json({"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}, folder / f"{WEIGHTS}.index.json")


def shard_bytes(size: int | str) -> int:
    """A size in bytes, given as such or as text like "2GB"; raises `RequestError` for another text."""
    found = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)B?\s*", str(size), re.IGNORECASE)
    if found is None or not int(found[1]):
        raise RequestError(f"{size!r} is no size of a file; give one like '2GB' or '500MB'.")
    return int(found[1]) * int(1000 ** " KMGT".index(found[2].upper() or " "))


def copy_tokenizer(source: Path | None, folder: Path, names: Iterable[str] = TOKENIZER) -> None:
    """Copy the tokenizer files that there are."""
    for name in names:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a JSON object with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A temporary neighbour that becomes destination when the block succeeds and disappears when it fails.

    Raises `RequestError` unless destination is absent or an empty folder, in a folder that can be written to.
    """
    refuse_destination(destination)
    draft = destination.parent / f".{destination.name}.{os.getpid()}.partial"
    draft.mkdir()
    try:
        yield draft
        if destination.exists():
            destination.rmdir()
        draft.rename(destination)
    except OSError as error:
        raise RequestError(f"{destination} can't be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse_destination(destination: Path) -> None:
    """Raise `RequestError` for a folder that can't be made, before any work is done."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise RequestError(f"{destination} already exists and isn't an empty folder; give a new name.")
    if not destination.parent.is_dir():
        raise RequestError(
            f"The folder {destination.parent}, in which {destination.name} is to be made, doesn't exist."
        )
    if not os.access(destination.parent, os.W_OK):
        raise RequestError(f"The folder {destination.parent} can't be written to; give another destination.")


def _safetensors_header(forms: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """What a safetensors file begins with, and where in the file each tensor starts.

    It is 8 bytes with the length of a JSON object, which says where each tensor lies behind it.
    """
    header: Json = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, form in forms.items():
        starts[name], end = end, end + form.numel() * form.itemsize
        header[name] = {"dtype": _DTYPES[form.dtype], "shape": list(form.shape), "data_offsets": [starts[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + start for name, start in starts.items()}


def _refuse_full_disk(folder: Path, needed: int) -> None:
    """Raise `RequestError` before a large file is begun for which there is no room."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RequestError(
            f"{needed / 1e9:.1f} GB are to be written, but {folder.parent} has room for {free / 1e9:.1f} GB; make room "
            "or give another destination."
        )


def _saved(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def read_forms(folder: Path) -> dict[str, Tensor]:
    """Name and shape of every tensor in a folder: tensors on the meta device, of floating point."""
    shapes: dict[str, Any] = {}
    for file in present_files(folder):
        if file.suffix == ".safetensors":
            with readable_errors(file), safe_open(file, framework="pt") as opened:
                shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118  # no dictionary
        else:
            shapes |= {name: tensor.shape for name, tensor in read_state(file, values=False).items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def iterate_tensors(folder: Path, names: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of a folder, file by file, of which one is open at a time."""
    for file in present_files(folder):
        if file.suffix != ".safetensors":
            yield from ((name, tensor) for name, tensor in read_state(file).items() if name in names)
            continue
        with readable_errors(file), safe_open(file, framework="pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in opened.keys() if name in names)  # noqa: SIM118  # no dictionary


def _read_tensors(folder: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in present_files(folder):
        loaded = _read_safetensors(file, prefixes) if file.suffix == ".safetensors" else read_state(file)
        tensors |= {name: tensor for name, tensor in loaded.items() if name.startswith(prefixes)}
    return tensors


def _read_safetensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    with readable_errors(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118  # no dictionary


def _refuse_half_encoder(config: Json, tensors: Mapping[str, Tensor], source: object) -> None:
    with torch.device("meta"):
        whole = T5EncoderModel(T5Config(**config)).state_dict()
    whole.pop("encoder.embed_tokens.weight", None)
    refuse_misshapen({name: tuple(tensor.shape) for name, tensor in whole.items()}, tensors, source)


def _with_defaults(config: Json, folder: Path) -> Json:
    """A composite configuration with what old files leave out of it; its three parts must be there."""
    parts = ("text_encoder", "audio_encoder", "decoder")
    if not all(isinstance(config.get(part), dict) for part in parts):
        raise CheckpointError(f"{folder / CONFIG} lacks one of {', '.join(parts)}; the file is damaged.")
    decoder = {**MusicgenDecoderConfig(**config["decoder"]).to_dict(), **config["decoder"]}
    chroma = {"num_chroma": 12, "chroma_length": 235} if config["model_type"] == "musicgen_melody" else {}
    return {**chroma, **config, "decoder": decoder}


def _preprocessor(config: Json) -> Json:
    """Settings of the feature extractor: an EnCodec's, or a melody model's chroma."""
    codec = EncodecConfig(**config.get("audio_encoder", config))
    rate = codec.sampling_rate
    if config["model_type"] == "musicgen_melody":
        seconds = math.ceil((config["chroma_length"] - 1) * CHROMA_HOP / rate)
        return {
            "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
            "processor_class": "MusicgenMelodyProcessor",
            "feature_size": config["num_chroma"],
            "num_chroma": config["num_chroma"],
            "sampling_rate": rate,
            "n_fft": 2**CHROMA_WINDOW,
            "hop_length": CHROMA_HOP,
            "chunk_length": seconds,
            "n_samples": seconds * rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        }
    # Released music codecs pad on the left, where a continuation doesn't hear it; the general ones on the right.
    general = codec.use_causal_conv or codec.normalize
    preprocessor = {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": config["decoder"]["audio_channels"] if "decoder" in config else codec.audio_channels,
        "sampling_rate": rate,
        "chunk_length_s": codec.chunk_length_s,
        "overlap": codec.overlap,
        "padding_side": "right" if general else "left",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    return {**preprocessor, **({"processor_class": "MusicgenProcessor"} if "decoder" in config else {})}
