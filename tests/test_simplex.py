"""The two simplex processes against what they stand for, in the papers' own coordinates."""

import math
import warnings

import pytest
import torch
from test_blocks import make_model
from torch import nn

from textdiff.generation import generate_texts
from textdiff.noise import Noise
from textdiff.process import LinearSimplex, Simplex
from textdiff.schedule import Cosine

V, D = 30, 5
IDS = torch.arange(V).view(5, 6)


def make(kind: type, **options: float) -> nn.Module:
    torch.manual_seed(0)
    return kind(nn.Embedding(V, D), Cosine(), **options).double()


def test_states_times_k_are_those_of_ssd_lm():
    """Han et al. 2023, eq. 9 to 11: +K at the token, -K elsewhere, noise of standard deviation K."""
    k, t = 3.0, torch.tensor(0.6)
    process = make(Simplex, half_width=k)
    corner = torch.full((5, 6, V), -k).double().scatter(2, IDS[..., None], k)
    alpha, sigma = process.schedule(t)
    eps = Noise(1, range(5)).normal((5, 6, V))
    ours = process.corrupt(process.encode(IDS), t, Noise(1, range(5)))
    assert torch.allclose(k * ours, alpha * corner + sigma * k * eps, atol=1e-6)
    read = torch.softmax(k * ours, -1) @ process.table()
    assert torch.allclose(process.features(ours, t, process.log_posterior(ours, t))[..., D:], read)


@pytest.mark.parametrize(("size", "weight"), [(1000, 0.957), (50_000, 0.306)])
def test_what_k_reads_of_clean_text(size, weight):
    """The two formulas of `half_width`: at K = 5, and that log(9 V) / 2 reads nine tenths."""
    process, t = Simplex(nn.Embedding(size, 1), Cosine()), torch.zeros(())
    process.embedding.weight.data = torch.eye(size, 1) * 2 - 1
    ids = torch.zeros(1, 1, dtype=torch.int64)
    for k, expected in ((5.0, weight), (math.log(9 * size) / 2, 0.9)):
        process.half_width = k
        x_t = process.encode(ids)
        read = process.features(x_t, t, process.log_posterior(x_t, t))[0, 0, 1]
        assert (read.item() + 1) / 2 == pytest.approx(expected, abs=1e-3)


def test_corners_are_the_codebook():
    process = make(Simplex)
    probs = torch.softmax(torch.randn(2, 3, V).double(), -1)
    assert torch.equal(process.encode(IDS), process.codebook()[IDS])
    assert torch.allclose(process.mean(probs), probs @ process.codebook())


def test_the_linear_state_is_the_projected_one_hot():
    """z = L^-1 W^T x: noise N(0, I) on x is N(0, I) on z, and one-hot vectors are the clean points."""
    process, radius = make(LinearSimplex, scale=0.7), 0.7 * (V / D) ** 0.5
    table = process.table()
    project = torch.linalg.inv(torch.linalg.cholesky(table.T @ table)) @ table.T  # (D, V)
    assert torch.allclose(project @ project.T, torch.eye(D).double(), atol=1e-9)
    assert torch.allclose(radius * project.T, process.codebook(), atol=1e-4)
    assert process.codebook().square().sum(-1).mean().item() == pytest.approx(0.7**2, rel=1e-4)


def test_the_linear_posterior_is_that_of_the_projection():
    """Density of y = W^T (alpha h onehot + sigma eps), with its own coloured covariance."""
    process, t = make(LinearSimplex), torch.tensor(0.5)
    alpha, sigma = process.schedule(t)
    table = process.table()
    x_t = process.corrupt(process.encode(IDS), t, Noise(1, range(5))).double()
    y = x_t @ torch.linalg.cholesky(table.T @ table).T
    apart = y[..., None, :] - alpha * (V / D) ** 0.5 * table
    square = torch.einsum("...d,de,...e->...", apart, torch.linalg.inv(table.T @ table), apart)
    exact = torch.log_softmax(-0.5 * square / sigma**2, -1)
    assert torch.allclose(process.log_likelihood(x_t, t).log_softmax(-1), exact, atol=1e-3)


def test_more_tokens_than_width_are_needed_by_nobody():
    """Fewer tokens than dimensions: W^T W has no inverse, the process works."""
    torch.manual_seed(0)
    process = LinearSimplex(nn.Embedding(4, 9), Cosine())
    ids = torch.arange(4)[None]
    process.codebook().sum().backward()
    assert (process.round(process.encode(ids)) == ids).all()
    assert process.embedding.weight.grad.isfinite().all()


def test_the_multi_hot_projection_is_plus_one_at_every_likely_token():
    """SSD-LM's third projection; the others are decoders."""
    probs = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]])
    process = Simplex(nn.Embedding(4, 3), Cosine(), multi_hot=0.75)
    assert process.mean(probs).tolist() == [[[1, 1, -1, -1]]]
    ids = torch.arange(4)[None]
    assert torch.equal(process.encode(ids), process.mean(torch.eye(4)[None]))
    assert torch.allclose(Simplex(nn.Embedding(4, 3), Cosine()).mean(probs), 2 * probs - 1)
    for value in (0.0, 1.5):
        with pytest.raises(ValueError, match="multi_hot must be in"):
            make(Simplex, multi_hot=value)


@pytest.mark.parametrize(
    ("how", "acts"),
    [
        ({}, False),
        ({"decoder": "softmax"}, False),
        ({"sampler": "renoise"}, False),
        ({"sampler": "ancestral", "decoder": "greedy"}, False),
        ({"sampler": "renoise", "decoder": "softmax"}, True),
        ({"sampler": "ancestral", "decoder": "top_p"}, True),
        ({"sampler": "ddim"}, True),
    ],
)
def test_texts_say_where_the_multi_hot_projection_is_idle(how, acts):
    """It is of several tokens: where one is drawn or settled texts are the same without it."""
    texts = []
    for value in (0.5, None):
        model = make_model(process={"name": "simplex", "multi_hot": value})
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            texts.append(generate_texts(model, num_samples=4, length=10, steps=4, **how).ids)
        assert any("multi_hot changes nothing" in str(one.message) for one in told) is (
            value is not None and not acts
        )
    assert (texts[0] != texts[1]) is acts


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_half_width_is_positive(value):
    with pytest.raises(ValueError, match="half_width must be positive"):
        make(Simplex, half_width=value)


def test_pure_noise_of_many_tokens_tells_next_to_nothing():
    """What all corners share counts V times, and is no news: the prior stands where they stand."""
    process = Simplex(nn.Embedding(1000, 8), Cosine())
    ids = torch.arange(0, 1000, 50)[None]
    assert 0 < process.prior_divergence(ids).max() < 0.03
    x_1 = process.corrupt(process.encode(ids), torch.tensor(1.0), Noise(0, [0]))
    prior = process.prior(ids.shape, Noise(1, [0]))
    assert abs(float(x_1.mean() - prior.mean())) < 0.03 < abs(float(prior.mean()))
