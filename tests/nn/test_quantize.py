"""The quantizer on vectors small enough to follow by hand, and what training does to it."""

import subprocess
import sys

import pytest
import torch

from tunesmith.nn import quantize
from tunesmith.nn.quantize import (
    Codebook,
    CodebookLearning,
    ResidualQuantizer,
    count_and_sum,
    draw_vectors,
    kmeans,
    nearest_codes,
)


def table(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def placed(book: Codebook, embed: torch.Tensor, sizes: list[float]) -> Codebook:
    """A codebook that has been started, with these codes and counts."""
    book.inited.fill_(1)
    book.embed.copy_(embed)
    book.cluster_size.copy_(torch.tensor(sizes))
    book.embed_avg.copy_(embed * book.cluster_size[:, None])
    return book


def test_nearest_codes():
    assert nearest_codes(table((0.9, 0), (0, 0.2), (-3, 1)), table((1, 0), (0, 0), (-2, 0))).tolist() == [0, 1, 2]


def test_nearest_codes_does_not_depend_on_the_rows_at_once(monkeypatch):
    x, book = torch.randn(50, 4, generator=seeded()), torch.randn(9, 4, generator=seeded(1))
    whole = nearest_codes(x, book)
    monkeypatch.setattr(quantize, "ROWS", 7)
    assert torch.equal(nearest_codes(x, book), whole)
    assert torch.equal(whole, torch.cdist(x, book).argmin(1))


def test_count_and_sum():
    counts, sums = count_and_sum(table((1, 2), (3, 4), (5, 6)), torch.tensor([2, 0, 2]), 4)
    assert counts.tolist() == [1, 0, 2, 0]
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]


def test_draw_vectors_repeats_only_when_it_must():
    x = torch.arange(6.0)[:, None]
    assert sorted(draw_vectors(x, 6, seeded()).flatten().tolist()) == [0, 1, 2, 3, 4, 5]
    assert set(draw_vectors(x, 20, seeded()).flatten().tolist()) <= set(range(6))


def test_kmeans_finds_separate_clusters():
    x = table((0, 0), (0, 1), (10, 0), (10, 1), (10, 2))
    # Seeds that start in both clusters end at their means; a start in one cluster would split it, so try a few.
    found = [kmeans(x, 2, iterations=5, generator=seeded(s)) for s in range(8)]
    means, counts = next((m, c) for m, c in found if sorted(c.tolist()) == [2, 3])
    assert sorted(means.tolist()) == [[0, 0.5], [10, 1]]
    assert counts[means[:, 0].argmax()] == 3


def test_kmeans_keeps_empty_clusters_in_place():
    means, counts = kmeans(table((1, 1), (1, 1)), 3, iterations=3, generator=seeded())
    assert means.tolist() == [[1, 1]] * 3
    assert sorted(counts.tolist()) == [0, 0, 2]


def test_start_runs_once_and_leaves_sums_in_embed_avg():
    book = Codebook(2, 2, CodebookLearning())
    x = table((0, 0), (0, 2), (10, 0), (10, 0), (10, 3))
    book.start(x, seeded(1))
    assert book.inited.item() == 1
    assert book.cluster_size.sum() == 5
    torch.testing.assert_close(book.embed_avg, book.embed * book.cluster_size[:, None])
    before = book.embed.clone()
    book.start(torch.zeros(5, 2), seeded())
    assert torch.equal(book.embed, before)


def test_moving_averages_by_hand():
    book = placed(Codebook(2, 1, CodebookLearning(decay=0.5)), table((0.0,), (10.0,)), [4, 4])
    book.learn(table((2.0,), (4.0,), (12.0,)), torch.tensor([0, 0, 1]))
    # sizes 0.5·4 + 0.5·2 and 0.5·4 + 0.5·1; sums 0.5·0 + 0.5·6 and 0.5·40 + 0.5·12
    torch.testing.assert_close(book.cluster_size, torch.tensor([3.0, 2.5]))
    torch.testing.assert_close(book.embed_avg, table((3.0,), (26.0,)))
    total, epsilon = 5.5, 1e-5
    smoothed = (book.cluster_size + epsilon) / (total + 2 * epsilon) * total
    torch.testing.assert_close(book.embed, book.embed_avg / smoothed[:, None])


def test_dead_codes_restart_on_vectors_of_the_batch_and_live_on():
    book = placed(Codebook(3, 1, CodebookLearning(decay=0.5)), table((0.0,), (5.0,), (9.0,)), [8, 0.1, 7])
    x = table((40.0,), (40.0,), (40.0,))
    book.learn(x, torch.tensor([0, 0, 0]), seeded())
    mean = 15.1 / 3
    # The dead code takes 40 with the mean count, and this step's average keeps it there.
    torch.testing.assert_close(book.cluster_size, torch.tensor([0.5 * 8 + 0.5 * 3, 0.5 * mean, 3.5]))
    torch.testing.assert_close(book.embed[1], torch.tensor([40.0]), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(book.embed[2], torch.tensor([9.0]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "restarted"), [([100, 100, 1.9], True), ([100, 100, 2.1], False), ([1, 1, 1], False)]
)
def test_what_counts_as_dead(sizes, restarted):
    book = placed(Codebook(3, 1, CodebookLearning()), table((0.0,), (5.0,), (9.0,)), sizes)
    book.learn(table((70.0,)), torch.tensor([0]), seeded())
    assert (book.embed[2].item() > 60) == restarted


def test_residual_by_hand():
    quantizer = ResidualQuantizer(2, 2, 1).eval()
    placed(quantizer.books[0], table((0.0,), (10.0,)), [1, 1])
    placed(quantizer.books[1], table((-1.0,), (2.0,)), [1, 1])
    latents = torch.tensor([[[9.0, 2.5, 12.5]]])
    codes = quantizer.encode(latents)
    assert codes.tolist() == [[[1, 0, 1], [0, 1, 1]]]
    assert quantizer.decode(codes).tolist() == [[[9, 2, 12]]]
    assert quantizer.encode(latents, 1).tolist() == [[[1, 0, 1]]]
    assert quantizer.decode(codes[:, :1]).tolist() == [[[10, 0, 10]]]
    out = quantizer(latents)
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(out.quantized, quantizer.decode(codes))
    first, second = (1 + 6.25 + 6.25) / 3, (0 + 0.25 + 0.25) / 3
    torch.testing.assert_close(out.commitment, torch.tensor((first + second) / 2))


def test_gradients_go_straight_through_and_the_commitment_pulls():
    quantizer = ResidualQuantizer(3, 8, 4).train()
    latents = torch.randn(2, 4, 20, generator=seeded(), requires_grad=True)
    out = quantizer(latents, generator=seeded())
    (out.quantized * 3).sum().backward()
    assert torch.equal(latents.grad, torch.full_like(latents, 3.0))
    latents.grad = None
    quantizer(latents).commitment.backward()
    assert latents.grad.abs().sum() > 0


def test_training_learns_and_evaluation_does_not():
    quantizer = ResidualQuantizer(2, 8, 4)
    latents = torch.randn(2, 4, 50, generator=seeded())
    quantizer.train()(latents, generator=seeded())
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer.eval()(latents)
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())
    quantizer.train()
    moved = latents + 3
    errors = [quantizer(moved, generator=seeded()).commitment.item() for _ in range(200)]
    assert errors[-1] < errors[0] / 5
    assert all(book.inited.item() == 1 for book in quantizer.books)


def test_only_the_asked_codebooks_learn():
    quantizer = ResidualQuantizer(3, 8, 4).train()
    out = quantizer(torch.randn(2, 4, 50, generator=seeded()), codebooks=2, generator=seeded())
    assert out.codes.shape == (2, 2, 50)
    assert [book.inited.item() for book in quantizer.books] == [1, 1, 0]


def test_the_same_generator_gives_the_same_codebooks():
    latents = torch.randn(2, 4, 50, generator=seeded())
    states = []
    for _ in range(2):
        quantizer = ResidualQuantizer(2, 8, 4).train()
        generator = seeded(5)
        for _ in range(3):
            quantizer(latents, generator=generator)
        states.append(quantizer.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_half_precision_regions_do_not_touch_the_codes():
    quantizer = ResidualQuantizer(2, 8, 4).train()
    latents = torch.randn(2, 4, 50, generator=seeded())
    quantizer(latents, generator=seeded())
    plain = quantizer.eval()(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(latents)
    assert torch.equal(inside.codes, plain.codes)
    assert inside.quantized.dtype == torch.float32


RANK = """
import sys, torch
from torch import distributed as dist
from tunesmith.nn.quantize import ResidualQuantizer
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
quantizer = ResidualQuantizer(2, 8, 4).train()
for step in range(3):
    latents = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(10 * step + rank))
    quantizer(latents, generator=torch.Generator().manual_seed(rank))
torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_all_ranks_hold_the_same_codebooks(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert first["layers.0.codebook.cluster_size"].sum() > 60  # both ranks' vectors are counted
