"""Continuous batching: pieces join and leave a running batch; a step chooses one more column of each.

    batch = Batch(language_model.slots(16, columns, text_places), special)
    handle = batch.submit(language_model.piece(...))        # at any time, from any thread
    while batch.busy:
        for moved in batch.step():                          # in one thread, always the same
            show(moved.state.done, moved.state.total)       # .frames, .codes: what is complete so far
    handle.codes                                            # when it is finished
    handle.cancel()                                         # when nobody waits for it

A step reads the weights once for all pieces, so sixteen songs together take a fraction of sixteen alone.  A piece has a
slot of the model's memory while it runs; those that find none wait in the order in which they came.  Pieces may differ
in everything: length, prompt, text, guidance, sampling.  A piece's codes depend on itself alone, as in `decode.py`.

Where a GPU's memory doesn't suffice in the middle of it, the batch goes on with half as many slots (`fewer`): what is
chosen stays, and the model hears it anew.  A step waits for no device.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.errors import RequestError
from tunesmith.generation.capture import numbers
from tunesmith.generation.decode import FREE, Step, working
from tunesmith.generation.patterns import Pattern
from tunesmith.generation.sampling import Sampler

PROMPT = 32
"""Columns of a prompt that are fed in a step: the others don't wait for long ones."""


@runtime_checkable
class Slots(Protocol):
    """A language model in the middle of several pieces, each at a place of its own."""

    count: int
    """How many pieces there is memory for."""
    capacity: int
    """The most columns of a piece."""

    def begin(self, conditions: Mapping[int, Any]) -> None:
        """New pieces in these slots; what was there is forgotten.  Conditions are as the model makes them."""
        ...

    def feed(self, columns: Mapping[int, Int[Tensor, "K _"]]) -> dict[int, Float[Tensor, "G K V"]]:
        """Feed what comes next in these slots; the logits of what follows, for each slot's guidance branches."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Piece:
    """What is to be made: all that `iterate_codes` takes, for one sample."""

    pattern: Pattern
    codes: Int[Tensor, "K S"]
    """The prompt, then `FREE`."""
    sampler: Sampler
    generator: torch.Generator
    condition: Any = None


@dataclass(eq=False)
class Handle:
    """A piece that was submitted."""

    piece: Piece
    grid: Int[Tensor, "1 K S"]
    todo: list[int]
    """Columns in which there is something to choose."""
    fed: int = 0
    """Columns that the model knows."""
    state: Step | None = None
    """Of the last column that was chosen."""
    cancelled: bool = False
    slot: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.open = frozenset(self.todo)

    @classmethod
    def of(cls, piece: Piece, special: int) -> "Handle":
        """Nothing is done yet."""
        grid = piece.pattern.build(piece.codes[None], special)
        return cls(piece, grid, (grid == FREE).any(1)[0].nonzero().flatten().tolist())

    @property
    def column(self) -> int:
        """The column to choose next."""
        return self.todo[0] if self.state is None else self.state.column + 1

    @property
    def total(self) -> int:
        """Columns to choose in all."""
        return self.todo[-1] + 1 - self.todo[0] if self.todo else 0

    @property
    def finished(self) -> bool:
        """Is nothing left to choose?"""
        return not self.todo or (self.state is not None and self.state.column == self.todo[-1])

    @property
    def codes(self) -> Int[Tensor, "K S"]:
        """All codes, in the order of frames; `FREE` where there is none yet."""
        return self.piece.pattern.revert(self.grid, FREE)[0]

    def cancel(self) -> None:
        """It leaves before the next step."""
        self.cancelled = True

    def next_columns(self) -> Int[Tensor, "K P"]:
        """What the model hasn't seen of what comes before the next choice, and not too much of it."""
        return self.grid[0, :, self.fed : min(self.column, self.fed + PROMPT)]

    def move(self, grid: Int[Tensor, "1 K S"]) -> None:
        """The grid lies somewhere else from now on."""
        self.grid = grid
        if self.state is not None:
            self.state = replace(self.state, grid=grid)

    def advance(self) -> None:
        """A column was chosen."""
        column = self.column
        self.state = Step(column + 1 - self.todo[0], self.total, self.grid, self.piece.pattern, column)


class Batch:
    """Pieces that are made together."""

    def __init__(self, slots: Slots, special: int, fewer: Callable[[int], Slots] | None = None) -> None:
        """special: the code of cells without one.  fewer: makes so many slots, where memory was too short for more, and
        gives up first what else is kept there.
        """
        self.slots, self.special, self.fewer = slots, special, fewer
        self.alone = False
        """Was memory given up until there was but one slot?"""
        self.waiting: deque[Handle] = deque()
        self.running: dict[int, Handle] = {}
        self.grids: Int[Tensor, "B K S"] | None = None
        """Of all slots, so that a column is chosen for all at once."""

    @property
    def busy(self) -> bool:
        """Is anything left to do?"""
        return bool(self.waiting or self.running)

    @property
    def room(self) -> int:
        """How many pieces more could begin with the next step."""
        return max(self.slots.count - len(self.running) - len(self.waiting), 0)

    def submit(self, piece: Piece) -> Handle:
        """Have a piece made.  Raises RequestError for one that is longer than the slots."""
        if piece.pattern.steps > self.slots.capacity:
            raise RequestError(
                f"A piece of {piece.pattern.steps} columns doesn't fit a batch for at most {self.slots.capacity}; "
                "make a batch with more."
            )
        handle = Handle.of(piece, self.special)
        if not handle.finished:
            self.waiting.append(handle)
        return handle

    @torch.no_grad()
    def step(self) -> list[Handle]:
        """Choose one more column of every piece that has heard its prompt; returns those pieces.

        Raises torch.OutOfMemoryError where memory is too short for a single slot.
        """
        self._leave()
        with working(self.slots):
            logits = self._advance()
            if logits is None:  # what the error held is free by now
                self._halve()
                return []
            ready = [handle for handle in self.running.values() if handle.fed == handle.column]
            self._choose(ready, logits)
        self._leave()
        return ready

    def _advance(self) -> dict[int, Tensor] | None:
        """Feed what comes next; None where memory didn't suffice."""
        try:
            self._join()
            columns = {slot: handle.next_columns() for slot, handle in self.running.items()}
            logits = self.slots.feed(columns) if columns else {}
        except torch.OutOfMemoryError:
            if self.fewer is None or self.alone:
                raise
            return None
        for slot, fed in columns.items():
            self.running[slot].fed += fed.shape[1]
        return logits

    def _halve(self) -> None:
        """Half as many slots; pieces that run begin again with what they have."""
        count = max(self.slots.count // 2, 1)
        self.alone = count == 1
        tell_halved(count)
        for slot, handle in sorted(self.running.items(), reverse=True):
            self._part(slot, handle)
            handle.fed = 0
            self.waiting.appendleft(handle)
        assert self.fewer is not None
        del self.slots
        self.slots, self.grids = self.fewer(count), None

    def _leave(self) -> None:
        for slot, handle in list(self.running.items()):
            if handle.finished or handle.cancelled:
                self._part(slot, handle)

    def _part(self, slot: int, handle: Handle) -> None:
        """Slot and piece."""
        handle.slot = None
        handle.move(handle.grid.clone())
        del self.running[slot]

    def _join(self) -> None:
        free = [slot for slot in range(self.slots.count) if slot not in self.running]
        joined: dict[int, Any] = {}
        while self.waiting and len(joined) < len(free):
            handle = self.waiting.popleft()
            if not handle.cancelled:
                handle.slot = free[len(joined)]
                joined[handle.slot] = handle.piece.condition
                self.running[handle.slot] = handle
                handle.move(self._place(handle))
        if joined:
            self.slots.begin(joined)

    def _place(self, handle: Handle) -> Int[Tensor, "1 K S"]:
        """A piece's grid among the others'."""
        given, slot = handle.grid, _slot(handle)
        if self.grids is None:
            self.grids = given.new_full((self.slots.count, given.shape[1], self.slots.capacity), self.special)
        place = self.grids[slot : slot + 1, :, : given.shape[2]]
        return place.copy_(given)

    def _choose(self, handles: Sequence[Handle], logits: Mapping[int, Tensor]) -> None:
        """Pieces that are sampled alike are sampled together."""
        alike: dict[tuple[Sampler, int], list[Handle]] = {}
        for handle in handles:
            alike.setdefault((handle.piece.sampler, len(logits[_slot(handle)])), []).append(handle)
        for (sampler, _), members in alike.items():
            choose = replace(sampler, generators=[member.piece.generator for member in members])
            busy = [i for i, member in enumerate(members) if member.column in member.open]
            self._take(members, choose(torch.stack([logits[_slot(m)] for m in members], 1), busy))

    def _take(self, handles: Sequence[Handle], codes: Int[Tensor, "B K"]) -> None:
        """The choice of a column each; forced cells stay."""
        assert self.grids is not None
        slots, columns = numbers([(_slot(h), h.column) for h in handles], codes.device).T
        there = self.grids[slots, :, columns]
        self.grids[slots, :, columns] = torch.where(there == FREE, codes, there)
        for handle in handles:
            handle.advance()


def tell_halved(count: int) -> None:
    """Say that there are so many songs at once from now on."""
    songs = "one song" if count == 1 else f"{count} songs"
    logging.getLogger("tunesmith").warning(
        "The GPU's memory didn't suffice: going on with %s at a time; nothing is lost.", songs
    )


def as_many_as_fit(make: Callable[[int], Slots], count: int) -> Slots:
    """So many slots, or half as many as often as it takes.  Raises torch.OutOfMemoryError where one is too many."""
    while True:
        try:
            return make(count)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        count //= 2
        tell_halved(count)


def too_large() -> RequestError:
    """What to say where not even one song fits."""
    return RequestError(
        "Not even one song fits into the GPU's memory; ask for fewer seconds, use dtype 'bfloat16' or quantize 'int8', "
        "or the device 'cpu'."
    )


def _slot(handle: Handle) -> int:
    assert handle.slot is not None, "it is running"
    return handle.slot
