"""Reading the files of a model's folder, and telling what is wrong with one."""

import json
import pickle
import re
import warnings
import zipfile
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import CheckpointError, ModelNotFoundError, RequestError, TunesmithError

CONFIG, WEIGHTS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `CheckpointError` where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}, so it isn't a model folder.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON; it is probably incomplete, fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} isn't a JSON object; the file is damaged.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files of the first kind of weights that the folder has; named by the index where there is one."""
    for name in (WEIGHTS, PICKLED):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / file for file in sorted(set(_weight_map(index).values()))]
        if (folder / name).is_file():
            return [folder / name]
    return []


def present_files(folder: Path) -> list[Path]:
    """The same, all of which are there; raises `CheckpointError` otherwise."""
    files = weight_files(folder)
    absent = [file.name for file in files if not file.is_file()]
    if absent or not files:
        raise CheckpointError(f"{folder} is incomplete: it has no {absent[0] if absent else WEIGHTS}; fetch it again.")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} doesn't say which file holds which tensor; it is damaged, fetch it again.")
    return names


def read_pickle(path: Path, *, values: bool = True, hint: str = "") -> Any:
    """The tensors and plain values in a PyTorch file; raises `CheckpointError` for any other content, executing none.

    Tensors of today's zip format stay mapped to the file: they cost memory when they are used.  Those of the format
    before it can't be mapped; without `values` they aren't read, so all but their values is known for nothing.
    hint: what the error says of a file with other things in it.
    """
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings(), nullcontext() if values or mapped else torch.serialization.skip_data():
            warnings.simplefilter("ignore")  # torch remarks on unusual pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL:? ([\w.]+)", str(error))
        raise CheckpointError(
            f"{path} isn't a file of plain tensors{f' (it holds {named[1]})' if named else ''}; no code in it is run."
            f"{hint}"
        ) from error
    except Exception as error:  # garbage makes an unpickler raise anything
        raise CheckpointError(
            f"{path} can't be read as a PyTorch file ({type(error).__name__}); probably it is incomplete."
        ) from error


def read_state(path: Path, *, values: bool = True) -> dict[str, Tensor]:
    """The tensors by name in a PyTorch file of weights, as `read_pickle` reads them."""
    state = read_pickle(path, values=values)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds something else than tensors by name; it is no file of weights.")
    return state


def fault(source: object, subfolder: str = "") -> TunesmithError | None:
    """What is wrong with a model's name or folder, after it couldn't be loaded; None where that isn't to be seen."""
    if not isinstance(source, str | PathLike):
        return RequestError(f"A model can't be loaded from {source!r}; give its folder or its name on the hub.")
    if not str(source).strip():
        return _not_found(str(source))
    folder = Path(source, subfolder)
    if folder.is_file():
        return CheckpointError(f"{str(source)!r} is a file; give the folder of the model.")
    if not folder.is_dir():
        return _not_found(str(source))
    try:
        read_json(folder / CONFIG)
        for file in present_files(folder):
            if file.suffix != ".safetensors":
                read_state(file, values=False)
    except CheckpointError as error:
        return error
    return None


def _not_found(name: str) -> ModelNotFoundError:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and name[0] not in ".~":
        return ModelNotFoundError(
            f"There is no folder {name!r}, its download is not on this machine, or only half, and the Hugging Face hub "
            "has no such model or can't be reached; check the name, connect, or give a folder."
        )
    return ModelNotFoundError(f"There is no model folder {name!r}.")
