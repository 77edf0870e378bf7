"""Render clips to a folder: `python -m tunesmith.training.corpus OUT --split train --clips 1000 --seconds 20`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import TunesmithError
from tunesmith.events import Progress
from tunesmith.training.corpus.build import Recipe, render_shards
from tunesmith.training.corpus.split import SPLITS


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="python -m tunesmith.training.corpus", description="Compose, arrange and render clips with labels."
    )
    arguments.add_argument("out", type=Path, help="folder for the shards; what is there already is kept")
    arguments.add_argument("--split", choices=SPLITS, default="train", help="which works to use (default: %(default)s)")
    arguments.add_argument("--clips", type=int, default=1000, help="number of clips (default: %(default)s)")
    arguments.add_argument("--seconds", type=float, default=20.0, help="length of a clip (default: %(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="another seed, other clips (default: %(default)s)")
    arguments.add_argument("--sample-rate", type=int, default=16_000, help="samples per second (default: %(default)s)")
    arguments.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 for success, 2 for what can't be done."""
    options = vars(parser().parse_args(arguments))
    jobs = options.pop("jobs")
    try:
        for event in render_shards(Recipe(**options), jobs):
            if isinstance(event, Progress):
                _show(event)
    except TunesmithError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{options['clips']} clips are in {options['out']}.", file=sys.stderr)
    return 0


def _show(event: Progress) -> None:
    left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
    print(f"\r{event.done}/{event.total} clips{left}    ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
