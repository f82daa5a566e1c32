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
# alike for all words, as one matrix is; `spindle` has tests of its own below
DISCRETE = [
    name for name, kind in PROCESSES.items() if issubclass(kind, Discrete) and kind.kept is Discrete.kept
]


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


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_a_share_of_the_words_is_masked_again(tau):
    """ReMDM with sigma_t = tau (1 - k_s); no share is the step that cannot go back."""
    process, t, s = make("masked"), torch.tensor(0.6), torch.tensor(0.4)
    x_t = torch.arange(V)[:, None].expand(V, COUNT)
    x_s = process.step(x_t, F.one_hot(x_t, V).float(), t, s, Noise(3, range(V)), tau=tau)
    again = (x_s == V).float().mean(1)
    assert torch.allclose(again, tau * (1 - process.kept(s)).expand(V), atol=0.015)
    assert (x_s[x_s != V] == x_t[x_s != V]).all()


def test_a_fresh_word_is_that_of_the_prediction():
    """Whatever stood there: this is how a mistake is put right."""
    process, s = make("masked"), torch.tensor(0.4)
    x_t = torch.arange(V)[:, None].expand(V, COUNT)
    other = F.one_hot((x_t + 1) % V, V).float()
    x_s = process.step(x_t, other, torch.tensor(0.6), s, Noise(4, range(V)), tau=1.0)
    assert (x_s[x_s != V] == ((x_t + 1) % V)[x_s != V]).all()
    assert (x_s != V).float().mean().item() == pytest.approx(process.kept(s).item(), abs=0.01)


def spindle(strength: float = 0.3) -> Discrete:
    process = make("spindle", strength=strength)
    process.log_prior.copy_(torch.tensor([0.6, 0.2, 0.1, 0.07, 0.03]).log())
    return process


def test_spindle_has_the_schedule_of_its_paper():
    """1 - t - lambda sin(pi t) (1 - H / H(w)), and rarer words are masked first."""
    process, words = spindle(strength=0.1), torch.arange(V)
    t = torch.linspace(0, 1, 50)[:, None]
    information = -process.log_prior
    mean = (information * process.log_prior.exp()).sum()
    kept = process.kept(t)
    paper = kept - 0.1 * torch.sin(torch.pi * (1 - kept)) * (1 - mean / information)
    assert torch.allclose(process.kept(t, words), paper, atol=1e-5)
    inner = process.kept(t[1:-1], words)
    assert (inner.diff(dim=1) < 0).all()


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_spindle_is_a_schedule_for_every_word(strength):
    kept = spindle(strength).kept(torch.linspace(0, 1, 1001)[:, None], torch.arange(V))
    assert (kept.diff(dim=0) <= 0).all() and kept.min() >= 0 and kept.max() <= 1
    assert torch.allclose(kept[0], torch.ones(V)) and torch.allclose(kept[-1], torch.zeros(V), atol=1e-6)


@pytest.mark.parametrize(("time", "earlier"), [(1.0, 0.7), (0.8, 0.5), (0.4, 0.0)])
def test_spindle_steps_and_bounds_by_the_schedule_of_the_word(time, earlier):
    """From a mask: each word leaves it at its own pace, and what stays says which it may be."""
    process, t, s = spindle(), torch.tensor([[time]]), torch.tensor([[earlier]])
    words, probs = torch.arange(V), torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15])
    k_t, k_s = process.kept(t, words)[0], process.kept(s, words)[0]
    leaves = probs * (k_s - k_t) / (1 - k_t)
    masks = torch.full((1, COUNT), V)
    x_s = process.step(masks, probs.expand(1, COUNT, V), t[0], s[0], Noise(2, [0]))
    found = frequencies(x_s)[0]
    assert (found[:V] - leaves).abs().max() < 0.015
    model = process.posterior(masks[:, :1], probs[None, None], t, s)[0, 0]
    assert torch.allclose(model[:V], leaves, atol=1e-6)
    assert model.sum().item() == pytest.approx(1, abs=1e-5)
    likelihood = process.log_likelihood(masks[:, :1], t)[0, 0]
    assert torch.allclose(likelihood.softmax(-1), (1 - k_t) / (1 - k_t).sum(), atol=1e-5)


def test_spindle_pays_no_nonsense_where_its_curve_is_flat():
    """The commonest word hardly fades at first: rounding must not make it come back."""
    process = make("spindle")
    process.log_prior.copy_(torch.tensor([0.99, 0.004, 0.003, 0.002, 0.001]).log())
    ids, probs = torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1, V), 0.2)
    for step in range(1, 1001):
        t, s = torch.full((1, 1), step / 1000), torch.full((1, 1), (step - 1) / 1000)
        nats = process.divergence(torch.full((1, 1), V), probs, ids, t, s)
        assert torch.isfinite(nats).all() and nats > -1e-4


def test_spindle_of_negative_strength():
    with pytest.raises(ValueError, match=r"strength must not be negative, but is -0\.1"):
        spindle(-0.1)


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_samplers_of_gaussian_noise_are_refused(sampler, files, tmp_path):
    run_training(tmp_path, **files, model__network__process="masked", trainer__max_steps=2)
    model = textdiff.load(tmp_path / "model", device="cpu")
    texts = textdiff.generate(model, ["Rain in Ashbury."], steps=2, sampler="ancestral")
    assert len(texts) == 1
    with pytest.raises(ValueError, match="ancestral or confidence"):
        textdiff.generate(model, ["Rain in Ashbury."], steps=2, sampler=sampler)


def test_noise_must_be_a_distribution():
    class Loud(PROCESSES["uniform"]):
        def pi(self, x_t: Tensor) -> Tensor:
            return 3 * super().pi(x_t)

    with pytest.raises(ValueError, match="Loud: pi of all tokens and the mask sums to 3, not 1"):
        Loud(nn.Embedding(9, 4), SCHEDULES["cosine"]())


@pytest.mark.parametrize("wrong", [-0.25, float("nan")])
def test_noise_has_no_negative_probability(wrong):
    """One that the others make up for, so that the sum is 1."""

    class Owing(PROCESSES["mask_and_replace"]):
        def pi(self, x_t: Tensor) -> Tensor:
            pi = super().pi(x_t)
            return torch.where(x_t == 3, wrong, torch.where(x_t == 4, pi + pi - wrong, pi))

    with pytest.raises(ValueError, match=f"Owing: pi of token 3 is {wrong:g}, but must not be negative"):
        Owing(nn.Embedding(9, 4), SCHEDULES["cosine"]())
