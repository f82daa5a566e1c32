"""Law 8: with the exact denoiser of a small language, samplers return texts of that language."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from textdiff.decoder import DECODERS
from textdiff.process import PROCESSES, Gaussian, Process
from textdiff.sampler import SAMPLERS
from textdiff.testing import (
    MarkovLanguage,
    OneStream,
    OracleDenoiser,
    check_sampler,
    discrete_evidence,
    exact_process,
    gaussian_evidence,
    transition,
)

TOKENS = [name for name, kind in PROCESSES.items() if not issubclass(kind, Gaussian)]
COUNT = 1800
# Steps that bring each unbiased pair within the limits: the error falls as 1 / steps, and fresh noise
# starts higher. The other pairs are biased however many steps they take.
PAIRS = {
    ("ancestral", "softmax"): 60,
    ("ancestral", "sample"): 60,
    ("ddim", "softmax"): 60,
    ("ddim", "sample"): 60,
    ("renoise", "sample"): 240,
    ("confidence", "sample"): 8,  # a step for every word
}


TRIPLES = [
    (process, *pair)
    for process, pair in itertools.product(PROCESSES, PAIRS)
    if issubclass(PROCESSES[process], Gaussian) or not SAMPLERS[pair[0]].gaussian
]


def make_process(name: str, vocabulary: int = 6) -> Process:
    return exact_process(name, vocabulary=vocabulary)


def generate(process: str, sampler: str, decoder: str, ids: Tensor, mask: Tensor, steps: int) -> Tensor:
    return check_sampler(process, SAMPLERS[sampler](steps), decoder, ids=ids, mask=mask).ids


def from_scratch(process: str, sampler: str, decoder: str, count: int, steps: int) -> Tensor:
    return check_sampler(process, SAMPLERS[sampler](steps), decoder, count).ids


def everything(vocabulary: int, length: int) -> Tensor:
    """All texts, `(V ** L, L)`."""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def brute_force(language: MarkovLanguage, emissions: Tensor) -> Tensor:
    """Posterior marginals of one text, `emissions (L, V)` -> `(L, V)`, by summing over all texts."""
    texts = everything(*emissions.shape[::-1])
    evidence = emissions[torch.arange(len(emissions)), texts].sum(1)
    weight = torch.softmax(language.log_prob(texts) + evidence, 0)
    one_hot = torch.nn.functional.one_hot(texts, emissions.shape[1]).double()
    return torch.einsum("n,nlv->lv", weight, one_hot)


def test_language_probabilities_and_entropy_by_enumeration():
    language = MarkovLanguage(length=4)
    log = language.log_prob(everything(6, 4))
    assert log.exp().sum().item() == pytest.approx(1)
    assert -(log.exp() * log).sum().item() / 4 == pytest.approx(language.entropy())
    assert language.bigrams.sum(0) == pytest.approx(language.bigrams.sum(1)), "not stationary"


def test_language_samples_are_of_the_language():
    language = MarkovLanguage()
    ids = language.sample(4000)
    assert language.bigram_distance(ids) < 0.02
    assert abs(language.excess(ids)) < 0.02
    assert language.bigram_distance(ids.flip(1)) > 0.1, "the measure is blind"


@pytest.mark.parametrize("time", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_equals_the_sum_over_all_texts(name, time):
    language, process = MarkovLanguage(length=4), make_process(name)
    oracle = OracleDenoiser(process, language)
    ids, mask = language.sample(3, seed=5), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2], mask[2, [0, 3]] = False, False
    t = time * mask
    noisy = process.corrupt(process.encode(ids), t, OneStream(1))
    x_t = torch.where(mask.reshape(*mask.shape, *[1] * (noisy.dim() - 2)), noisy, process.encode(ids))
    logits = oracle(x_t, t, mask=mask, valid=torch.ones_like(mask))
    emissions = process.log_likelihood(x_t, t).double()
    for row in range(3):
        known = torch.full((4, 6), -1e4).double().scatter(1, ids[row, :, None], 0.0)
        evidence = torch.where(mask[row, :, None], emissions[row], known)
        exact = brute_force(language, evidence)
        assert torch.allclose(logits[row].exp(), exact, atol=1e-9)


def test_padding_carries_no_evidence():
    language, process = MarkovLanguage(length=4), make_process("embedding")
    oracle, x_t = OracleDenoiser(process, language), torch.randn(1, 4, 8)
    valid = torch.tensor([[True, True, True, False]])
    full = {"mask": valid, "valid": valid}
    cut = {"mask": valid[:, :3], "valid": valid[:, :3]}
    t = torch.full((1, 4), 0.4)
    assert torch.allclose(oracle(x_t, t, **full)[:, :3], oracle(x_t[:, :3], t[:, :3], **cut))


@pytest.mark.parametrize("process", PROCESSES)
def test_the_denoiser_of_a_class_is_that_of_its_texts(process):
    """y = the last word is one of two: by Bayes' rule over all texts."""
    language, process = MarkovLanguage(length=3), make_process(process)
    oracle = OracleDenoiser(process, language, last=[1, 4])
    ids = language.sample(3, seed=2)
    t = torch.full(ids.shape, 0.6)
    x_t = process.corrupt(process.encode(ids), t, OneStream(3))
    emissions = process.log_likelihood(x_t, t).double()
    emissions[:, -1, [0, 2, 3, 5]] = -torch.inf
    for row, found in zip(emissions, oracle.probs(x_t, t), strict=True):
        assert torch.allclose(found, brute_force(language, row), atol=1e-9)


@pytest.mark.parametrize("process", [name for name in PROCESSES if issubclass(PROCESSES[name], Gaussian)])
def test_score_and_divergence_are_slopes_of_the_exact_evidence(process):
    process = make_process(process).double()
    oracle, t = OracleDenoiser(process, MarkovLanguage()), torch.full((2, 8), 0.5).double()
    x_t = process.corrupt(process.encode(oracle.language.sample(2)), t, OneStream(1)).double()
    x_t.requires_grad_()
    evidence = oracle.language.log_evidence(gaussian_evidence(process, x_t, 0.5))
    (slope,) = torch.autograd.grad(evidence.sum(), x_t)
    assert torch.allclose(oracle.score(x_t, t), slope, atol=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda x: oracle.score(x, t).flatten(1), x_t)
    for row in range(2):
        trace = jacobian[row, :, row].flatten(1).diagonal().sum()
        assert oracle.divergence(x_t, t)[row].item() == pytest.approx(trace.item(), rel=1e-6)


@pytest.mark.parametrize("time", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", TOKENS)
def test_evidence_sums_to_one_over_all_states(name, time):
    """Of whole texts, so that a constant too much shows; of one token it is what `corrupt` draws."""
    language, process = MarkovLanguage(4, 3), make_process(name, 4)
    states = torch.arange(process.mask_id + 1)
    texts = everything(len(states), 3)
    evidence = language.log_evidence(discrete_evidence(process, texts, time))
    assert evidence.exp().sum().item() == pytest.approx(1, abs=1e-9)
    evidence = discrete_evidence(process, states[None], time)[0]
    ids = torch.arange(4)[:, None].expand(4, 40_000)
    drawn = process.corrupt(ids, torch.tensor(time), OneStream(0))
    found = torch.nn.functional.one_hot(drawn, len(states)).double().mean(1)
    assert (found - evidence.T.exp()).abs().max() < 0.01
    possible = evidence.exp().sum(1) > 1e-6
    known = process.log_likelihood(states[None], torch.tensor(time))[0].softmax(-1).double()
    assert torch.allclose(known[possible], evidence.softmax(-1)[possible], atol=1e-6)


def test_a_process_without_a_matrix_is_told():
    with pytest.raises(TypeError, match=r"Embedding has no transition matrix: see `transition.register`"):
        transition(make_process("embedding"), 0.0, 1.0)


@pytest.mark.parametrize(("process", "sampler", "decoder"), TRIPLES)
def test_unbiased_pairs_return_the_language(process, sampler, decoder):
    language = MarkovLanguage()
    steps = PAIRS[sampler, decoder]
    if sampler == "renoise" and not issubclass(PROCESSES[process], Gaussian):
        steps //= 2  # a token is right or wrong, there is no noise between: half brings it as near
    ids = from_scratch(process, sampler, decoder, COUNT, steps)
    assert language.bigram_distance(ids) <= 0.03
    assert abs(language.excess(ids)) / math.log(2) <= 0.04


@pytest.mark.parametrize("process", PROCESSES)
def test_infilling_has_the_exact_conditional_marginals(process):
    language, given, count = MarkovLanguage(), [0, 1, 6, 7], 2500
    truth = language.sample(1, seed=3)
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[:, given] = False
    ids = truth.expand(count, -1).where(~mask, 0)
    new = generate(process, "ancestral", "softmax", ids, mask.expand(count, -1), 60)
    assert (new[:, given] == truth[:, given]).all()
    known = torch.zeros(8, 6).double()
    known[given] = torch.full((4, 6), -1e4).double().scatter(1, truth[0, given, None], 0.0)
    exact = language.log_posterior(known[None])[0].exp()
    found = torch.nn.functional.one_hot(new, 6).double().mean(0)
    distance = (found - exact).abs().sum(-1) / 2
    assert distance.max() <= 0.03, distance


@pytest.mark.slow
def test_table_of_all_pairs():
    """Recorded, not asserted: `pytest -m slow -s tests/test_oracle.py` prints it."""
    language = MarkovLanguage()
    print(f"\nentropy {language.entropy() / math.log(2):.4f} bits a token; n = 4000, 200 steps, cosine")
    print("| process | sampler | decoder | bigram distance | NLL - entropy, bits a token |")
    print("|---|---|---|---|---|")
    for process, sampler, decoder in itertools.product(PROCESSES, SAMPLERS, DECODERS):
        if not issubclass(PROCESSES[process], Gaussian) and SAMPLERS[sampler].gaussian:
            continue
        names = process, sampler, decoder
        ids = from_scratch(*names, 4000, 200)
        distance, excess = language.bigram_distance(ids), language.excess(ids) / math.log(2)
        print(f"| {' | '.join(names)} | {distance:.3f} | {excess:+.3f} |", flush=True)
