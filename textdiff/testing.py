"""A language whose exact denoiser is known: samplers are tested apart from any network.

Words follow a Markov chain, p(w) = p(w_1) prod_i A[w_{i-1}, w_i]. Noise is independent per position
given the words, so a noisy text is a hidden Markov model with emissions q(x_t[i] | w_i), which
`Process.log_likelihood` returns, and forward-backward (Rabiner 1989, Proc. IEEE 77(2), eq. 19 to 27)

    a_i(v) = e_i(v) sum_u a_{i-1}(u) A[u, v]      b_i(u) = sum_v A[u, v] e_{i+1}(v) b_{i+1}(v)
    p(w_i = v | x_t) proportional to a_i(v) b_i(v)

gives the exact posterior of every word. A sampler that steps with it must return texts of the language:
whatever is left of bigram error or of |NLL - entropy| is the sampler's own. To check a new one:

    from textdiff.testing import check_sampler

    check = check_sampler("embedding", MySampler(60), decoder="sample")
    assert check.distance < 0.03 and abs(check.excess) < 0.04

Legend: B batch, L length, V vocabulary. Everything in float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.config import Spec, build
from textdiff.decoder import DECODERS
from textdiff.noise import Noise
from textdiff.packing import pick
from textdiff.process import PROCESSES, Discrete, Hierarchical, Process
from textdiff.sampler import Predict, Sampler
from textdiff.schedule import Cosine, Schedule
from textdiff.transformer import Context

TINY = 1e-30  # probability of what cannot be, as in `process.tokens`
HIDDEN = -1e4  # log probability of words that a given position rules out: finite, yet exp is 0


class MarkovLanguage:
    """A stationary Markov chain with random transitions.

    Args:
        vocabulary: V. length: L. seed: of the transition matrix.
        sharpness: spread of the log transitions; 0 = all texts are equally likely.
    """

    def __init__(
        self, vocabulary: int = 6, length: int = 8, *, seed: int = 1, sharpness: float = 1.0
    ) -> None:
        self.vocabulary, self.length = vocabulary, length
        generator = torch.Generator().manual_seed(seed)
        logits = sharpness * torch.randn(vocabulary, vocabulary, generator=generator).double()
        self.transition = torch.softmax(logits, -1)
        self.initial = torch.linalg.matrix_power(self.transition, 1000)[0]

    @property
    def bigrams(self) -> Tensor:
        """Exact p(w_i, w_{i+1}), the same at every position, `(V, V)`."""
        return self.initial[:, None] * self.transition

    def entropy(self) -> float:
        """Nats a token of texts of this length."""
        first = torch.special.entr(self.initial).sum()
        rate = (self.initial[:, None] * torch.special.entr(self.transition)).sum()
        return float(first + (self.length - 1) * rate) / self.length

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Texts `(count, L)` int64."""
        generator = torch.Generator().manual_seed(seed)
        words = [torch.multinomial(self.initial.expand(count, -1), 1, generator=generator)]
        for _ in range(self.length - 1):
            rows = self.transition[words[-1][:, 0]]
            words.append(torch.multinomial(rows, 1, generator=generator))
        return torch.cat(words, 1)

    def log_prob(self, ids: Tensor) -> Tensor:
        """log p of texts `(B, L)`, nats, `(B,)`."""
        steps = self.transition.log()[ids[:, :-1], ids[:, 1:]]
        return self.initial.log()[ids[:, 0]] + steps.sum(1)

    def log_evidence(self, emissions: Tensor) -> Tensor:
        """log of the sum over all texts of p(text) times its emissions, `(B,)`, of log `emissions`."""
        return self.forward(emissions.double(), self.initial.log())[-1].logsumexp(-1)

    def forward(self, emissions: Tensor, start: Tensor) -> list[Tensor]:
        """log a_i, L times `(B, V)`, for a first word of log probability `start`."""
        found = [emissions[:, 0] + start]
        for emission in emissions[:, 1:].unbind(1):
            found.append(emission + log_multiply(found[-1], self.transition))
        return found

    def log_posterior(self, emissions: Tensor, before: Tensor | None = None) -> Tensor:
        """log p(w_i | all emissions), `(B, L, V)`, of log `emissions (B, L, V)`.

        `before (B,)` is the word that the text follows, -1 where it follows none.
        """
        emissions = emissions.double()
        start = self.initial.log()
        if before is not None:
            start = torch.where(before[:, None] < 0, start, self.transition.log()[before])
        forward = self.forward(emissions, start)
        backward = [torch.zeros_like(forward[0])]
        for emission in emissions[:, 1:].flip(1).unbind(1):
            backward.append(log_multiply(emission + backward[-1], self.transition.T))
        evidence = forward[-1].logsumexp(-1)[:, None, None]  # the same at every position
        return torch.stack(forward, 1) + torch.stack(backward[::-1], 1) - evidence

    def bigram_distance(self, ids: Tensor) -> float:
        """Total variation, 0 to 1, between the bigrams of `ids (B, L)` and the language's."""
        pairs = (ids[:, :-1] * self.vocabulary + ids[:, 1:]).flatten()
        counts = torch.bincount(pairs, minlength=self.vocabulary**2).double()
        return float((counts / counts.sum() - self.bigrams.flatten()).abs().sum() / 2)

    def excess(self, ids: Tensor) -> float:
        """Mean nats a token of `ids (B, L)` above the entropy; below zero = too likely texts."""
        return float(-self.log_prob(ids).mean() / self.length) - self.entropy()


def log_multiply(log: Tensor, matrix: Tensor) -> Tensor:
    """log(exp(`log (B, V)`) @ `matrix (V, V)`), stable for a positive matrix."""
    top = log.max(-1, keepdim=True).values
    return ((log - top).exp() @ matrix).log() + top


class OracleDenoiser(nn.Module):
    """The exact denoiser of a `MarkovLanguage`, with the signature of `Denoiser`.

    Args:
        process: its vocabulary must be the language's.
        language: what the texts are drawn from.
        last: texts whose last word is one of these: a class y, and the denoiser p(w | x_t, y).
    """

    evaluations = 1

    def __init__(
        self, process: Process, language: MarkovLanguage, last: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.process, self.language = process, language
        words = range(language.vocabulary)
        barred = [HIDDEN * (last is not None and word not in last) for word in words]
        self.ending = torch.tensor(barred, dtype=torch.float64)

    def probs(self, x_t: Tensor, t: Tensor) -> Tensor:
        """p(w_i | x_t) of whole texts, `(B, L, V)`."""
        whole = torch.ones(x_t.shape[:2], dtype=torch.bool, device=x_t.device)
        return self(x_t, t, mask=whole, valid=whole).exp()

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p(x_t) of a Gaussian process, `(B, L, D)`."""
        return self.process.score(x_t, self.probs(x_t, t), t)

    def divergence(self, x_t: Tensor, t: Tensor) -> Tensor:
        """div of `score`, `(B,)`: the trace of its slope, from the variance of clean points given x_t.

        div = sum_i alpha^2 / sigma^4 (E |c|^2 - |E c|^2) - D / sigma^2
        """
        probs, codebook = self.probs(x_t, t), self.process.codebook().double()
        spread = probs @ codebook.square().sum(-1) - (probs @ codebook).square().sum(-1)
        alpha, sigma = self.process.schedule(t.broadcast_to(x_t.shape[:2]))
        return (alpha**2 / sigma**4 * spread - x_t.shape[-1] / sigma**2).sum(1)

    def remember(
        self, ids: Tensor, valid: Tensor, context: Context | None = None, window: Tensor | None = None
    ) -> Tensor:
        """All that a block of a Markov chain needs of the text before it: its last word `(B,)`, or -1."""
        last = F.pad(ids, (1, 0)).gather(1, valid.sum(1, keepdim=True))[:, 0]
        return torch.where(valid.any(1), last, -1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        mask: Tensor,
        valid: Tensor,
        context: Context | None = None,
        previous: Tensor | None = None,
        past: Tensor | None = None,
        seen: object = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """log p(w_i | x_t, given words, what comes before by `remember`), `(B, L, V)` or `(1, N, V)`."""
        emissions = self.process.log_likelihood(x_t, t).double()
        words = torch.arange(self.language.vocabulary, device=x_t.device)
        known = HIDDEN * (self.process.round(x_t)[..., None] != words).double()
        emissions = torch.where(mask[..., None], emissions, known)
        ends = valid & ~F.pad(valid, (0, 1))[:, 1:]
        emissions = emissions + ends[..., None] * self.ending.to(emissions)
        return pick(self.language.log_posterior(emissions * valid[..., None], past), only)


class OneStream(Noise):
    """One generator for the whole batch: thousands of short texts, quickly."""

    def __init__(self, seed: int, step: int = 0) -> None:
        self.seed = seed
        self.generator = np.random.default_rng([seed, step])

    def at(self, step: int) -> Self:
        return type(self)(self.seed, step)

    def _draw(self, shape: Sequence[int], draw: Callable) -> Tensor:
        return torch.from_numpy(draw(self.generator, tuple(shape)))


def exact_process(
    spec: Spec, schedule: Schedule | None = None, vocabulary: int = 6, width: int = 8
) -> Process:
    """A process by its name, or with arguments, whose embeddings stand at right angles."""
    torch.manual_seed(0)
    embedding = nn.Embedding(vocabulary, width)
    nn.init.orthogonal_(embedding.weight)
    process = build(PROCESSES, spec, embedding, schedule or Cosine()).requires_grad_(False)
    process.log_prior.copy_(MarkovLanguage(vocabulary).initial.log())
    return process


def gaussian_evidence(process: Process, x_t: Tensor, t: float) -> Tensor:
    """log q(x_t | token) of a Gaussian process with all constants, `(B, L, V)` float64."""
    alpha, sigma = (one.double() for one in process.schedule(torch.tensor(t)))
    square = (x_t.double()[:, :, None] - alpha * process.codebook().double()).square().sum(-1)
    return -0.5 * (square / sigma**2 + x_t.shape[-1] * (2 * torch.pi * sigma**2).log())


@singledispatch
def transition(process: Process, s: float, t: float) -> Tensor:
    """q(x_t | x_s) of a process on tokens, `(states, states)` float64: a row for every x_s.

    D3PM's product of matrices Q_{s+1} ... Q_t (Austin et al. 2021, arXiv:2107.03006, eq. 1), written out
    apart from the process, of which it reads the schedule alone. A family with other noise registers its
    own: `@transition.register`.
    """
    raise TypeError(f"{type(process).__name__} has no transition matrix: see `transition.register`")


@transition.register
def _(process: Discrete, s: float, t: float) -> Tensor:
    words, states = process.mask_id, torch.arange(process.mask_id + 1)
    noise = torch.full((words + 1,), process.replace / words, dtype=torch.float64)
    noise[words] = 1 - process.replace
    return blend(ratio(*(process.kept(torch.tensor([at]), states) for at in (t, s)))[:, None], noise)


@transition.register
def _(process: Hierarchical, s: float, t: float) -> Tensor:
    (words_t, classes_t), (words_s, classes_s) = (process.left(torch.tensor(at)) for at in (t, s))
    size = process.mask_id + 1
    coarser, masked = torch.eye(size).double(), F.one_hot(torch.full((size,), size - 1)).double()
    words = torch.arange(len(process.class_of))
    coarser[words] = F.one_hot(process.coarsen(words), size).double()
    return blend(ratio(words_t, words_s), coarser) @ blend(ratio(classes_t, classes_s), masked)


def ratio(now: Tensor, before: Tensor) -> Tensor:
    """Share of what was left that still is, float64; all of it where nothing was."""
    return torch.where(before > 0, now.double() / before.double(), 1.0)


def blend(share: Tensor, noise: Tensor) -> Tensor:
    """Matrix of states that stay with the probability `share`, and else become `noise (..., states)`."""
    return share * torch.eye(noise.shape[-1]).double() + (1 - share) * noise


def discrete_evidence(process: Process, x_t: Tensor, t: float) -> Tensor:
    """log q(x_t | token) of a process on tokens with all constants, `(B, L, V)` float64.

    Of what cannot be it is log(1e-30).
    """
    words = process.embedding.num_embeddings
    return transition(process, 0.0, t)[:words, x_t].movedim(0, -1).clamp(min=TINY).log()


@dataclass
class Check:
    """What a sampler made of the exact denoiser.

    Attributes:
        ids: `(N, L)`. evaluations: network calls.
        distance: total variation of bigrams. excess: bits a token above the entropy.
    """

    ids: Tensor
    evaluations: int
    distance: float
    excess: float


def check_sampler(
    process: str | Process,
    sampler: Sampler,
    decoder: str = "softmax",
    count: int = 2500,
    seed: int = 0,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    kind: type[Predict] = Predict,
    **options: float,
) -> Check:
    """Sample texts with the exact denoiser of `MarkovLanguage()`.

    Args:
        process: of `exact_process`, or its name.
        count: texts. ids, mask: `(N, L)` texts with what is given, instead.
        kind, options: of the prediction.
    """
    language = MarkovLanguage()
    whole = torch.ones(count if ids is None else len(ids), language.length, dtype=torch.bool)
    ids = whole.long() * 0 if ids is None else ids
    oracle = OracleDenoiser(exact_process(process) if isinstance(process, str) else process, language)
    open_ = whole if mask is None else mask
    predict = kind(oracle, DECODERS[decoder](), ids, open_, whole, None, OneStream(seed), **options)
    made = sampler(predict)
    excess = language.excess(made) / math.log(2)
    return Check(made, predict.evaluations, language.bigram_distance(made), excess)
