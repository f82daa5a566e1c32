"""Samplers, bounds and kernels against an exact answer, without training.

    python benchmarks/oracle.py

The language is `textdiff.testing.MarkovLanguage`, whose denoiser, densities and conditionals are known.
Each line is a component, what was measured (smaller is better), the limit, and seconds; a line without
a limit is a bias that is known and recorded. The tests run the same lines with fewer texts.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.likelihood import diffusion_bound, ode_bound, ode_log_density, order_bound
from textdiff.process import PROCESSES, Discrete, Gaussian, Process
from textdiff.sampler import SAMPLERS, Predict, Replacing, Resampling, Sampler
from textdiff.schedule import SCHEDULES, Cosine
from textdiff.testing import (
    MarkovLanguage,
    OneStream,
    OracleDenoiser,
    check_sampler,
    exact_process,
    gaussian_evidence,
)

LANGUAGE = MarkovLanguage()
GAUSSIAN = [name for name in PROCESSES if issubclass(PROCESSES[name], Gaussian)]
TOKENS = [name for name in PROCESSES if name not in GAUSSIAN]
SDES = ("linear", "subvp", "ve")  # VP, sub-VP, VE
BITS = math.log(2) * LANGUAGE.length
Line = tuple[str, str, float, float | None]  # row of the table, component, measured, limit


def denoise_of(process: Process) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The exact denoiser in the form that bounds want."""
    oracle = OracleDenoiser(process, LANGUAGE)
    return lambda x_t, t, mask: oracle(x_t, t, mask=mask, valid=torch.ones_like(mask))


def texts(count: int) -> tuple[Tensor, Tensor]:
    """Texts of the language, all of them open."""
    ids = LANGUAGE.sample(count, seed=2)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def sampled(
    row: str,
    words: str,
    process: str | Process,
    sampler: Sampler,
    count: int,
    limits: tuple[float, float],
) -> Iterator[Line]:
    """Bigram distance and excess of one sampler."""
    found = check_sampler(process, sampler, count=count)
    words = f"{words}, {found.evaluations} evaluations"
    yield row, f"{words}: bigram distance", found.distance, limits[0] + slack(count)
    yield row, f"{words}: |NLL - entropy|", abs(found.excess), limits[1] + slack(count)


def slack(count: int) -> float:
    """How much further off fewer texts than 4,000 of the language itself are."""
    return 0.014 * ((4000 / min(count, 4000)) ** 0.5 - 1)


def ddpm(count: int) -> Iterator[Line]:
    """Ancestral steps, DDIM, conversions between what a network may predict."""
    for name in GAUSSIAN:
        yield from sampled(
            "1", f"{name}, ancestral", name, SAMPLERS["ancestral"](200), count, (0.03, 0.03)
        )
    yield from sampled("1", "embedding, DDIM", "embedding", SAMPLERS["ddim"](50), count, (0.03, 0.03))
    process, (ids, mask) = exact_process("embedding"), texts(64)
    t = torch.full(ids.shape, 0.4)
    x_t = process.corrupt(process.encode(ids), t, OneStream(0))
    probs = torch.softmax(denoise_of(process)(x_t, t, mask), -1).float()
    mean, error = process.mean(probs), 0.0
    for what in ("noise", "score", "velocity"):
        back = process.clean(what, x_t, process.express(what, x_t, mean, t), t)
        error = max(error, float((back - mean).abs().max()))
    yield "1", "score, noise and velocity back to the clean mean", error, 1e-5


def ncsn(count: int) -> Iterator[Line]:
    """Annealed Langevin dynamics, 100 levels of 20 steps."""
    process = exact_process("embedding", SCHEDULES["ve"]())
    sampler = SAMPLERS["langevin"](2001, repeats=20, epsilon=0.2)
    yield from sampled(
        "2", "embedding, VE, annealed Langevin", process, sampler, max(1, count // 2), (0.03, 0.04)
    )


def sde(count: int) -> Iterator[Line]:
    """Reverse SDEs, correctors, the ODE by several solvers."""
    for name in SDES:
        process = exact_process("embedding", SCHEDULES[name]())
        for words, sampler, limits in (
            ("Euler-Maruyama", SAMPLERS["sde"](400), (0.03, 0.04)),
            ("predictor-corrector", SAMPLERS["corrector"](401), (0.03, 0.04)),
            ("ODE, adaptive", SAMPLERS["ode"](600), (0.045, 0.05)),
            ("Heun", SAMPLERS["heun"](61), (0.045, 0.05)),
            ("DPM-Solver++ 2M", SAMPLERS["dpm"](30), (0.045, 0.05)),
            ("DPM-Solver++ 3M", SAMPLERS["dpm"](30, order=3), (0.045, 0.05)),
            ("churn", SAMPLERS["churn"](60), (0.045, 0.05)),
        ):
            yield from sampled("3", f"embedding, {name}, {words}", process, sampler, count, limits)


def density(count: int) -> Iterator[Line]:
    """Likelihood by the ODE."""
    ids, mask = texts(max(8, count // 60))
    for name in SDES:
        process = exact_process("embedding", SCHEDULES[name](-5.0, 9.0))
        denoise = denoise_of(process)
        x_0 = process.corrupt(process.encode(ids), torch.zeros(ids.shape), OneStream(3))
        exact = LANGUAGE.log_evidence(gaussian_evidence(process, x_0, 0.0))
        error = (ode_log_density(denoise, process, x_0, mask) - exact) / x_0[0].numel()
        yield "4", f"{name}: |log density - exact|, nats a number", float(error.abs().mean()), 2e-3
        nats = ode_bound(denoise, process, ids, mask, OneStream(4))["ode"]
        gap = float((nats + LANGUAGE.log_prob(ids)).mean()) / BITS
        yield "4", f"{name}: |bits a token - exact|", abs(gap), 0.01
    few, many = x_0[:1], 100
    guesses = ode_log_density(
        denoise,
        process,
        few.expand(many, -1, -1),
        mask[:1].expand(many, -1),
        probes=1,
        noise=OneStream(5),
    )
    truth = ode_log_density(denoise, process, few, mask[:1])
    error = abs(float(guesses.mean() - truth)) / float(guesses.std() / many**0.5)
    yield "4", f"Hutchinson, {many} directions: standard errors from the exact trace", error, 3.0


def bounds(count: int) -> Iterator[Line]:
    """Variational bounds of Gaussian processes, in bits a token above the truth."""
    ids, mask = texts(4 * count)
    exact = -LANGUAGE.log_prob(ids)
    for name in GAUSSIAN:
        process = exact_process(name, Cosine(-5.0, 8.0))
        known = denoise_of(process), process, ids, mask
        gaps = []
        for steps in (10, 50, 1000):
            nats = sum(diffusion_bound(*known, OneStream(1), steps).values())
            gaps.append(float((nats - exact).mean()) / BITS)
        error = float((nats - exact).std()) / BITS / len(ids) ** 0.5
        yield "5", f"{name}: bound of 1,000 steps above the truth", gaps[2], 0.03 + 3 * error
        yield "5", f"{name}: below the truth, standard errors", -gaps[2] / error, 3.0
        yield "5", f"{name}: bound of 50 steps against that of 10", gaps[1] / gaps[0], 1.0
        order = float((order_bound(*known, OneStream(1))["order"] - exact).mean()) / BITS
        yield "5", f"{name}: |bound in any order - truth|", abs(order), 0.03


def posterior_error(process: Discrete) -> float:
    """Largest difference of a kernel's steps from products of matrices, which are alike for all words."""
    size = process.mask_id + 1
    probs = torch.softmax(torch.randn(1, size - 1, generator=torch.Generator().manual_seed(0)), -1)
    worst = 0.0

    def matrix(keep: Tensor) -> Tensor:
        pi = process.pi(torch.arange(size))
        return (keep * torch.eye(size) + (1 - keep) * pi).double()

    for t, s in ((1.0, 0.8), (0.6, 0.5), (0.3, 0.0)):
        k_t, k_s = process.kept(torch.tensor(t)), process.kept(torch.tensor(s))
        to_s, step = matrix(k_s), matrix(k_t / k_s)
        to_t = to_s @ step
        for x_t in range(size):
            if not (to_t[:-1, x_t] > 0).all():
                continue
            exact = sum(
                probs[0, v].double() * step[:, x_t] * to_s[v] / to_t[v, x_t] for v in range(size - 1)
            )
            state, times = torch.tensor([[x_t]]), (torch.tensor([[t]]), torch.tensor([[s]]))
            found = process.posterior(state, probs[None], *times)[0, 0].double()
            worst = max(worst, float((found - exact).abs().max()))
    return worst


def discrete(count: int) -> Iterator[Line]:
    """Kernels on tokens."""
    ids, mask = texts(8 * count)
    exact = -LANGUAGE.log_prob(ids)
    for name in TOKENS:
        process = exact_process(name)
        if isinstance(process, Discrete) and type(process).kept is Discrete.kept:
            yield "6", f"{name}: steps against products of matrices", posterior_error(process), 1e-6
        nats = sum(diffusion_bound(denoise_of(process), process, ids, mask, OneStream(1), 64).values())
        gap, error = float((nats - exact).mean()) / BITS, float((nats - exact).std()) / BITS
        yield "6", f"{name}: |bound of 64 steps - truth|", abs(gap), 0.03 + 3 * error / len(ids) ** 0.5
        yield from sampled(
            "6", f"{name}, ancestral", name, SAMPLERS["ancestral"](64), count, (0.03, 0.04)
        )


def infilling(count: int) -> Iterator[Line]:
    """Words 0, 1, 6, 7 of a text are given: total variation of the others from the exact conditional."""
    given = [0, 1, 6, 7]
    truth = LANGUAGE.sample(1, seed=3)
    mask = torch.ones(count, LANGUAGE.length, dtype=torch.bool)
    mask[:, given] = False
    known = torch.zeros(LANGUAGE.length, LANGUAGE.vocabulary).double()
    known[given] = torch.full((4, 6), -1e4).double().scatter(1, truth[0, given, None], 0.0)
    exact = LANGUAGE.log_posterior(known[None])[0].exp()
    ids = truth.expand(count, -1).where(~mask, 0)
    ancestral = SAMPLERS["ancestral"]
    for name in PROCESSES:
        for words, sampler, kind in (
            ("conditional", ancestral(100), Predict),
            ("replacement", ancestral(100), Replacing),
            ("RePaint, 5 times", Resampling(ancestral(501)), Replacing),
        ):
            limit = 0.03 + 2 * slack(count) if kind is Predict else None  # the worst of four words
            if kind is Replacing and name not in ("embedding", "masked"):
                continue
            made = check_sampler(name, sampler, ids=ids, mask=mask, kind=kind).ids
            found = F.one_hot(made, LANGUAGE.vocabulary).double().mean(0)
            distance = float(((found - exact).abs().sum(-1) / 2).max())
            yield "7", f"{name}, {words}: distance from the conditional", distance, limit
            changed = float((made[:, given] != truth[:, given]).double().mean())
            yield "7", f"{name}, {words}: given words changed", changed, 0.0


def cascade(count: int) -> Iterator[Line]:
    """Words from their classes."""
    process, truth = exact_process("hierarchical"), LANGUAGE.sample(1, seed=6)
    half = process.time_of(1.0)
    ids, whole = truth.expand(count, -1), torch.ones(count, LANGUAGE.length, dtype=torch.bool)
    made = check_sampler(process, SAMPLERS["ancestral"](64), ids=ids, mask=whole, start=half).ids
    wrong = float((process.coarsen(made) != process.coarsen(truth)).double().mean())
    yield "8", "words drawn outside their class", wrong, 0.0
    coarse = process.log_likelihood(process.coarsen(truth), torch.tensor(half))
    exact = LANGUAGE.log_posterior(coarse)[0].exp()
    found = F.one_hot(made, LANGUAGE.vocabulary).double().mean(0)
    distance = float(((found - exact).abs().sum(-1) / 2).max())
    yield "8", "words given classes: distance from the conditional", distance, 0.03 + 2 * slack(count)
    ids, whole = texts(200)
    log_classes = LANGUAGE.log_evidence(process.log_likelihood(process.coarsen(ids), torch.tensor(half)))
    log_words, times = torch.zeros(len(ids), dtype=torch.float64), torch.full(ids.shape, half)
    oracle = OracleDenoiser(process, LANGUAGE)
    for i in range(LANGUAGE.length):
        known = torch.arange(LANGUAGE.length) < i
        state = torch.where(known, ids, process.coarsen(ids))
        logits = oracle(state, times, mask=whole & ~known, valid=whole)[:, i]
        log_words += logits.log_softmax(-1).gather(-1, ids[:, i : i + 1])[:, 0]
    error = float((log_classes + log_words - LANGUAGE.log_prob(ids)).abs().max())
    yield "8", "|log p(classes) + log p(words given classes) - log p(words)|, nats", error, 1e-6


def repair(count: int) -> Iterator[Line]:
    """15 % of the words of a text are random ones."""
    process, ids = exact_process("uniform"), LANGUAGE.sample(count, seed=6)
    share = torch.tensor(0.15)
    start = float(process.schedule.time(torch.logit(share)))
    noise = OneStream(7)
    wrong = process.corrupt(ids, torch.tensor(start), noise)
    whole = torch.ones_like(ids, dtype=torch.bool)
    best = denoise_of(process)(wrong, torch.full(ids.shape, start), whole).argmax(-1)
    limit = float((best == ids).double().mean())
    for name, sampler in (("ancestral", SAMPLERS["ancestral"](30)),):
        check = check_sampler(process, sampler, "greedy", ids=wrong, mask=whole, start=start)
        right = float((check.ids == ids).double().mean())
        words = f"uniform, {name}: points of accuracy below the likeliest words ({100 * limit:.1f} %)"
        yield "9", words, 100 * (limit - right), 1.0
        before = float((wrong == ids).double().mean())
        yield "9", "points of accuracy lost by repairing", 100 * (before - right), 0.0


SECTIONS: tuple[Callable[[int], Iterator[Line]], ...] = (
    ddpm,
    ncsn,
    sde,
    density,
    bounds,
    discrete,
    infilling,
    cascade,
    repair,
)


def rows(section: Callable[[int], Iterator[Line]], count: int) -> Iterator[dict[str, Any]]:
    """Lines of a section with their seconds."""
    start = time.perf_counter()
    for row, component, measured, threshold in section(count):
        seconds = round(time.perf_counter() - start, 2)
        line = {"row": row, "component": component, "measured": measured, "threshold": threshold}
        yield line | {"seconds": seconds, "passed": threshold is None or measured <= threshold}
        start = time.perf_counter()


def main() -> None:
    """Print the table, save it; fails if a line is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4000, help="texts a line")
    count, found = parser.parse_args().count, []
    print("| row | component | measured | limit | s |\n|---|---|---:|---:|---:|")
    for section in SECTIONS:
        for line in rows(section, count):
            found.append(line)
            limit = "" if line["threshold"] is None else f"{line['threshold']:.4g}"
            mark = "" if line["passed"] else " **over**"
            cells = [line["row"], line["component"], f"{line['measured']:.4g}", limit + mark]
            print("| " + " | ".join([*cells, f"{line['seconds']:.1f}"]) + " |", flush=True)
    result = common.header("oracle", "markov", "none") | {"count": count, "rows": found}
    print(common.write(result, "oracle"))
    if not all(line["passed"] for line in found):
        raise SystemExit("some lines are over their limit")


if __name__ == "__main__":
    main()
