"""Quick products equal PyTorch's own, with their gradients, and step aside where they don't apply."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.nn import linear
from tunesmith.nn.linear import Linear

needs_onednn = pytest.mark.skipif(not linear._HAS_ONEDNN, reason="this PyTorch has no oneDNN for this processor")


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer(x).square().sum(), (x, layer.weight))


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 1, 24), (3, 7, 24), (40, 24)])
def test_onednn_gives_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(linear, "WORTHWHILE", 0)
    layer, calls = Linear(24, 36), []
    onednn = linear._onednn
    monkeypatch.setattr(linear, "_onednn", lambda *args: calls.append(args) or onednn(*args))
    x = torch.randn(shape, requires_grad=True)
    wanted = torch.autograd.grad(F.linear(x, layer.weight).square().sum(), (x, layer.weight))
    torch.testing.assert_close(gradients(layer, x), wanted, rtol=1e-4, atol=1e-4)
    assert len(calls) == 3
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


@pytest.mark.parametrize("shape", [(2, 24), (2, 1, 24), (2, 2, 24), (3, 24), (1, 4, 24)])
def test_few_rows_give_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    layer, calls = Linear(24, 36), []
    transposed = linear.transposed_product
    monkeypatch.setattr(linear, "transposed_product", lambda *args: calls.append(args) or transposed(*args))
    x = torch.randn(shape, requires_grad=True)
    wanted = torch.autograd.grad(F.linear(x, layer.weight).square().sum(), (x, layer.weight))
    torch.testing.assert_close(gradients(layer, x), wanted, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1
    assert layer(x).is_contiguous()


@needs_onednn
def test_a_frozen_weight_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "WORTHWHILE", 0)
    layer = Linear(8, 8).requires_grad_(False)
    x = torch.randn(5, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_what_isnt_plain_stays_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onednn_product", "transposed_product"):
        monkeypatch.setattr(linear, name, lambda *_: pytest.fail("not PyTorch's own"))
    assert Linear(8, 8)(torch.randn(1, 8)).shape == (1, 8)
    assert Linear(8, 8)(torch.randn(5, 8)).shape == (5, 8)
    monkeypatch.setattr(linear, "WORTHWHILE", 0)
    assert Linear(8, 8).bfloat16()(torch.randn(2, 8, dtype=torch.bfloat16)).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(8, 8)(torch.randn(2, 8)).dtype is torch.bfloat16


def test_it_is_an_ordinary_linear_layer() -> None:
    assert isinstance(Linear(4, 4), nn.Linear)
    assert [name for name, _ in Linear(4, 4).named_parameters()] == ["weight"]
