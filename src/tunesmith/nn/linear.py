"""A linear layer that is quick on every CPU.

PyTorch hands float32 products to MKL, which runs at half speed on processors that Intel didn't make; oneDNN, which
PyTorch also carries, doesn't.  Measured on an AMD EPYC, one thread, 2000 x 1024 x 1024: MKL 87, oneDNN 185 GFLOP/s; a
decode step of two rows reads its weights at 9 and 15 GB/s.  Values and gradients are float32 either way.
"""

import platform
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

_HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
WORTHWHILE = 2**21
"""Multiplications below which oneDNN's greater cost of a call isn't earned back."""


class Linear(nn.Linear):
    """`nn.Linear` without a bias; float32 products on a CPU go to oneDNN when they are large."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Float[Tensor, "*A I"]) -> Float[Tensor, "*A O"]:
        """X times the weight's transpose."""
        return product(x, self.weight) if _applies(x, self.weight) else F.linear(x, self.weight)


def product(x: Float[Tensor, "*A I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*A O"]:
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


def _applies(x: Tensor, weight: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= WORTHWHILE
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and type(weight) in (Tensor, nn.Parameter)
    )
