"""Equations, densities and bounds against numbers that are known exactly, without a sampler.

The functions yield lines of rows 1 to 6 of the table of `oracle.py`. What they compare with is known by
forward-backward, or written out once more in float64.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.likelihood import (
    Denoise,
    diffusion_bound,
    ode_bound,
    ode_log_density,
    order_bound,
    total,
)
from textdiff.noise import Noise
from textdiff.objective import mean_square, token_nats
from textdiff.process import PROCESSES, Gaussian, Process
from textdiff.sampler import SAMPLERS
from textdiff.schedule import SCHEDULES, Cosine, Schedule
from textdiff.testing import (
    MarkovLanguage,
    OneStream,
    OracleDenoiser,
    exact_process,
    gaussian_evidence,
)

LANGUAGE = MarkovLanguage()
GAUSSIAN = [name for name in PROCESSES if issubclass(PROCESSES[name], Gaussian)]
TOKENS = [name for name in PROCESSES if name not in GAUSSIAN]
SDES = ("linear", "subvp", "ve")  # VP, sub-VP, VE
BITS = math.log(2) * LANGUAGE.length
Line = tuple[str, str, float, float | None]  # row of the table, component, measured, limit


class Same(Noise):
    """The same number for every draw: 0 shows the mean of a step, 1 its deviation, too."""

    def __init__(self, value: float) -> None:
        self.value = value

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.full(tuple(shape), self.value)


def moments(process: Gaussian, *known: Tensor, tau: float | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `Gaussian.step` with these arguments, float64, `(B, L, D)`."""
    mean, above = (process.step(*known, Same(value), tau=tau).double() for value in (0.0, 1.0))
    return mean, above - mean


def denoise_of(process: Process, language: MarkovLanguage = LANGUAGE) -> Denoise:
    """The exact denoiser in the form that bounds want."""
    return as_denoise(OracleDenoiser(process, language))


def as_denoise(denoiser: torch.nn.Module) -> Denoise:
    """A denoiser of texts without padding in the form that bounds want."""
    return lambda x_t, t, mask: denoiser(x_t, t, mask=mask, valid=torch.ones_like(mask))


def texts(count: int, language: MarkovLanguage = LANGUAGE) -> tuple[Tensor, Tensor]:
    """Texts of the language, all of them open."""
    ids = language.sample(count, seed=2)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def excess(nats: Tensor, exact: Tensor) -> tuple[float, float]:
    """Mean of `nats (B,)` of texts above the `exact` ones, and its standard error, in bits a token."""
    gap = (nats - exact) / BITS
    return float(gap.mean()), float(gap.std()) / len(gap) ** 0.5


def largest(errors: list[Tensor]) -> float:
    """Largest size of a number of all `errors (...)`; NaN if one of them is, which `max` would hide."""
    return float(torch.cat([error.double().abs().flatten() for error in errors]).max())


# Row 1


def book(schedule: Schedule, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor, eta: float) -> list[Tensor]:
    """Mean and deviation of a step of DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12)."""
    square_t, square_s = (torch.sigmoid(-schedule.gamma(at).double()) for at in (t, s))
    alpha_t, sigma_t, alpha_s, sigma_s = (
        x.sqrt() for x in (square_t, 1 - square_t, square_s, 1 - square_s)
    )
    noise = (x_t.double() - alpha_t * x_0) / sigma_t
    spread = eta * sigma_s / sigma_t * (1 - square_t / square_s).sqrt()
    return [alpha_s * x_0 + (sigma_s**2 - spread**2).sqrt() * noise, spread.expand(x_t.shape)]


def same_steps() -> Iterator[Line]:
    """DDIM with eta = 0 and 1 against the samplers `ddim` and `ancestral`: means and deviations."""
    for name, eta in (("ddim", 0.0), ("ancestral", 1.0)):
        errors = []
        for kind in GAUSSIAN:
            for schedule in ("linear", "cosine", "sqrt"):
                process, (ids, _) = exact_process(kind, SCHEDULES[schedule]()), texts(32)
                for t, s in torch.tensor([[1.0, 0.99], [0.8, 0.5], [0.4, 0.1], [0.1, 0.0]]):
                    x_t = process.corrupt(process.encode(ids), t, OneStream(0))
                    probs = torch.softmax(OneStream(1).normal((*ids.shape, LANGUAGE.vocabulary)), -1)
                    found = moments(process, x_t, probs, t, s, tau=SAMPLERS[name].tau)
                    x_0 = process.mean(probs).double()
                    exact = book(process.schedule, x_t, x_0, t, s, eta)
                    errors += [ours - theirs for ours, theirs in zip(found, exact, strict=True)]
        words = f"{name} against DDIM of eta = {eta:g}: mean and deviation of a step"
        yield "1", words, largest(errors), 1e-6


def conversions() -> Iterator[Line]:
    """What a network may predict, there and back."""
    process, (ids, mask) = exact_process("embedding"), texts(64)
    t = torch.full(ids.shape, 0.4)
    x_t = process.corrupt(process.encode(ids), t, OneStream(0))
    probs = torch.softmax(denoise_of(process)(x_t, t, mask), -1).float()
    mean = process.mean(probs)
    errors = [
        process.clean(what, x_t, process.express(what, x_t, mean, t), t) - mean
        for what in ("noise", "score", "velocity")
    ]
    yield "1", "score, noise and velocity back to the clean mean", largest(errors), 1e-5


# Row 2


def fitted(process: Process, ids: Tensor, x_t: Tensor, t: Tensor) -> torch.nn.Linear:
    """From a state to logits of words, so that `mean_square` is least."""
    layer = torch.nn.Linear(process.state_width, process.embedding.num_embeddings)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = mean_square(process, layer(x_t), ids, x_t, t).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return layer.requires_grad_(False)


def score_matching(count: int = 20_000) -> Iterator[Line]:
    """Texts of one word: what is least in denoising score matching is the score.

    For the score s of `Gaussian.score`, the loss sigma^2 / 2 |s(x_t) + z / sigma|^2 of Song and Ermon
    (2019, arXiv:1907.05600, eq. 5) is the objective `mean_square` times (alpha / sigma)^2 / 2: the first
    line. Its least, over linear layers to the logits of words, among which is the truth, is compared with
    the slope of the exact density, on states that were not seen.
    """
    language, process = MarkovLanguage(length=1), exact_process("embedding", SCHEDULES["ve"]())
    ids, unlike, apart = language.sample(count, seed=8), [], []
    for time in (0.2, 0.35, 0.5):
        t = torch.tensor(time)
        alpha, sigma = process.schedule(t)
        seen, fresh = (process.corrupt(process.encode(ids), t, OneStream(i)) for i in (0, 1))
        layer = fitted(process, ids, seen, t)
        found = process.score(fresh, torch.softmax(layer(fresh), -1), t)
        noise = (fresh - alpha * process.encode(ids)) / sigma
        matching = 0.5 * sigma**2 * (found + noise / sigma).square().sum(-1)
        scaled = 0.5 * (alpha / sigma) ** 2 * mean_square(process, layer(fresh), ids, fresh, t)
        unlike.append((matching - scaled).abs().mean() / scaled.mean())
        at = fresh.double().requires_grad_()
        evidence = language.log_evidence(gaussian_evidence(process, at, time))
        (exact,) = torch.autograd.grad(evidence.sum(), at)
        apart.append(1 - F.cosine_similarity(found.double(), exact, -1).mean())
    yield (
        "2",
        "score matching is the objective mean_square, scaled: relative difference",
        largest(unlike),
        1e-5,
    )
    yield "2", "least score matching and the exact score of a word: 1 - cosine", largest(apart), 0.01


# Row 3


def marginals(names: Sequence[str] = SDES, grid: int = 1000, pairs: int = 20_000) -> Iterator[Line]:
    """Simulated noising dx = f x dt + g dw: its mean and deviation against alpha_t x_0 and sigma_t.

    Of one word, from q(x_0 | word) on. The paths of a pair have opposite noise: chance plays no part in
    their mean.
    """
    for name in names:
        process, noise = exact_process("embedding", SCHEDULES[name]()), OneStream(0)
        schedule, x_0 = process.schedule, process.encode(torch.tensor([0]))[0]
        times = torch.linspace(0, 1, grid + 1)
        middle = (times[1:] + times[:-1]) / 2
        drift, spread = schedule.drift(middle) / grid, (schedule.diffusion(middle) / grid).sqrt()
        alpha, sigma = schedule(times)
        away, mean, errors = sigma[0] * noise.normal((pairs, len(x_0))), alpha[0] * x_0, []
        for i in range(grid):
            # paths are mean + away and mean - away
            mean = mean + drift[i] * mean
            away = away + drift[i] * away + spread[i] * noise.normal(away.shape)
            if (i + 1) % (grid // 10) == 0:
                scale = (alpha[i + 1] ** 2 + sigma[i + 1] ** 2).sqrt()
                errors.append((mean - alpha[i + 1] * x_0).norm() / scale)
                errors.append(away.square().mean().sqrt() / sigma[i + 1] - 1)
        words = f"{name}: marginals against {pairs:,} pairs of simulated paths, share"
        yield "3", words, largest(errors), 0.01


# Row 4


def density(
    count: int, names: Sequence[str] = SDES, length: int = LANGUAGE.length, states: int = 16
) -> Iterator[Line]:
    """Likelihood by the ODE, of texts of a `length`."""
    language = MarkovLanguage(length=length)
    ids, mask = texts(max(8, count // 60), language)
    for name in names:
        process, denoise, x_0 = dense(name, language, ids)
        exact = language.log_evidence(gaussian_evidence(process, x_0, 0.0))
        error = (ode_log_density(denoise, process, x_0, mask) - exact) / x_0[0].numel()
        yield "4", f"{name}: |log density - exact|, nats a number", float(error.abs().mean()), 2e-3
        nats = ode_bound(denoise, process, ids, mask, OneStream(4))["ode"]
        gap = float((nats + language.log_prob(ids)).mean()) / math.log(2) / length
        yield "4", f"{name}: |bits a token - exact|", abs(gap), 0.01
    yield from hutchinson(language, states)


def dense(name: str, language: MarkovLanguage, ids: Tensor) -> tuple[Gaussian, Denoise, Tensor]:
    """A process with the schedule `name`, its exact denoiser, and noisy states of texts at t = 0."""
    process = exact_process("embedding", SCHEDULES[name](-5.0, 9.0))
    x_0 = process.corrupt(process.encode(ids), torch.zeros(ids.shape), OneStream(3))
    return process, denoise_of(process, language), x_0


def hutchinson(language: MarkovLanguage, states: int, probes: int = 100) -> Iterator[Line]:
    """Traces from random directions: their mean over `probes` against the exact one, in standard errors.

    One of 20 states is off by more than two of them, whatever is done: so many are taken together, with
    their signs, which shows a bias, and without, which shows biases of either sign.
    """
    ids, mask = texts(states, language)
    process, denoise, x_0 = dense("ve", language, ids)
    truth = ode_log_density(denoise, process, x_0, mask)
    x_0, mask = (x.repeat_interleave(probes, 0) for x in (x_0, mask))
    guesses = ode_log_density(denoise, process, x_0, mask, probes=1, noise=OneStream(5))
    guesses = guesses.view(states, probes)
    error = (guesses.mean(1) - truth) / (guesses.std(1) / probes**0.5)
    words = f"Hutchinson, {probes} directions, {states} states: standard errors from the exact trace"
    yield "4", f"{words}, combined", float(error.sum().abs()) / states**0.5, 2.0
    yield "4", f"{words}, root mean square", float(error.square().mean().sqrt()), 2.0


# Rows 5 and 6: bounds


def bounds(count: int) -> Iterator[Line]:
    """Variational bounds of Gaussian processes, in bits a token above the truth."""
    ids, mask = texts(4 * count)
    exact = -LANGUAGE.log_prob(ids)
    for name in GAUSSIAN:
        process = exact_process(name, Cosine(-5.0, 8.0))
        yield from falling("5", name, process, ids, (10, 50, 200, 1000))
        nats = order_bound(denoise_of(process), process, ids, mask, OneStream(1))["order"]
        order, _ = excess(nats, exact)
        yield "5", f"{name}: |bound in any order - truth|", abs(order), 0.03
        yield from summed("5", name, process, gaussian_nats)


def falling(row: str, name: str, process: Process, ids: Tensor, numbers: Sequence[int]) -> Iterator[Line]:
    """The exact denoiser's bound for rising `numbers` of steps: near the truth with the last."""
    exact, denoise, mask = -LANGUAGE.log_prob(ids), denoise_of(process), torch.ones_like(ids) > 0
    gaps = []
    for number in numbers:
        parts = diffusion_bound(denoise, process, ids, mask, OneStream(1), number)
        gap, error = excess(sum(parts.values()), exact)
        gaps.append(gap)
    yield row, f"{name}: |bound of {number:,} steps - truth|", abs(gap), 0.03
    yield row, f"{name}: bound below the truth, standard errors", -gap / error, 3.0
    fall = max(after / before for before, after in pairwise(gaps))
    words = ", ".join(f"{number:,}" for number in numbers)
    yield row, f"{name}: bound of {words} steps, largest share of the one before", fall, 1.0


Nats = Callable[[Process, Tensor, Tensor, Tensor, float, float], Tensor]


def summed(row: str, name: str, process: Process, nats: Nats, steps: int = 20) -> Iterator[Line]:
    """Terms of the bound one by one, each by the two steps it compares, against `diffusion_bound`."""
    (ids, mask), denoise, seen = texts(100), denoise_of(process), {}

    def watched(x_t: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        logits = denoise(x_t, t, mask)
        seen[round(steps * float(t[0, 0]))] = x_t, logits
        return logits

    parts = diffusion_bound(watched, process, ids, mask, OneStream(1), steps)
    found = parts["prior"].clone()
    for i in range(1, steps + 1):
        x_t, logits = seen[i]
        probs, times = torch.softmax(logits, -1).float(), (i / steps, (i - 1) / steps)
        # the step to t = 0 reads the word
        term = nats(process, x_t, probs, ids, *times) if i > 1 else token_nats(logits, ids)
        found += total(term, mask)
    error = float((found - sum(parts.values())).abs().max()) / BITS
    yield row, f"{name}: |sum of the terms of {steps} steps - bound|, bits a token", error, 1e-4


def gaussian_nats(
    process: Gaussian, x_t: Tensor, probs: Tensor, ids: Tensor, t: float, s: float
) -> Tensor:
    """KL of the step towards `ids` from that towards `probs`, by their means and deviation, `(B, L)`."""
    true, times = F.one_hot(ids, probs.shape[-1]).to(probs), (torch.tensor(t), torch.tensor(s))
    (mean, spread), (other, _) = (moments(process, x_t, p, *times) for p in (true, probs))
    return 0.5 * ((mean - other) / spread).square().sum(-1)
