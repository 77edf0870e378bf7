"""Checkpoints that are whole or absent, and load on another number of processes.

run/checkpoint-N/  config.json model.safetensors    the weights as they are, loadable like any model
                   ema/                             the same with averaged weights
                   optimizer.pt scheduler.pt rng_state*.pth trainer_state.json progress.json
                   shards/                          of a sharded (FSDP) run, in place of the first three
run/best/                                           the model with the lowest test loss, averaged weights
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from transformers.trainer_utils import get_last_checkpoint

from tunesmith.errors import CheckpointError, RunError

SHARDS = "shards"
KEPT = 2  # checkpoints of a run, the best one besides


def last(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    found = get_last_checkpoint(str(run)) if run.is_dir() else None
    return None if found is None else Path(found)


@contextmanager
def whole_or_absent(part: Path, target: Path, kept: Path | None) -> Iterator[None]:
    """Write into `part`, which becomes `target` when all went well.  Raises RunError where it can't be written."""
    try:
        yield
        if target.exists():
            shutil.rmtree(target)
        part.replace(target)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save on a full disk raises the last
        shutil.rmtree(part, ignore_errors=True)
        before = f"{kept} is intact" if kept else "there is none before it"
        raise RunError(
            f"The checkpoint {target} could not be written ({_reason(error)}); {before}. Make room, then give the same "
            "command again."
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder.  Raises CheckpointError where there are none or they can't be read."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no weights (*.safetensors); give a checkpoint or a model's folder.")
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise CheckpointError(
            f"The weights in {folder} can't be read ({error}); take an earlier checkpoint."
        ) from error


def load_weights(model: nn.Module, folder: Path) -> None:
    """Weights into a model that is there, tied ones once.  Raises CheckpointError for those that don't fit."""
    tensors = read_tensors(folder)
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {folder} don't fit this recipe: {_misfit(error)}") from error
    lacking = set(missing) - set(getattr(model, "all_tied_weights_keys", None) or {})
    if lacking or unexpected:
        raise CheckpointError(
            f"The weights in {folder} don't fit this recipe: {', '.join(sorted(lacking)[:3]) or 'nothing'} lacking, "
            f"{', '.join(sorted(unexpected)[:3]) or 'nothing'} too many. Give the settings that they were trained with."
        )


def _misfit(error: RuntimeError) -> str:
    lines = str(error).splitlines()
    return f"{lines[1 if len(lines) > 1 else 0].strip()} Give the settings that they were trained with."


def save_shards(model: nn.Module, optimizer: Optimizer, shadow: dict[str, Tensor] | None, folder: Path) -> None:
    """Each process writes what it holds; any number of processes can read it."""
    state: dict[str, Any] = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        **({"ema": shadow} if shadow else {}),
    }
    state_dict_saver.save(state, checkpoint_id=str(folder / SHARDS))


def load_shards(model: nn.Module, optimizer: Optimizer | None, shadow: dict[str, Tensor] | None, folder: Path) -> None:
    """Into a model and an optimizer of whatever sharding, or none; also without a process group."""
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer)
    if shadow:
        state["ema"] = shadow
    alone = not torch.distributed.is_initialized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that one process loads alone, which is what was asked for
        state_dict_loader.load(state, checkpoint_id=str(folder / SHARDS), no_dist=alone)
    set_model_state_dict(model, state["model"])
    if optimizer is not None:
        set_optimizer_state_dict(model, optimizer, state["optimizer"])


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A sharded model's weights in one piece, on the first process's CPU; every process has to take part.

    Tied ones are in it once.
    """
    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: tensor for name, tensor in state.items() if name not in tied}


def forget_paths(config: Any) -> None:
    """Take out of a MusicGen's configuration in which folders of this machine its parts were found."""
    for part in (config.text_encoder, config.audio_encoder, config.decoder):
        part._name_or_path = ""


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or absent; paths in it are shown by their names."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=name_of) + "\n")
    part.replace(path)


def name_of(value: Any) -> str:
    """A path in JSON."""
    assert isinstance(value, Path)
    return value.name
