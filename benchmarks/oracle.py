"""Samplers, bounds, kernels and a small network against an exact answer.

    python benchmarks/oracle.py

The language is `textdiff.testing.MarkovLanguage`, whose denoiser, densities and conditionals are known.
Each line is a component, what was measured (smaller is better), the limit, and seconds; a line without
a limit is a bias that is known and recorded. `exact.py` and `kernels.py` have the lines that need no
sampler. The tests run the same lines with fewer texts.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import common
import torch
import torch.nn.functional as F
from exact import (
    GAUSSIAN,
    LANGUAGE,
    SDES,
    TOKENS,
    Line,
    as_denoise,
    bounds,
    conversions,
    denoise_of,
    density,
    excess,
    falling,
    marginals,
    same_steps,
    score_matching,
    summed,
    texts,
)
from kernels import cascade_bounds, kernels, token_nats_of

from textdiff.denoiser import Denoiser
from textdiff.likelihood import diffusion_bound
from textdiff.noise import low_discrepancy
from textdiff.objective import cross_entropy
from textdiff.process import PROCESSES, Discrete, Hierarchical, Process
from textdiff.sampler import (
    SAMPLERS,
    EulerMaruyama,
    Predict,
    PredictorCorrector,
    Replacing,
    Resampling,
    Sampler,
)
from textdiff.schedule import SCHEDULES
from textdiff.testing import OneStream, OracleDenoiser, check_sampler, exact_process

BATCH = 64  # texts a step of training


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
    yield from same_steps()
    yield from conversions()


def ncsn(count: int, repeats: int = 20) -> Iterator[Line]:
    """Score matching; annealed Langevin dynamics, 100 levels of as many steps as `repeats`."""
    yield from score_matching()
    process = exact_process("embedding", SCHEDULES["ve"]())
    sampler = SAMPLERS["langevin"](100 * repeats + 1, repeats=repeats, epsilon=0.2)
    yield from sampled("2", "embedding, VE, annealed Langevin", process, sampler, count, (0.03, 0.04))


class Corrected(PredictorCorrector, EulerMaruyama):
    """Langevin corrections of Euler-Maruyama steps, not of ancestral ones."""


def sde(count: int, names: Sequence[str] = SDES, steps: int = 400, grid: int = 1000) -> Iterator[Line]:
    """Noising, reverse SDEs, correctors, the ODE by several solvers."""
    yield from marginals(names, grid)
    for name in names:
        process = exact_process("embedding", SCHEDULES[name]())
        for words, sampler, limits in (
            ("Euler-Maruyama", SAMPLERS["sde"](steps), (0.03, 0.04)),
            ("reverse diffusion", SAMPLERS["sde"](steps, discrete=True), (0.03, 0.04)),
            ("ancestral, corrected", SAMPLERS["corrector"](steps + 1), (0.03, 0.04)),
            ("Euler-Maruyama, corrected", Corrected(steps + 1), (0.03, 0.04)),
            ("ODE, adaptive", SAMPLERS["ode"](600), (0.045, 0.05)),
            ("Heun", SAMPLERS["heun"](61), (0.045, 0.05)),
            ("DPM-Solver++ 2M", SAMPLERS["dpm"](30), (0.045, 0.05)),
            ("DPM-Solver++ 3M", SAMPLERS["dpm"](30, order=3), (0.045, 0.05)),
            ("churn", SAMPLERS["churn"](60), (0.045, 0.05)),
        ):
            yield from sampled("3", f"embedding, {name}, {words}", process, sampler, count, limits)


def discrete(count: int) -> Iterator[Line]:
    """Kernels on tokens."""
    ids, _ = texts(8 * count)
    for name in TOKENS:
        process = exact_process(name)
        yield from kernels(name)
        yield from falling("6", name, process, ids, (4, 16, 64))
        yield from summed("6", name, process, token_nats_of)
        yield from sampled(
            "6", f"{name}, ancestral", name, SAMPLERS["ancestral"](64), count, (0.03, 0.04)
        )
        yield correction(name, process, count)


def correction(name: str, process: Process, count: int) -> Line:
    """Half-way to noise some words are others. Where noise replaces words they can be put right.

    As often as the exact posterior says. What has left a mask never changes, whatever is predicted.
    """
    (ids, mask), t = texts(4 * count), torch.tensor(0.5)
    if not (isinstance(process, Discrete) and process.replace):
        wrong, truth = (ids + 1) % LANGUAGE.vocabulary, F.one_hot(ids, LANGUAGE.vocabulary).double()
        made = process.step(wrong, truth, t, t / 2, OneStream(7))
        return "6", f"{name}: wrong words that change", float((made != wrong).double().mean()), 0.0
    x_t = process.corrupt(ids, t, OneStream(7))
    replaced = (x_t != ids) & (x_t != process.mask_id)
    made = check_sampler(process, SAMPLERS["ancestral"](32), ids=x_t, mask=mask, start=float(t)).ids
    right = float((made == ids)[replaced].double().mean())
    probs = OracleDenoiser(process, LANGUAGE).probs(x_t, t)
    exact = float(probs.gather(-1, ids[..., None])[..., 0][replaced].mean())
    words = f"{name}: replaced words put right ({100 * right:.1f} %): off the posterior's share"
    return "6", words, abs(right - exact), 0.03


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
    yield from cascade_bounds(denoise_of(process), process, 2 * count, "exact denoiser", 0.03)


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


def trained(process: Process, steps: int) -> Denoiser:
    """A transformer of 0.6 M parameters, trained on texts of the language."""
    torch.manual_seed(0)
    model = Denoiser(
        process,
        width=128,
        depth=3,
        heads=4,
        encoder_depth=0,
        max_length=LANGUAGE.length,
        max_source_length=1,
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for i in range(steps):
        ids, noise = LANGUAGE.sample(BATCH, seed=1000 + i), OneStream(1, i)
        t = low_discrepancy(0, torch.arange(BATCH) + i * BATCH)[:, None].expand(ids.shape)
        x_t = process.corrupt(process.encode(ids), t, noise)
        loss = cross_entropy(process, as_denoise(model)(x_t, t, torch.ones_like(ids) > 0), ids, x_t, t)
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
    return model.eval()


def learned(
    count: int, names: Sequence[str] = ("embedding", "masked", "hierarchical"), steps: int = 1000
) -> Iterator[Line]:
    """What a small network learns of the language: its bound, and how far that is above the entropy."""
    ids, mask = texts(max(1000, count // 2))
    exact, row = -LANGUAGE.log_prob(ids), {"embedding": "5", "masked": "6", "hierarchical": "8"}
    for name in names:
        process = exact_process(name)
        denoise = as_denoise(trained(process, steps))
        nats = sum(diffusion_bound(denoise, process, ids, mask, OneStream(1)).values())
        gap, error = excess(nats, exact)
        yield row[name], f"{name}, learned: bound above the truth, bits a token", gap, 0.08
        yield row[name], f"{name}, learned: below the truth, standard errors", -gap / error, 3.0
        if isinstance(process, Hierarchical):
            with torch.no_grad():
                yield from cascade_bounds(denoise, process, len(ids), "learned", 0.08)


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
    learned,
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
