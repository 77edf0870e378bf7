"""A linear layer that is quick on every CPU.

PyTorch hands float32 products to MKL.  That runs at half speed on processors that Intel didn't make, and at half speed
for the few rows of a decode step whoever made it.  Both are mended here, in float32 and with gradients:

- large products go to oneDNN, which PyTorch also carries (2000 x 1024 x 1024 on one core of an AMD EPYC: MKL 87,
  oneDNN 185 GFLOP/s);
- products of 2 to 4 rows are computed transposed (2 x 1024 x 4096 on the same: 8 GB/s of weights read, transposed 21).
"""

import platform
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tunesmith.nn.engine import Weight, plain_weight

_HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
WORTHWHILE = 2**20
"""Multiplications below which oneDNN's greater cost of a call isn't earned back."""


class Linear(nn.Linear):
    """`nn.Linear` without a bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def engine_weight(self) -> Weight | None:
        """What the CPU's kernels read; subclasses compute something else."""
        return plain_weight(self.weight.detach()) if type(self) is Linear else None

    def forward(self, x: Float[Tensor, "*A I"]) -> Float[Tensor, "*A O"]:
        """X times the weight's transpose."""
        if not _is_plain(x, self.weight):
            return F.linear(x, self.weight)
        rows = x.numel() // x.shape[-1]
        if rows == 2 or (rows in (3, 4) and self.in_features <= self.out_features):
            return transposed_product(x, self.weight)
        if _HAS_ONEDNN and x.numel() * self.out_features >= WORTHWHILE:
            return onednn_product(x, self.weight)
        return F.linear(x, self.weight)


def transposed_product(x: Float[Tensor, "*A I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*A O"]:
    """(W x')', which reads the weight once for all rows."""
    out = weight @ x.reshape(-1, x.shape[-1]).t()
    return out.t().contiguous().view(*x.shape[:-1], -1)


def onednn_product(x: Float[Tensor, "*A I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*A O"]:
    """X times the weight's transpose by oneDNN, with gradients."""
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _Product.apply(rows, weight)
    return out.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """rows [M, I], weight [O, I] -> [M, O]"""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _onednn(rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        to_rows = _onednn(grad, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = _onednn(grad.t(), rows.t()) if ctx.needs_input_grad[1] else None
        return to_rows, to_weight


def _onednn(rows: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return out


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Float32 on a CPU, as it is: no autocast, no compiler, no subclass of tensors."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
