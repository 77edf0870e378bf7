"""Weights in few bits: what is rounded how, and that every way of multiplying means the same."""

import copy
import os
import shutil
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils import _triton as triton

from tunesmith.errors import RequestError
from tunesmith.nn import engine, lowbit
from tunesmith.nn.factored import Projection
from tunesmith.nn.linear import Linear
from tunesmith.nn.lowbit import (
    QUANTIZE,
    QuantizedLinear,
    few_rows,
    is_quantized,
    many_rows,
    quantize_,
    quantize_int4,
    quantize_int8,
    sums,
)

BOTH = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(True, marks=pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled")),
        False,
    ],
)
ERROR = {"int8": 0.012, "int4": 0.1}
"""Of a product with normal weights and inputs, as a part of its size."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_eight_bits_by_hand() -> None:
    whole, scales = quantize_int8(torch.tensor([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0]]))
    assert whole.tolist() == [[127, -50, 0], [0, 0, 0]]
    torch.testing.assert_close(scales, torch.tensor([0.01, 0.0]))


def test_four_bits_by_hand() -> None:
    """What lies on the grid is kept exactly, in each group of 64 inputs by itself; zeros cost nothing."""
    grid = torch.arange(-8.0, 8).repeat(4)
    whole, scales = quantize_int4(torch.cat([grid * 0.5, -grid * 3, torch.zeros(10)])[None])
    values = whole.float() * scales.repeat_interleave(64, 1)[:, :138]
    torch.testing.assert_close(values, torch.cat([grid * 0.5, -grid * 3, torch.zeros(10)])[None])
    assert (whole.min(), whole.max()) == (-8, 7)


@BOTH
@pytest.mark.parametrize("name", QUANTIZE)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 32), (2, 300, 77), (9, 130, 16), (70, 36, 5)])
def test_products_are_nearly_those_of_the_weights(
    name: str, kernels: bool, rows: int, inputs: int, outputs: int
) -> None:
    weight, bias, x = noise(outputs, inputs), noise(outputs, seed=1), noise(rows, inputs, seed=2)
    layer = QuantizedLinear(weight, bias, name, kernels)
    wanted = x @ weight.T + bias
    found = layer(x)
    assert found.shape == wanted.shape
    assert (found - wanted).norm() < ERROR[name] * 1.3 * wanted.norm()
    assert (found - wanted).norm() > 1e-4 * wanted.norm()
    assert layer(x.view(rows, 1, inputs).bfloat16()).dtype == torch.bfloat16


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("name", QUANTIZE)
def test_kernels_multiply_whole_numbers_exactly(name: str) -> None:
    """Inputs on the grid: nothing but the weights' rounding is left.  A row's result is the same in every batch."""
    weight, x = noise(50, 200), torch.randint(-127, 128, (13, 200), generator=torch.Generator().manual_seed(3)).float()
    x[:, ::64] = 127
    layer = QuantizedLinear(weight, None, name)
    whole, scales = (quantize_int8 if name == "int8" else quantize_int4)(weight)
    scales = scales[:, None] if name == "int8" else scales.repeat_interleave(64, 1)[:, :200]
    torch.testing.assert_close(layer(x), x @ (whole * scales).T, rtol=1e-5, atol=2e-3)
    together = layer(x)
    assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(13))


@pytest.mark.skipif(engine.library() is None, reason="torch's way doesn't round inputs by groups")
@pytest.mark.parametrize("name", QUANTIZE)
def test_far_outliers_hurt_their_own_group_alone(name: str) -> None:
    weight, x = noise(32, 256), noise(4, 256, seed=1)
    x[:, 3] = 1000.0
    layer, rest = QuantizedLinear(weight, None, name), x.clone()
    rest[:, :64] = 0
    outlier = x - rest
    wanted = rest @ weight.T
    assert (layer(x) - layer(outlier) - wanted).norm() < 1.3 * ERROR[name] * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_gpu_does(dtype: torch.dtype, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows and many mean the same; few are compiled without a break, once for each shape."""
    if request.config.getoption("--jaxtyping-packages", None):
        pytest.skip("checks of types break graphs")
    monkeypatch.setattr(lowbit, "_can_compile", lambda: True)
    monkeypatch.setattr(lowbit, "_compiled", cache(lambda: torch.compile(sums, fullgraph=True, backend="eager")))
    counters.clear()
    for outputs in range(20, 32):
        whole, scales = quantize_int8(noise(outputs, 40))
        for rows in (1, 2):
            x = noise(rows, 40, seed=1).to(dtype)
            wanted = x.double() @ (whole * scales[:, None]).double().T
            for found in (few_rows(x, whole, scales), few_rows(x, whole, scales), many_rows(x, whole, scales)):
                assert found.dtype == dtype
                near = 1e-5 if dtype == torch.float32 else 0.02
                torch.testing.assert_close(found.double(), wanted, atol=near * wanted.abs().max().item(), rtol=near)
    assert counters["stats"]["unique_graphs"] <= 24
    assert not counters["graph_break"]


def test_a_gpu_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowbit, "_can_compile", lambda: False)
    monkeypatch.setattr(lowbit, "_compiled", lambda: pytest.fail("compiled"))
    (whole, scales), x = quantize_int8(noise(20, 40)), noise(2, 40, seed=1)
    assert torch.equal(few_rows(x, whole, scales), many_rows(x, whole, scales))


def test_no_compiler_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "has_triton", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    there = any(map(shutil.which, ("gcc", "clang")))
    for path, found in ((os.environ["PATH"], there), ("", False)):
        monkeypatch.setenv("PATH", path)
        assert lowbit._can_compile.__wrapped__() == found


@BOTH
def test_layers_of_every_kind_are_replaced_within(kernels: bool) -> None:
    model = nn.ModuleDict(
        {"a": Linear(70, 30), "b": nn.ModuleList([Projection(30, 70, 1.0)]), "norm": nn.LayerNorm(70)}
    )
    for part in (model["b"][0],):
        part.reset_parameters()
        nn.init.normal_(part.bias)
    x = noise(3, 70)
    wanted = model["b"][0](model["a"](x))
    assert not is_quantized(model)
    assert quantize_(model, "int8", kernels) is model
    assert is_quantized(model)
    assert isinstance(model["a"], QuantizedLinear)
    assert isinstance(model["norm"], nn.LayerNorm)
    found = model["b"][0](model["a"](x))
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    quantize_(model, "int8", kernels)  # again: nothing is left to do
    assert torch.equal(model["b"][0](model["a"](x)), found)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_stays_in_its_precision(dtype: torch.dtype, kernels: bool) -> None:
    """Layers that can't be quantised, for a hook, stay what they are."""
    model = nn.ModuleDict({"a": Linear(70, 30), "b": Linear(70, 30)}).to(dtype)
    model["b"].register_forward_hook(lambda *_: None)
    x = noise(3, 70).to(dtype)
    wanted = model["a"](x)
    quantize_(model, "int8", kernels)
    found = model["a"](x)
    assert isinstance(model["a"], QuantizedLinear)
    assert model["a"].dtype == model["b"].weight.dtype == found.dtype == model["b"](x).dtype == dtype
    assert (found - wanted).norm() < 0.02 * wanted.norm()


@BOTH
def test_numbers_are_moved_but_never_cast(kernels: bool) -> None:
    layer, x = QuantizedLinear(noise(32, 64), noise(32, seed=1), "int8", kernels), noise(2, 64, seed=2)
    wanted = layer(x)
    assert torch.equal(copy.deepcopy(layer).half().to(torch.float64)(x), wanted)


def test_a_quantised_layer_is_not_saved() -> None:
    with pytest.raises(RequestError, match="can't be saved"):
        nn.Sequential(QuantizedLinear(noise(4, 4))).state_dict()
