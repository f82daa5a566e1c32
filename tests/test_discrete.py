"""Noise on tokens against its transition matrices, written out."""

import pytest
import torch
import torch.nn.functional as F
from conftest import run_training
from torch import Tensor, nn

import textdiff
from textdiff.noise import Noise
from textdiff.process import PROCESSES, Discrete
from textdiff.schedule import SCHEDULES

V, COUNT = 5, 20_000
DISCRETE = [name for name in PROCESSES if issubclass(PROCESSES[name], Discrete)]


def make(name: str, **options: float) -> Discrete:
    torch.manual_seed(0)
    return PROCESSES[name](nn.Embedding(V, 4), SCHEDULES["cosine"](), **options)


def matrix(process: Discrete, kept: Tensor) -> Tensor:
    """Q: from every state (words and the mask) to every other, `(V + 1, V + 1)`, equation (1)."""
    pi = torch.full((V + 1,), process.replace / V)
    pi[V] = 1 - process.replace
    return kept * torch.eye(V + 1) + (1 - kept) * pi


def frequencies(states: Tensor) -> Tensor:
    return F.one_hot(states, V + 1).float().mean(1)


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("time", [0.0, 0.3, 0.8, 1.0])
def test_corruption_has_the_frequencies_of_the_matrix(name, time):
    process, t = make(name), torch.tensor(time)
    ids = torch.arange(V)[:, None].expand(V, COUNT)
    found = frequencies(process.corrupt(process.encode(ids), t, Noise(0, range(V))))
    assert (found - matrix(process, process.kept(t))[:V]).abs().max() < 0.015
    if time == 0.0:
        assert torch.equal(process.corrupt(ids, t, Noise(0, range(V))), ids)


@pytest.mark.parametrize("name", DISCRETE)
def test_words_are_recognised_by_the_likelihood_of_the_matrix(name):
    """Of every state, up to a constant; impossible ones aside."""
    process, t = make(name), torch.tensor(0.6)
    states = torch.arange(V + (process.replace < 1))[None]
    found = process.log_likelihood(states, t)[0].softmax(-1)
    exact = matrix(process, process.kept(t))[:V, : states.shape[1]].T
    assert torch.allclose(found, exact / exact.sum(-1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize(("time", "earlier"), [(1.0, 0.7), (0.8, 0.5), (0.5, 0.1), (0.4, 0.0)])
def test_a_step_draws_from_the_posterior(name, time, earlier):
    """q(x_s | x_t, w) = Q_{t|s}[x_s, x_t] Q_s[w, x_s] / Q_t[w, x_t] (D3PM, equation 3)."""
    process, t, s = make(name), torch.tensor(time), torch.tensor(earlier)
    k_t, k_s = process.kept(t), process.kept(s)
    step, early, late = (matrix(process, k) for k in (k_t / k_s, k_s, k_t))
    for word in (0, 3):
        possible = [x for x in range(V + 1) if late[word, x] > 0]
        x_t = torch.tensor(possible)[:, None].expand(-1, COUNT)
        probs = F.one_hot(torch.tensor(word), V).float().expand(*x_t.shape, V)
        found = frequencies(process.step(x_t, probs, t, s, Noise(1, range(len(possible)))))
        exact = torch.stack([step[:, x] * early[word] / late[word, x] for x in possible])
        assert torch.allclose(exact.sum(-1), torch.ones(len(possible)), atol=1e-5)
        assert (found - exact).abs().max() < 0.015


def test_an_uncertain_prediction_is_a_mixture():
    """Each clean word with its probability, drawn anew for every token."""
    process, t, s = make("masked"), torch.tensor(0.9), torch.tensor(0.3)
    probs = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0])
    x_t = torch.full((1, COUNT), V)
    found = frequencies(process.step(x_t, probs.expand(1, COUNT, V), t, s, Noise(2, [0])))[0]
    leaves = (process.kept(s) - process.kept(t)) / (1 - process.kept(t))
    assert (found[:V] - leaves * probs).abs().max() < 0.015
    assert found[V].item() == pytest.approx(1 - leaves.item(), abs=0.015)


def test_a_token_that_left_the_mask_stays():
    """Whatever the network says of it later."""
    process = make("masked")
    x_t = torch.arange(V)[None]
    for wrong in (torch.full((1, V, V), 1 / V), F.one_hot((x_t + 1) % V, V).float()):
        x_s = process.step(x_t, wrong, torch.tensor(0.7), torch.tensor(0.2), Noise(0, [0]))
        assert torch.equal(x_s, x_t)


def test_noise_is_the_mask_or_a_word_as_told():
    prior = make("mask_and_replace", replace=0.25).prior((1, COUNT), Noise(0, [0]))
    found = frequencies(prior)[0]
    assert (found - torch.tensor([0.05] * V + [0.75])).abs().max() < 0.015
    assert (make("masked").prior((1, 9), Noise(0, [0])) == V).all()
    assert (make("uniform").prior((1, 9), Noise(0, [0])) < V).all()
    with pytest.raises(ValueError, match=r"replace must be from 0 to 1, not 1\.5"):
        make("mask_and_replace", replace=1.5)


@pytest.mark.parametrize("sampler", ["ddim", "renoise"])
def test_samplers_of_gaussian_noise_are_refused(sampler, files, tmp_path):
    run_training(tmp_path, **files, model__network__process="masked", trainer__max_steps=2)
    model = textdiff.load(tmp_path / "model", device="cpu")
    texts = textdiff.generate(model, ["Rain in Ashbury."], steps=2, sampler="ancestral")
    assert len(texts) == 1
    with pytest.raises(ValueError, match="ancestral or confidence"):
        textdiff.generate(model, ["Rain in Ashbury."], steps=2, sampler=sampler)
