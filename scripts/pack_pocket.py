"""Put a trained model in the box: float16 weights, tokenizer and training.json into src/tunesmith/assets/pocket.

    python scripts/pack_pocket.py --language runs/lm runs/words --text runs/text --codec runs/codec runs/decoder

Runs are given in order.  The last of the language model's is packed; the last of the codec's may have taught the
decoder alone, while the language model learnt the codes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.codecs.encodec import EncodecModel
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.training.language_model import pocket_tokenizer, save_model
from tunesmith.training.runs import write_json

POCKET = Path(__file__).parents[1] / "src" / "tunesmith" / "assets" / "pocket"


def pack(languages: Sequence[Path], texts: Sequence[Path], codecs: Sequence[Path], target: Path) -> None:
    """Write the folder."""
    model = MusicgenForConditionalGeneration.from_pretrained(languages[-1] / "model")
    codec = EncodecModel.from_pretrained(codecs[-1] / "codec")
    if not same_codes(model.audio_encoder, codec):
        raise SystemExit(f"{languages[-1]} was trained on codes of another codec than that of {codecs[-1]}.")
    model.audio_encoder = codec
    save_model(model, pocket_tokenizer(), target, torch.float16)
    facts = {
        "hardware": "gpu" if torch.cuda.is_available() else "cpu",
        "codec": {"parameters": count(model.audio_encoder), "runs": [run_facts(run) for run in codecs]},
        "language_model": {
            "parameters": count(model.decoder),
            "runs": [run_facts(run) for run in languages],
        },
        "text_encoder": {"parameters": count(model.text_encoder), "runs": [run_facts(run) for run in texts]},
    }
    write_json(target / "training.json", facts)


def same_codes(one: EncodecModel, other: EncodecModel) -> bool:
    """Whether both make the same codes of the same audio: equal encoders and codebooks."""
    pairs = ((one.encoder, other.encoder), (one.quantizer, other.quantizer))
    return all(torch.equal(t, b.state_dict()[name]) for a, b in pairs for name, t in a.state_dict().items())


def run_facts(run: Path) -> dict[str, Any]:
    """What was asked for, how many steps were made and how long they took."""
    recipe = json.loads((run / "recipe.json").read_text())
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(history) if "loss" in record)
    return {
        **{name: value for name, value in recipe.items() if name not in ("run", "schedule")},
        **{name: recipe["schedule"][name] for name in ("steps", "batch", "learning_rate", "seed")},
        "steps_done": last["step"],
        "training_seconds": round(seconds(history)),
        "last_training_loss": round(last["loss"], 3),
    }


def seconds(history: Sequence[dict[str, Any]]) -> float:
    """Time of all launches: each begins its clock anew."""
    clocks = [record["elapsed"] for record in history]
    ends = [a for a, b in zip(clocks, [*clocks[1:], 0.0], strict=True) if b < a]
    return float(sum(ends))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", type=Path, nargs="+", required=True, help="folders of the language model's runs")
    parser.add_argument("--text", type=Path, nargs="*", default=(), help="folders of the text encoder's runs")
    parser.add_argument("--codec", type=Path, nargs="+", required=True, help="folders of the codec's runs")
    parser.add_argument("--target", type=Path, default=POCKET)
    options = parser.parse_args()
    pack(options.language, options.text, options.codec, options.target)
