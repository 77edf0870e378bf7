"""Weights in 8 or 4 bits, for the products of a decode step: what that costs is reading them.

    int8    w = s[o] · q,      q from -127 to 127, a scale an output
    int4    w = s[o, g] · q,   q from -8 to 7, a scale an output and group of 64 inputs

A product's inputs are quantised too, on the way: int8, with a scale for each row and group of 64 inputs; sums are whole
numbers.  What quantising costs in quality is measured by benchmarks/quality.py and told in docs/performance.md.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.errors import RequestError
from tunesmith.nn.engine import GROUP, INT4, INT8, LANES, Weight, product, weight_of, zeros

QUANTIZE = ("int8", "int4")
"""Known names."""
FEW = 4
"""Rows that a GPU multiplies with weights of 8 bits in one pass over them."""
M = TypeVar("M", bound=nn.Module)


def quantize_int8(weight: Float[Tensor, "O I"]) -> tuple[Int[Tensor, "O I"], Float[Tensor, " O"]]:
    """Whole numbers and a scale for each output."""
    scales = weight.abs().amax(1).float() / 127
    return _rounded(weight.float() / _nonzero(scales)[:, None], 127, 127), scales


def quantize_int4(weight: Float[Tensor, "O I"]) -> tuple[Int[Tensor, "O I"], Float[Tensor, "O G"]]:
    """Whole numbers and a scale for each output and group.

    The number of the largest magnitude becomes -8, or nearly: of a few such scales the one with the least error.
    """
    groups = _groups(weight.float())  # [O, G, 64]
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    best, scales = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    for reach in (-8.0, -7.0, 7.5, -9.0):
        tried = largest / reach
        error = (_rounded(groups / _nonzero(tried), 8, 7) * tried - groups).square_().sum(2, keepdim=True)
        scales = torch.where(error < best, tried, scales)
        best = torch.minimum(error, best)
    whole = _rounded(groups / _nonzero(scales), 8, 7)
    return whole.flatten(1)[:, : weight.shape[1]], scales[..., 0]


def _groups(weight: Tensor) -> Tensor:
    return F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))


def _nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales)


def _rounded(x: Tensor, low: int, high: int) -> Tensor:
    return x.round_().clamp_(-low, high).to(torch.int8)


def pack(whole: Int[Tensor, "O I"], scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """As the kernels read them: 16 outputs side by side, four inputs of each; of int4 two such blocks in a byte."""
    outputs, inputs = whole.shape
    step = 4 if bits == 8 else 8
    zero = 128 if bits == 8 else 8
    full = F.pad(whole, (0, -inputs % step, 0, -outputs % LANES))
    blocks = (full.to(torch.int16) + zero).to(torch.uint8).view(-1, LANES, full.shape[1] // 4, 4).transpose(1, 2)
    if bits == 4:
        blocks = blocks[:, 0::2] | blocks[:, 1::2] << 4
    packed = zeros(blocks.shape, torch.uint8).copy_(blocks).flatten()
    scales = F.pad(scales, (0, -outputs % LANES)) if bits == 8 else F.pad(scales, (0, 0, 0, -outputs % LANES))
    if bits == 4:
        scales = scales.view(-1, LANES, scales.shape[1]).transpose(1, 2)  # [O/16, G, 16]
    return packed, scales.contiguous()


class QuantizedLinear(nn.Module):
    """A product with a quantised weight, with or without a bias: x [*, I] -> [*, O].

    For inference alone: it has no gradient and isn't saved.  It is packed for the kernels of nn/engine.py if they are
    there; else (`kernels` false) whole numbers [O, I] that torch multiplies, anywhere.
    """

    def __init__(
        self,
        weight: Float[Tensor, "O I"],
        bias: Float[Tensor, " O"] | None = None,
        name: str = "int8",
        kernels: bool = True,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.name, self.kernels, self.dtype = name, kernels, weight.dtype
        bits = 8 if name == "int8" else 4
        whole, scales = (quantize_int8 if bits == 8 else quantize_int4)(weight.detach())
        data, scales = pack(whole, scales, bits) if kernels else (whole.contiguous(), scales)
        for part, x in (("data", data), ("scales", scales), ("bias", None if bias is None else bias.detach().float())):
            self.register_buffer(part, x, persistent=False)
        self.register_state_dict_pre_hook(_refuse)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moved, but never cast: these numbers mean what they mean in their own types alone."""
        return super()._apply(lambda x: x.to(fn(x[:0]).device), recurse)

    def engine_weight(self) -> Weight | None:
        """What the CPU's kernels read."""
        kind = INT8 if self.name == "int8" else INT4
        return Weight(kind, self.out_features, self.in_features, *self.buffers(recurse=False)) if self.kernels else None

    def forward(self, x: Float[Tensor, "*A I"]) -> Float[Tensor, "*A O"]:
        """In the precision of x."""
        rows = x.reshape(-1, self.in_features)
        out = product(rows.float(), self.engine_weight()) if self.kernels else self._by_torch(rows)
        return out.view(*x.shape[:-1], -1).to(x.dtype)

    def _by_torch(self, x: Tensor) -> Tensor:
        """Weights alone are quantised here, and on a CPU inputs of int8 are bfloat16."""
        data, scales, *bias = self.buffers(recurse=False)
        if self.name == "int8" and x.device.type == "cpu" and not self.in_features % 32:  # torch reads beyond others
            half = x.to(torch.bfloat16)
            out = torch._weight_int8pack_mm(half, data, scales.to(half.dtype)).to(x.dtype)
        elif self.name == "int8":
            out = few_rows(x, data, scales) if x.is_cuda and len(x) <= FEW else many_rows(x, data, scales)
        else:
            each = scales.repeat_interleave(GROUP, 1)[:, : self.in_features]
            out = F.linear(x, (data * each).to(x.dtype))
        return out + bias[0].to(out.dtype) if bias else out


def many_rows(x: Float[Tensor, "R I"], whole: Int[Tensor, "O I"], scales: Float[Tensor, " O"]) -> Float[Tensor, "R O"]:
    """Whole numbers become floats, which holds them all exactly, and then it is a product like any other."""
    return F.linear(x, whole.to(x.dtype)) * scales.to(x.dtype)


def few_rows(x: Float[Tensor, "R I"], whole: Int[Tensor, "O I"], scales: Float[Tensor, " O"]) -> Float[Tensor, "R O"]:
    """On a GPU: compiled, so that weights are read once for all rows and are 8 bits until then.

    (torch's own product of this kind computes each number in one thread, in float32, and reads weights row by row.)
    """
    if torch.compiler.is_compiling():
        return sums(x, whole, scales)
    if not _can_compile():
        return many_rows(x, whole, scales)
    import torch._dynamo.config as settings

    with settings.patch(recompile_limit=2**16):  # a kernel a shape, of which a model has a handful
        found: Tensor = _compiled()(x, whole, scales)
    return found


def sums(x: Float[Tensor, "R I"], whole: Int[Tensor, "O I"], scales: Float[Tensor, " O"]) -> Float[Tensor, "R O"]:
    """Row by row, which the compiler makes one loop of."""
    weights = whole.float()
    rows = [(weights * row).sum(1) * scales for row in x.float().unbind()]
    return torch.stack(rows).to(x.dtype)


@cache
def _can_compile() -> bool:
    """Is there what torch.compile needs for a GPU: Triton, and a C compiler for it?"""
    from torch.utils._triton import has_triton

    return has_triton() and any(map(shutil.which, (os.environ.get("CC") or "gcc", "clang")))


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(sums, fullgraph=True, dynamic=False)


def quantize_(module: M, name: str, kernels: bool) -> M:
    """Replace all linear layers within by quantised ones, in place, one after the other.  name: of QUANTIZE."""
    places = [
        (parent, key) for parent in module.modules() for key, child in parent.named_children() if _is_linear(child)
    ]
    for parent, key in places:
        child = getattr(parent, key)
        dtype = child.weight.dtype
        weight = weight_of(child.float() if dtype == torch.float16 else child)  # kernels don't read float16
        if weight is None:
            child.to(dtype)
            continue
        made = QuantizedLinear(weight.matrix, weight.bias, name, kernels)
        made.dtype = dtype  # which the model goes on computing in
        setattr(parent, key, made)
    return module


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "engine_weight") and not isinstance(module, QuantizedLinear)


def is_quantized(module: nn.Module) -> bool:
    """Is any layer within?"""
    return any(isinstance(part, QuantizedLinear) for part in module.modules())


def _refuse(module: nn.Module, *_: Any) -> None:
    raise RequestError("A quantized model can't be saved; load it with quantize='none' and save that.")
