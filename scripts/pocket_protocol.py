"""The frozen protocol of scripts/pocket_protocol.json: the prompts it means, and the verdict over what was measured."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.evaluation.control import Labels, Mode

Hardware = Literal["cpu", "gpu"]

FILE = Path(__file__).with_suffix(".json")
TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MODES: tuple[Mode, ...] = ("major", "minor")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked of the model, in words and as labels."""

    text: str
    instrument: str
    """The lead by its name in the corpus; `labels.lead` is the analyser's tag for it."""
    labels: Labels

    @property
    def key(self) -> str:
        """As in "D minor"."""
        return f"{TONICS[self.labels.tonic]} {self.labels.mode}"


def protocol() -> dict[str, Any]:
    """The frozen file."""
    return json.loads(FILE.read_text())


def prompts(rules: Mapping[str, Any], count: int, seed: int) -> list[Prompt]:
    """Prompts that name lead, drums, key and tempo; each axis is balanced, and drawn without regard to the others."""
    control, rng = rules["control"], random.Random(seed)
    keys = [(tonic, mode) for tonic in range(12) for mode in MODES]
    leads = _balanced(list(control["leads"]), count, rng)
    tempos = _balanced(control["tempos"], count, rng)
    tonics = _balanced(keys, count, rng)
    drums = _balanced([True, False], count, rng)
    wordings = _balanced(control["wordings"], count, rng)
    return [_prompt(control, *choice) for choice in zip(wordings, leads, tempos, tonics, drums, strict=True)]


def single_axis_prompts(rules: Mapping[str, Any], count: int, seed: int) -> dict[str, list[Prompt]]:
    """For each axis `count` prompts that name it alone; the other labels are what nobody asked for."""
    words = {"lead": "{lead}", "drums": "{drums}", "key": "{key} {mode}", "tempo": "{tempo} bpm"}
    return {
        axis: prompts({"control": {**rules["control"], "wordings": [word]}}, count, seed + number)
        for number, (axis, word) in enumerate(words.items())
    }


def _balanced(values: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    """Each value equally often (but for one), in random order."""
    order = rng.sample(list(values), len(values))
    drawn = [order[i % len(order)] for i in range(count)]
    rng.shuffle(drawn)
    return drawn


def _prompt(
    control: Mapping[str, Any], wording: str, lead: str, tempo: int, key: tuple[int, Mode], drums: bool
) -> Prompt:
    tonic, mode = key
    said = control["drums"]["yes" if drums else "no"]
    text = wording.format(lead=lead, tempo=tempo, key=TONICS[tonic].lower(), mode=mode, drums=said)
    tag = control["leads"][lead][0]
    labels = Labels(tempo=float(tempo), tonic=tonic, mode=mode, lead=tag, drums=drums)
    return Prompt(text=text, instrument=lead, labels=labels)


def judge(results: Mapping[str, Any], rules: Sequence[Mapping[str, Any]], hardware: Hardware) -> list[dict[str, Any]]:
    """Each gate with its value, limit and verdict; what was not measured has not passed."""
    return [_verdict(results, rule, hardware) for rule in rules]


def _verdict(results: Mapping[str, Any], rule: Mapping[str, Any], hardware: Hardware) -> dict[str, Any]:
    sense = "at_least" if "at_least" in rule else "at_most"
    limit, value = rule[sense][hardware], look_up(results, rule["measure"])
    known = value is not None and math.isfinite(value)
    passed = known and (value >= limit if sense == "at_least" else value <= limit)
    return {
        "name": rule["name"],
        "measure": rule["measure"],
        "value": value if known else None,
        sense: limit,
        "passed": passed,
    }


def look_up(results: Mapping[str, Any], path: str) -> Any:
    """The value at a path such as `control.key.score`; None where there is none."""
    value: Any = results
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def trained_on(hardware: str) -> Hardware:
    """Which column of the gates holds for a description such as "2 CPU cores" or "one NVIDIA H200"."""
    words = hardware.lower()
    return "gpu" if any(word in words for word in ("gpu", "cuda", "nvidia", "h100", "h200", "a100")) else "cpu"
