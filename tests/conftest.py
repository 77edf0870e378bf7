"""What all tests share: one thread, no network, and the goldens where they are present."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

GOLDENS = Path(__file__).resolve().parents[2] / "shared" / "goldens"


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of reference tensors computed by the original implementations; they don't travel with the package."""
    if not GOLDENS.is_dir():
        pytest.skip("the reference tensors (goldens) are not beside this checkout")
    return GOLDENS
