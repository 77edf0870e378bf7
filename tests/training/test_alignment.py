"""After training, a prior's configuration names the layer and head that follow the words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiny_jukebox import WINDOW, tiny_jukebox, tiny_labels
from tunesmith.pipelines.alignment import best_heads
from tunesmith.training.alignment import alignment_of, store_alignment
from tunesmith.training.jukebox import PriorObjective


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of codes, or of the sound of them, with eight characters each, or none."""

    def __init__(self, lyrics: str = "oh so blu", audio: bool = False) -> None:
        self.audio, [row] = audio, tiny_labels(lyrics, total_length=800, sample_length=WINDOW * 8)[0]
        row = row[: 5 + 8]
        self.row = torch.cat([row, torch.zeros(13 - len(row), dtype=torch.long)])

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        codes = torch.randint(24, (WINDOW,), generator=generator)
        sound = torch.rand(WINDOW * 8, generator=generator) * 2 - 1
        return {"labels": self.row, **({"audio": sound} if self.audio else {"codes": codes})}


@pytest.mark.parametrize("joined", [False, True])
def test_the_best_head_of_all_windows_is_named(joined: bool, tmp_path: Path) -> None:
    model = tiny_jukebox(joined)
    objective, data = PriorObjective(model.priors[0], model.vqvae), Windows()
    totals: dict[tuple[int, int], float] = {}
    for i in range(3):
        for head in best_heads(objective.model, data[i]["codes"][None], data[i]["labels"][None]):
            totals[head.layer, head.head] = totals.get((head.layer, head.head), 0.0) + head.score
    expected = max(totals, key=totals.__getitem__)
    assert alignment_of(objective, data) == expected
    objective.model.save_pretrained(tmp_path)
    store_alignment(tmp_path, objective, data)
    config: dict[str, Any] = json.loads((tmp_path / "config.json").read_text())
    assert (config["alignment_layer"], config["alignment_head"]) == expected


def test_sound_is_encoded_first() -> None:
    model = tiny_jukebox()
    assert alignment_of(PriorObjective(model.priors[0], model.vqvae), Windows(audio=True)) is not None


def test_without_words_none_is_named(tmp_path: Path) -> None:
    model = tiny_jukebox()
    objective = PriorObjective(model.priors[0], model.vqvae)
    objective.model.save_pretrained(tmp_path)
    store_alignment(tmp_path, objective, Windows(lyrics=""))
    assert json.loads((tmp_path / "config.json").read_text())["alignment_layer"] is None
    assert alignment_of(PriorObjective(model.priors[1], model.vqvae), Windows()) is None
