"""`tunesmith info`: what is in an audio file, what a model is, or what this machine has."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show an audio file's length, loudness and recipe, a model's facts, or this machine's."""

    name: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="[NAME]")]] = None
    """Audio file, or a model: its name or folder; without one, what this machine has."""

    json: bool = False
    """As JSON, for programs."""

    def run(self) -> None:
        """Print to stdout."""
        facts = _facts(self.name)
        if self.json:
            print(json.dumps(facts, indent=2))
        else:
            _print(facts)


def _facts(name: str | None) -> dict[str, Any]:
    from tunesmith import hub, machine

    if name is None:
        return machine.facts()
    path = hub.local_path(name)
    return _audio_facts(path) if _is_audio(path) else _model_facts(name)


def _is_audio(path: Path) -> bool:
    """A file, or what looks like the name of one."""
    from tunesmith import hub
    from tunesmith.audio import FORMATS

    return path.suffix.lower() in FORMATS or (hub.on_disk(path) is not None and path.is_file())


def _audio_facts(path: Path) -> dict[str, Any]:
    from tunesmith.audio import Clip

    clip = Clip.read(path)
    return {
        "file": str(path),
        "seconds": round(clip.duration, 3),
        "rate": clip.rate,
        "channels": clip.channels,
        "loudness_lufs": _rounded(clip.loudness),
        "peak_db": _rounded(clip.peak),
        "recipe": clip.recipe,
    }


def _model_facts(name: str) -> dict[str, Any]:
    from tunesmith import hub

    folder = hub.locate(name)
    if hub.family_of(folder) == "jukebox":
        return _jukebox_facts(name, folder)
    facts = hub.check(folder)
    return {
        "model": name,
        "folder": str(folder),
        "rate": facts.rate,
        "channels": facts.channels,
        "frames_per_second": facts.rate / facts.hop,
        "seconds_at_most": facts.window_seconds,
        **_weights(folder),
    }


def _jukebox_facts(name: str, folder: Path) -> dict[str, Any]:
    from tunesmith import hub
    from tunesmith.pipelines.jukebox_config import JukeboxConfig

    hub.check_files(folder)
    config: Any = JukeboxConfig.from_pretrained(folder)
    top, rate = config.prior_configs[0], config.sampling_rate
    return {
        "model": name,
        "folder": str(folder),
        "rate": rate,
        "codes_per_second": [rate / prior.hop_length for prior in config.prior_configs],
        "window_seconds": [prior.window_length / rate for prior in config.prior_configs],
        "layers": [prior.num_layers for prior in config.prior_configs],
        "lyric_characters": top.nb_relevant_lyric_tokens,
        "song_seconds": [top.min_duration, top.max_duration],
        **_weights(folder),
    }


def _weights(folder: Path) -> dict[str, Any]:
    from tunesmith import hub

    size = sum(file.stat().st_size for file in hub.weight_files(folder))
    return {"megabytes": round(size / 1e6, 1), "hash": hub.weights_hash(folder)}


def _rounded(decibels: float) -> float | None:
    """JSON has no infinity; silence has no level."""
    return round(decibels, 2) if math.isfinite(decibels) else None


def _print(facts: dict[str, Any], indent: str = "") -> None:
    """Names and values in two columns; what is inside is indented."""
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{indent}{name.replace('_', ' '):{width}}{'-' if shown in (None, '') else shown}")
