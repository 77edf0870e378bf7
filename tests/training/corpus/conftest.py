"""Which tests need what is not a Python package."""

import shutil
from importlib.util import find_spec

import pytest

from tunesmith.errors import MissingDependencyError
from tunesmith.training.corpus.library import cache_file
from tunesmith.training.corpus.render import Renderer, find_soundfont


@pytest.fixture(scope="session")
def player() -> Renderer:
    """A renderer at 16 kHz; tests that ask for it skip where FluidSynth or a soundfont is missing."""
    try:
        return Renderer(find_soundfont(), 16_000)
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def works() -> None:
    """Tests that ask for this skip where the traditional tunes can't be read."""
    if find_spec("music21") is None:
        pytest.skip("music21 is not installed (pip install tunesmith[corpus])")
    if shutil.which("abc2midi") is None and not cache_file().exists():
        pytest.skip("abc2midi is not installed (apt-get install abcmidi)")
