"""From logits to codes: guidance, temperature, top-k, top-p, and the draw.

Every function is pure but the draw, which takes its generators as an argument.  The order is guidance, temperature,
top-k, top-p, softmax, multinomial, all in float32, as in transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def guide(conditional: Float[Tensor, "*A"], null: Float[Tensor, "*A"], scale: float | int) -> Float[Tensor, "*A"]:
    """Classifier-free guidance: away from what the model says without the condition (Copet et al. 2023, section 2.4;
    3 is usual).
    """
    return null + (conditional - null) * scale


def guide_twice(
    both: Float[Tensor, "*A"], partial: Float[Tensor, "*A"], null: Float[Tensor, "*A"], scale: float, beta: float
) -> Float[Tensor, "*A"]:
    """Guidance with two conditions: first from the weaker (`partial`: melody or style alone) towards both, then away
    from none.

    With `beta` 1 it is `guide(both, null, scale)`; larger values follow the text more closely (Rouard et al. 2024).
    """
    return guide(guide(both, partial, beta), null, scale)


def keep_top_k(logits: Float[Tensor, "*A V"], k: int) -> Float[Tensor, "*A V"]:
    """The rest becomes -inf.  What ties with the k-th largest stays; k above V keeps everything."""
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Float[Tensor, "*A V"], p: float | int) -> Float[Tensor, "*A V"]:
    """Drop the smallest as long as their probabilities sum to at most 1 - p; the largest always stays."""
    ascending, order = logits.sort()
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -1] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)


def warp(
    logits: Float[Tensor, "*A V"],
    temperature: float | int = 1.0,
    top_k: int = 0,
    top_p: float | int = 0.0,
    top_p_replaces_top_k: bool = False,
) -> Float[Tensor, "*A V"]:
    """Temperature and filters: the logits whose softmax is drawn from.  `top_k` 0 and `top_p` 0 or 1 are off.

    Both together: top-p acts on what top-k leaves.  `top_p_replaces_top_k` is the rule of the original implementation.
    """
    logits = logits.float() / temperature
    nucleus = 0.0 < top_p < 1.0
    if top_k > 0 and not (nucleus and top_p_replaces_top_k):
        logits = keep_top_k(logits, top_k)
    return keep_top_p(logits, top_p) if nucleus else logits


def draw(
    scores: Float[Tensor, "B K V"], items: Sequence[int], generators: Sequence[torch.Generator] | None
) -> Int[Tensor, "B K"]:
    """Codes from warped logits.

    Without generators one multinomial from torch's global generator covers all rows, ordered (batch, codebook), as in
    transformers. With one generator a sample, each of the samples `items` draws its own K codes (the other rows mean
    nothing).
    """
    probs = scores.softmax(-1)
    if generators is None:
        return probs.flatten(0, 1).multinomial(1).view(scores.shape[:2])
    codes = torch.zeros(scores.shape[:2], dtype=torch.long, device=scores.device)
    for b in items:
        codes[b] = probs[b].multinomial(1, generator=generators[b])[:, 0]
    return codes


@dataclass(frozen=True)
class Sampler:
    """Chooses the codes of one column: guidance, then the largest (temperature 0), or temperature, filters and a draw.

    With `generators`, a sample draws only in columns where it has something to choose: its codes don't depend on its
    batch-mates.
    """

    temperature: float | int = 1.0
    top_k: int = 250
    top_p: float | int = 0.0
    guidance: float | int = 3.0
    top_p_replaces_top_k: bool = False
    generators: Sequence[torch.Generator] | None = None

    def scores(self, logits: Float[Tensor, "G B K V"]) -> Float[Tensor, "B K V"]:
        """What is chosen from.  One branch is taken as it is; two (conditional, null) are guided."""
        logits = logits.float()
        guided = logits[0] if len(logits) == 1 else guide(logits[0], logits[1], self.guidance)
        if self.temperature == 0:
            return guided
        return warp(guided, self.temperature, self.top_k, self.top_p, self.top_p_replaces_top_k)

    def choose(self, scores: Float[Tensor, "B K V"], items: Sequence[int]) -> Int[Tensor, "B K"]:
        """Codes for the samples `items`; those of other samples mean nothing."""
        return scores.argmax(-1) if self.temperature == 0 else draw(scores, items, self.generators)

    def __call__(self, logits: Float[Tensor, "G B K V"], items: Sequence[int]) -> Int[Tensor, "B K"]:
        """From logits to codes."""
        return self.choose(self.scores(logits), items)
