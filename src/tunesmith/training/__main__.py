"""`python -m tunesmith.training codec|text|lm --help`: the runs that made the bundled model."""

from collections.abc import Sequence
from typing import Annotated

import tyro

from tunesmith.training.codec import CodecRecipe, train_codec
from tunesmith.training.language_model import LanguageRecipe, train_language_model
from tunesmith.training.text import TextRecipe, train_text_encoder

Recipe = (
    Annotated[CodecRecipe, tyro.conf.subcommand("codec")]
    | Annotated[TextRecipe, tyro.conf.subcommand("text")]
    | Annotated[LanguageRecipe, tyro.conf.subcommand("lm")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a recipe from the command line and run it, or go on where it stopped."""
    recipe = tyro.cli(Recipe, prog="python -m tunesmith.training", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    if isinstance(recipe, CodecRecipe):
        train_codec(recipe)
    elif isinstance(recipe, TextRecipe):
        train_text_encoder(recipe)
    else:
        train_language_model(recipe)


if __name__ == "__main__":
    main()
