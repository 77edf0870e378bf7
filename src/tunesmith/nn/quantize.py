"""Residual vector quantisation with codebooks learnt by moving averages (EnCodec, Défossez et al. 2022, §3.2).

Each codebook quantises what the ones before it left over.  Codebooks are buffers, not parameters: they follow the
vectors that chose them (van den Oord et al. 2017, appendix A.1), start from k-means on the first training batch, and
codes that nothing chooses any more are put where data is.  Under torch.distributed all ranks hold the same codebooks:
counts and sums are added over ranks, random choices come from rank 0.

The buffer names are those of released checkpoints.  Two faults of the original implementation are not repeated, for
they undo what they are meant to do: after k-means `embed_avg` holds sums (there: means, so the first update shrinks
every code by its count), and a restarted code also gets a fresh average (there: the update of the same step overwrites
it with the dead one).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

ROWS = 16_384  # vectors compared with a codebook at once: with 2048 codes the distances take 128 MiB


class QuantizerOutput(NamedTuple):
    """What a quantizer makes of latents."""

    codes: Int[Tensor, "B K S"]
    quantized: Float[Tensor, "B D S"]  # the sum of the code vectors; its gradient goes straight to the latents
    commitment: Float[Tensor, ""]  # how far the latents are from their codes: mean square, mean over the codebooks


def nearest_codes(x: Float[Tensor, "N D"], book: Float[Tensor, "V D"]) -> Int[Tensor, " N"]:
    """The index of the closest code vector.

    |x|² - 2 x·e + |e|² is computed in this order, |x|² included, because near ties must fall as in the original.
    """
    norms = book.pow(2).sum(1)
    return torch.cat([_closest(rows, book, norms) for rows in x.split(ROWS)])


def kmeans(
    x: Float[Tensor, "N D"], codes: int, *, iterations: int = 50, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"]]:
    """Lloyd's algorithm from random vectors of `x`: the means and how many vectors belong to each.

    A cluster without vectors keeps its place.  Memory is ROWS · V, never N · V · D.
    """
    means = draw_vectors(x, codes, generator)
    for _ in range(iterations):
        counts, sums = count_and_sum(x, nearest_codes(x, means), codes)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    counts, _ = count_and_sum(x, nearest_codes(x, means), codes)
    return means, counts


def draw_vectors(x: Float[Tensor, "N D"], count: int, generator: torch.Generator | None) -> Float[Tensor, "V D"]:
    """`count` random rows of `x`, all different while `x` has enough."""
    device = generator.device if generator is not None else x.device
    if x.shape[0] >= count:
        rows = torch.randperm(x.shape[0], generator=generator, device=device)[:count]
    else:
        rows = torch.randint(x.shape[0], (count,), generator=generator, device=device)
    return x[rows.to(x.device)]


def count_and_sum(
    x: Float[Tensor, "N D"], codes: Int[Tensor, " N"], size: int
) -> tuple[Float[Tensor, " V"], Float[Tensor, "V D"]]:
    """How many vectors chose each code, and the sum of those vectors."""
    counts = torch.zeros(size, dtype=x.dtype, device=x.device).index_add_(0, codes, torch.ones_like(x[:, 0]))
    sums = torch.zeros(size, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, codes, x)
    return counts, sums


@dataclass(frozen=True, kw_only=True)
class CodebookLearning:
    """How codebooks learn; the defaults are the original's, but for `dead_share`."""

    decay: float = 0.99  # of the moving averages, per step
    kmeans_iterations: int = 50
    dead_below: float = 2.0  # a code that fewer vectors per step choose is restarted ...
    dead_share: float = 0.1  # ... if they are also less than this share of the mean: small batches have small means
    epsilon: float = 1e-5  # Laplace smoothing of the counts


class Codebook(nn.Module):
    """V code vectors of width D and the moving averages that teach them."""

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(self, codes: int, width: int, learning: CodebookLearning) -> None:
        super().__init__()
        self.learning = learning
        self.register_buffer("inited", torch.zeros(1))
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("embed", torch.empty(codes, width))
        self.register_buffer("embed_avg", torch.empty(codes, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random code vectors, to be replaced by k-means when training begins."""
        nn.init.zeros_(self.inited)
        nn.init.zeros_(self.cluster_size)
        nn.init.uniform_(self.embed, -1.0, 1.0)
        with torch.no_grad():
            self.embed_avg.copy_(self.embed)

    def encode(self, x: Float[Tensor, "B D S"]) -> Int[Tensor, "B S"]:
        """The closest code of every vector."""
        rows = x.transpose(1, 2)
        return nearest_codes(rows.reshape(-1, rows.shape[-1]), self.embed).view(rows.shape[:-1])

    def decode(self, codes: Int[Tensor, "B S"]) -> Float[Tensor, "B D S"]:
        """The code vectors."""
        return functional.embedding(codes, self.embed).transpose(1, 2)

    @torch.no_grad()
    def start(self, x: Float[Tensor, "N D"], generator: torch.Generator | None = None) -> None:
        """Place the codes by k-means, unless they have been placed."""
        if self.inited.item():
            return
        means, counts = kmeans(x, self.embed.shape[0], iterations=self.learning.kmeans_iterations, generator=generator)
        self.embed.copy_(from_first_rank(means))
        self.cluster_size.copy_(from_first_rank(counts) * ranks())
        self.embed_avg.copy_(self.embed * self.cluster_size[:, None])
        self.inited.fill_(1.0)

    @torch.no_grad()
    def learn(
        self, x: Float[Tensor, "N D"], codes: Int[Tensor, " N"], generator: torch.Generator | None = None
    ) -> None:
        """One step of the moving averages; dead codes are restarted on random vectors of `x` first."""
        self._restart_dead(x, generator)
        counts, sums = count_and_sum(x, codes, self.embed.shape[0])
        self.cluster_size.lerp_(over_ranks(counts), 1.0 - self.learning.decay)
        self.embed_avg.lerp_(over_ranks(sums), 1.0 - self.learning.decay)
        # Laplace smoothing: no code is divided by zero, and the total stays what it was.
        total, epsilon = self.cluster_size.sum(), self.learning.epsilon
        smoothed = (self.cluster_size + epsilon) / (total + self.embed.shape[0] * epsilon) * total
        self.embed.copy_(self.embed_avg / smoothed[:, None])

    def _restart_dead(self, x: Tensor, generator: torch.Generator | None) -> None:
        """A restarted code gets the mean count: with the defaults it has about 230 steps to prove itself."""
        mean = self.cluster_size.mean()
        dead = self.cluster_size < torch.clamp(mean * self.learning.dead_share, max=self.learning.dead_below)
        fresh = from_first_rank(draw_vectors(x, self.embed.shape[0], generator))
        self.embed.copy_(torch.where(dead[:, None], fresh, self.embed))
        self.embed_avg.copy_(torch.where(dead[:, None], fresh * mean, self.embed_avg))
        self.cluster_size.copy_(torch.where(dead, mean, self.cluster_size))


class ResidualLayer(nn.Module):
    """One codebook of the stack (a level of its own because released checkpoints name it so)."""

    def __init__(self, codes: int, width: int, learning: CodebookLearning) -> None:
        super().__init__()
        self.codebook = Codebook(codes, width, learning)


class ResidualQuantizer(nn.Module):
    """K codebooks, each on the residual of those before."""

    def __init__(self, codebooks: int, codes: int, width: int, learning: CodebookLearning | None = None) -> None:
        super().__init__()
        learning = learning or CodebookLearning()
        self.layers = nn.ModuleList(ResidualLayer(codes, width, learning) for _ in range(codebooks))

    @property
    def books(self) -> list[Codebook]:
        """The codebooks, coarsest first."""
        return [layer.codebook for layer in self.layers]  # type: ignore[misc]  # a ModuleList's items

    def encode(self, latents: Float[Tensor, "B D S"], codebooks: int | None = None) -> Int[Tensor, "B K S"]:
        """Codes of the first `codebooks` books (all by default)."""
        residual, codes = latents, []
        for book in self.books[:codebooks]:
            codes.append(book.encode(residual))
            residual = residual - book.decode(codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B D S"]:
        """The sum of the code vectors; K may be smaller than the number of books."""
        first, *others = zip(self.books, codes.unbind(1), strict=False)
        total = first[0].decode(first[1])
        for book, chosen in others:
            total = total + book.decode(chosen)
        return total

    def forward(
        self, latents: Float[Tensor, "B D S"], codebooks: int | None = None, generator: torch.Generator | None = None
    ) -> QuantizerOutput:
        """Quantise with gradients; in training mode the codebooks learn from the batch.

        codebooks: how many books take part in this pass (1..K; a recipe may draw it at random, "quantizer dropout").
        generator: for k-means and restarts.
        The commitment term pulls the latents to the codes at every book; its gradient reaches the latents through the
        residual, as in the original since its version 1.2.
        """
        with torch.autocast(latents.device.type, enabled=False):  # half precision blurs near ties
            latents = latents.float()
            residual, total, codes, losses = latents, torch.zeros_like(latents), [], []
            for book in self.books[:codebooks]:
                chosen, vectors = self._quantize(book, residual.detach(), generator)
                losses.append(functional.mse_loss(residual, vectors))
                residual, total = residual - vectors, total + vectors
                codes.append(chosen)
            quantized = latents + (total - latents).detach()
            return QuantizerOutput(torch.stack(codes, dim=1), quantized, torch.stack(losses).mean())

    def _quantize(self, book: Codebook, residual: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Codes and code vectors, the vectors as they were before the book learnt from this batch."""
        rows = residual.transpose(1, 2).reshape(-1, residual.shape[1])
        if self.training:
            book.start(rows, generator)
        chosen = book.encode(residual)
        vectors = book.decode(chosen)
        if self.training:
            book.learn(rows, chosen.flatten(), generator)
        return chosen, vectors


def _closest(x: Tensor, book: Tensor, norms: Tensor) -> Tensor:
    distances = x.pow(2).sum(1, keepdim=True) - 2 * x @ book.t() + norms
    return (-distances).max(dim=-1).indices


def ranks() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_ranks(x: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if ranks() > 1:
        dist.all_reduce(x)
    return x


def from_first_rank(x: Tensor) -> Tensor:
    """The first process's values, in place."""
    if ranks() > 1:
        dist.broadcast(x, src=0)
    return x
