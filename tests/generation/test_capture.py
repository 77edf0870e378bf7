"""Recorded work, here without a GPU: the same buffers, pools and sizes; and that torch.compile finds no break in it."""

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tunesmith.generation import capture
from tunesmith.generation.capture import (
    BUCKET,
    KEPT,
    WARM_UP,
    Capture,
    Pool,
    addresses,
    bucket,
    fused,
    numbers,
    recordable,
)

CPU = torch.device("cpu")


class User:
    """A session, say."""


def test_work_reads_and_writes_its_buffers() -> None:
    x, y = torch.zeros(2, requires_grad=True), torch.zeros(2)
    run = Capture(lambda: _none(y.copy_(2 * x)), CPU)
    x.data.fill_(3)
    run()
    run()
    assert y.tolist() == [6, 6]
    assert not y.requires_grad


def test_on_a_gpu_work_is_recorded_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for torch.cuda: who calls what, in which order; and that the model may go."""
    said: list[str] = []

    class Graph:
        def replay(self) -> None:
            said.append("replay")

        def pool(self) -> str:
            return "scratch"

    class Stream:
        def wait_stream(self, _: object) -> None:
            said.append("wait")

    @contextmanager
    def recording(graph: Graph, pool: str | None = None, capture_error_mode: str = "global") -> Iterator[None]:
        said.append(f"record with {pool}")
        yield
        said.append("recorded")

    stand_ins = {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "graph": recording,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(capture, "_scratch", lambda _: Graph())
    model = nn.Linear(1, 1)
    gone = weakref.ref(model)
    run = Capture(partial(_say, said, model), torch.device("cuda"))
    assert said == ["wait", *["work"] * WARM_UP, "wait", "record with scratch", "work", "recorded"]
    run()
    run()
    assert said[-3:] == ["recorded", "replay", "replay"]
    del model
    assert gone() is None


def _say(said: list[str], _: nn.Module) -> None:
    said.append("work")


def _none(_: object) -> None:
    return None


def test_fused_work_has_no_breaks_and_is_compiled_once_each() -> None:
    counters.clear()
    total = torch.zeros(3)
    for size in range(12):  # more than torch recompiles a function by default
        part = torch.ones(size + 1, 3)
        run = fused(lambda part=part: _none(total.add_(part.sum(0))), backend="eager")
        run()
        run()
    assert total.tolist() == [2 * 78.0] * 3
    assert counters["stats"]["unique_graphs"] == 12
    assert not counters["graph_break"]
    with pytest.raises(torch._dynamo.exc.Unsupported):
        fused(lambda: _none(total.tolist() and torch._dynamo.graph_break()), backend="eager")()


def test_sizes_double_up_to_the_capacity() -> None:
    assert [bucket(n, 1536) for n in (1, BUCKET, BUCKET + 1, 600, 1024, 1025, 1536)] == [
        *(BUCKET, BUCKET, 2 * BUCKET),
        *(1024, 1024, 1536, 1536),
    ]
    assert bucket(3, 10) == 10


def test_what_a_session_leaves_serves_the_next_that_it_fits() -> None:
    pool, made = Pool[list[int]](), []

    def take(user: User, size: int) -> list[int]:
        def make() -> list[int]:
            made.append(size)
            return [size]

        return pool.take(user, lambda found: found[0] >= size, make)

    first, second = User(), User()
    large, small = take(first, 9), take(second, 5)  # nothing is left yet
    assert made == [9, 5]
    del second
    gc.collect()
    third = User()
    assert take(third, 4) is small
    del first
    gc.collect()
    assert take(User(), 6) is large
    users = [User() for _ in range(KEPT + 2)]
    for user in users:
        take(user, 100)
    users.clear()
    del user
    gc.collect()
    assert len(pool.free) == KEPT
    assert not copy.deepcopy(pool).free
    assert not pickle.loads(pickle.dumps(pool)).free


def test_what_was_left_makes_room_where_memory_is_short() -> None:
    pool = Pool[str]()

    def make() -> str:
        if pool.free:
            raise torch.OutOfMemoryError
        return "new"

    pool.free.append("old")
    assert pool.take(User(), lambda found: found == "fits", make) == "new"
    with pytest.raises(torch.OutOfMemoryError):
        Pool[str]().take(User(), bool, _too_much)


def _too_much() -> str:
    raise torch.OutOfMemoryError


def test_what_recordings_depend_on() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    before = addresses(model)
    assert addresses(model) == before
    model[0].weight.data.zero_()
    assert addresses(model) == before
    model.half()
    assert addresses(model) != before
    assert not recordable(model)  # not away from a GPU


def test_numbers() -> None:
    assert numbers([[1, 2], [3, 4]], CPU).tolist() == [[1, 2], [3, 4]]
    assert numbers([5], CPU).dtype == torch.long
