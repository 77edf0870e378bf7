"""Multi-head attention with separate query, key and value projections, without biases, under the parameter names of
released checkpoints.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.nn.linear import Linear


class Attention(nn.Module):
    """Queries from one sequence, keys and values from the same (self) or another (cross).

    Projecting and attending are separate calls, so that keys and values can come from a cache.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def keys_values(self, memory: Float[Tensor, "B M D"]) -> tuple[Float[Tensor, "B N M H"], Float[Tensor, "B N M H"]]:
        """What queries attend to."""
        return self._split(self.k_proj(memory)), self._split(self.v_proj(memory))

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        keys: Float[Tensor, "B N M H"],
        values: Float[Tensor, "B N M H"],
        mask: Float[Tensor, "#B #1 #S M"] | Float[Tensor, "S M"] | None = None,
        causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B N S M"] | None]:
        """Attend; `mask` is added to the scores, `causal` (without a mask) hides what comes after.

        The weights are returned only on demand, for they cost S x M memory.
        """
        queries, dropout = self._split(self.q_proj(x)), self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            out, weights = attend_with_weights(queries, keys, values, mask, causal, dropout)
        elif x.shape[1] == 1 and not dropout:
            out = attend_alone(queries, keys, values, mask)
        else:
            out = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights  # [B, S, D]

    def _split(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B N S H"]:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def attend_alone(
    queries: Float[Tensor, "B N 1 H"],
    keys: Float[Tensor, "B N M H"],
    values: Float[Tensor, "B N M H"],
    mask: Tensor | None = None,
) -> Float[Tensor, "B N 1 H"]:
    """A single query: plain products read keys and values once, whatever the device, and copy nothing."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ values  # which torch sums in float32 whatever the precision


def attend_with_weights(
    queries: Float[Tensor, "B N S H"],
    keys: Float[Tensor, "B N M H"],
    values: Float[Tensor, "B N M H"],
    mask: Tensor | None,
    causal: bool,
    dropout: float,
) -> tuple[Float[Tensor, "B N S H"], Float[Tensor, "B N S M"]]:
    """softmax(Q K^T / sqrt(H) + mask) V, written out (Vaswani et al. 2017, equation 1)."""
    scores = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5
    if causal:
        later = scores.new_ones(scores.shape[-2:]).triu(1).bool()
        scores = scores.masked_fill(later, -float("inf"))
    if mask is not None:
        scores = scores + mask
    weights = F.dropout(scores.softmax(-1), dropout)
    return weights @ values, weights
