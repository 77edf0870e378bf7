"""Sing into a folder: `python -m tunesmith.training.corpus.singing_folder OUT --split train --songs 6000`.

OUT/train/000000.flac and so on, with OUT/train/metadata.jsonl (Hugging Face's audiofolder: artist, genre, title, and
lyrics as LRC with a time for each word), is what `tunesmith train` takes as it is.  Songs that are there are kept, and
a folder is only ever continued with the settings it was begun with.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.audio import Clip, write_atomically
from tunesmith.errors import RequestError
from tunesmith.events import Finished, Progress
from tunesmith.training.corpus.singing import SAMPLE_RATE, VERSION, SungCorpus, SungLabels
from tunesmith.training.corpus.writing import keep_settings, parser, run, work

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
    recipe.folder.mkdir(parents=True, exist_ok=True)
    settings = {"seed": recipe.seed, "sample_rate": recipe.sample_rate, "version": VERSION}
    keep_settings(recipe.out / f"{recipe.split}.settings.json", settings, "songs")
    missing = [index for index in range(recipe.songs) if not recipe.file(index).exists()]
    tasks = [(recipe, missing[start : start + _TOGETHER]) for start in range(0, len(missing), _TOGETHER)]
    yield from work("sing", _sing, tasks, len(missing), jobs)
    rows = "".join(json.dumps(row_of(recipe, index)) + "\n" for index in range(recipe.songs))
    write_atomically(recipe.folder / "metadata.jsonl", rows.encode())
    yield Finished(result=recipe.folder)


def _sing(task: tuple[Recipe, list[int]]) -> int:
    recipe, indices = task
    corpus = recipe.corpus()
    for index in indices:
        Clip(corpus.song(index).audio[None], recipe.sample_rate).save(recipe.file(index), level="clip")
    return len(indices)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 for success, 2 for what can't be done."""
    told = "Sing lines with accompaniment and labels."
    options = vars(parser("corpus.singing_folder", told, "songs", SAMPLE_RATE).parse_args(arguments))
    jobs = options.pop("jobs")
    done = f"{options['songs']} songs are in {options['out'] / options['split']}."
    return run(lambda: sing_folder(Recipe(**options), jobs), "songs", done)


if __name__ == "__main__":
    sys.exit(main())
