"""The decode loop, with a fake model whose next code is a function of what it was fed."""

import torch
from torch import Tensor

from tunesmith.generation import decode, patterns
from tunesmith.generation.decode import FREE
from tunesmith.generation.sampling import Sampler

V = 11
SPECIAL = V


class Counting:
    """A session that prefers, in every codebook, the sum of all that it was fed, modulo V."""

    def __init__(self) -> None:
        self.total = torch.zeros(1)
        self.calls: list[int] = []

    def prefill(self, ids: Tensor) -> Tensor:
        self.total, before = ids.sum(-1), len(self.calls)
        assert before == 0
        return self._logits(ids.shape[-1])

    def step(self, ids: Tensor) -> Tensor:
        self.total = self.total + ids
        return self._logits(1)

    def _logits(self, columns: int) -> Tensor:
        self.calls.append(columns)
        return torch.nn.functional.one_hot(self.total % V, V).float()[None]


GREEDY = Sampler(temperature=0.0)


def run(prompts: list[Tensor], frames: int) -> tuple[Tensor, list[decode.Step], Counting]:
    session, steps = Counting(), []
    pattern = patterns.delay(frames, [0, 1, 2])
    generator = decode.iterate_codes(session, pattern, decode.with_prompts(prompts, frames), GREEDY, SPECIAL)
    while True:
        try:
            steps.append(next(generator))
        except StopIteration as end:
            return end.value, steps, session


def obvious(prompt: Tensor, frames: int) -> Tensor:
    """No session: sums the whole grid anew for every column."""
    pattern = patterns.delay(frames, [0, 1, 2])
    grid = pattern.build(decode.with_prompts([prompt], frames), SPECIAL)
    for s in range(1, pattern.steps):
        chosen = grid[:, :, :s].sum(-1) % V
        grid[:, :, s] = torch.where(grid[:, :, s] == FREE, chosen, grid[:, :, s])
    return pattern.revert(grid, SPECIAL)


def test_equals_the_obvious_loop() -> None:
    prompt = torch.tensor([[1, 2], [3, 4], [5, 6]])
    for p in (prompt, prompt[:, :0]):
        codes, _, _ = run([p], frames=6)
        assert torch.equal(codes, obvious(p, frames=6))
        assert torch.equal(codes[0, :, : p.shape[1]], p)


def test_ragged_prompts_equal_each_alone() -> None:
    prompts = [
        torch.tensor([[1, 2, 3], [3, 4, 5], [5, 6, 7]]),
        torch.empty(3, 0, dtype=torch.long),
        torch.tensor([[9], [8], [7]]),
    ]
    together, _, _ = run(prompts, frames=5)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, obvious(prompt, frames=5)[0])


def test_one_prefill_then_single_columns() -> None:
    _, steps, session = run([torch.ones(3, 4, dtype=torch.long)], frames=6)
    assert session.calls == [5, 1, 1, 1]
    assert [(s.done, s.total) for s in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_steps_show_the_complete_frames() -> None:
    codes, steps, _ = run([torch.empty(3, 0, dtype=torch.long)], frames=4)
    assert [s.frames for s in steps] == [0, 0, 1, 2, 3, 4]
    assert torch.equal(steps[-1].codes, codes)
    assert (codes != FREE).all()


def test_nothing_to_choose() -> None:
    prompt = torch.tensor([[1, 2], [3, 4], [5, 6]])
    codes, steps, session = run([prompt], frames=2)
    assert torch.equal(codes[0], prompt)
    assert (steps, session.calls) == ([], [])


def test_cancelling_is_to_stop() -> None:
    session = Counting()
    codes = decode.with_prompts([torch.empty(3, 0, dtype=torch.long)], 9)
    for step in decode.iterate_codes(session, patterns.delay(9, [0, 1, 2]), codes, GREEDY, SPECIAL):
        if step.done == 2:
            break
    assert len(session.calls) == 2
