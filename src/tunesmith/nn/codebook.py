"""A codebook that learns by moving averages and puts codes that nothing chooses where vectors are (Jukebox's).

Van den Oord et al. 2017, appendix A.1; restarts: Dhariwal et al. 2020, §3.1.  Under torch.distributed all ranks hold
the same codebook: counts and sums are added over ranks, random choices come from rank 0.  (EnCodec's, in quantize.py,
differs in all that isn't plain averaging: first codes, smoothing, who restarts and with what.)
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tunesmith.nn.quantize import count_and_sum, from_first_rank, nearest_codes, over_ranks

GRACE = 100
"""Training steps for which no code restarts after codebooks were loaded without their statistics."""


class Quantized(NamedTuple):
    """What a codebook makes of latents."""

    vectors: Float[Tensor, "B D S"]  # the codes' vectors; their gradient goes straight to the latents
    commitment: Float[Tensor, ""]  # mean squared distance of the latents from their codes
    metrics: dict[str, Tensor]  # empty in evaluation


class Codebook(nn.Module):
    """V code vectors and the moving averages that teach them (van den Oord et al. 2017, appendix A.1).

    codebook: [V, D], all zero until the first training batch gives its vectors.
    k_elem: [V], how many vectors a step chose each code, k_sum [V, D] their sum, both averaged over steps and added
        over processes; all zero means unknown, as in checkpoints of the original.
    """

    codebook: Tensor
    k_sum: Tensor
    k_elem: Tensor

    def __init__(self, codes: int, width: int, *, decay: float, threshold: float) -> None:
        super().__init__()
        self.decay, self.threshold = decay, threshold
        self.register_buffer("codebook", torch.empty(codes, width))
        self.register_buffer("k_sum", torch.empty(codes, width))
        self.register_buffer("k_elem", torch.empty(codes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Nothing is known yet."""
        for buffer in (self.codebook, self.k_sum, self.k_elem):
            nn.init.zeros_(buffer)

    def encode(self, latents: Float[Tensor, "B D S"]) -> Int[Tensor, "B S"]:
        """The closest code of every vector, compared in float32."""
        return nearest_codes(_rows(latents), self.codebook.float()).view(latents.shape[0], latents.shape[2])

    def decode(self, codes: Int[Tensor, "B S"]) -> Float[Tensor, "B D S"]:
        """The code vectors."""
        return functional.embedding(codes, self.codebook).transpose(1, 2)

    def forward(self, latents: Float[Tensor, "B D S"], generator: torch.Generator | None = None) -> Quantized:
        """Quantise with gradients; in training mode the codebook learns from the batch, after it was used."""
        with torch.autocast(latents.device.type, enabled=False):  # half precision blurs near ties
            latents = latents.float()
            rows = _rows(latents.detach())
            if self.training:
                self.start(rows, generator)
            codes = self.encode(latents.detach())
            vectors = self.decode(codes)
            metrics = {}
            if self.training:
                distances = (rows - _rows(vectors)).square().sum(1)
                metrics = {"fit": distances.mean(), "pn": _rms(rows - rows.mean())}
                metrics |= self.learn(rows, codes.flatten(), generator)
            commitment = functional.mse_loss(latents, vectors)
            return Quantized(latents + (vectors - latents).detach(), commitment, metrics)

    @torch.no_grad()
    def start(self, rows: Float[Tensor, "R D"], generator: torch.Generator | None = None) -> None:
        """Place the codes on vectors of the first batch, or guess the statistics of codes that came without them.

        The guess is that all codes are chosen equally often (the batch counted, which the original forgot), but often
        enough to outlive `GRACE` steps unchosen: until then the averages have learnt the truth.
        """
        if self.k_elem.any():
            return
        if self.codebook.any():
            expected = over_ranks(rows.new_tensor(float(len(rows)))) / len(self.k_elem)
            self.k_elem.copy_(expected.clamp(min=self.threshold * self.decay**-GRACE))
        else:
            self.codebook.copy_(self._draw(rows, generator))
            self.k_elem.fill_(1.0)
        self.k_sum.copy_(self.codebook * self.k_elem[:, None])

    @torch.no_grad()
    def learn(
        self, rows: Float[Tensor, "R D"], codes: Int[Tensor, " R"], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """One step of the moving averages; codes that hardly anything chooses are put on random vectors.

        As in the original, a code that is put elsewhere keeps its statistics, so it has to win vectors at once.
        """
        counts, sums = (over_ranks(x) for x in count_and_sum(rows, codes, len(self.k_elem)))
        self.k_elem.mul_(self.decay).add_(counts, alpha=1.0 - self.decay)
        self.k_sum.mul_(self.decay).add_(sums, alpha=1.0 - self.decay)
        alive = self.k_elem >= self.threshold
        fresh = self._draw(rows, generator)
        moved = torch.where(alive[:, None], self.k_sum / self.k_elem[:, None], fresh)
        change = _rms(moved - self.codebook)
        self.codebook.copy_(moved)
        shares = counts / counts.sum()
        return {
            "entropy": -(shares * (shares + 1e-8).log()).sum(),
            "used_curr": (counts >= self.threshold).sum().float(),
            "usage": alive.sum().float(),
            "dk": change,
        }

    def _draw(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """V random rows, the same on all ranks; too few are repeated with a little noise."""
        size, width = self.codebook.shape
        device = generator.device if generator is not None else rows.device
        if len(rows) < size:
            rows = rows.repeat(math.ceil(size / len(rows)), 1)
            noise = torch.randn(rows.shape, generator=generator, device=device).to(rows)
            rows = rows + noise * (0.01 / math.sqrt(width))
        chosen = torch.randperm(len(rows), generator=generator, device=device)[:size]
        return from_first_rank(rows[chosen.to(rows.device)])


def _rows(x: Float[Tensor, "B D S"]) -> Float[Tensor, "R D"]:
    return x.float().transpose(1, 2).reshape(-1, x.shape[1])


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
