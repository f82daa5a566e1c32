"""Steps and bounds of processes on tokens against products of transition matrices.

    q(x_s | x_t, word) = Q_s[word, x_s] Q_{s..t}[x_s, x_t] / Q_t[word, x_t]      (D3PM, eq. 3)

Every function yields lines of rows 6 and 8 of the table of `oracle.py`.
"""

from collections.abc import Iterator
from functools import reduce
from itertools import combinations, pairwise

import torch
import torch.nn.functional as F
from exact import LANGUAGE, Line, excess, largest, texts
from torch import Tensor

from textdiff.likelihood import Denoise, total
from textdiff.process import Discrete, Hierarchical, Process
from textdiff.testing import OneStream, exact_process, transition


def bayes(early: Tensor, step: Tensor) -> Tensor:
    """q(x_s | x_t, word), `(V, states, states)` as word, x_t, x_s; zero where no x_t comes of the word.

    Args:
        early: q(x_s | word), `(V, states)`. step: q(x_t | x_s), `(states, states)`.
    """
    late = (early @ step)[..., None]
    return early[:, None, :] * step.T / late.where(late > 0, torch.inf)


def mixed(steps: Tensor, x_t: Tensor, probs: Tensor) -> Tensor:
    """p(x_s | x_t) by `steps` of `bayes`, `(B, L, states)`, of words from `probs` that `x_t` can be.

    NaN where it can be none of them.
    """
    exact = steps[:, x_t].movedim(0, 2)  # (B, L, V, states)
    possible = probs.double() * (exact.sum(-1) > 0)
    return ((possible / possible.sum(-1, keepdim=True))[..., None, :] @ exact)[..., 0, :]


def divergence(steps: Tensor, x_t: Tensor, probs: Tensor, ids: Tensor) -> Tensor:
    """KL of the step towards `ids` from that towards `probs`, nats `(B, L)`, by `mixed`."""
    true, model = mixed(steps, x_t, F.one_hot(ids, probs.shape[-1])), mixed(steps, x_t, probs)
    return (torch.special.xlogy(true, true) - torch.special.xlogy(true, model)).sum(-1)


def token_nats_of(
    process: Process, x_t: Tensor, probs: Tensor, ids: Tensor, t: float, s: float
) -> Tensor:
    """`gaussian_nats` of a process on tokens, by its matrices."""
    early = transition(process, 0.0, s)[: probs.shape[-1]]
    return divergence(bayes(early, transition(process, s, t)), x_t, probs, ids)


def kernels(name: str, vocabulary: int = 5, steps: int = 7) -> Iterator[Line]:
    """Closed forms against products of the matrices of single steps, from every time to every other.

    Of all words and states: a step towards a word, and one towards a mixture of them.
    """
    process = exact_process(name, vocabulary=vocabulary)
    single = [transition(process, i / steps, (i + 1) / steps) for i in range(steps)]
    states = torch.arange(process.mask_id + 1)
    x_t, ids = states.expand(vocabulary, -1), torch.arange(vocabulary)[:, None].expand(-1, len(states))
    guess = torch.softmax(OneStream(0).normal((*x_t.shape, vocabulary)), -1)
    errors = {"words of a state by q(x_t | word)": [], "p(x_s | x_t)": [], "nats of a step": []}
    likelihoods, chances, nats = errors.values()

    def product(start: int, stop: int) -> Tensor:
        return reduce(torch.matmul, single[start:stop], torch.eye(len(states)).double())

    def off(found: Tensor, exact: Tensor) -> Tensor:
        return (found - exact)[exact.isfinite()]  # NaN: a state that cannot be

    for i, j in combinations(range(steps + 1), 2):
        early, late, step = product(0, i)[:vocabulary], product(0, j)[:vocabulary], product(i, j)
        exact, t, s = bayes(early, step), torch.tensor(j / steps), torch.tensor(i / steps)
        likelihood = process.log_likelihood(x_t[:1], t)[0].softmax(-1)
        likelihoods.append(off(likelihood, (late / late.sum(0)).T))
        for probs in (guess, F.one_hot(ids, vocabulary).float()):
            known = probs * (late > 0).T
            known = known / known.sum(-1, keepdim=True)
            found = process.divergence(x_t, known, ids, t, s)
            nats.append(off(found, divergence(exact, x_t, known, ids)))
            if isinstance(process, Discrete):  # of `hierarchical` only draws are asked for
                chances.append(off(process.posterior(x_t, known, t, s), mixed(exact, x_t, known)))
    for words, found in errors.items():
        if found:
            limit = 1e-5 if found is nats else 1e-6
            yield "6", f"{name}: {words}, from products of matrices", largest(found), limit


def stage_nats(denoise: Denoise, process: Process, ids: Tensor, start: float, stop: float) -> Tensor:
    """Nats of 64 steps from the time `start` down to `stop`, `(B,)`."""
    noise, mask = OneStream(1), torch.ones_like(ids, dtype=torch.bool)
    found = torch.zeros(len(ids), dtype=torch.float64)
    for t, s in pairwise(torch.linspace(start, stop, 65)):
        times = t.expand(ids.shape)
        x_t = process.corrupt(process.encode(ids), times, noise)
        probs = torch.softmax(denoise(x_t, times, mask), -1).float()
        found += total(process.divergence(x_t, probs, ids, times, s.expand(ids.shape)), mask)
    return found


def cascade_bounds(
    denoise: Denoise, process: Hierarchical, count: int, words: str, limit: float
) -> Iterator[Line]:
    """-log p(classes) and -log p(words | classes) by the upper and the lower half of time."""
    ids, half = texts(count)[0], process.time_of(1.0)
    classes = process.log_likelihood(process.coarsen(ids), torch.tensor(half))
    log_classes, log_words = LANGUAGE.log_evidence(classes), LANGUAGE.log_prob(ids)
    coarse, fine = (stage_nats(denoise, process, ids, *ends) for ends in ((1.0, half), (half, 0.0)))
    parts = {
        "classes": (coarse, -log_classes),
        "words given classes": (fine, log_classes - log_words),
        "both together": (coarse + fine, -log_words),
    }
    for part, (nats, exact) in parts.items():
        gap, error = excess(nats, exact)
        yield "8", f"{words}, bound of {part}: above the truth, bits a token", gap, limit
        yield "8", f"{words}, bound of {part}: below the truth, standard errors", -gap / error, 3.0
