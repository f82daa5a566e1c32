"""Decoders against their definitions, by brute force."""

import itertools

import pytest
import torch
from torch import Tensor

from textdiff.decoder import DECODERS, Greedy, Sample, Softmax, TopK, TopP
from textdiff.noise import Noise

V = 7


@pytest.fixture
def logits() -> Tensor:
    torch.manual_seed(0)
    return 2 * torch.randn(5, 40, V)


def noise(rows: int = 5) -> Noise:
    return Noise(1, range(rows))


def smallest_set(row: Tensor, p: float) -> set[int]:
    """The smallest set of tokens that holds at least p, the heaviest among equals."""
    for size in range(1, V + 1):
        sets = [list(some) for some in itertools.combinations(range(V), size)]
        best = max(sets, key=lambda some: row[some].sum())
        if row[best].sum() >= p:
            return set(best)
    return set(range(V))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", DECODERS)
def test_rows_are_distributions(name, temperature, logits):
    probs = DECODERS[name](temperature=temperature)(logits, noise())
    assert probs.shape == logits.shape and probs.dtype == torch.float32
    assert (probs >= 0).all()
    assert torch.allclose(probs.sum(-1), torch.ones(5, 40), atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_a_certain_token_stays_and_a_barred_one_never_comes(name, logits):
    logits[..., 3] = -1e4
    assert (DECODERS[name]()(logits, noise())[..., 3] == 0).all()
    logits[..., 2] = 1e3
    assert (DECODERS[name]()(logits, noise())[..., 2] == 1).all()


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature, logits):
    expected = logits.exp() ** (1 / temperature)
    expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(Softmax(temperature)(logits, noise()), expected, atol=1e-5)


def test_greedy_takes_the_likeliest(logits):
    probs = Greedy()(logits, noise())
    assert (probs.argmax(-1) == logits.argmax(-1)).all() and (probs.max(-1).values == 1).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sample_draws_with_the_right_frequencies(temperature):
    torch.manual_seed(0)
    row = torch.randn(V)
    drawn = Sample(temperature)(row.expand(4, 10_000, V), noise(4))
    assert ((drawn == 0) | (drawn == 1)).all() and (drawn.sum(-1) == 1).all()
    expected = torch.softmax(row / temperature, 0)
    assert torch.allclose(drawn.mean((0, 1)), expected, atol=0.01)
    correlation = torch.corrcoef(drawn.argmax(-1).float()) - torch.eye(4)
    assert correlation.abs().max() < 0.05, "rows must not share a draw"


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-24])
def test_an_impossible_token_never_comes(u):
    """Whatever the random number, the ends of its range too."""

    class Edge:
        def uniform(self, shape: tuple[int, ...]) -> Tensor:
            return torch.full(shape, u)

    for certain in range(V):
        logits = torch.full((1, 1, V), -1e4)
        logits[..., certain] = 0.0
        assert Sample()(logits, Edge()).argmax().item() == certain


@pytest.mark.parametrize("k", [1, 3, V, 50])
def test_top_k_keeps_the_k_likeliest(k, logits):
    probs, full = TopK(k)(logits, noise()), torch.softmax(logits, -1)
    for row, whole in zip(probs.flatten(0, 1), full.flatten(0, 1), strict=True):
        kept = sorted(range(V), key=lambda i: -whole[i])[:k]
        assert set(row.nonzero()[:, 0].tolist()) == set(kept)
        assert torch.allclose(row[kept], whole[kept] / whole[kept].sum(), atol=1e-5)


def test_sample_with_p_draws_from_the_nucleus_alone():
    """With the frequencies of what is left: SSD-LM's sampling projection."""
    row = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = Sample(p=0.8)(row.expand(4, 10_000, 4), noise(4)).mean((0, 1))
    assert torch.allclose(drawn, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.01)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_smallest_set_that_holds_p(p, logits):
    probs, full = TopP(p)(logits, noise()), torch.softmax(logits, -1)
    for row, whole in zip(probs[0], full[0], strict=True):
        kept = sorted(smallest_set(whole, p - 1e-6))
        assert row.nonzero()[:, 0].tolist() == kept
        assert torch.allclose(row[kept], whole[kept] / whole[kept].sum(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("softmax", {"temperature": 0.0}),
        ("sample", {"temperature": -1.0}),
        ("top_k", {"k": 0}),
        ("top_p", {"p": 0.0}),
        ("top_p", {"p": 1.1}),
        ("sample", {"p": 0.0}),
    ],
)
def test_senseless_options_are_refused(name, options):
    with pytest.raises(ValueError, match="must be"):
        DECODERS[name](**options)
