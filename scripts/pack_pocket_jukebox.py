"""Put a trained small Jukebox in the box: float16 weights and training.json into src/tunesmith/assets/pocket-jukebox.

    python scripts/pack_pocket_jukebox.py work/pocket-jukebox --vqvae work/vqvae --prior work/prior \
        --upsampler work/upsampler

The first folder is what `tunesmith assemble` made, the others are the runs that its parts come from.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.hub import weight_files
from tunesmith.training import checkpoints

TARGET = Path(__file__).parents[1] / "src" / "tunesmith" / "assets" / "pocket-jukebox"
OF_TRAINING = (".k_sum", ".k_elem")
"""Statistics of codebooks, of use to further training alone."""


def pack(whole: Path, runs: Mapping[str, Path], target: Path, hardware: str) -> None:
    """Write the folder."""
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor for file in weight_files(whole) for name, tensor in load_file(file).items()}
    kept = {name: halved(tensor) for name, tensor in weights.items() if not name.endswith(OF_TRAINING)}
    part = target / ".model.part"
    save_file(kept, part, {"format": "pt"})
    part.replace(target / "model.safetensors")
    for file in whole.glob("*.json"):
        if "index" not in file.name and file.name not in ("evaluation.json", "training.json"):
            shutil.copy(file, target / file.name)
    sizes = {name: sum(t.numel() for key, t in kept.items() if key.startswith(name)) for name in PARTS}
    facts = {PARTS[name]: {"parameters": size, **run_facts(runs[PARTS[name]])} for name, size in sizes.items()}
    checkpoints.write_json(target / "training.json", {"hardware": hardware, **facts})


PARTS = {"vqvae.": "vqvae", "priors.0.": "prior", "priors.1.": "upsampler"}
"""What tensors of a part begin with."""


def halved(tensor: torch.Tensor) -> torch.Tensor:
    """Floating-point numbers in 16 bits."""
    return tensor.to(torch.float16).contiguous() if tensor.is_floating_point() else tensor.contiguous()


def run_facts(run: Path) -> dict[str, Any]:
    """What was asked for, and how many steps were made."""
    asked = json.loads((run / "recipe.json").read_text())
    last = checkpoints.last(run)
    state = {} if last is None else json.loads((last / "trainer_state.json").read_text())
    settings = asked["settings"]
    names = ("batch", "learning_rate", "curve", "seed")
    return {"steps_done": state.get("global_step"), **{name: settings[f"schedule.{name}"] for name in names}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whole", type=Path, help="what `tunesmith assemble` made")
    for part_of_it in PARTS.values():
        parser.add_argument(f"--{part_of_it}", type=Path, required=True, help="its run")
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--hardware", default="2 CPU cores", help="what it was trained on (default: %(default)s)")
    options = parser.parse_args()
    pack(options.whole, {n: getattr(options, n) for n in PARTS.values()}, options.target, options.hardware)
