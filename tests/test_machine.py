"""What a machine has."""

from tunesmith import machine


def test_free_memory() -> None:
    free = machine.free_memory("cpu")
    assert free is None or 2**20 < free < 2**50


def test_there_is_a_processor() -> None:
    assert machine.processors() >= 1
