"""The processes of one command: those that torchrun started, or one alone.

They share takes, and wait for each other where one does something for all.  Messages are few and small, so gloo does
for any device.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch.distributed

from tunesmith.errors import RunError, TunesmithError

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""Takes may last for days; torch's half hour would end the run."""


class Ranks(NamedTuple):
    """Which process this is, from 0, and how many there are."""

    rank: int
    world: int

    def share(self, items: Sequence[T]) -> list[T]:
        """The part of this process."""
        return list(items[self.rank :: self.world])

    def first(self, action: Callable[[], object]) -> None:
        """The first process acts, the others wait; what goes wrong goes wrong for all."""
        told = [""]
        try:
            if self.rank == 0:
                action()
        except TunesmithError as error:
            told = [str(error)]
            raise
        finally:
            if self.world > 1:
                torch.distributed.broadcast_object_list(told)
        if told[0]:
            raise RunError(told[0])

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            torch.distributed.barrier()

    @property
    def device(self) -> str | None:
        """The GPU of this process, where there are several of both."""
        if self.world == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Those of torchrun, until the end of the block."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(0, 1)
        return
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(torch.distributed.get_rank(), world)
    finally:
        torch.distributed.destroy_process_group()
