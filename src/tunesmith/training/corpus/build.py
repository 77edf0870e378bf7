"""Writing the corpus to disk in shards, resumably.

A shard is two files: `train-00000.npy`, int16 samples [clips, samples] that numpy can map into memory, and
`train-00000.jsonl`, a line of labels and caption for each clip.  `train.json` holds the settings; a folder is only ever
continued with the settings it was begun with.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tunesmith.errors import RequestError
from tunesmith.events import Finished, Pace, Progress
from tunesmith.training.corpus import VERSION, Corpus
from tunesmith.training.corpus.library import load_library
from tunesmith.training.corpus.render import find_soundfont, renderer
from tunesmith.training.corpus.split import Split

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
    _check_folder(recipe)
    missing = [shard for shard, clips in enumerate(recipe.shards) if not _finished(recipe, shard, len(clips))]
    pace, done, total = Pace("render"), 0, sum(len(recipe.shards[shard]) for shard in missing)
    yield pace.at(done, total)
    for count in _run([(recipe, shard) for shard in missing], jobs):
        done += count
        yield pace.at(done, total)
    yield Finished(result=recipe.out)


def _run(tasks: list[tuple[Recipe, int]], jobs: int) -> Iterator[int]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from map(_render_shard, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks))) as pool:
        yield from pool.imap_unordered(_render_shard, tasks)


def _check_folder(recipe: Recipe) -> None:
    """Create the folder with its settings, or make sure that they are the same but for the number of clips."""
    settings = {name: value for name, value in asdict(recipe).items() if name not in ("out", "clips")}
    settings["version"] = VERSION
    file = recipe.out / f"{recipe.split}.json"
    recipe.out.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        _replace(file, (json.dumps(settings) + "\n").encode())
    elif (found := json.loads(file.read_text())) != settings:
        raise RequestError(
            f"{recipe.out} holds clips of other settings ({found}); choose another folder or the same settings."
        )


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
    _replace(recipe.file(shard, ".jsonl"), ("\n".join(lines) + "\n").encode())
    part = recipe.file(shard, f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, samples)
    part.replace(recipe.file(shard, ".npy"))
    return len(indices)


def _replace(file: Path, content: bytes) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(file)
