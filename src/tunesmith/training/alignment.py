"""Which layer and head of a prior follow the words, found on the songs that it was trained or tested on."""

import json
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tunesmith.conditioning.labels import GENRES
from tunesmith.conditioning.lyrics import PAD
from tunesmith.pipelines.alignment import best_heads, lyric_layers
from tunesmith.training.checkpoints import write_json
from tunesmith.training.jukebox import PriorObjective

WINDOWS = 8
"""Windows with words that heads are judged on, at most."""
LOOKED_AT = 200
"""Windows that are looked through for words, at most."""


@torch.no_grad()
def alignment_of(objective: PriorObjective, data: Dataset[Any]) -> tuple[int, int] | None:
    """Layer and head, judged on windows of the data; None for a prior without lyrics or data without words.

    data: items as the objective takes them.  Nor is there any for a prior that processes share (FSDP).
    """
    prior = objective.model
    if not lyric_layers(prior) or any(hasattr(p, "full_tensor") for p in prior.parameters()):
        return None
    training, scores = prior.training, dict[tuple[int, int], float]()
    prior.eval()
    for codes, labels in _windows(objective, data):
        for head in best_heads(prior, codes, labels):
            scores[head.layer, head.head] = scores.get((head.layer, head.head), 0.0) + head.score
    prior.train(training)
    return max(scores, key=scores.__getitem__) if scores else None


def store_alignment(folder: Path, objective: PriorObjective, data: Dataset[Any]) -> None:
    """Write it into a prior's config.json; without one it names none, for what stands there is a preset's."""
    layer, head = alignment_of(objective, data) or (None, None)
    file = folder / "config.json"
    write_json(file, {**json.loads(file.read_text()), "alignment_layer": layer, "alignment_head": head})


def _windows(objective: PriorObjective, data: Dataset[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes [1, S] and labels [1, Y] of windows in which something is sung."""
    assert isinstance(data, Sized)
    device, first = objective.model.device, GENRES + objective.model.config.max_nb_genres
    found = 0
    for i in range(min(LOOKED_AT, len(data))):
        item = data[i]
        if int((item["labels"][first:] != PAD).sum()) > 1:
            codes = item["codes"][None] if "codes" in item else objective.encoded(item["audio"][None].to(device))[0]
            yield codes.to(device), item["labels"][None].to(device)
            found += 1
        if found == WINDOWS:
            return
