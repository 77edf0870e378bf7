"""Jukebox's codebook on vectors small enough to follow by hand, and over two ranks."""

import subprocess
import sys

import pytest
import torch

from tunesmith.nn.codebook import GRACE, Codebook


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_unknown_statistics_are_guessed_from_the_whole_batch_and_restarts_wait():
    book = Codebook(8, 4, decay=0.99, threshold=1.0).train()
    book.codebook.copy_(torch.randn(8, 4, generator=seeded()))
    loaded = book.codebook.clone()
    rows = loaded[:2].T.repeat(2, 1, 400)  # [2, 4, 800]: of 1600 vectors none chooses the other six codes
    book(rows, seeded())
    assert book.k_elem[2:].tolist() == pytest.approx([0.99 * 1600 / 8] * 6)
    assert torch.allclose(book.codebook, loaded, atol=1e-5)

    book.reset_parameters()
    book.codebook.copy_(loaded)
    metrics = []
    for step in range(GRACE + 20):
        metrics.append(book(rows[:1, :, :6], seeded(step)).metrics)  # fewer vectors than codes
    assert all(m["usage"] == 8 for m in metrics[: GRACE - 1])
    assert metrics[-1]["usage"] == 2


def test_a_code_that_nothing_chooses_goes_where_vectors_are():
    book = Codebook(4, 2, decay=0.5, threshold=0.9).train()
    book.codebook.copy_(torch.tensor([[0.0, 1], [1, 0], [50, 50], [60, 60]]))
    book.k_elem.fill_(1.0)
    book.k_sum.copy_(book.codebook)
    latents = torch.tensor([[0.0, 1], [1, 0]]).T[None].repeat(1, 1, 10)
    book(latents, seeded())
    assert {tuple(code) for code in book.codebook.tolist()} == {(0.0, 1.0), (1.0, 0.0)}
    assert book.k_elem.tolist() == [5.5, 5.5, 0.5, 0.5]


RANK = """
import sys, torch
from torch import distributed as dist
from tunesmith.nn.codebook import Codebook
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
known = Codebook(8, 4, decay=0.9, threshold=1.0).train()
drawn = Codebook(8, 4, decay=0.9, threshold=5.0).train()
known.codebook.copy_(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
for step in range(3):
    latents = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(10 * step + rank))
    usage = drawn(latents, torch.Generator().manual_seed(rank)).metrics["usage"]
    known(latents, torch.Generator().manual_seed(rank))
state = {f"{name}.{k}": v for name, book in (("known", known), ("drawn", drawn)) for k, v in book.state_dict().items()}
torch.save(state | {"usage": usage}, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_ranks_learn_what_one_learns_from_both_batches(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["usage"] < 8  # so that random vectors were shared, too
    alone = Codebook(8, 4, decay=0.9, threshold=1.0).train()
    alone.codebook.copy_(torch.randn(8, 4, generator=seeded(0)))
    for step in range(3):
        alone(torch.cat([torch.randn(2, 4, 30, generator=seeded(10 * step + rank)) for rank in range(2)]), seeded())
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[f"known.{name}"], value)
