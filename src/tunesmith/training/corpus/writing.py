"""What the commands that write a corpus to disk share: settings that a folder keeps, processes, arguments, progress."""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.audio import write_atomically
from tunesmith.errors import RequestError, TunesmithError
from tunesmith.events import Event, Pace, Progress
from tunesmith.training.corpus.split import SPLITS

Task = TypeVar("Task")


def keep_settings(file: Path, settings: Mapping[str, Any], things: str) -> None:
    """Write them down, or make sure that they are what they were.  Raises RequestError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_atomically(file, (json.dumps(settings) + "\n").encode())
    elif (found := json.loads(file.read_text())) != settings:
        raise RequestError(
            f"{file.parent} holds {things} of other settings ({found}); choose another folder or the same settings."
        )


def work(stage: str, do: Callable[[Task], int], tasks: Sequence[Task], total: int, jobs: int) -> Iterator[Progress]:
    """Do the tasks, in so many processes; yields how many of all things are done, of which each task tells its own."""
    pace, done = Pace(stage), 0
    yield pace.at(done, total)
    for count in _each(do, tasks, jobs):
        done += count
        yield pace.at(done, total)


def _each(do: Callable[[Task], int], tasks: Sequence[Task], jobs: int) -> Iterator[int]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from map(do, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks))) as pool:
        yield from pool.imap_unordered(do, tasks)


def parser(program: str, description: str, things: str, sample_rate: int) -> argparse.ArgumentParser:
    """The arguments of `python -m tunesmith.training.PROGRAM`."""
    arguments = argparse.ArgumentParser(prog=f"python -m tunesmith.training.{program}", description=description)
    arguments.add_argument("out", type=Path, help=f"folder for the {things}; what is there already is kept")
    arguments.add_argument("--split", choices=SPLITS, default="train", help="part of the corpus (default: %(default)s)")
    for name, default, told in (
        (things, 1000, f"number of {things}"),
        ("seed", 0, f"another seed, other {things}"),
        ("sample-rate", sample_rate, "samples per second"),
        ("jobs", 1, "processes"),
    ):
        arguments.add_argument(f"--{name}", type=int, default=default, help=f"{told} (default: %(default)s)")
    return arguments


def run(events: Callable[[], Iterable[Event]], things: str, done: str) -> int:
    """Show how it goes on stderr, at last `done`; 0 for success, 2 for what can't be done."""
    try:
        for event in events():
            if isinstance(event, Progress):
                left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
                print(f"\r{event.done}/{event.total} {things}{left}    ", end="", file=sys.stderr, flush=True)
    except TunesmithError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{done}", file=sys.stderr)
    return 0
