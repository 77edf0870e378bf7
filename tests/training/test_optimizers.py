"""Muon and AdamW together: who gets what, and one state and schedule for both."""

from copy import deepcopy

import torch
from torch import nn
from torch.optim import SGD

from tunesmith.training.optimizers import Joined, muon_and_adamw


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(8, 4), nn.ModuleList([Block(), Block()])
        self.heads = nn.ModuleList([nn.Linear(4, 8, bias=False)])
        self.blocks[1].requires_grad_(False)


def test_muon_takes_the_matrices_of_trained_blocks_and_adamw_the_rest() -> None:
    net = Net()
    joined = muon_and_adamw(net, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    muon, adamw = ({id(p) for g in part.param_groups for p in g["params"]} for part in joined.parts)
    assert muon == {id(net.blocks[0].linear.weight)}
    assert muon | adamw == {id(p) for p in net.parameters() if p.requires_grad}


def test_what_has_a_rate_of_its_own_goes_to_adamw() -> None:
    net = Net()
    net.requires_grad_(True)
    options = {"learning_rate": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
    muon, adamw = muon_and_adamw(net, rates={"linear.bias": 5e-4, "0.linear.weight": 5e-4}, **options).parts
    rates = {id(p): group["lr"] for group in adamw.param_groups for p in group["params"]}
    careful = {id(p) for p in (net.blocks[0].linear.weight, net.blocks[0].linear.bias, net.blocks[1].linear.bias)}
    assert {key for key, rate in rates.items() if rate == 5e-4} == careful
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(net.blocks[1].linear.weight)]


def test_a_schedule_reaches_all_parts() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    joined = Joined([SGD([a], lr=1.0), SGD([b], lr=2.0)])
    schedule = torch.optim.lr_scheduler.LambdaLR(joined, lambda step: 0.5**step)
    for parameter in (a, b):
        parameter.grad = torch.ones(1)
    joined.step()
    schedule.step()
    joined.step()
    assert (a.item(), b.item()) == (-1.5, -3.0)


def test_a_restored_state_goes_on_alike() -> None:
    torch.manual_seed(0)
    net, twin = Net(), Net()
    options = {"learning_rate": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    first, second = muon_and_adamw(net, **options), muon_and_adamw(twin, **options)
    step(net, first)
    twin.load_state_dict(net.state_dict())
    second.load_state_dict(deepcopy(first.state_dict()))
    for model, optimizer in ((net, first), (twin, second)):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        step(model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def step(net: Net, optimizer: Joined) -> None:
    optimizer.zero_grad()
    hidden = net.blocks[0].norm(net.blocks[0].linear(net.embedding.weight))
    net.heads[0](hidden).square().sum().backward()
    optimizer.step()
