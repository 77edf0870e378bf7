"""Render clips to a folder: `python -m tunesmith.training.corpus OUT --split train --clips 1000 --seconds 20`."""

import sys
from collections.abc import Sequence

from tunesmith.training.corpus import writing
from tunesmith.training.corpus.build import Recipe, render_shards


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 for success, 2 for what can't be done."""
    parser = writing.parser("corpus", "Compose, arrange and render clips with labels.", "clips", sample_rate=16_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a clip (default: %(default)s)")
    options = vars(parser.parse_args(arguments))
    jobs = options.pop("jobs")
    done = f"{options['clips']} clips are in {options['out']}."
    return writing.run(lambda: render_shards(Recipe(**options), jobs), "clips", done)


if __name__ == "__main__":
    sys.exit(main())
