"""Configurations of Jukebox that others wrote, put right, and the sets in which parts were released.

Hugging Face's port has had two ways to write the list of priors, and says wrong things of the released models, so what
those are is taken from our presets.
"""

import re
from typing import Any

from tunesmith.codecs.vqvae import PRESETS as VQVAES
from tunesmith.codecs.vqvae import JukeboxVQVAEConfig
from tunesmith.errors import CheckpointError
from tunesmith.models.jukebox import PRESETS as PRIORS
from tunesmith.models.jukebox_config import JukeboxPriorConfig, as_released, written_by_port

Json = dict[str, Any]

_UPSAMPLERS = ("upsampler_level_1", "upsampler_level_0")

RELEASED: dict[str, tuple[str, ...]] = {
    "5b": ("vqvae", "prior_5b", *_UPSAMPLERS),
    "5b_lyrics": ("vqvae", "prior_5b_lyrics", *_UPSAMPLERS),
    "1b_lyrics": ("vqvae", "prior_1b_lyrics", *_UPSAMPLERS),
}
"""The released models: the presets of VQ-VAE and priors, from the top."""

_NUMBERED = re.compile(r"prior_\d+")
_VQVAE_KNOWN_BY = ("levels", "nb_discrete_codes", "embed_dim", "res_conv_width")


def vqvae_preset(name: str) -> Json:
    """A VQ-VAE's preset as its `config.json`."""
    return {**JukeboxVQVAEConfig(**VQVAES[name]).to_dict(), "model_type": "jukebox_vqvae"}


def prior_preset(name: str) -> Json:
    """A prior's preset as its `config.json`."""
    return {**PRIORS[name]().to_dict(), "model_type": "jukebox_prior"}


def modern_config(config: Json, source: object) -> Json:
    """A model's `config.json` with everything in it: of a VQ-VAE, a prior, or all (then under `prior_config_list`).

    One that Hugging Face's port wrote (which ended with version 4) has the presets' settings where it is of a released
    model; ours are taken as they are.  Raises `CheckpointError` if there are no parts in it.
    """
    foreign = written_by_port(config)
    if config.get("model_type", "jukebox") != "jukebox":
        return (_prior if config["model_type"] == "jukebox_prior" else _vqvae)(config, foreign)
    priors = config.get("prior_config_list") or _numbered(config)
    if not priors or not all(isinstance(part, dict) for part in (config.get("vqvae_config"), *priors)):
        raise CheckpointError(f"The config.json of {source} lacks vqvae_config or prior_config_list; it is damaged.")
    return {
        **{name: value for name, value in config.items() if not _NUMBERED.fullmatch(name)},
        "nb_priors": len(priors),
        "vqvae_config": _vqvae(config["vqvae_config"], foreign),
        "prior_config_list": [_prior({**prior, "level": level}, foreign) for level, prior in enumerate(priors)],
    }


def _numbered(config: Json) -> list[Any]:
    """The priors as the hub's files have them: `prior_0` (the top), `prior_1`, ..."""
    numbers = sorted(int(name.removeprefix("prior_")) for name in config if _NUMBERED.fullmatch(name))
    return [config[f"prior_{number}"] for number in numbers]


def _vqvae(config: Json, foreign: bool) -> Json:
    whole, released = JukeboxVQVAEConfig(**config).to_dict(), vqvae_preset("vqvae")
    if foreign and all(whole[name] == released[name] for name in _VQVAE_KNOWN_BY):
        return {**whole, **released, "sample_length": whole["sample_length"]}
    return {**whole, "model_type": "jukebox_vqvae"}


def _prior(config: Json, foreign: bool) -> Json:
    whole = JukeboxPriorConfig(**config).to_dict()
    return as_released(whole) if foreign else {**whole, "model_type": "jukebox_prior"}
