"""Noise schedules: end points, textbook values, and what the adaptive ones learn."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from textdiff.process import PROCESSES
from textdiff.schedule import SCHEDULES, Adaptive, Gumbel, Schedule, Warped, interpolate

ADAPTIVE = {name: cls for name, cls in SCHEDULES.items() if issubclass(cls, Adaptive)}
STARTS = [(0.0, 1.0), (-3.0, 1.0), (3.0, 3.0), (3.0, 0.3)]


def gumbel(mu: float, beta: float, height: float) -> Callable[[Tensor], Tensor]:
    return lambda gamma: height * torch.exp(-torch.exp(-(gamma - mu) / beta))


def two_steps(gamma: Tensor) -> Tensor:
    return 2 * torch.sigmoid(4 * (gamma + 2)) + 3 * torch.sigmoid(3 * (gamma - 2))


def train(
    schedule: Schedule,
    curve: Callable[[Tensor], Tensor],
    batches: int,
    *,
    spread: float = 0.5,
    outliers: float = 0.0,
) -> None:
    """Show losses of mean `curve(gamma)`, log-normal spread, at the schedule's own gammas."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(batches):
        t = (torch.arange(64) + torch.rand(64, generator=generator)) / 64
        jitter = torch.exp(spread * torch.randn(64, generator=generator) - spread**2 / 2)
        wild = torch.rand(64, generator=generator) < outliers
        nll = curve(schedule.gamma(t).double()) * jitter * torch.where(wild, 10.0, 1.0)
        schedule.observe(t, nll.float())


def assert_increasing(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 2001)
    gamma = schedule.gamma(t)
    assert gamma.dtype == torch.float32 and gamma.shape == t.shape
    assert (gamma.diff() > 0).all(), "gamma must increase strictly"
    assert gamma[0].item() == pytest.approx(schedule.gamma_min, abs=1e-4)
    assert gamma[-1].item() == pytest.approx(schedule.gamma_max, abs=1e-4)


@pytest.mark.parametrize("bounds", [(-5.0, 5.0), (-9.0, 3.0), (-1.0, 8.0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_gamma_rises_from_end_to_end(name, bounds):
    assert_increasing(SCHEDULES[name](*bounds))


@pytest.mark.parametrize("bounds", [(-14.0, 14.0), (-9.0, 3.0), (-0.5, 0.5)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_curve_of_ours_is_refused(name, bounds):
    """Nor what an adaptive one has learnt of a loss that is a step."""
    schedule = SCHEDULES[name](*bounds)
    schedule.check()
    train(schedule, lambda gamma: 1e4 * torch.sigmoid(50 * gamma), 30, outliers=0.05)
    schedule.check()


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_and_noise_have_the_ratio_and_the_variance(name):
    schedule, t = SCHEDULES[name](), torch.linspace(0, 1, 101)
    alpha, sigma = schedule(t)
    variance = {"ve": 1 + sigma**2, "subvp": 1 - alpha**2 + alpha**4}.get(name, torch.ones(101))
    assert torch.allclose(alpha**2 + sigma**2, variance, atol=1e-6)
    assert torch.allclose((sigma**2 / alpha**2).log(), schedule.gamma(t), atol=1e-4)
    assert (alpha.diff() <= 0).all() and (sigma.diff() > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_equation_has_the_marginals(name):
    """d alpha / dt = f alpha and d sigma^2 / dt = 2 f sigma^2 + g^2, by finite differences."""
    schedule, t, h = SCHEDULES[name](), torch.linspace(0.05, 0.95, 13).double(), 5e-4
    if name in ADAPTIVE:  # away from the corners of the curve
        t = schedule.time((schedule.edges[1:] + schedule.edges[:-1]) / 2)[8:-8]
    (low, little), (high, much), (alpha, sigma) = schedule(t - h), schedule(t + h), schedule(t)
    drift, diffusion = schedule.drift(t), schedule.diffusion(t)
    assert torch.allclose(((high - low) / (2 * h)).double(), drift * alpha, atol=2e-3)
    change = ((much**2 - little**2) / (2 * h)).double()
    assert torch.allclose(change, 2 * drift * sigma**2 + diffusion, rtol=0.03, atol=3e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_inverts_gamma(name):
    schedule, t = SCHEDULES[name](), torch.rand(3, 4)
    assert torch.allclose(schedule.time(schedule.gamma(t)).float(), t, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_of_any_shape(name):
    schedule = SCHEDULES[name]()
    t = torch.rand(2, 3, 4)
    assert torch.equal(schedule.gamma(t).flatten(), schedule.gamma(t.flatten()))
    assert schedule.gamma(torch.tensor(0.5)).shape == ()


@pytest.mark.parametrize("name", SCHEDULES)
def test_swapped_end_points_are_refused(name):
    for ends in ((math.nan, 5.0), (-5.0, math.inf)):
        with pytest.raises(ValueError, match="both finite"):
            SCHEDULES["cosine"](*ends)
    with pytest.raises(ValueError, match="gamma_min 2"):
        SCHEDULES[name](2.0, 1.0)


BOOK = {  # alpha_bar by the papers' own formulas
    "linear": lambda u: math.exp(-(0.1 * u + 9.95 * u * u)),
    "cosine": lambda u: math.cos(math.pi * u / 2) ** 2,
    "sqrt": lambda u: 1 - math.sqrt(u),
}


@pytest.mark.parametrize("u", [0.02, 0.3, 0.7])
@pytest.mark.parametrize("name", BOOK)
def test_textbook_values(name, u):
    schedule = SCHEDULES[name]()
    assert schedule.alpha_bar(torch.tensor(u).double()).item() == pytest.approx(BOOK[name](u))
    assert schedule.inverse(BOOK[name](u)) == pytest.approx(u)


@pytest.mark.parametrize("name", BOOK)
def test_a_curve_is_the_book_between_its_ends(name):
    schedule = SCHEDULES[name](-6.0, 4.0)
    start, stop = (schedule.inverse(1 / (1 + math.exp(gamma))) for gamma in (-6.0, 4.0))
    for t in (0.1, 0.5, 0.8):
        alpha, _ = schedule(torch.tensor(t))
        expected = BOOK[name](start + t * (stop - start))
        assert alpha.item() ** 2 == pytest.approx(expected, rel=1e-5)


def test_fixed_curves_learn_nothing():
    schedule, t = SCHEDULES["cosine"](), torch.linspace(0, 1, 9)
    before = schedule.gamma(t)
    schedule.observe(t, torch.linspace(0, 5, 9))
    assert torch.equal(schedule.gamma(t), before)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("truth", [(0.0, 1.0, 5.0), (3.0, 1.0, 5.0), (-2.0, 0.5, 15.0), (1.0, 2.0, 1.7)])
def test_gumbel_recovers_the_curve_from_any_start(start, truth):
    schedule = Gumbel(location=start[0], spread=start[1])
    train(schedule, gumbel(*truth), 200, spread=0.2)
    mu, beta, height = schedule.parameters_.tolist()
    assert mu == pytest.approx(truth[0], abs=0.05 * max(1, abs(truth[0])))
    assert beta == pytest.approx(truth[1], rel=0.05)
    assert height == pytest.approx(truth[2], rel=0.05)


def test_gumbel_bears_outliers():
    schedule = Gumbel()
    train(schedule, gumbel(0.5, 0.8, 5.0), 600, outliers=0.005)
    mu, beta, height = schedule.parameters_.tolist()
    assert mu == pytest.approx(0.5, abs=0.15) and beta == pytest.approx(0.8, rel=0.15)
    assert height == pytest.approx(5.0, rel=0.15)


@pytest.mark.parametrize("bounds", [(-5.0, 5.0), (-4.0, 3.0)])
@pytest.mark.parametrize(
    ("schedule", "curve"),
    [(Warped, two_steps), (Warped, gumbel(-1, 0.7, 6)), (Gumbel, gumbel(1, 0.7, 6))],
)
def test_time_is_uniform_in_information(schedule, curve, bounds):
    """dt / dgamma = (1 - floor) C'(gamma) / C + floor / range, C' by the exact curve."""
    learned = schedule(*bounds, floor=0.1)
    train(learned, curve, 400, spread=0.1)
    low, high = (torch.tensor(gamma).double() for gamma in bounds)
    t = torch.linspace(0, 1, 200)
    gamma = learned.gamma(t).double()
    share = (curve(gamma) - curve(low)) / (curve(high) - curve(low))
    expected = 0.9 * share + 0.1 * (gamma - low) / (high - low)
    assert (t - expected).abs().max() < 0.02
    edges = torch.linspace(*bounds, 17).double()
    found = torch.histc(learned.gamma(torch.rand(100_000)), 16, *bounds).double() / 100_000
    truth = 0.9 * curve(edges).diff() / (curve(high) - curve(low)) + 0.1 / 16
    assert (found - truth).abs().sum() / 2 < 0.04


@pytest.mark.parametrize("name", ADAPTIVE)
def test_monotone_throughout_training(name):
    """Even with few, wild, decreasing or zero losses."""
    curves = [two_steps, lambda g: 5 - 0.5 * g, lambda g: 0 * g, lambda g: 1e4 * torch.sigmoid(50 * g)]
    for curve, spread in itertools.product(curves, [0.0, 2.0]):
        schedule = ADAPTIVE[name]()
        for _ in range(12):
            train(schedule, curve, 2, spread=spread, outliers=0.05)
            assert_increasing(schedule)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_every_noise_level_stays_in_sight(name):
    """At least half of the floor's share in every tenth of the range."""
    schedule = ADAPTIVE[name]()
    train(schedule, gumbel(0.0, 0.1, 5.0), 200)
    share = torch.histc(schedule.gamma(torch.linspace(0, 1, 10_000)), 10, -5, 5) / 10_000
    assert share.min() > 0.005, share


@pytest.mark.parametrize("name", ADAPTIVE)
def test_old_losses_are_forgotten(name):
    schedule = ADAPTIVE[name](memory=30)
    train(schedule, gumbel(-2.0, 0.5, 5.0), 100, spread=0.1)
    early = schedule.gamma(torch.tensor(0.5)).item()
    train(schedule, gumbel(2.0, 0.5, 5.0), 300, spread=0.1)
    assert early < -1 and schedule.gamma(torch.tensor(0.5)).item() > 1


@pytest.mark.parametrize("name", ADAPTIVE)
def test_state_survives_saving(name):
    schedule, restored = ADAPTIVE[name](), ADAPTIVE[name]()
    train(schedule, two_steps, 30)
    restored.load_state_dict(schedule.state_dict())
    train(schedule, two_steps, 3)
    train(restored, two_steps, 3)
    t = torch.linspace(0, 1, 50)
    assert torch.equal(schedule.gamma(t), restored.gamma(t))


class Wave(Schedule):
    def gamma(self, t: Tensor) -> Tensor:
        return 5 * torch.sin(6 * t)


class Flat(Schedule):
    def gamma(self, t: Tensor) -> Tensor:
        return (10 * t - 5).clamp(max=0)


class Dip(Schedule):
    """Rises but for dips 0.0003 wide, from 0.5 on every 0.02."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def gamma(self, t: Tensor) -> Tensor:
        dips = sum(((t - 0.5 - 0.02 * i) / 0.0003).clamp(0, 1) for i in range(self.count))
        return 10 * t - 5 - 0.05 * dips


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            Dip(1),
            r"schedule Dip: gamma must rise, but goes from 0 at t = 0.5000 to -0.047 at t = 0.5003$",
        ),
        (Dip(2), r"goes from 0 at t = 0.5000 to .*, from 0.15 at t = 0.5200 to 0.103 at t = 0.5203$"),
        (Dip(9), r"0.5003, from .* 0.5203, from .* at t = 0.5403, and 6 times more$"),
        (Flat(), r"schedule Flat: gamma must rise, but goes from 0 at t = 0.5000 to 0 at t = 1.0000"),
        (Wave(), r"schedule Wave: gamma must rise, but goes from 5 at t = 0.2618 to -5 at t = 0.785"),
        (SCHEDULES["cosine"](-40, 40), "schedule Cosine: gamma is -inf at t = 0.0000"),
        (SCHEDULES["cosine"](-5, 800), "schedule Cosine: gamma from -5 to 800 is beyond"),
        (SCHEDULES["subvp"](-5, 50), "schedule SubVP: gamma from -5 to 50 is beyond"),
    ],
)
@pytest.mark.parametrize("process", ["embedding", "masked"])
def test_a_curve_that_does_not_rise_is_refused(process, schedule, message):
    with pytest.raises(ValueError, match=message):
        PROCESSES[process](nn.Embedding(9, 4), schedule)


@pytest.mark.parametrize("count", [2, 3, 30])
def test_interpolation_follows_the_lines(count):
    """Also at the points themselves; what is beyond the ends is of the first and the last line."""
    generator = torch.Generator().manual_seed(count)
    xs = torch.rand(count, generator=generator, dtype=torch.float64).sort().values
    ys = torch.randn(count, generator=generator, dtype=torch.float64)
    inside = torch.cat([xs, xs[0] + (xs[-1] - xs[0]) * torch.linspace(0, 1, 101, dtype=torch.float64)])
    expected = torch.from_numpy(np.interp(inside.numpy(), xs.numpy(), ys.numpy()))
    assert torch.allclose(interpolate(inside, xs, ys), expected, atol=1e-9)
    for end, sign in ((0, -1), (-1, 1)):
        rise = (ys[end] - ys[end - sign]) / (xs[end] - xs[end - sign])
        beyond = interpolate(xs[end] + sign * torch.tensor([0.5]), xs, ys)
        assert torch.allclose(beyond, ys[end] + sign * 0.5 * rise)
