"""Sing into a folder: `python -m tunesmith.training.corpus.singing_folder OUT --split train --songs 6000`.

OUT/train/000000.flac and so on, with OUT/train/metadata.jsonl (Hugging Face's audiofolder: artist, genre, title, and
lyrics as LRC with a time for each word), is what `tunesmith train` takes as it is.  Songs that are there are kept, and
a folder is only ever continued with the settings it was begun with.
"""

import argparse
import json
import multiprocessing
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.audio import Clip, write_atomically
from tunesmith.errors import RequestError, TunesmithError
from tunesmith.events import Finished, Pace, Progress
from tunesmith.training.corpus.singing import SAMPLE_RATE, VERSION, SungCorpus, SungLabels
from tunesmith.training.corpus.split import SPLITS

WITHHELD = 0.1
"""Share of training songs that don't tell their artist, likewise genre and lyrics: what "unknown" is learnt from."""
_TOGETHER = 16
"""Songs that a process sings at a time."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to sing and where to."""

    out: Path
    split: str = "train"
    songs: int = 1000
    seed: int = 0
    sample_rate: int = SAMPLE_RATE

    def __post_init__(self) -> None:
        if self.songs < 1:
            raise RequestError(f"A corpus can't have {self.songs} songs; ask for 1 or more.")
        self.corpus()  # refuses the rest

    def corpus(self) -> SungCorpus:
        """Where the songs come from."""
        return SungCorpus(self.seed, self.split, self.sample_rate)

    @property
    def folder(self) -> Path:
        """Of this split."""
        return self.out / self.split

    def file(self, index: int) -> Path:
        """Of a song."""
        return self.folder / f"{index:06d}.flac"


def sing_folder(recipe: Recipe, jobs: int = 1) -> Iterator[Progress | Finished[Path]]:
    """Sing what isn't there yet, then write the metadata; yields the number of songs done.

    jobs: processes.  Raises RequestError when the folder holds songs of other settings, MissingDependencyError when a
    program, library or soundfont is missing.
    """
    recipe.corpus().song(0)  # complains here of what is missing, and leaves the words in the cache for all processes
    _check_folder(recipe)
    missing = [index for index in range(recipe.songs) if not recipe.file(index).exists()]
    tasks = [(recipe, missing[start : start + _TOGETHER]) for start in range(0, len(missing), _TOGETHER)]
    pace, done = Pace("sing"), 0
    yield pace.at(done, len(missing))
    for count in _run(tasks, jobs):
        done += count
        yield pace.at(done, len(missing))
    rows = "".join(json.dumps(row_of(recipe, index)) + "\n" for index in range(recipe.songs))
    write_atomically(recipe.folder / "metadata.jsonl", rows.encode())
    yield Finished(result=recipe.folder)


def _run(tasks: list[tuple[Recipe, list[int]]], jobs: int) -> Iterator[int]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from map(_sing, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks))) as pool:
        yield from pool.imap_unordered(_sing, tasks)


def _sing(task: tuple[Recipe, list[int]]) -> int:
    recipe, indices = task
    corpus = recipe.corpus()
    for index in indices:
        Clip(corpus.song(index).audio[None], recipe.sample_rate).save(recipe.file(index), level="clip")
    return len(indices)


def _check_folder(recipe: Recipe) -> None:
    """Create the folder with its settings, or make sure that they are the same but for the number of songs."""
    settings: dict[str, Any] = {"seed": recipe.seed, "sample_rate": recipe.sample_rate, "version": VERSION}
    file = recipe.out / f"{recipe.split}.settings.json"
    recipe.folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_atomically(file, json.dumps(settings).encode())
    elif (found := json.loads(file.read_text())) != settings:
        raise RequestError(
            f"{recipe.out} holds songs of other settings ({found}); choose another folder or the same settings."
        )


def row_of(recipe: Recipe, index: int) -> dict[str, str]:
    """A song's line of metadata; in training some songs don't tell everything."""
    labels = recipe.corpus().labels_of(index)
    row = {
        "file_name": recipe.file(index).name,
        "title": labels.title,
        "artist": labels.artist,
        "genre": labels.genre,
        "lyrics": lrc(labels),
    }
    rng = random.Random(f"tunesmith singing / {recipe.seed} / withheld / {index}")
    told = {name: recipe.split != "train" or rng.random() >= WITHHELD for name in ("artist", "genre", "lyrics")}
    return {name: value for name, value in row.items() if told.get(name, True)}


def lrc(labels: SungLabels) -> str:
    """The line with the time of each word, as players of timed lyrics read it."""
    words, syllables = labels.lyrics.split(), iter(labels.syllables)
    timed = []
    for word in words:
        first, sung = (syllable := next(syllables)).start, syllable.text
        while sung != word:
            sung += next(syllables).text
        timed.append(f"<{_stamp(first)}>{word}")
    return f"[{_stamp(labels.syllables[0].start)}]{' '.join(timed)}"


def _stamp(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{seconds % 60:05.2f}"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="python -m tunesmith.training.corpus.singing_folder",
        description="Sing lines with accompaniment and labels.",
    )
    arguments.add_argument("out", type=Path, help="folder for the songs; what is there already is kept")
    arguments.add_argument(
        "--split", choices=SPLITS, default="train", help="which lines to sing (default: %(default)s)"
    )
    arguments.add_argument("--songs", type=int, default=1000, help="number of songs (default: %(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="another seed, other songs (default: %(default)s)")
    arguments.add_argument(
        "--sample-rate", type=int, default=SAMPLE_RATE, help="samples per second (default: %(default)s)"
    )
    arguments.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 for success, 2 for what can't be done."""
    options = vars(parser().parse_args(arguments))
    jobs = options.pop("jobs")
    try:
        for event in sing_folder(Recipe(**options), jobs):
            if isinstance(event, Progress):
                left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
                print(f"\r{event.done}/{event.total} songs{left}    ", end="", file=sys.stderr, flush=True)
    except TunesmithError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{options['songs']} songs are in {options['out'] / options['split']}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
