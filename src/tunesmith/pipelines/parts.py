"""The parts of a whole Jukebox: where each lies (in memory, on a device, on disk), and in which precision.

A part is the VQ-VAE or a prior.  A prior on disk has tensors on the meta device, and is read when its level is sampled.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import machine
from tunesmith.codecs.vqvae import JukeboxVQVAE
from tunesmith.convert import jukebox as checkpoints
from tunesmith.errors import RequestError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.nn.pretrained import bundled
from tunesmith.pipelines.jukebox_config import Json, JukeboxConfig

DISK = "disk"
PLACES = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")  # of files on the hub
AUTOMATIC = ("auto", "sequential", "balanced", "balanced_low_0")

ROOM = 0.8
"""Share of the free memory that weights may take before priors stay on disk."""


def device_of(given: Any) -> str | int | torch.device:
    """What a device map that isn't a dictionary means for what is in memory."""
    if given is None or given == DISK:
        return "cpu"
    if isinstance(given, str) and given in AUTOMATIC:
        return "cuda" if torch.cuda.is_available() else "cpu"
    with contextlib.suppress(RuntimeError):  # of what torch doesn't know as a device
        if isinstance(given, str | int | torch.device):
            torch.device(given)
            return given
    raise RequestError(f"device_map is {given!r}; give a device, 'auto', 'disk' or a dictionary of parts.")


def places_of(given: Any, one_at_a_time: bool) -> dict[str, Any]:
    """Parts -> devices; "" is what isn't named."""
    if isinstance(given, dict):
        places = {"": "cpu"} | {str(part): place for part, place in given.items()}
        for place in places.values():
            device_of(place)
        return {**places, "": "cpu", "priors": DISK} if places[""] == DISK else places
    device = device_of(given)
    return {"": device, "priors": DISK} if one_at_a_time or given == DISK else {"": device}


def _place(part: str, places: Mapping[str, Any]) -> Any:
    """Where a part goes: where the closest name says, on disk if anything in it does."""
    inside = [place for name, place in places.items() if name.startswith(f"{part}.")]
    around = [name for name in places if name in ("", part) or part.startswith(f"{name}.")]
    closest = max(around, key=len)
    if DISK in inside or (inside and not closest):
        return DISK if DISK in inside else inside[0]
    return places[closest]


def load_parts(cls: Any, name: Any, places: Mapping[str, Any], kwargs: Json) -> Any:
    """A model of which some priors are on disk, or parts on different devices."""
    dtype, options = _dtype(kwargs)
    config, options = _config(cls, name, options)
    folder = Path(bundled(name), options.get("subfolder", ""))
    if folder.is_dir():
        checkpoints.read_model(folder)  # tells now what is wrong with parts that are read later
    with torch.device("meta"):
        model = cls(config)
    model.priors._apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
    model._source = (name, options)
    parts = ["vqvae", *(f"priors.{level}" for level in range(len(model.priors)))]
    model.hf_device_map = {part: _place(part, places) for part in parts}
    if model.hf_device_map["vqvae"] == DISK:
        model.hf_device_map["vqvae"] = "cpu"  # it is small, and says where priors from the disk go
    model.vqvae = JukeboxVQVAE.from_pretrained(name, config=config.vqvae_config, **options)
    model.vqvae.to(model.hf_device_map["vqvae"])
    for level, part in enumerate(parts[1:]):
        if (place := model.hf_device_map[part]) != DISK:
            model.priors[level] = model._read_prior(level, dtype).to(place)
    return model.eval()


def _dtype(kwargs: Json) -> tuple[torch.dtype, Json]:
    """The dtype asked for, and the other keywords; "auto" is float32, as all of the released files are."""
    rest = dict(kwargs)
    old, new = rest.pop("torch_dtype", None), rest.pop("dtype", None)
    named = str(old or new or "float32").removeprefix("torch.")
    dtype = torch.float32 if named == "auto" else getattr(torch, named, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise RequestError(f"There is no dtype {named!r} for models; use float32, float16 or bfloat16.")
    return dtype, rest


def _config(cls: Any, name: Any, options: Json) -> tuple[JukeboxConfig, Json]:
    """The configuration, and the keywords for weights."""
    if isinstance(given := options.pop("config", None), JukeboxConfig):
        return given, options
    config, rest = cls.config_class.from_pretrained(given or name, return_unused_kwargs=True, **options)
    return config, {**rest, **{key: options[key] for key in PLACES if key in options}}


def is_absent(module: nn.Module) -> bool:
    """Whether a part was left on disk."""
    return any(parameter.is_meta for parameter in module.parameters())


def stack_dtype(prior: Any) -> torch.dtype:
    """That of a prior's transformer layers."""
    dtype: torch.dtype = prior.prior.transformer.dtype
    return dtype


def halved(prior: JukeboxPrior) -> JukeboxPrior:
    """A twin with its layers in float16; it shares all else."""
    with torch.device("meta"):
        twin = JukeboxPrior(prior.config)
    twin.load_state_dict(prior.state_dict(), assign=True)
    return twin.half().eval()


def memory_is_short(cls: Any, name: Any, device: str | int | torch.device, kwargs: Json) -> bool:
    """Whether all weights together would take too much of what is free on the device."""
    free = machine.free_memory(device)
    if free is None or name is None:
        return False
    dtype, options = _dtype(kwargs)
    config, _ = _config(cls, name, options)
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in cls(config).parameters())
    return weights * dtype.itemsize > ROOM * free
