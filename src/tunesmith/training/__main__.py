"""`python -m tunesmith.training codec|lm --help`: the runs that made the bundled model."""

from typing import Annotated

import tyro

from tunesmith.training.codec import CodecRecipe, train_codec
from tunesmith.training.language_model import LanguageRecipe, train_language_model

Recipe = Annotated[CodecRecipe, tyro.conf.subcommand("codec")] | Annotated[LanguageRecipe, tyro.conf.subcommand("lm")]


def main() -> None:
    """Read a recipe from the command line and run it, or go on where it stopped."""
    recipe = tyro.cli(Recipe, prog="python -m tunesmith.training", config=(tyro.conf.OmitArgPrefixes,))
    if isinstance(recipe, CodecRecipe):
        train_codec(recipe)
    else:
        train_language_model(recipe)


if __name__ == "__main__":
    main()
