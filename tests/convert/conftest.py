import warnings
from pathlib import Path

import pytest

import tiny
from tunesmith.convert.checkpoints import convert_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in our layout."""
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in audiocraft's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "audiocraft has no text encoder of width 24")
        return convert_checkpoint(folder, tmp_path_factory.mktemp("tiny") / "exported", to="audiocraft")
