"""The one decode loop of both families.

The loop knows a language model only by two calls, so caches, conditions, guidance branches and window limits stay
with the model:

    session.prefill(ids [B K P]) -> logits [G B K V]    everything that is known before the first choice, once
    session.step(ids [B K])      -> logits [G B K V]    one more column

Both return the logits that predict the next column, for G guidance branches: the conditional one, then the null one
if there is guidance.  They hold until the next call: a session may use their memory again.

`iterate_codes` is a generator.  It yields a `Step` for each finished column and *returns* the codes:

    run = language_model.iterate_codes(...)
    for step in run:
        show(step.done, step.total)         # step.frames, step.codes: what is complete so far, for streaming
    step.codes                              # all of them, after the last step

To cancel, stop iterating (or `run.close()`).

A sample's codes depend on its own text, prompt and generator alone: the same seed gives the same codes in every batch.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.generation.patterns import Pattern
from tunesmith.nn.engine import with_torch_aside

Result = TypeVar("Result")

FREE = -1
"""In a grid: to be chosen.  Any other value is forced."""


@runtime_checkable
class Session(Protocol):
    """A language model in the middle of a piece: it remembers what it was fed."""

    def prefill(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """Feed the columns before the first choice; called once."""
        ...

    def step(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "G B K V"]:
        """Feed one column more."""
        ...


Chooser = Callable[[Tensor, Sequence[int]], Tensor]
"""(logits [G B K V], the samples that have something to choose) -> codes [B K]"""


@dataclass(frozen=True)
class Step:
    """One more column is done."""

    done: int
    """Columns chosen so far."""
    total: int
    """Columns to choose in all."""
    grid: Int[Tensor, "B K S"]
    pattern: Pattern
    column: int

    @property
    def frames(self) -> int:
        """How many leading frames are complete, the prompt included."""
        return self.pattern.complete_frames(self.column + 1)

    @property
    def codes(self) -> Int[Tensor, "B K S"]:
        """The complete frames."""
        return self.pattern.revert(self.grid, special=FREE)[:, :, : self.frames]


def fill(session: Session, grid: Int[Tensor, "B K S"], choose: Chooser) -> Iterator[int]:
    """Choose all free cells of the grid in place, left to right; yield each column when it is done.

    Forced cells stay, also those in a column that has free ones: the ragged head and tail of the delay, and samples
    whose prompt is longer.
    """
    free = grid == FREE
    busy = [[b for b, is_free in enumerate(column) if is_free] for column in free.any(1).T.tolist()]
    todo = [s for s, items in enumerate(busy) if items]
    if not todo:
        return
    with working(session):
        logits = session.prefill(grid[:, :, : todo[0]])
    for s in range(todo[0], todo[-1] + 1):
        with working(session):
            grid[:, :, s] = torch.where(free[:, :, s], choose(logits, busy[s]), grid[:, :, s])
        yield s
        if s < todo[-1]:
            with working(session):
                logits = session.step(grid[:, :, s])


def working(session: object) -> AbstractContextManager[None]:
    """While a step of a session, or of slots, is made and chosen from: torch leaves the processors to the kernels."""
    return with_torch_aside() if getattr(session, "on_kernels", False) else nullcontext()


@torch.no_grad()
def iterate_codes(
    session: Session, pattern: Pattern, codes: Int[Tensor, "B K S"], choose: Chooser, special: int
) -> Generator[Step, None, Int[Tensor, "B K S"]]:
    """Choose the codes that are `FREE`, in the order of the pattern.  Yields steps, returns all codes."""
    grid = pattern.build(codes, special)
    columns = (grid == FREE).any(1).any(0).nonzero().flatten().tolist()
    total = columns[-1] - columns[0] + 1 if columns else 0
    for done, column in enumerate(fill(session, grid, choose), start=1):
        yield Step(done, total, grid, pattern, column)
    return pattern.revert(grid, special)


def finish(run: Generator[Any, None, Result]) -> Result:
    """Run a generator to its end, for what it returns."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            result: Result = end.value
            return result


def with_prompts(
    prompts: Sequence[Int[Tensor, "K _"]], frames: int, device: torch.device | str = "cpu"
) -> Int[Tensor, "B K S"]:
    """Prompt codes (each may have its own length), then `FREE` up to `frames`."""
    codes = torch.full((len(prompts), prompts[0].shape[0], frames), FREE, device=device)
    for row, prompt in zip(codes, prompts, strict=True):
        row[:, : prompt.shape[1]] = prompt
    return codes
