import math

import pytest
import torch

from tunesmith.evaluation import language
from tunesmith.generation.patterns import musicgen

SPECIAL = 4


def test_token_nll_by_hand():
    logits = torch.tensor([[[[0.0, math.log(3)], [0.0, 0.0]]]])  # B K S V = 1 1 2 2
    nll = language.token_nll(logits, torch.tensor([[[1, 0]]]))
    assert nll.flatten().tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


def test_held_out_nll_reads_the_delay_and_the_texts():
    """A model that knows the answer when its text says so: certain there, uniform without text."""
    codes = torch.tensor([[[0, 1, 2], [3, 2, 1]], [[1, 1, 0], [0, 3, 3]], [[2, 0, 2], [1, 1, 2]]])
    pattern = musicgen(3, 2)
    grids = pattern.build(codes, SPECIAL)
    seen = []

    def predict(grid, texts):
        seen.append(len(grid))
        logits = torch.zeros(*grid.shape, 4)
        for row, text in enumerate(texts or []):
            answer = grids[int(text)].roll(-1, 1).clamp(max=3)  # the output at a column predicts the next column
            logits[row] = 50 * torch.nn.functional.one_hot(answer, 4)
        return logits

    def nll(texts):
        return language.held_out_nll(predict, codes, texts, pattern=pattern, special=SPECIAL, batch=2)

    torch.testing.assert_close(nll(["0", "1", "2"]), torch.zeros(3, 2))
    torch.testing.assert_close(nll(None), torch.full((3, 2), math.log(4)))
    assert (nll(["1", "2", "0"]) > 10).all()
    assert seen == [2, 1] * 3


def test_unigram_counts_each_code_once_more():
    table = language.unigram(torch.tensor([[[0, 0, 1]]]), 3)
    assert table.exp().tolist() == [pytest.approx([3 / 6, 2 / 6, 1 / 6])]
    nll = language.unigram_nll(table, torch.tensor([[[0, 2]], [[1, 1]]]))
    assert nll.flatten().tolist() == pytest.approx([(math.log(2) + math.log(6)) / 2, math.log(3)])


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_mismatch_moves_every_item(count):
    partner = language.mismatch(count, torch.Generator().manual_seed(count))
    assert sorted(partner.tolist()) == list(range(count))
    assert (partner != torch.arange(count)).all()
    assert partner.tolist() == language.mismatch(count, torch.Generator().manual_seed(count)).tolist()
