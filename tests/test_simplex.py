"""The two simplex processes against what they stand for, in the papers' own coordinates."""

import pytest
import torch
from torch import nn

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
