import math

import pytest
import torch

import tiny
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


def test_predictor_agrees_with_the_models_own_loss():
    model, processor = tiny.tiny_musicgen(), tiny.tiny_processor()
    codes = torch.randint(0, tiny.CODES, (3, 4, 12), generator=torch.Generator().manual_seed(0))
    special = model.config.decoder.pad_token_id
    texts = ["slow piano", "a very fast jig with violin and drums", "waltz"]
    pattern = musicgen(12, 4)
    predict = language.predictor(model, processor)
    nll = language.held_out_nll(predict, codes, texts, pattern=pattern, special=special)
    labels = pattern.build(codes, special)[:, :, 1:].transpose(1, 2)  # the start is not predicted
    text = processor(text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        loss = model(**text, labels=labels).loss
    assert nll.mean().item() == pytest.approx(loss.item(), rel=1e-5)


def test_text_withheld_is_what_no_text_predicts():
    model, processor = tiny.tiny_musicgen(), tiny.tiny_processor()
    codes = torch.randint(0, tiny.CODES, (3, 4, 12), generator=torch.Generator().manual_seed(0))
    pattern, special = musicgen(12, 4), model.config.decoder.pad_token_id
    predict = language.predictor(model, processor)
    withheld = language.held_out_nll(predict, codes, None, pattern=pattern, special=special, batch=2)
    told = language.held_out_nll(predict, codes, ["slow", "fast", "jig"], pattern=pattern, special=special)
    grid = pattern.build(codes, special)
    zeros = torch.zeros(3, 5, model.config.text_encoder.d_model)
    with torch.no_grad():
        logits = model(encoder_outputs=(zeros,), attention_mask=torch.zeros(3, 5), decoder_input_ids=grid).logits
    expected = language.token_nll(pattern.revert_logits(logits.unflatten(0, (3, 4))), codes).mean(-1)
    torch.testing.assert_close(withheld, expected)
    assert (withheld - told).abs().max() > 1e-3
