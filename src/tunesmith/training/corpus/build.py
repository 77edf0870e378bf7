"""Writing the corpus to disk in shards, resumably.

A shard is two files: `train-00000.npy`, int16 samples [clips, samples] that numpy can map into memory, and
`train-00000.jsonl`, a line of labels and caption for each clip.  `train.json` holds the settings; a folder is only ever
continued with the settings it was begun with.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tunesmith.audio import write_atomically
from tunesmith.errors import RequestError
from tunesmith.events import Finished, Progress
from tunesmith.training.corpus import VERSION, Corpus
from tunesmith.training.corpus.library import load_library
from tunesmith.training.corpus.render import find_soundfont, renderer
from tunesmith.training.corpus.split import Split
from tunesmith.training.corpus.writing import keep_settings, work

CLIPS_PER_SHARD = 128


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to write."""

    out: Path
    split: Split = "train"
    clips: int = 1000
    seconds: float = 20.0
    seed: int = 0
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise RequestError(f"A corpus can't have {self.clips} clips; ask for 1 or more.")
        Corpus(self.seed, self.split, self.seconds, self.sample_rate)  # refuses the rest

    @property
    def shards(self) -> list[range]:
        """The indices of the clips of each shard."""
        starts = range(0, self.clips, CLIPS_PER_SHARD)
        return [range(start, min(start + CLIPS_PER_SHARD, self.clips)) for start in starts]

    def file(self, shard: int, suffix: str) -> Path:
        """Where a shard's samples (`.npy`) or labels (`.jsonl`) go."""
        return self.out / f"{self.split}-{shard:05d}{suffix}"


def render_shards(recipe: Recipe, jobs: int = 1) -> Iterator[Progress | Finished[Path]]:
    """Write the shards that aren't there yet; yields the number of clips done.

    Args:
        recipe: what to write and where.
        jobs: processes.

    Raises:
        RequestError: when the folder holds shards of other settings.
        MissingDependencyError: when a program, library or soundfont is missing.

    """
    renderer(find_soundfont(), recipe.sample_rate)  # complains here of what is missing, not in a worker
    load_library()  # parsed and cached once, before the workers start
    settings = {name: value for name, value in asdict(recipe).items() if name not in ("out", "clips")}
    keep_settings(recipe.out / f"{recipe.split}.json", {**settings, "version": VERSION}, "clips")
    shards = recipe.shards
    missing = [shard for shard, clips in enumerate(shards) if not _finished(recipe, shard, len(clips))]
    total = sum(len(shards[shard]) for shard in missing)
    yield from work("render", _render_shard, [(recipe, shard) for shard in missing], total, jobs)
    yield Finished(result=recipe.out)


def _finished(recipe: Recipe, shard: int, clips: int) -> bool:
    """Whether a shard is there in full: the last one may have been written when fewer clips were asked for."""
    file = recipe.file(shard, ".npy")
    return file.exists() and len(np.load(file, mmap_mode="r")) == clips


def _render_shard(task: tuple[Recipe, int]) -> int:
    """Write one shard, the samples last: they mark it as complete.  Returns the number of clips."""
    recipe, shard = task
    corpus = Corpus(recipe.seed, recipe.split, recipe.seconds, recipe.sample_rate)
    indices = recipe.shards[shard]
    samples = np.zeros((len(indices), round(recipe.seconds * recipe.sample_rate)), np.int16)
    lines = []
    for row, index in enumerate(indices):
        example = corpus.example(index)
        samples[row] = np.round(example.audio * 32767)
        lines.append(json.dumps({"index": index, "caption": example.caption, "labels": example.labels.as_dict()}))
    write_atomically(recipe.file(shard, ".jsonl"), ("\n".join(lines) + "\n").encode())
    whole = io.BytesIO()
    np.save(whole, samples)
    write_atomically(recipe.file(shard, ".npy"), whole.getvalue())
    return len(indices)
