"""How well a language model predicts held-out music: nats per token, one figure a codebook.

The same codes are predicted with their own text, with the text withheld and with the text of other pieces.  A model
that listens to its text does best with the first; one that memorised frequencies does no better than `unigram`.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.evaluation.codec import code_counts
from tunesmith.generation.patterns import Pattern
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import MusicgenProcessor

Predict = Callable[[Tensor, Sequence[str] | None], Tensor]
"""(grid [B K S], one text an item, or None: text withheld) -> logits [B K S V] that predict the next column"""


def predictor(model: MusicgenForConditionalGeneration, processor: MusicgenProcessor) -> Predict:
    """How MusicGen predicts; padding of texts is masked, withheld text is what guidance compares with."""

    def predict(grid: Tensor, texts: Sequence[str] | None) -> Tensor:
        if texts is None:
            nothing = model.get_unconditional_inputs(len(grid))
            given = {"encoder_outputs": nothing.encoder_outputs, "attention_mask": nothing.attention_mask}
        else:
            given = dict(processor(text=list(texts), padding=True, return_tensors="pt").to(model.device))
        return model(**given, decoder_input_ids=grid.to(model.device)).logits.unflatten(0, (len(grid), -1))

    return predict


def token_nll(logits: Float[Tensor, "B K S V"], codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B K S"]:
    """Negative log-likelihood of each code in nats, computed in float32."""
    return -logits.float().log_softmax(-1).gather(-1, codes[..., None])[..., 0]


@torch.no_grad()
def held_out_nll(
    predict: Predict,
    codes: Int[Tensor, "B K S"],
    texts: Sequence[str] | None,
    *,
    pattern: Pattern,
    special: int,
    batch: int = 4,
) -> Float[Tensor, "B K"]:
    """Mean nats per token of each item and codebook, with the given texts (None: withheld).

    `pattern` lays out S frames; `special` fills its empty cells.
    """
    rows = []
    for start in range(0, len(codes), batch):
        part = codes[start : start + batch]
        logits = predict(pattern.build(part, special), None if texts is None else texts[start : start + batch])
        rows.append(token_nll(pattern.revert_logits(logits), part).mean(-1))
    return torch.cat(rows)


def unigram(codes: Int[Tensor, "B K S"], cardinality: int) -> Float[Tensor, "K V"]:
    """Log-probability of each code by its frequency in training codes, each code counted once more than it occurs."""
    counts = code_counts(codes, cardinality).double() + 1
    return (counts / counts.sum(1, keepdim=True)).log().float()


def unigram_nll(table: Float[Tensor, "K V"], codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B K"]:
    """Mean nats per token of each item and codebook under `unigram`'s table."""
    logits = table[None, :, None, :].expand(len(codes), -1, codes.shape[2], -1)
    return token_nll(logits, codes).mean(-1)


def mismatch(count: int, generator: torch.Generator) -> Int[Tensor, "B"]:
    """A permutation that leaves no item in its place: one random cycle through all of them (count >= 2)."""
    assert count >= 2, "one item has no other"
    order = torch.randperm(count, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
