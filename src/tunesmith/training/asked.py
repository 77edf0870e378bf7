"""What a run was asked for, kept in its folder, so that it goes on with the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.training import checkpoints

HARMLESS = (
    "budget_seconds",
    "save_every",
    "save_every_seconds",
    "log_every",
    "test_every",
    "sample_every",
    "sample_count",
    "sample_seconds",
    "workers",
    "bucket",
)
"""Settings of a schedule that change nothing of what is learnt."""


def keep(run: Path, settings: Mapping[str, Any], **others: Any) -> None:
    """Write them down; of paths their names alone.  others: what may change."""
    run.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(run / "recipe.json", {"settings": settings, **others})


def changes(run: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Of a run that has a checkpoint: each setting that was another -> what it was and is."""
    file = run / "recipe.json"
    if not file.exists() or checkpoints.last(run) is None:
        return {}
    absent = "unset"
    before = json.loads(file.read_text()).get("settings", {})
    now = json.loads(json.dumps(settings, default=checkpoints.name_of))
    keys = [key for key in {**before, **now} if before.get(key, absent) != now.get(key, absent)]
    return {key: f"{key} was {before.get(key, absent)} and is now {now.get(key, absent)}" for key in keys}


def grave(changed: Mapping[str, str]) -> list[str]:
    """The sentences about those that change what is learnt."""
    return [told for key, told in changed.items() if key.rpartition(".")[2] not in HARMLESS]
