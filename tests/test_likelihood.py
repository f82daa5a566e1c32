"""Bounds and densities against exact probabilities; more of them in `test_oracle_table.py`."""

import math

import pytest
import torch
import torch.nn.functional as F

from textdiff.likelihood import diffusion_bound, ode_log_density, order_bound, strata, total
from textdiff.noise import Noise
from textdiff.objective import token_nats
from textdiff.process import PROCESSES
from textdiff.sampler.ode import integrate
from textdiff.schedule import SCHEDULES, Cosine
from textdiff.testing import MarkovLanguage, OneStream, OracleDenoiser, exact_process, gaussian_evidence

LANGUAGE = MarkovLanguage()


def denoise_of(process):
    oracle = OracleDenoiser(process, LANGUAGE)
    return lambda x_t, t, mask: oracle(x_t, t, mask=mask, valid=torch.ones_like(mask))


@pytest.mark.parametrize("evaluations", [1, 3, 7, 10, 12])
def test_strata_cover_all_numbers_once(evaluations):
    parts = strata(10, evaluations, Noise(0, range(3000)), 3000)
    assert len(parts) == min(evaluations, 10)
    low = torch.tensor([10 * i // len(parts) for i in range(len(parts))])
    high = torch.tensor([10 * (i + 1) // len(parts) for i in range(len(parts))])
    assert [width for width, _ in parts] == (high - low).tolist()
    seen = torch.stack([one for _, one in parts])
    assert (seen >= low[:, None]).all() and (seen < high[:, None]).all()
    for part, start, stop in zip(seen, low, high, strict=True):
        share = torch.bincount(part, minlength=10)[start:stop] / 3000
        assert share == pytest.approx(1 / (stop - start).item(), abs=0.05)


@pytest.mark.parametrize("name", PROCESSES)
def test_of_one_step_nothing_is_between_prior_and_reading(name):
    process, ids = exact_process(name), LANGUAGE.sample(8, seed=1)
    known = denoise_of(process), process, ids, torch.ones_like(ids, dtype=torch.bool)
    found = diffusion_bound(*known, OneStream(0), 1, 1)
    assert found.keys() == {"prior", "reconstruction"}
    assert (found["reconstruction"] > 0).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_a_few_terms_estimate_all_of_them(name):
    process, ids = exact_process(name), LANGUAGE.sample(600, seed=1)
    known = denoise_of(process), process, ids, torch.ones_like(ids, dtype=torch.bool)
    whole, some = (diffusion_bound(*known, OneStream(i), 20, count) for i, count in enumerate((20, 5)))
    assert list(whole) == list(some)
    for one, other in zip(whole.values(), some.values(), strict=True):
        error = ((one.var() + other.var()) / len(ids)).sqrt()
        assert abs(one.mean() - other.mean()) <= 4 * error


@pytest.mark.parametrize("evaluations", [2, 6, 10, 64])
def test_the_last_term_is_always_computed(evaluations):
    """By one evaluation of its own, and no others are spent than those asked for."""
    process, ids = exact_process("uniform"), LANGUAGE.sample(2000, seed=1)
    mask, times = torch.ones_like(ids, dtype=torch.bool), []
    oracle = denoise_of(process)

    def denoise(x_t, t, mask):
        times.append(t[:, 0])
        return oracle(x_t, t, mask)

    found = diffusion_bound(denoise, process, ids, mask, OneStream(0), 10, evaluations)["reconstruction"]
    index = (10 * torch.stack(times)).round().long()
    assert len(index) == min(evaluations, 10)
    assert ((index == 1).sum(0) == 1).all() and index.max() == 10
    t = torch.full(ids.shape, 0.1)
    x_t = process.corrupt(ids, t, OneStream(9))
    exact = total(token_nats(oracle(x_t, t, mask), ids), mask)
    error = ((found.var() + exact.var()) / len(ids)).sqrt()
    assert found.min() > 0 and abs(found.mean() - exact.mean()) < 4 * error < 0.3


@pytest.mark.parametrize("name", PROCESSES)
def test_only_open_tokens_are_paid_for(name):
    """Given the last four words, all bounds are of p(first four | last four)."""
    process, ids = exact_process(name), LANGUAGE.sample(1500, seed=3)
    mask = torch.arange(8).expand(ids.shape) < 4
    known = torch.full((*ids.shape, 6), -1e4).double().scatter(2, ids[..., None], 0.0)
    open_ = torch.where(mask[..., None], torch.zeros_like(known), known)
    exact = LANGUAGE.log_evidence(open_) - LANGUAGE.log_prob(ids)
    order = order_bound(denoise_of(process), process, ids, mask, OneStream(0), 16)["order"]
    steps = sum(diffusion_bound(denoise_of(process), process, ids, mask, OneStream(0), 400, 32).values())
    for nats, limit in ((order, 0.06), (steps, 0.3)):
        gap, error = (nats - exact).mean(), (nats - exact).std() / len(ids) ** 0.5
        assert -4 * error < gap < limit + 4 * error


def test_the_density_of_a_simplex_starts_where_its_corners_stand():
    """Any word anywhere, and much of the signal left at t = 1: a prior at zero is 0.3 nats off."""
    language = MarkovLanguage(length=4, sharpness=0.0)
    process = exact_process("simplex", Cosine(-5.0, 3.0))
    ids = language.sample(4, seed=4)
    whole = torch.ones_like(ids, dtype=torch.bool)
    x_0 = process.corrupt(process.encode(ids), torch.zeros(ids.shape), OneStream(0))

    def denoise(x_t, t, mask):
        return OracleDenoiser(process, language)(x_t, t, mask=mask, valid=whole)

    found = ode_log_density(denoise, process, x_0, whole)
    exact = language.log_evidence(gaussian_evidence(process, x_0, 0.0))
    assert (found - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    ("probes", "schedule"), [pytest.param(None, "ve", marks=pytest.mark.slow), (30, "cosine")]
)
def test_the_density_of_open_words_is_the_conditional_one(probes, schedule):
    """log p(four noisy words | the other four), with the trace exact or from random directions."""
    process, ids = exact_process("embedding", SCHEDULES[schedule](-5.0, 8.0)), LANGUAGE.sample(2, seed=4)
    mask = torch.arange(8).expand(ids.shape) % 2 == 0
    clean = process.encode(ids)
    noisy = process.corrupt(clean, torch.zeros(ids.shape), OneStream(0))
    x_0 = torch.where(mask[..., None], noisy, clean)
    known = torch.full((*ids.shape, 6), -1e4).double().scatter(2, ids[..., None], 0.0)
    evidence = gaussian_evidence(process, x_0, 0.0)
    joint = LANGUAGE.log_evidence(torch.where(mask[..., None], evidence, known))
    given = LANGUAGE.log_evidence(torch.where(mask[..., None], torch.zeros_like(known), known))
    options = {} if probes is None else {"probes": probes, "noise": OneStream(1)}
    found = ode_log_density(denoise_of(process), process, x_0, mask, **options)
    numbers = int(mask[0].sum()) * x_0.shape[-1]
    limit = 3e-3 * numbers if probes is None else 0.06 * numbers
    assert found == pytest.approx(joint - given, abs=limit)


def test_the_density_of_a_long_text_is_as_exact_as_that_of_a_short_one():
    """64 words of 128 numbers, either +a or -a: their own curve is known, and one direction is the trace.

    An error in what all numbers share, the growth of the noise, counts 8,192 times: 1.6 nats.
    """
    process = exact_process("embedding", Cosine(-5.0, 16.0), vocabulary=2, width=128)
    process.embedding.weight.copy_(F.pad(torch.tensor([[1.0], [-1.0]]), (0, 127)))
    ids = torch.randint(2, (4, 64), generator=torch.Generator().manual_seed(0))
    x_0 = process.corrupt(process.encode(ids), torch.zeros(ids.shape), OneStream(0))
    exact = (gaussian_evidence(process, x_0, 0.0).logsumexp(-1) - math.log(2)).sum(1)
    calls = []

    def denoise(x_t, t, mask):
        calls.append(t)
        return process.log_likelihood(x_t, t)

    whole = torch.ones_like(ids, dtype=torch.bool)
    found = ode_log_density(denoise, process, x_0, whole, probes=1, noise=OneStream(1))
    assert found == pytest.approx(exact, abs=0.005)
    assert len(calls) < 200, "as many as before, when an error of 1.6 nats passed"


def test_every_row_is_solved_by_itself():
    rates = torch.tensor([1.0, 4.0]).double()

    def solve(rows):
        speed = torch.arange(1, 6)[rows, None] * rates
        y = torch.ones(len(rows), 2).double()
        return integrate(lambda u, y: -y * speed, y, 0.0, 1.0, 1e-3, 200)

    together = solve([0, 1, 2, 3, 4])
    assert together == pytest.approx(torch.exp(-torch.arange(1, 6)[:, None] * rates), abs=1e-2)
    for row in range(5):
        assert torch.equal(solve([row])[0], together[row]), "steps of the others"


def test_a_tolerance_out_of_reach_is_refused():
    with pytest.raises(ValueError, match=r"tolerance of 1e-08 is not reached in 2 steps"):
        integrate(
            lambda u, y: 50 * torch.cos(50 * u)[:, None] + 0 * y,
            torch.zeros(2, 1).double(),
            0,
            9,
            1e-8,
            2,
        )


def test_bits_are_the_language_entropy():
    ids = LANGUAGE.sample(3000, seed=5)
    process = exact_process("masked")
    mask = torch.ones_like(ids, dtype=torch.bool)
    nats = order_bound(denoise_of(process), process, ids, mask, OneStream(0), 8)["order"]
    bits = float(nats.mean()) / 8 / math.log(2)
    assert bits == pytest.approx(LANGUAGE.entropy() / math.log(2), abs=0.03)
