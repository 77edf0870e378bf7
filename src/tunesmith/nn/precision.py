"""Parts of a half-precision model that stay in float32: norms, embeddings, heads.

A model is stored in half precision by `.to(torch.bfloat16)`, by `.half()` or by loading it so; these modules then keep
their own parameters in float32.  (`from_pretrained` casts before modules are asked: models also name these parts in
`_keep_in_fp32_modules_strict`.)
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

_HALVES = (torch.float16, torch.bfloat16)


class Float32(nn.Module):
    """A module whose own parameters (not those of modules within) are never cast to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(lambda x: _moved(x, fn(x)), recurse=False)


def _moved(before: Tensor, after: Tensor) -> Tensor:
    """`after`, but in the precision of `before` if it was reduced."""
    return before.float().to(after.device) if after.dtype in _HALVES else after


class Float32LayerNorm(Float32, nn.LayerNorm):
    """Computed in float32 at least, returned in the input's precision."""

    def __init__(self, width: int) -> None:
        super().__init__(width, dtype=torch.float32)

    def forward(self, x: Float[Tensor, "*A D"]) -> Float[Tensor, "*A D"]:
        """Mean 0 and variance 1 over the width, then gain and bias."""
        return F.layer_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.bias, self.eps).to(
            x.dtype
        )


class Float32Embedding(Float32, nn.Embedding):
    """A table of vectors; fresh ones are normal with the given deviation."""

    deviation = 1.0

    def __init__(self, rows: int, width: int, deviation: float) -> None:
        super().__init__(rows, width, dtype=torch.float32)
        self.deviation = deviation

    def reset_parameters(self) -> None:
        """Fresh vectors."""
        nn.init.normal_(self.weight, std=self.deviation)


class Float32Head(Float32, nn.Linear):
    """Logits, without a bias.  Fresh weights are normal with the given deviation, or (None) as torch has them."""

    deviation: float | None = None

    def __init__(self, width: int, outputs: int, deviation: float | None = None) -> None:
        super().__init__(width, outputs, bias=False, dtype=torch.float32)
        self.deviation = deviation

    def reset_parameters(self) -> None:
        """Fresh weights."""
        if self.deviation is None:
            nn.init.uniform_(self.weight, -(self.in_features**-0.5), self.in_features**-0.5)
        else:
            nn.init.normal_(self.weight, std=self.deviation)

    def forward(self, x: Float[Tensor, "*A D"]) -> Float[Tensor, "*A V"]:
        """In float32 at least."""
        return F.linear(x.to(self.weight.dtype), self.weight)


def in_float32(module: nn.Module, x: Float[Tensor, "B C S"]) -> Float[Tensor, "B C2 T"]:
    """`module(x)` in float32 for a module that is stored in half precision; its weights are cast for the call."""
    if all(parameter.dtype not in _HALVES for parameter in module.parameters()):
        return module(x)
    return functional_call(module, {name: p.float() for name, p in module.named_parameters()}, x)
