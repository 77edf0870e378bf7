"""`python -m tunesmith.training RECIPE --help`: the runs that made the bundled model."""

from typing import Annotated

import tyro

from tunesmith.training.codec import CodecRecipe, train_codec

Recipe = Annotated[CodecRecipe, tyro.conf.subcommand("codec")]


def main() -> None:
    """Read a recipe from the command line and run it, or go on where it stopped."""
    recipe = tyro.cli(Recipe, prog="python -m tunesmith.training", config=(tyro.conf.OmitArgPrefixes,))
    train_codec(recipe)


if __name__ == "__main__":
    main()
