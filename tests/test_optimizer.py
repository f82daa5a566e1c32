"""Muon: its update against singular value decomposition and against PyTorch's own."""

import pytest
import torch
from torch import nn

from textdiff.optimizer import Muon, Orthogonal, orthogonalise

SHAPES = [(8, 8), (6, 10), (12, 5), (8, 8)]


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    torch.manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 20), (2, 20, 4)])
def test_singular_values_become_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    found = left.mT @ orthogonalise(x) @ right.mT
    values = found.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.3 and values.max() < 1.3
    assert (found - torch.diag_embed(values)).abs().max() < 0.05
    assert torch.allclose(orthogonalise(1000 * x), orthogonalise(x), atol=0.02)


def test_the_steps_are_those_of_pytorch():
    ours, theirs = matrices(), matrices()
    own = Orthogonal(ours, lr=0.1, weight_decay=0.05)
    other = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for parameters, optimizer in ((ours, own), (theirs, other)):
            set_gradients(parameters, step)
            optimizer.step()
    start = matrices()
    for a, b, c in zip(ours, theirs, start, strict=True):
        # PyTorch computes in bfloat16, of 8 bits
        assert (a - b).norm() < 0.02 * (b - c).norm()


def test_weight_decay_alone():
    parameters = matrices()
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    Orthogonal(parameters, lr=0.1, weight_decay=0.5).step()
    for parameter, old in zip(parameters, before, strict=True):
        assert torch.allclose(parameter, 0.95 * old)


def test_a_parameter_without_gradient_stays():
    parameters = matrices()
    set_gradients(parameters, 0)
    parameters[0].grad = None
    before = parameters[0].detach().clone()
    Orthogonal(parameters, lr=0.1, weight_decay=0.5).step()
    assert torch.equal(parameters[0], before)


def test_saved_and_restored_it_goes_on_alike():
    def model() -> nn.Module:
        torch.manual_seed(0)
        inner = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 9)])})
        return nn.ModuleDict({"transformer": inner, "out": nn.Linear(6, 3)})

    def train(model: nn.Module, optimizer: Muon, steps: range) -> None:
        for step in steps:
            set_gradients(list(model.parameters()), step)
            optimizer.step()

    whole = model()
    train(whole, Muon(whole, 0.1, 0.01), range(6))
    part = model()
    optimizer = Muon(part, 0.1, 0.01)
    train(part, optimizer, range(3))
    resumed = Muon(part, 0.1, 0.01)
    resumed.load_state_dict(optimizer.state_dict())
    train(part, resumed, range(3, 6))
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)
