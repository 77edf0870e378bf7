"""Work of fixed shapes, recorded once on a GPU and replayed from then on: one launch instead of hundreds.

    memory = pool.take(session, fits, make)   caches, buffers and recordings: what an earlier session left, if it fits
    memory.position.fill_(7)                  whatever changes from call to call lies in buffers
    Capture(work, device)()                   `work()` reads and writes tensors that stay where they are

Elsewhere than on a GPU the same work is called as it is, on the same buffers.  Memory grows in few sizes (`bucket`), so
that there are few recordings, and pieces of different length share them.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

T = TypeVar("T")

BUCKET = 256
"""Columns of the smallest memory that is attended to; it doubles."""
KEPT = 2
"""Memories that a model keeps for sessions to come."""
WARM_UP = 2
"""Calls before a recording: libraries choose their kernels and take their memory in these."""
_ONE_BY_ONE = Lock()
"""Recordings share memory, which one thread at a time may record into."""


class Capture:
    """`work` does the same whenever its buffers hold the same, however often it is called."""

    def __init__(self, work: Callable[[], None], device: torch.device, fuse: bool = False) -> None:
        """fuse: let torch.compile make few kernels of many, which takes it a while.  Buffers hold sensible values."""
        self.work: Callable[[], None] | None = fused(work) if fuse else work
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._record(device)

    def __call__(self) -> None:
        """Do it."""
        if self.graph is not None:
            self.graph.replay()
        elif self.work is not None:
            with torch.no_grad():
                self.work()

    @torch.no_grad()
    def _record(self, device: torch.device) -> None:
        assert self.work is not None, "this is done once"
        with _ONE_BY_ONE, torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self.work()
            torch.cuda.current_stream().wait_stream(aside)
            self.graph, scratch = torch.cuda.CUDAGraph(), _scratch(device).pool()
            with torch.cuda.graph(self.graph, pool=scratch, capture_error_mode="thread_local"):
                self.work()
        self.work = None  # the recording needs no model, and models go when nobody else needs them


@cache
def _scratch(device: torch.device) -> torch.cuda.CUDAGraph:
    """A recording that stays.  All others share its memory for what doesn't outlive a call: they run one by one."""
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(1, device=device)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        x.add_(1)
    return graph


def fused(work: Callable[[], None], backend: str = "inductor") -> Callable[[], None]:
    """Without a break, and anew for each recording: torch's limit of recompilations is meant for other uses."""
    import torch._dynamo.config as settings

    compiled: Any = torch.compile(work, fullgraph=True, dynamic=False, backend=backend)

    def run() -> None:
        with settings.patch(recompile_limit=2**16, accumulated_recompile_limit=2**16):
            compiled()

    return run


@contextmanager
def plain_tensors() -> Iterator[None]:
    """For buffers that are written to in torch's inference mode and out of it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Pool(Generic[T]):
    """What sessions leave behind.  It isn't copied or saved with its model."""

    def __init__(self) -> None:
        self.free = deque[T](maxlen=KEPT)

    def take(self, user: object, fits: Callable[[T], bool], make: Callable[[], T]) -> T:
        """What fits, or a new one; it comes back when `user` is gone.  Where memory is short, the rest is given up."""
        found = self._find(fits)
        if found is None:
            found = self._made(make)
        weakref.finalize(user, self.free.append, found).atexit = False
        return found

    @plain_tensors()
    def _made(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except torch.OutOfMemoryError:
            if not self.free:
                raise
        self.clear()
        return make()

    def _find(self, fits: Callable[[T], bool]) -> T | None:
        with suppress(IndexError):  # another thread may be quicker
            for _ in range(len(self.free)):
                found = self.free.popleft()
                if fits(found):
                    return found
                self.free.append(found)
        return None

    def clear(self) -> None:
        """Give all of it up."""
        self.free.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def __reduce__(self) -> Any:
        return Pool, ()


class Keeper(nn.Module):
    """A model that keeps what sessions leave behind, as long as it stays where it is."""

    kept: Pool[Any]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moved or cast, it needs other recordings, and memory is to be free where it was."""
        self.kept.clear()
        return super()._apply(fn, recurse)


def bucket(columns: int, capacity: int) -> int:
    """How much of a memory with room for `capacity` columns is attended to while so many are filled."""
    return min(max(1 << (columns - 1).bit_length(), BUCKET), capacity)


def recordable(model: nn.Module) -> bool:
    """May a step be recorded?  Not away from a GPU, nor with hooks, adapters or whatever else may change its mind."""
    device = next(model.parameters()).device
    if device.type != "cuda" or model.training or torch.is_autocast_enabled("cuda"):
        return False
    return all(map(_is_plain, model.modules()))


def _is_plain(part: nn.Module) -> bool:
    hooked = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    return not hooked and type(part).__module__.split(".")[0] in ("tunesmith", "torch")


def addresses(model: nn.Module) -> tuple[Any, ...]:
    """Where weights lie: recordings hold as long as this stays the same."""
    return tuple((x.data_ptr(), x.dtype) for x in (*model.parameters(), *model.buffers()))


def numbers(values: Sequence[Any], device: torch.device) -> Shaped[Tensor, "..."]:
    """Whole numbers on a device, without waiting for it."""
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)
