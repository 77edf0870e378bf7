"""Continuous batching with a fake model: who joins and leaves when, and that each gets what it would get alone."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from tunesmith.errors import RequestError
from tunesmith.generation import patterns
from tunesmith.generation.batching import PROMPT, Batch, Handle, Piece, as_many_as_fit
from tunesmith.generation.decode import finish, iterate_codes, with_prompts
from tunesmith.generation.sampling import Sampler

V = 11
SPECIAL = V


class Summing:
    """Slots (and a session) whose logits follow from the sum of all that was fed, and from the condition."""

    def __init__(self, count: int, capacity: int = 40) -> None:
        self.count, self.capacity = count, capacity
        self.totals = torch.zeros(count, 3, dtype=torch.long)
        self.conditions = [0] * count
        self.log: list[dict[int, int]] = []

    def begin(self, conditions: Mapping[int, int]) -> None:
        for slot, condition in conditions.items():
            self.totals[slot], self.conditions[slot] = 0, condition

    def feed(self, columns: Mapping[int, Tensor]) -> dict[int, Tensor]:
        self.log.append({slot: ids.shape[1] for slot, ids in columns.items()})
        for slot, ids in columns.items():
            self.totals[slot] += ids.sum(1)
        return {slot: self._logits(slot) for slot in columns}

    def _logits(self, slot: int) -> Tensor:
        """Two branches for an odd condition."""
        hot = torch.nn.functional.one_hot((self.totals[slot] + self.conditions[slot]) % V, V).float()[None]
        return (
            hot.repeat(1 + self.conditions[slot] % 2, 1, 1)
            * torch.tensor([1.0, 0.3])[: 1 + self.conditions[slot] % 2, None, None]
        )

    def prefill(self, ids: Tensor) -> Tensor:
        return self.feed({0: ids[0]})[0][:, None]

    def step(self, ids: Tensor) -> Tensor:
        return self.prefill(ids[:, :, None])


def piece(number: int) -> Piece:
    """Of 4 to 9 frames, with a prompt or none, guided or not, sampled in one of three ways."""
    frames, prompt = 4 + number % 6, number % 4
    given = torch.arange(3 * prompt).view(3, prompt) % V
    sampler = (Sampler(temperature=0.0), Sampler(top_k=5), Sampler(temperature=0.7, top_k=0, guidance=2.0))[number % 3]
    return Piece(
        pattern=patterns.delay(frames, [0, 1, 2]),
        codes=with_prompts([given], frames)[0],
        sampler=sampler,
        generator=torch.Generator().manual_seed(number),
        condition=number,
    )


def alone(number: int) -> Tensor:
    given, session = piece(number), Summing(1)
    session.begin({0: number})
    sampler = Sampler(**{**vars(given.sampler), "generators": [given.generator]})
    return finish(iterate_codes(session, given.pattern, given.codes[None], sampler, SPECIAL))[0]


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_pieces_that_join_and_leave_are_what_they_are_alone(slots: int) -> None:
    batch, handles, numbers = Batch(Summing(slots), SPECIAL), dict[int, Handle](), iter(range(20))
    for moment in range(200):
        if moment % 2 == 0 and (number := next(numbers, None)) is not None:
            handles[number] = batch.submit(piece(number))
        moved = batch.step()
        assert len(moved) <= slots
        assert batch.busy or moment
    assert not batch.busy
    for number, handle in handles.items():
        assert handle.finished
        assert torch.equal(handle.codes, alone(number))


def test_steps_tell_how_far_each_piece_is() -> None:
    batch = Batch(Summing(2), SPECIAL)
    first, second = batch.submit(piece(0)), batch.submit(piece(1))
    assert batch.room == 0
    seen = []
    while batch.busy:
        seen.append([(h is first, h.state.done, h.state.total, h.state.frames) for h in batch.step() if h.state])
    assert seen[0] == [(True, 1, 6, 0), (False, 1, 6, 0)]  # the second has a prompt of one frame, so is one ahead
    assert seen[2] == [(True, 3, 6, 1), (False, 3, 6, 2)]
    assert second.codes.shape == (3, 5)
    assert batch.room == 2


def test_who_finds_no_slot_waits_and_who_is_cancelled_leaves() -> None:
    batch = Batch(Summing(1), SPECIAL)
    first, second, third = (batch.submit(piece(i)) for i in range(3))
    assert [batch.step() for _ in range(2)] == [[first], [first]]
    first.cancel()
    second.cancel()
    assert batch.step() == [third]
    while batch.busy:
        batch.step()
    assert not first.finished
    assert second.state is None
    assert torch.equal(third.codes, alone(2))


def test_long_prompts_come_in_pieces_and_nobody_waits_for_them() -> None:
    slots = Summing(2, capacity=200)
    batch = Batch(slots, SPECIAL)
    codes = with_prompts([torch.ones(3, 100, dtype=torch.long)], 104)[0]
    long = Piece(
        pattern=patterns.delay(104, [0, 1, 2]),
        codes=codes,
        sampler=Sampler(0.0),
        generator=torch.Generator(),
        condition=0,
    )
    first, second = batch.submit(piece(5)), batch.submit(long)
    assert batch.step() == batch.step() == batch.step() == [first]
    while batch.busy:
        batch.step()
    assert [fed[1] for fed in slots.log[:5]] == [PROMPT, PROMPT, PROMPT, 101 - 3 * PROMPT, 1]
    assert second.finished
    assert torch.equal(first.codes, alone(5))


def test_nothing_to_choose_and_too_much() -> None:
    batch = Batch(Summing(1, capacity=9), SPECIAL)
    whole = torch.ones(3, 4, dtype=torch.long)
    given = Piece(pattern=patterns.delay(4, [0, 1, 2]), codes=whole, sampler=Sampler(), generator=torch.Generator())
    handle = batch.submit(given)
    assert handle.finished
    assert not batch.busy
    assert batch.step() == []
    assert torch.equal(handle.codes, whole)
    with pytest.raises(RequestError, match="12 columns doesn't fit a batch for at most 9"):
        batch.submit(piece(5))


class Short(Summing):
    """Slots on a GPU whose memory is too short for more than `most` pieces, at the moment `when` or from the start."""

    most = 2

    def __init__(self, count: int, when: int | None = None) -> None:
        if when is None and count > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        super().__init__(count)
        self.when = when

    def feed(self, columns: Mapping[int, Tensor]) -> dict[int, Tensor]:
        if self.when is not None and len(self.log) >= self.when and self.count > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().feed(columns)


@pytest.mark.parametrize("when", [0, 1, 4])
def test_a_batch_that_memory_is_too_short_for_goes_on_with_half(when: int, caplog: pytest.LogCaptureFixture) -> None:
    """Twelve pieces, eight at a time, then two: each has the codes that it has alone, and none begins anew."""
    batch = Batch(Short(8, when), SPECIAL, lambda count: as_many_as_fit(Short, count))
    handles = [batch.submit(piece(number)) for number in range(12)]
    done = [0] * 12
    while batch.busy:
        batch.step()
        now = [0 if handle.state is None else handle.state.done for handle in handles]
        assert all(after >= before for before, after in zip(done, now, strict=True))
        done = now
    assert batch.slots.count == 2
    assert [record.getMessage().split(" with ")[1].split(" at ")[0] for record in caplog.records] == [
        "4 songs",
        "2 songs",
    ]
    for number, handle in enumerate(handles):
        assert torch.equal(handle.codes, alone(number))


def test_one_piece_begins_anew_once_where_other_memory_was_given_up(caplog: pytest.LogCaptureFixture) -> None:
    class Crowded(Summing):
        def feed(self, columns: Mapping[int, Tensor]) -> dict[int, Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    batch = Batch(Crowded(1), SPECIAL, Summing)
    handle = batch.submit(piece(3))
    while batch.busy:
        batch.step()
    assert torch.equal(handle.codes, alone(3))
    batch = Batch(Crowded(1), SPECIAL, Crowded)
    batch.submit(piece(3))
    batch.step()
    with pytest.raises(torch.OutOfMemoryError):
        batch.step()


def test_memory_that_is_too_short_for_one() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        as_many_as_fit(lambda _: Short(9), 4)
    for fewer in (None, lambda count: Short(9)):
        batch = Batch(Short(4, when=0), SPECIAL, fewer)
        batch.submit(piece(0))
        with pytest.raises(torch.OutOfMemoryError):
            batch.step()
