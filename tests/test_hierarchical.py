"""Words, their classes and the mask against transition matrices and the exact cascade."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import run_training
from torch import Tensor, nn

import textdiff
from textdiff.classes import classes_of
from textdiff.likelihood import diffusion_bound
from textdiff.noise import Noise
from textdiff.process import Hierarchical
from textdiff.sampler import SAMPLERS
from textdiff.schedule import Cosine
from textdiff.testing import MarkovLanguage, OneStream, OracleDenoiser, check_sampler, exact_process

V, C, COUNT = 5, 2, 20_000
LANGUAGE = MarkovLanguage()
STATES = V + C + 1


def make() -> Hierarchical:
    torch.manual_seed(0)
    return Hierarchical(nn.Embedding(V, 4), Cosine(), classes=C)


def matrix(process: Hierarchical, s: float, t: float) -> Tensor:
    """From every state at s to every state at t, `(STATES, STATES)`."""
    (words_s, classes_s), (words_t, classes_t) = (process.left(torch.tensor(x)) for x in (s, t))
    word = words_t / words_s if words_s > 0 else torch.tensor(0.0)
    known = classes_t / classes_s if classes_s > 0 else torch.tensor(0.0)
    found = torch.zeros(STATES, STATES)
    for w in range(V):
        coarse = process.coarsen(torch.tensor(w))
        found[w, w], found[w, coarse], found[w, -1] = word * known, (1 - word) * known, 1 - known
    for c in range(V, V + C):
        found[c, c], found[c, -1] = known, 1 - known
    found[-1, -1] = 1
    return found


def frequencies(states: Tensor) -> Tensor:
    return F.one_hot(states, STATES).float().mean(1)


@pytest.mark.parametrize("time", [0.0, 0.2, 0.45, 0.5, 0.8, 1.0])
def test_corruption_has_the_frequencies_of_the_matrix(time):
    process, ids = make(), torch.arange(V)[:, None].expand(V, COUNT)
    found = frequencies(process.corrupt(ids, torch.tensor(time), Noise(0, range(V))))
    assert (found - matrix(process, 0.0, time)[:V]).abs().max() < 0.015


def test_words_go_before_their_classes_do():
    """Half-way all words are classes and no class is a mask."""
    process = make()
    half = torch.tensor(process.time_of(1.0))
    words, classes = process.left(half)
    assert words < 1e-6 and classes > 1 - 1e-6
    for t in torch.linspace(0, 1, 21):
        words, classes = process.left(t)
        assert words == 0 or classes == 1


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.7), (0.9, 0.2), (0.7, 0.6), (0.45, 0.1), (0.3, 0.0)])
def test_a_step_draws_from_the_posterior(t, s):
    """q(x_s | x_t, w) = Q_{t|s}[x_s, x_t] Q_s[w, x_s] / Q_t[w, x_t], also across the middle."""
    process = make()
    early, step, late = matrix(process, 0.0, s), matrix(process, s, t), matrix(process, 0.0, t)
    assert torch.allclose(early @ step, late, atol=1e-5)
    times = torch.tensor(t), torch.tensor(s)
    for word in (0, 3):
        possible = [x for x in range(STATES) if late[word, x] > 0]
        x_t = torch.tensor(possible)[:, None].expand(-1, COUNT)
        probs = F.one_hot(torch.tensor(word), V).float().expand(*x_t.shape, V)
        found = frequencies(process.step(x_t, probs, *times, Noise(1, range(len(possible)))))
        exact = torch.stack([step[:, x] * early[word] / late[word, x] for x in possible])
        assert (found - exact).abs().max() < 0.015


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.7), (0.9, 0.2), (0.45, 0.1)])
def test_divergence_is_that_of_the_matrices(t, s):
    """KL(q(x_s | x_t, w) | sum_v p(v | x_t) q(x_s | x_t, v)), term by term."""
    process = make()
    early, step, late = (matrix(process, *at).double() for at in ((0.0, s), (s, t), (0.0, t)))
    probs = torch.softmax(torch.randn(V, generator=torch.Generator().manual_seed(3)).double(), -1)
    for word in range(V):
        for x in (x for x in range(STATES) if late[word, x] > 0):
            allowed = [v for v in range(V) if late[v, x] > 0]
            posterior = {v: step[:, x] * early[v] / late[v, x] for v in allowed}
            whole = sum(probs[v] for v in allowed)
            model = sum(probs[v] / whole * posterior[v] for v in allowed)
            true = posterior[word]
            exact = (torch.special.xlogy(true, true) - torch.special.xlogy(true, model)).sum()
            times = torch.tensor([[t]]), torch.tensor([[s]])
            state, ids = torch.tensor([[x]]), torch.tensor([[word]])
            found = process.divergence(state, probs.float()[None, None], ids, *times)
            assert found.item() == pytest.approx(exact.item(), abs=1e-5)


def test_words_come_from_the_class_that_stands_there_whatever_the_network_says():
    process = make()
    classes = process.coarsen(torch.arange(V))[:, None].expand(V, 500)
    wrong = F.one_hot((torch.arange(V) + 1) % V, V).float()[:, None].expand(V, 500, V)
    half = torch.tensor(process.time_of(1.0))
    words = process.step(classes, wrong, half, torch.tensor(0.0), Noise(0, range(V)))
    assert (process.coarsen(words) == classes).all()


def log_class_prob(process: Hierarchical, ids: Tensor) -> Tensor:
    """Exact log p(c), `(B,)`, by summing over all words of the classes."""
    return LANGUAGE.log_evidence(process.log_likelihood(process.coarsen(ids), torch.tensor(0.5)))


def log_refined_prob(process: Hierarchical, ids: Tensor) -> Tensor:
    """Exact log p(w | c), `(B,)`, word by word: given the words before it and the classes from it on."""
    oracle, whole, found = OracleDenoiser(process, LANGUAGE), torch.ones_like(ids).bool(), 0.0
    t = torch.full(ids.shape, process.time_of(1.0))
    for i in range(ids.shape[1]):
        known = torch.arange(ids.shape[1]) < i
        state = torch.where(known, ids, process.coarsen(ids))
        logits = oracle(state, t, mask=whole & ~known, valid=whole)
        found = found + logits.log_softmax(-1)[:, i].gather(-1, ids[:, i : i + 1])[:, 0]
    return found


def test_the_chain_rule_is_exact():
    process, ids = exact_process("hierarchical"), LANGUAGE.sample(200, seed=5)
    parts = log_class_prob(process, ids) + log_refined_prob(process, ids)
    assert torch.allclose(parts, LANGUAGE.log_prob(ids), atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 3, 6])
def test_the_bound_is_near_the_truth_for_any_number_of_classes(classes):
    """1 and V of them are masked diffusion, once below and once above the middle."""
    ids = LANGUAGE.sample(1500, seed=3)
    process = exact_process({"name": "hierarchical", "classes": classes})
    oracle, whole = OracleDenoiser(process, LANGUAGE), torch.ones_like(ids).bool()

    def denoise(x_t: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        return oracle(x_t, t, mask=mask, valid=whole)

    nats = sum(diffusion_bound(denoise, process, ids, whole, OneStream(1), 64, 64).values())
    gap = (nats + LANGUAGE.log_prob(ids)) / LANGUAGE.length / math.log(2)
    assert -3 * gap.std() / len(ids) ** 0.5 < gap.mean() < 0.05


@pytest.mark.parametrize("steps", [13, 400])
def test_classes_and_words_are_paid_for_apart(steps):
    """By the chain rule, few steps too, of which one goes across the middle."""
    ids, process = LANGUAGE.sample(1500, seed=3), exact_process("hierarchical")
    oracle, whole = OracleDenoiser(process, LANGUAGE), torch.ones_like(ids).bool()

    def denoise(x_t: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        return oracle(x_t, t, mask=mask, valid=whole)

    found = diffusion_bound(denoise, process, ids, whole, OneStream(1), steps, 32)
    assert list(found) == ["prior", "classes", "words", "reconstruction"]
    words = found["words"] + found["reconstruction"]
    exact = log_class_prob(process, ids), log_refined_prob(process, ids)
    for nats, log_prob in zip((found["classes"], words), exact, strict=True):
        gap = nats + log_prob
        assert -4 * gap.std() / len(ids) ** 0.5 < gap.mean() < 0.15


def test_words_refined_from_classes_have_the_exact_conditional():
    """Super-resolution: started half-way, from the classes of a text."""
    process, truth = exact_process("hierarchical"), LANGUAGE.sample(1, seed=6)
    ids, whole = truth.expand(6000, -1), torch.ones(6000, LANGUAGE.length).bool()
    start = process.time_of(1.0)
    made = check_sampler(process, SAMPLERS["ancestral"](64), ids=ids, mask=whole, start=start).ids
    assert (process.coarsen(made) == process.coarsen(truth)).all()
    coarse = process.log_likelihood(process.coarsen(truth), torch.tensor(start))
    exact = LANGUAGE.log_posterior(coarse)[0].exp()
    found = F.one_hot(made, LANGUAGE.vocabulary).double().mean(0)
    assert ((found - exact).abs().sum(-1) / 2).max() < 0.03


def test_classes_are_of_words_that_stand_in_the_same_places():
    """A language of articles, nouns, verbs: `article noun verb article noun`."""
    kinds = [torch.arange(0, 4), torch.arange(4, 12), torch.arange(12, 20)]
    generator = torch.Generator().manual_seed(0)
    draws = [kind[torch.randint(len(kind), (4000,), generator=generator)] for kind in kinds]
    text = torch.stack([draws[0], draws[1], draws[2]], 1).flatten()
    found = classes_of(torch.stack([text[:-1], text[1:]], 1), 20, 3)
    assert all(len(found[kind].unique()) == 1 for kind in kinds) and len(found.unique()) == 3


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["before", "after"])
def test_classes_look_to_both_sides(order):
    """Two kinds of words beside the same word on one side, beside two on the other."""
    generator, first, second = torch.Generator().manual_seed(0), torch.arange(3, 7), torch.arange(7, 11)
    words = torch.randint(4, (2, 2000), generator=generator)
    same, other = torch.full((2000,), 2), torch.zeros(2000, dtype=torch.long)
    sides = [(other, first[words[0]], same), (other + 1, second[words[1]], same)]
    pairs = [torch.stack([row[i], row[i + 1]], 1)[:, order] for row in sides for i in (0, 1)]
    found = classes_of(torch.cat(pairs), 11, 5)
    assert len(found[first].unique()) == len(found[second].unique()) == 1
    assert found[first[0]] != found[second[0]]


def test_classes_are_found_wherever_models_are_built():
    """Lightning does so on the device that trains; and many tokens of many occur nowhere."""
    neighbours = torch.randint(20, (500, 2), generator=torch.Generator().manual_seed(0))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classes_of(neighbours, 300, 60)
    assert found.device.type == "cpu" and found.shape == (300,) and 0 <= found.min() <= found.max() < 60
    assert len(found[20:].unique()) == 1 and len(found[:20].unique()) > 10


def test_a_text_is_refined_and_its_classes_stay(files, tmp_path):
    """`denoise` with noise = 1 keeps the class of every word, nothing else; the classes are saved."""
    process = "{name: hierarchical, classes: 20}"
    run_training(tmp_path, **files, model__network__process=process, data__text_column="target")
    model = textdiff.load(tmp_path / "model", device="cpu")
    assert len(model.process.class_of.unique()) > 5
    texts = ["Rain in Ashbury.", "Ashbury won."]
    made = textdiff.denoise(model, texts, noise=1.0, steps=4, decoder="sample", return_dict=True)
    assert made.texts != texts
    before = [[*ids, model.tokenizer.eos_id] for ids in model.tokenizer.encode(texts)]
    for old, new in zip(before, made.ids, strict=True):
        assert torch.equal(model.process.class_of[old], model.process.class_of[new])


@pytest.mark.parametrize("classes", [0, 6])
def test_a_number_of_classes_that_cannot_be(classes):
    with pytest.raises(ValueError, match=f"classes must be from 1 to the 5 tokens, not {classes}"):
        Hierarchical(nn.Embedding(V, 4), Cosine(), classes=classes)
