"""What tests of the CPU's kernels share."""

from collections.abc import Iterator

import pytest

from tunesmith.nn import engine


@pytest.fixture(params=["avx512-bf16", "avx512-vnni", "avx2", "plain"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of instructions that this machine has, in turn."""
    best = engine.instructions()
    if not engine.use_instructions(request.param):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    assert engine.use_instructions(str(best))
