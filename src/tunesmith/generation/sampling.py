"""From logits to codes: guidance, temperature, top-k, top-p, and the draw.

Every function is pure but the draw, which takes its generators as an argument.  The order is guidance, temperature,
top-k, top-p, softmax, multinomial, all in float32, as in transformers.  On a CPU the kernels (nn/engine.py) do all but
the noise; what they do is written down here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.generation.capture import Capture, plain_tensors
from tunesmith.nn import engine

NOT_FINITE = "the model's logits are not finite"


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
    kth = logits.topk(min(k, logits.shape[-1]), sorted=False).values.amin(-1, keepdim=True)
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

    Without generators one draw from torch's global generator covers all rows, ordered (batch, codebook), as in
    transformers. With one generator a sample, each of the samples `items` draws its own K codes (the other rows mean
    nothing).
    """
    return race(scores, make_noise(scores, items, generators))


def make_noise(
    scores: Tensor, items: Sequence[int], generators: Sequence[torch.Generator] | None
) -> Float[Tensor, "B K V"]:
    """For scores of this shape, [B, K, V]; in the order of rows, however those lie."""
    noise = torch.ones_like(scores, dtype=torch.float32, memory_format=torch.contiguous_format)
    fill_noise(noise, items, generators)
    return noise


def fill_noise(
    noise: Float[Tensor, "B K V"], items: Sequence[int], generators: Sequence[torch.Generator] | None
) -> None:
    """Exponential: for the samples `items` from the generator of each, or for all from torch's global one."""
    if generators is None:
        noise.exponential_()
        return
    for b in items:
        noise[b].exponential_(generator=generators[b])


def race(scores: Float[Tensor, "B K V"], noise: Float[Tensor, "B K V"]) -> Int[Tensor, "B K"]:
    """The code whose probability is the largest beside its noise: with exponential noise a draw, the one that torch's
    multinomial makes.  NaN is an error of torch's.
    """
    probs = scores.softmax(-1)
    torch._assert_async(probs.isfinite().all(), NOT_FINITE)
    return (probs / noise).argmax(-1)


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
        """From logits to codes; on a GPU by a recording, on a CPU by the kernels."""
        if self._on_kernels(logits):
            return self._race(logits, items)
        if not logits.is_cuda:
            return self.choose(self.scores(logits), items)
        branches, samples, *rest = logits.shape
        shape = (branches, 1 << (samples - 1).bit_length(), *rest)
        return drawing(replace(self, generators=None), shape, logits.dtype, logits.device)(
            logits, items, self.generators
        )

    def _on_kernels(self, logits: Float[Tensor, "G B K V"]) -> bool:
        """Can they choose?  They have no top-p, and greedy choice needs none of them."""
        plain = self.temperature > 0 and not 0.0 < self.top_p < 1.0
        return plain and logits.device.type == "cpu" and engine.library() is not None

    def _race(self, logits: Float[Tensor, "G B K V"], items: Sequence[int]) -> Int[Tensor, "B K"]:
        """What `choose` makes of `scores`, in one call of the kernels."""
        noise = make_noise(logits[0], items, self.generators)
        codes = engine.choose(logits, noise, self.guidance, self.temperature, self.top_k)
        torch._assert_async((codes >= 0).all(), NOT_FINITE)
        return codes


class Drawing:
    """A sampler's work in fixed buffers (capture.py), for up to so many samples."""

    @plain_tensors()
    def __init__(self, sampler: Sampler, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        """shape: of logits [G, B, K, V]."""
        self.sampler, self.lock = sampler, Lock()
        self.logits = torch.zeros(*shape, dtype=dtype, device=device)
        self.noise = torch.ones(*shape[1:], device=device)
        self.codes = torch.zeros(*shape[1:3], dtype=torch.long, device=device)
        self.run = Capture(self._work, device)

    def __call__(
        self, logits: Float[Tensor, "G B K V"], items: Sequence[int], generators: Sequence[torch.Generator] | None
    ) -> Int[Tensor, "B K"]:
        """As the sampler."""
        samples = logits.shape[1]
        with self.lock:  # other threads may sample too
            self.logits[:, :samples].copy_(logits)
            fill_noise(self.noise[:samples], items, generators)
            self.run()
            return self.codes[:samples].clone()

    def _work(self) -> None:
        scores = self.sampler.scores(self.logits)
        self.codes.copy_(race(scores, self.noise) if self.sampler.temperature else scores.argmax(-1))


@lru_cache(maxsize=16)
def drawing(sampler: Sampler, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Drawing:
    """The one for these settings (a sampler without generators)."""
    return Drawing(sampler, shape, dtype, device)
