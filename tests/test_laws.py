"""The laws of the house, over every registered process, schedule, sampler and decoder.

A new class is tested by being registered. States are compared by their moments, so that the same law
holds for real-valued states (mean, variance) and for token states (frequencies).
"""

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.config import Config
from textdiff.decoder import DECODERS
from textdiff.denoiser import Denoiser, Guided
from textdiff.diffusion import TextDiffusion
from textdiff.generation import generate_texts
from textdiff.likelihood import diffusion_bound
from textdiff.noise import Noise
from textdiff.objective import OBJECTIVES
from textdiff.packing import pick
from textdiff.process import PROCESSES, Gaussian, Process, keep
from textdiff.sampler import SAMPLERS, Predict, Sampler
from textdiff.schedule import SCHEDULES, Schedule
from textdiff.testing import MarkovLanguage, OneStream, OracleDenoiser, exact_process
from textdiff.tokenizer import Tokenizer

V, D = 11, 16
# every schedule with one process, every process with a fixed schedule and a learned one
SPACES = [
    names
    for names in itertools.product(PROCESSES, SCHEDULES)
    if names[0] == "embedding" or names[1] in ("cosine", "gumbel")
]
GENERATORS = [
    names
    for names in itertools.product(PROCESSES, SAMPLERS, DECODERS)
    if issubclass(PROCESSES[names[0]], Gaussian) or not SAMPLERS[names[1]].gaussian
    # every pair of a process, a sampler and a decoder; all triples of the usual ones
    if names[0] == "embedding" or names[1] in ("confidence", "ancestral") or names[2] == "softmax"
    # a hundred evaluations a text
    if names[1] != "ode" or names in (("embedding", "ode", "softmax"), ("simplex", "ode", "sample"))
]
ENDS_AT_ZERO = ("langevin", "ode")
GAUSSIAN = [name for name in PROCESSES if issubclass(PROCESSES[name], Gaussian)]
spaces = pytest.mark.parametrize(("name", "schedule"), SPACES)


class Exact(Schedule):
    """gamma linear in t and in float64, to check algebra to the last digits."""

    def gamma(self, t: Tensor) -> Tensor:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t.double()


class Fixed:
    """Noise that always says the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, self.value, dtype=torch.float64)

    uniform = normal


class Perfect(nn.Module):
    """A denoiser that knows the text."""

    evaluations = 1

    def __init__(self, process: Process, truth: Tensor) -> None:
        super().__init__()
        self.process, self.truth = process, truth

    def forward(self, x_t: Tensor, t: Tensor, only: Tensor | None = None, **inputs: Tensor) -> Tensor:
        return pick(50.0 * F.one_hot(self.truth, V).float(), only)


def make_process(name: str, schedule: str | Schedule = "cosine") -> Process:
    torch.manual_seed(0)
    curve = SCHEDULES[schedule]() if isinstance(schedule, str) else schedule
    process = PROCESSES[name](nn.Embedding(V, D), curve)
    process.log_prior.copy_(torch.linspace(-3, 0, V).log_softmax(-1))
    return process


def make_sampler(name: str, steps: int) -> Sampler:
    """`steps` are the most of `ode`: give it enough."""
    return SAMPLERS[name](600 if name == "ode" else steps)


def all_ids(copies: int) -> Tensor:
    """Every token many times, `(V, copies)`."""
    return torch.arange(V)[:, None].expand(V, copies)


def noise(rows: int, step: int = 0, valid: Tensor | None = None) -> Noise:
    return Noise(7, range(rows), valid, step)


def moments(state: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and variance over dimension 1 and four standard errors of a unit-variance mean."""
    values = state if state.is_floating_point() else F.one_hot(state).double()
    return values.mean(1), values.var(1), 4.5 / values.shape[1] ** 0.5


def assert_same_law(one: Tensor, two: Tensor) -> None:
    if not one.is_floating_point():
        together = torch.cat([one, two], 1)
        values = F.one_hot(together).double()
        first, second = (part.mean(1) for part in values.split(one.shape[1], 1))
        error = (2 * values.var(1) / one.shape[1]).sqrt()
        assert ((first - second).abs() < 4.5 * error + 2 / one.shape[1]).all(), (
            (first - second).abs().max()
        )
        return
    (mean, var, error), (mean_2, var_2, _) = moments(one), moments(two)
    spread = var_2.clamp(min=1e-6).sqrt()
    assert ((mean - mean_2).abs() < 2**0.5 * error * spread + 1e-4).all(), (mean - mean_2).abs().max()
    assert torch.allclose(var.mean(), var_2.mean(), rtol=0.03), (var.mean(), var_2.mean())
    assert ((var - var_2).abs() < 2 * error * var_2 + 1e-4).all(), (var / var_2).aminmax()


# Law 1, law 2


@spaces
def test_clean_states_round_to_their_ids(name, schedule):
    process = make_process(name, schedule)
    assert (process.round(process.encode(all_ids(3))) == all_ids(3)).all()


@spaces
def test_noise_at_time_zero_hides_no_token(name, schedule):
    process = make_process(name, schedule)
    x_t = process.corrupt(process.encode(all_ids(200)), torch.tensor(0.0), noise(V))
    assert (process.round(x_t) == all_ids(200)).all()
    likeliest = process.log_likelihood(x_t, torch.tensor(0.0)).argmax(-1)
    assert (likeliest == all_ids(200)).all()


@spaces
def test_noise_at_time_one_is_the_prior(name, schedule):
    """Up to the token's own trace, alpha_1 x_0, which must be small beside the noise."""
    process = make_process(name, schedule)
    x_1 = process.corrupt(process.encode(all_ids(4000)), torch.tensor(1.0), noise(V))
    prior = process.prior((V, 4000), noise(V, step=1))
    mean, var, error = moments(x_1)
    mean_prior, var_prior, _ = moments(prior)
    trace = 2 if name == "simplex" else 1  # a token's own number is 2 above the others
    assert ((mean - mean_prior) / var_prior.sqrt().clamp(min=1)).abs().max() < 0.1 * trace + error
    assert torch.allclose(var.mean(), var_prior.mean(), rtol=0.02)


@spaces
def test_noise_grows_with_time(name, schedule):
    process, x_0 = make_process(name, schedule), None
    x_0 = process.encode(all_ids(300))
    right = [
        (process.round(process.corrupt(x_0, torch.tensor(t), noise(V))) == all_ids(300)).float().mean()
        for t in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert right == sorted(right, reverse=True) and right[0] == 1 and right[-1] < 0.3


# Law 3


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.7, 0.5), (0.6, 0.1), (0.3, 0.0)])
@spaces
def test_step_from_the_truth_keeps_the_marginals(name, schedule, t, s):
    process, ids = make_process(name, schedule), all_ids(3000)
    x_0, time, earlier = process.encode(ids), torch.tensor(t), torch.tensor(s)
    x_t = process.corrupt(x_0, time, noise(V))
    x_s = process.step(x_t, F.one_hot(ids, V).float(), time, earlier, noise(V, step=1))
    assert_same_law(x_s, process.corrupt(x_0, earlier, noise(V, step=2)))


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.3, 0.6), (0.5, 0.9), (0.9, 1.0)])
@spaces
def test_more_noise_keeps_the_marginals(name, schedule, s, t):
    process, ids = make_process(name, schedule), all_ids(3000)
    x_0, time, earlier = process.encode(ids), torch.tensor(t), torch.tensor(s)
    x_t = process.renoise(process.corrupt(x_0, earlier, noise(V)), earlier, time, noise(V, step=1))
    assert_same_law(x_t, process.corrupt(x_0, time, noise(V, step=2)))


@spaces
def test_divergence_is_none_for_the_truth_and_some_for_another_token(name, schedule):
    process, ids = make_process(name, schedule), all_ids(50)
    t, s = torch.full(ids.shape, 0.6), torch.full(ids.shape, 0.4)
    x_t = process.corrupt(process.encode(ids), t, noise(V))
    right, wrong = (F.one_hot((ids + i) % V, V).float() * 0.98 + 0.02 / V for i in (0, 1))
    none = process.divergence(x_t, F.one_hot(ids, V).float(), ids, t, s)
    few, much = (process.divergence(x_t, probs, ids, t, s) for probs in (right, wrong))
    assert none.abs().max() < 1e-4 and (few > -1e-5).all()
    assert few.mean() < 0.2 * much.mean()
    assert (process.prior_divergence(ids) >= 0).all() and process.prior_divergence(ids).max() < 2


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_any_share_of_fresh_noise_keeps_the_marginals(name, tau):
    process, ids = make_process(name), all_ids(3000)
    x_0, t, s = process.encode(ids), torch.tensor(0.7), torch.tensor(0.5)
    x_t = process.corrupt(x_0, t, noise(V))
    x_s = process.step(x_t, F.one_hot(ids, V).float(), t, s, noise(V, step=1), tau=tau)
    assert_same_law(x_s, process.corrupt(x_0, s, noise(V, step=2)))


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_tau_is_the_share_of_fresh_noise(name, tau):
    process, ids = make_process(name), all_ids(3000)
    x_0, t, s = process.encode(ids), torch.tensor(0.7), torch.tensor(0.5)
    x_t = process.corrupt(x_0, t, noise(V))
    x_s = process.step(x_t, F.one_hot(ids, V).float(), t, s, noise(V, step=1), tau=tau)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.schedule(t), process.schedule(s)
    old, new = (x_t - alpha_t * x_0) / sigma_t, (x_s - alpha_s * x_0) / sigma_s
    assert (old * new).mean().item() == pytest.approx((1 - tau) ** 0.5, abs=0.01)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_step_is_the_ddpm_posterior_in_closed_form(name):
    """Ho et al. 2020, eq. 6 and 7, in float64 and from any prediction; time is per token."""
    process = make_process(name, Exact()).double()
    torch.manual_seed(1)
    x_t = process.prior((4, 9), noise(4)).double()
    probs = torch.softmax(torch.randn(4, 9, V).double(), -1)
    t = torch.rand(4, 9).double() * 0.8 + 0.2
    s = t * torch.rand(4, 9).double()
    (a_t, s_t), (a_s, s_s) = ([part[..., None] for part in process.schedule(time)] for time in (t, s))
    ratio = a_t / a_s
    between = s_t**2 - ratio**2 * s_s**2
    mean = (ratio * s_s**2 * x_t + a_s * between * process.mean(probs)) / s_t**2
    deviation = (between * s_s**2 / s_t**2).sqrt()
    still = process.step(x_t, probs, t, s, Fixed(0.0))
    assert torch.allclose(still, mean, atol=1e-9)
    assert torch.allclose(process.step(x_t, probs, t, s, Fixed(1.0)) - still, deviation, atol=1e-9)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_shift_moves_the_clean_mean(name):
    process = make_process(name)
    ids, t, s = all_ids(4), torch.tensor(0.7), torch.tensor(0.4)
    x_t = process.prior((V, 4), noise(V))
    probs, other = F.one_hot(ids, V).float(), F.one_hot(ids.flip(0), V).float()
    shift = process.mean(other) - process.mean(probs)
    moved = process.step(x_t, probs, t, s, noise(V), shift=shift)
    assert torch.allclose(moved, process.step(x_t, other, t, s, noise(V)), atol=1e-5)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_likelihood_is_the_gaussian_density(name):
    """Up to a constant a position."""
    process = make_process(name, Exact()).double()
    t = torch.rand(2, 3).double()
    x_t = process.prior((2, 3), noise(2)).double()
    alpha, sigma = process.schedule(t[..., None, None])
    distance = (x_t[:, :, None] - alpha * process.codebook()).square().sum(-1)
    found = process.log_likelihood(x_t, t)
    expected = -0.5 * distance / sigma[..., 0] ** 2
    assert torch.allclose(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-9)


def test_general_likelihood_knows_norms():
    """Clean points of different norms, as no normalised table has them."""
    process = make_process("embedding", Exact()).double()
    points = process.embedding.weight
    process.codebook = lambda: points
    t, x_t = torch.tensor(0.4).double(), process.prior((2, 3), noise(2)).double()
    alpha, sigma = process.schedule(t)
    expected = -0.5 * (x_t[:, :, None] - alpha * points).square().sum(-1) / sigma**2
    found = Gaussian.log_likelihood(process, x_t, t)
    assert torch.allclose(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-9)


@pytest.mark.parametrize("schedule", ["cosine", "subvp", "ve"])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_what_networks_predict_converts_back(name, schedule):
    """Clean mean, noise, score and velocity tell the same, whatever the variance of the schedule."""
    process = exact_process(name, SCHEDULES[schedule](-4.0, 6.0))
    ids = torch.arange(6)[None]
    t, x_0 = torch.full(ids.shape, 0.5), process.encode(ids)
    x_t = process.corrupt(x_0, t, noise(1))
    eps = noise(1).normal(x_0.shape)
    assert torch.allclose(process.express("noise", x_t, x_0, t), eps, atol=1e-4)
    alpha, sigma = process.schedule(t[..., None])
    assert torch.allclose(process.express("velocity", x_t, x_0, t), alpha * eps - sigma * x_0, atol=1e-4)
    for what in ("clean", "noise", "score", "velocity"):
        back = process.clean(what, x_t, process.express(what, x_t, x_0, t), t)
        assert torch.allclose(back, x_0, atol=1e-4), what


@pytest.mark.parametrize("name", GAUSSIAN)
def test_score_is_the_gradient_of_the_density(name):
    """Of the mixture of all tokens, for the exact posterior."""
    process = make_process(name, Exact()).double()
    t = torch.tensor(0.45)
    x_t = (0.5 * process.prior((2, 3), noise(2)).double()).requires_grad_()
    alpha, sigma = process.schedule(t)
    distance = (x_t[:, :, None] - alpha * process.codebook()).square().sum(-1)
    log_density = torch.logsumexp(-0.5 * distance / sigma**2, -1).sum()
    (gradient,) = torch.autograd.grad(log_density, x_t)
    posterior = torch.softmax(process.log_likelihood(x_t, t), -1)
    assert torch.allclose(process.score(x_t, posterior, t), gradient, atol=1e-9)


# Law 4


def given_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Truth, ids shown to the model, mask, valid: lengths 9, 5, 1, with given tokens and padding."""
    truth = (torch.arange(27).view(3, 9) * 5 + 3) % V
    valid = torch.arange(9) < torch.tensor([[9], [5], [1]])
    mask = valid & (torch.arange(9) % 3 != 1)
    return truth, torch.where(mask, (truth + 1) % V, truth), mask, valid


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("process", "sampler", "decoder"), GENERATORS)
def test_a_perfect_denoiser_gives_the_text(process, sampler, decoder, steps):
    truth, shown, mask, valid = given_batch()
    denoiser = Perfect(make_process(process), truth)
    predict = Predict(denoiser, DECODERS[decoder](), shown, mask, valid, None, noise(3, valid=valid))
    made = make_sampler(sampler, steps)
    assert (made(predict) == truth).all()
    tokens = int(mask.sum(1).max())
    whole = 1 + (made.steps - 1) // made.cost * made.cost  # of a step's evaluations none or all
    if sampler == "ode":
        assert 20 < predict.evaluations < 200
    else:
        assert predict.evaluations == (min(steps, tokens) if sampler == "confidence" else whole)


@pytest.mark.parametrize(("process", "sampler", "decoder"), GENERATORS)
def test_given_tokens_are_never_touched(process, sampler, decoder):
    """Not in the result, in no state and in no self-conditioning, whatever the denoiser says."""
    truth, shown, mask, valid = given_batch()
    seen = []

    class Wrong(Perfect):
        def forward(self, x_t: Tensor, t: Tensor, **inputs: Tensor) -> Tensor:
            seen.append((x_t, t, inputs["mask"], inputs["previous"]))
            return super().forward(x_t, t, **inputs)

    denoiser = Wrong(make_process(process), (truth + 4) % V)
    predict = Predict(denoiser, DECODERS[decoder](), shown, mask, valid, None, noise(3, valid=valid))
    ids = make_sampler(sampler, 4)(predict)
    assert (ids[~mask] == shown[~mask]).all() and (ids[mask] == (truth[mask] + 4) % V).all()
    clean, known = denoiser.process.encode(shown), denoiser.process.table()[shown]
    for x_t, t, open_, previous in seen:
        assert not (open_ & ~mask).any()
        assert torch.equal(x_t[~mask], clean[~mask])
        assert (t[~open_] == 0).all() and ((t[open_] > 0).all() or sampler in ENDS_AT_ZERO)
        assert previous is None or torch.allclose(previous[~mask], known[~mask], atol=1e-5)
    first = make_sampler(sampler, 4).cost
    none = [step[3] is None for step in seen]
    assert none == [i < first for i in range(len(seen))] or sampler == "ode"


@pytest.mark.parametrize("schedule", ["sqrt", "ve"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_times_fall_from_one_to_zero(sampler, schedule):
    made = make_sampler(sampler, 5)
    times = made.times(SCHEDULES[schedule]())
    assert times[0] == 1 and times[-1] == 0 and (times.diff() <= 0).all()
    if type(made).times is Sampler.times and made.cost == 1:
        assert torch.allclose(times, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]))


class Ranked(Perfect):
    """Knows the text, more or less surely; remembers what it was shown."""

    def __init__(self, process: nn.Module, truth: Tensor, sharpness: Tensor) -> None:
        super().__init__(process, truth)
        self.sharpness, self.seen = sharpness, []

    def forward(self, x_t: Tensor, t: Tensor, **inputs: Tensor) -> Tensor:
        self.seen.append((x_t, t, inputs["mask"], inputs["previous"]))
        logits = self.sharpness[:, None] * F.one_hot(self.truth, V)
        return pick(logits, inputs["only"])


def settle(denoiser: Ranked, mask: Tensor, steps: int) -> Tensor:
    """`confidence` from the truth outside `mask (1, L)`."""
    whole, ids = torch.ones_like(mask), torch.where(mask, 0, denoiser.truth)
    predict = Predict(denoiser, DECODERS["greedy"](), ids, mask, whole, None, noise(1, valid=whole))
    return SAMPLERS["confidence"](steps)(predict)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6, 9])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_surest_tokens_are_settled_first_and_stay(process, steps):
    """Of six tokens that are sure in a known order; all others stay the same noise, at t = 1.

    More steps than tokens change nothing.
    """
    order = 2 * torch.tensor([3, 0, 5, 1, 4, 2])  # the place that is settled first, second, ...
    sharpness = torch.zeros(11).scatter(0, order, torch.arange(6, 0, -1).float())
    truth, mask = torch.arange(11)[None] % V, (torch.arange(11) % 2 == 0)[None]
    denoiser = Ranked(make_process(process), truth, sharpness)
    assert (settle(denoiser, mask, steps) == truth).all()
    clean, prior = denoiser.process.encode(truth), denoiser.seen[0][0]
    table = denoiser.process.table()[truth]
    spent = min(steps, 6)
    assert len(denoiser.seen) == spent
    for step, (x_t, t, open_, previous) in enumerate(denoiser.seen):
        left = order[6 - round(6 * (1 - step / spent)) :]
        assert sorted(left.tolist()) == open_[0].nonzero()[:, 0].tolist()
        assert torch.equal(t, open_.float())
        assert torch.equal(x_t, keep(open_, prior, clean))
        assert not step or torch.allclose(previous[~open_], table[~open_], atol=1e-5)


@pytest.mark.parametrize(
    ("sharpness", "first"),
    [([3.0, 2.9, 0.5, 2.4, 0.4, 0.3], [0, 3]), ([9.0, 8.9, 0.5, 2.4, 0.4, 0.3], [0, 1])],
)
def test_neighbours_are_settled_together_only_if_both_are_sure(sharpness, first):
    """In each of three steps two of six tokens; each distribution sees nothing of the other."""
    truth, whole = torch.arange(6)[None] % V, torch.ones(1, 6, dtype=torch.bool)
    denoiser = Ranked(make_process("embedding"), truth, torch.tensor(sharpness))
    settle(denoiser, whole, 3)
    assert (~denoiser.seen[1][2][0]).nonzero()[:, 0].tolist() == first


@pytest.mark.parametrize("name", PROCESSES)
def test_a_step_of_no_length_changes_nothing(name):
    """Whatever the network says."""
    process, ids = make_process(name), all_ids(3)
    times = torch.tensor([0.0, 0.4, 1.0])[torch.arange(ids.numel()).view_as(ids) % 3]
    x_t = process.corrupt(process.encode(ids), times, noise(V))
    probs = torch.softmax(torch.randn(*ids.shape, V), -1)
    x_s = process.step(x_t, probs, times, times, noise(V, step=1))
    assert torch.allclose(x_s, x_t, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "renoise"])
def test_states_follow_the_grid_and_every_step_has_its_own_noise(sampler):
    """States of a perfect denoiser must be draws of q(x_t | text) at exactly the grid's times."""
    seen = []

    class Watching(Perfect):
        def forward(self, x_t: Tensor, t: Tensor, **inputs: Tensor) -> Tensor:
            seen.append((x_t, t))
            return super().forward(x_t, t, **inputs)

    ids = all_ids(1500)
    mask = torch.ones_like(ids, dtype=torch.bool)
    denoiser = Watching(make_process("embedding"), ids)
    predict = Predict(denoiser, DECODERS["softmax"](), ids, mask, mask, None, noise(V, valid=mask))
    SAMPLERS[sampler](4)(predict)
    assert [t[0, 0].item() for _, t in seen] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    draws = []
    for x_t, t in seen:
        alpha, sigma = denoiser.process.schedule(t[..., None])
        draws.append((x_t - alpha * denoiser.process.encode(ids)) / sigma)
    for draw in draws[1:]:
        assert draw.var().item() == pytest.approx(1, abs=0.02)
    correlation = [(a * b).mean().item() for a, b in itertools.pairwise(draws[1:])]
    expected = {"ddim": lambda c: c > 0.98, "renoise": lambda c: abs(c) < 0.02}
    assert all(map(expected.get(sampler, lambda c: 0.02 < c < 0.98), correlation)), correlation


@pytest.mark.parametrize("schedule", ["cosine", "ve", "subvp"])
@pytest.mark.parametrize("sampler", [name for name, made in SAMPLERS.items() if made.gaussian])
def test_states_are_noisy_text_of_their_time(sampler, schedule):
    """States of a perfect denoiser are draws of q(x_t | text), with what its step is wrong by."""
    seen = []

    class Watching(Perfect):
        def forward(self, x_t: Tensor, t: Tensor, **inputs: Tensor) -> Tensor:
            seen.append((x_t.clone(), t))
            return super().forward(x_t, t, **inputs)

    ids = all_ids(250)
    mask = torch.ones_like(ids, dtype=torch.bool)
    denoiser = Watching(make_process("embedding", schedule), ids)
    predict = Predict(denoiser, DECODERS["softmax"](), ids, mask, mask, None, noise(V, valid=mask))
    make_sampler(sampler, 200)(predict)
    # Langevin steps have a variance of their own, and stages of an adaptive solver are none of its states
    variance = 1 / (1 - 0.2 / 2) if sampler == "langevin" else 1
    limit = {"sde": 0.08, "corrector": 0.05}.get(sampler, 0.03)
    watched = seen[-1:] if sampler in ENDS_AT_ZERO else seen[:: len(seen) // 12]
    for x_t, t in watched:
        alpha, sigma = denoiser.process.schedule(t[..., None])
        draw = (x_t - alpha * denoiser.process.encode(ids)) / sigma
        assert draw.mean().abs() < limit
        assert draw.var().item() == pytest.approx(variance, abs=limit)


def test_watch_sees_every_prediction():
    truth, shown, mask, valid = given_batch()
    seen: list[Tensor] = []
    denoiser = Perfect(make_process("embedding"), truth)
    inputs = (DECODERS["softmax"](), shown, mask, valid, None, noise(3, valid=valid))
    SAMPLERS["ancestral"](3)(Predict(denoiser, *inputs, watch=seen.append))
    assert len(seen) == 3 and all((ids == truth).all() for ids in seen)


# Law 5, law 6


def make_denoiser(process: Process) -> Denoiser:
    torch.manual_seed(2)
    sizes = {"width": 16, "depth": 1, "heads": 2, "max_length": 12, "max_source_length": 4}
    return Denoiser(process, encoder_depth=0, **sizes).eval()


@spaces
def test_logits_are_finite_at_both_ends(name, schedule):
    process = make_process(name, schedule)
    denoiser, valid = make_denoiser(process), torch.ones(V, 4, dtype=torch.bool)
    for time in (0.0, 1.0):
        t = torch.full((V, 4), time)
        x_t = process.corrupt(process.encode(all_ids(4)), t, noise(V))
        log_posterior = process.log_posterior(x_t, t)
        assert log_posterior.isfinite().all()
        assert process.features(x_t, t, log_posterior).isfinite().all()
        assert denoiser(x_t, t, mask=valid, valid=valid).isfinite().all()


@spaces
def test_a_full_step_is_finite_and_returns_the_text(name, schedule):
    process, ids = make_process(name, schedule), all_ids(50)
    x_1 = process.prior(ids.shape, noise(V))
    truth = F.one_hot(ids, V).float()
    x_s = process.step(x_1, truth, torch.tensor(1.0), torch.tensor(0.0), noise(V, step=1))
    assert (process.round(x_s) == ids).all()


@spaces
def test_times_per_example_and_per_token_equal_a_loop(name, schedule):
    process = make_process(name, schedule)
    denoiser, ids = make_denoiser(process), all_ids(4)
    valid = torch.ones_like(ids, dtype=torch.bool)
    probs = torch.softmax(torch.randn(V, 4, V), -1)
    x_0 = process.encode(ids)
    s = torch.linspace(0, 0.9, 4 * V).view(V, 4)
    t = s + 0.1

    def run(t: Tensor, s: Tensor) -> Iterator[Tensor]:
        x_t = process.corrupt(x_0, t, noise(V))
        yield x_t
        yield process.step(x_t, probs, t, s, noise(V, step=1))
        yield process.log_likelihood(x_t, t)
        yield process.features(x_t, t, process.log_posterior(x_t, t))

    together = list(run(t, s))
    by_row = list(run(t[:, 0], s[:, 0]))
    for row in range(V):
        for one, many in zip(run(t[row, 0], s[row, 0]), by_row, strict=True):
            assert torch.allclose(one[row], many[row], atol=1e-4, rtol=1e-4)
        for one, many in zip(run(t[row, 2], s[row, 2]), together, strict=True):
            assert torch.allclose(one[row, 2], many[row, 2], atol=1e-4, rtol=1e-4)
    x_t = together[0]
    logits = denoiser(x_t, t[:, :1].expand(V, 4), mask=valid, valid=valid)
    for row in (0, 5, 10):
        inputs = {"mask": valid[row : row + 1], "valid": valid[row : row + 1]}
        single = denoiser(x_t[row : row + 1], t[row, :1].expand(1, 4), **inputs)
        assert torch.allclose(single[0], logits[row], atol=1e-4, rtol=1e-4)


AIMS = [
    (name, aim)
    for name, aim in itertools.product(PROCESSES, OBJECTIVES)
    if name in GAUSSIAN or aim not in ("mean_square", "anchor")
]


@pytest.mark.parametrize(("name", "aim"), AIMS)
def test_every_objective_is_least_for_the_truth(name, aim):
    process, ids = make_process(name), all_ids(3)
    t = torch.full(ids.shape, 0.5)
    x_t, objective = process.corrupt(process.encode(ids), t, noise(V)), OBJECTIVES[aim]
    logits = torch.randn(V, 3, V).requires_grad_()
    loss = objective(process, logits, ids, x_t, t)
    assert loss.shape == ids.shape and (loss > -1e-3).all()
    assert objective(process, 50.0 * F.one_hot(ids, V), ids, x_t, t).max() < 1e-3
    loss.mean().backward()
    open_ = x_t != ids if name == "masked" and aim == "variational" else torch.ones_like(ids).bool()
    assert (logits.grad.abs().sum(-1) > 0)[open_].all()


def test_cross_entropy_is_in_nats():
    process, ids = make_process("embedding"), all_ids(3)
    x_t, t = process.encode(ids), torch.full(ids.shape, 0.5)
    found = OBJECTIVES["cross_entropy"](process, torch.zeros(V, 3, V), ids, x_t, t)
    assert found.mean().item() == pytest.approx(2.3979, abs=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("name", ["embedding", "masked", "uniform"])
def test_the_variational_objective_is_the_bound(name, schedule):
    """Its mean over time is `likelihood.diffusion_bound`, without what the prior costs."""
    language = MarkovLanguage()
    process = exact_process(name, SCHEDULES[schedule]())
    oracle = OracleDenoiser(process, language)
    ids = language.sample(4000, seed=0)
    mask = torch.ones_like(ids, dtype=torch.bool)

    def denoise(x_t: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        return oracle(x_t, t, mask=mask, valid=mask)

    t = ((torch.arange(4000) + 0.5) / 4000)[:, None].expand(ids.shape)
    x_t = process.corrupt(process.encode(ids), t, OneStream(1))
    found = OBJECTIVES["variational"](process, denoise(x_t, t, mask), ids, x_t, t).sum(1)
    parts = diffusion_bound(denoise, process, ids, mask, OneStream(2), 1000, 32)
    bound = parts["diffusion"] + parts["reconstruction"]
    error = ((found.var() + bound.var()) / 4000).sqrt()
    assert abs(found.mean() - bound.mean()) < 4 * error
    assert error < 0.05 * bound.mean()


@pytest.mark.parametrize("name", PROCESSES)
def test_training_reaches_the_embeddings(name):
    process = make_process(name)
    denoiser, ids = make_denoiser(process), all_ids(4)
    valid, t = torch.ones_like(ids, dtype=torch.bool), torch.full(ids.shape, 0.6)
    x_t = process.corrupt(process.encode(ids), t, noise(V))
    logits = denoiser(x_t, t, mask=valid, valid=valid)
    OBJECTIVES["cross_entropy"](process, logits, ids, x_t, t).mean().backward()
    assert (process.embedding.weight.grad.abs().sum(-1) > 0).all()


# Law 7

LENGTHS, SOURCES = (3, 9, 1, 6), (5, 2, 8, 1)


def make_model(process: str, conditioning: str) -> TextDiffusion:
    """Untrained, but every part has a say: all weights perturbed."""
    tokenizer = Tokenizer.train(["a few words"], 260)
    sizes = {"width": 16, "depth": 2, "heads": 2, "embedding_width": 16, "max_length": 12}
    sizes |= {"encoder_depth": 1, "max_source_length": 30}
    config = Config(process=process, conditioning=conditioning, **sizes)
    torch.manual_seed(3)
    model = TextDiffusion(config, tokenizer).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def padded(rows: list[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Rows and where they are real, `(B, width)` both; padding holds a token on purpose."""
    out = torch.full((len(rows), width), 77)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def generate(
    model: TextDiffusion, chosen: list[int], extra: int, sampler: str, decoder: str, scale: float
) -> list[list[int]]:
    """Texts of the `chosen` examples, generated together with `extra` columns of padding."""
    texts = [torch.arange(LENGTHS[i]) + 10 * i for i in chosen]
    ids, valid = padded(texts, max(map(len, texts)) + extra)
    mask = valid & ~((ids % 10 == 1) & valid)  # the second token of every text is given
    sources = [torch.arange(SOURCES[i]) + 20 * i for i in chosen]
    source = padded(sources, max(map(len, sources)) + extra // 3)
    random = Noise(5, [100 + i for i in chosen], valid)
    denoiser = model.denoiser if scale == 1 else Guided(model.denoiser, scale)
    predict = Predict(denoiser, DECODERS[decoder](), ids, mask, valid, model.read(*source), random)
    out = make_sampler(sampler, 4)(predict)
    return [row[keep].tolist() for row, keep in zip(out, valid, strict=True)]


CONDITIONS = [("none", 1.0), ("cross", 1.0), ("cross", 2.5)]
SITUATIONS = [
    (*names, *condition)
    for names, condition in itertools.product(GENERATORS, CONDITIONS)
    # the last has all that the others have, but for what is not there
    if names[1] in ("confidence", "ancestral") or condition == CONDITIONS[-1]
]


@pytest.mark.parametrize(("process", "sampler", "decoder", "conditioning", "scale"), SITUATIONS)
def test_a_text_does_not_depend_on_its_batch(process, sampler, decoder, conditioning, scale):
    model = make_model(process, conditioning)
    names = (sampler, decoder, scale)
    together = generate(model, [0, 1, 2, 3], 0, *names)
    alone = [generate(model, [i], 0, *names)[0] for i in (0, 2)]
    assert alone == together[::2]
    assert generate(model, [3, 1], 3, *names) == [together[3], together[1]]
    assert len({tuple(text) for text in together}) == 4
    assert len(set(together[1])) > 3, "texts are too dull to tell"


def test_the_adaptive_solver_draws_tokens_at_its_end_alone():
    """Its number of evaluations depends on the batch: draws within would shift those of a text."""
    truth, shown, mask, valid = given_batch()
    calls = []

    class Counted(DECODERS["sample"]):
        def decode(self, probs: Tensor, noise: Noise) -> Tensor:
            calls.append(len(probs))
            return super().decode(probs, noise)

    inputs = (shown, mask, valid, None, noise(3, valid=valid))
    predict = Predict(Perfect(make_process("embedding"), truth), Counted(), *inputs)
    make_sampler("ode", 600)(predict)
    assert len(calls) == 1 < predict.evaluations


@pytest.mark.parametrize("conditioning", ["none", "cross", "prefix"])
@pytest.mark.parametrize("process", PROCESSES)
def test_what_is_seen_of_open_tokens_is_kept(process, conditioning, monkeypatch):
    """By `confidence`: the same texts as where every step looks at all of them anew."""
    model = make_model(process, conditioning)
    model.length.fit(torch.tensor([0.0, *[1.0] * 6, *[0.0] * 6]))
    options = {"sampler": "confidence", "steps": 4, "candidates": 3, "seed": 5}
    given = {"num_samples": 6} if conditioning == "none" else {"sources": ["bcde", "a", "bb"] * 2}
    kept = generate_texts(model, **given, **options)
    read, looks = Predict.read, []

    def anew(predict: Predict, x_t: Tensor, t: Tensor) -> Tensor:
        known, predict.seen = predict.seen, None
        logits, predict.seen = read(predict, x_t, t), known
        looks.append(known)
        return logits

    monkeypatch.setattr(Predict, "read", anew)
    assert generate_texts(model, **given, **options).ids == kept.ids
    assert looks and all(looks)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
def test_predictions_are_tempered(temperature):
    truth, shown, mask, valid = given_batch()
    inputs = (shown, mask, valid, None, noise(3, valid=valid))
    decoder = DECODERS["softmax"](temperature=temperature)
    predict = Predict(Perfect(make_process("embedding"), truth), decoder, *inputs)
    probs = predict(predict.first(), predict.times(1.0))
    clean = F.one_hot(truth, V).float()
    assert torch.allclose(probs[mask], (50 / temperature * clean).softmax(-1)[mask])
    assert torch.equal(probs[~mask], F.one_hot(shown, V).float()[~mask])


def test_the_source_matters_to_a_perturbed_model():
    model = make_model("embedding", "cross")
    texts = {
        scale: generate(model, [0, 1, 2, 3], 0, "ddim", "softmax", scale) for scale in (0.0, 1.0, 2.5)
    }
    assert texts[0.0] != texts[1.0] != texts[2.5]


@pytest.mark.parametrize("conditioning", ["none", "cross", "prefix"])
@pytest.mark.parametrize("process", PROCESSES)
def test_a_text_does_not_depend_on_the_batch_size(process, conditioning):
    """From strings to ids: lengths, prompts and candidates too."""
    model = make_model(process, conditioning)
    model.length.fit(torch.tensor([0.0, *[1.0] * 4, *[0.0] * 8]))
    sources = ["ab", "c", "defg", "hi"] if conditioning != "none" else None
    prompts = ["x", "", "yz", ""]
    options = {"prompt": prompts, "candidates": 3, "utility": "unigram_f1", "steps": 3, "seed": 4}
    one, four = (
        generate_texts(model, sources, batch_size=size, decoder="sample", **options).ids
        for size in (1, 4)
    )
    assert one == four and len({len(ids) for ids in one}) > 1
