"""The step of Gaussian processes against `diffusers`' schedulers, on the same noise and the same grid."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from textdiff.process import PROCESSES, Gaussian
from textdiff.schedule import SCHEDULES

diffusers = pytest.importorskip("diffusers")

STEPS, V, D = 50, 7, 12
GAUSSIAN = [name for name in PROCESSES if issubclass(PROCESSES[name], Gaussian)]


class Given:
    """Noise that is known beforehand."""

    def __init__(self, draw: Tensor) -> None:
        self.draw = draw

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        assert tuple(shape) == tuple(self.draw.shape)
        return self.draw


@pytest.fixture(params=itertools.product(GAUSSIAN, ["cosine", "sqrt", "linear"]), ids="-".join)
def setting(request):
    """Process, the grid of `diffusers` in our times and as a table of alpha^2, state, probabilities."""
    torch.manual_seed(0)
    name, schedule = request.param
    process = PROCESSES[name](nn.Embedding(V, D), SCHEDULES[schedule]())
    times = torch.arange(1, STEPS + 1) / STEPS  # index k of diffusers is our time (k + 1) / STEPS
    x_t, probs = torch.randn(2, 5, process.state_width), torch.softmax(torch.randn(2, 5, V), -1)
    return process, times, process.schedule(times)[0].square(), x_t, probs


def make_scheduler(cls: type, alphas_cumprod: Tensor, **options: object):
    scheduler = cls(num_train_timesteps=STEPS, prediction_type="sample", clip_sample=False, **options)
    scheduler.alphas_cumprod = alphas_cumprod
    scheduler.betas = 1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    scheduler.alphas = 1 - scheduler.betas
    scheduler.set_timesteps(STEPS)
    return scheduler


@pytest.mark.parametrize("k", [1, 10, 30, STEPS - 1])
def test_ancestral_step_is_ddpm(setting, k, monkeypatch):
    process, times, table, x_t, probs = setting
    draw = torch.randn_like(x_t)
    ddpm = make_scheduler(diffusers.DDPMScheduler, table, variance_type="fixed_small")
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **options: draw)
    theirs = ddpm.step(process.mean(probs), k, x_t).prev_sample
    ours = process.step(x_t, probs, times[k], times[k - 1], Given(draw))
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("k", [1, 10, 30, STEPS - 1])
def test_tau_zero_is_ddim(setting, k):
    process, times, table, x_t, probs = setting
    ddim = make_scheduler(diffusers.DDIMScheduler, table)
    theirs = ddim.step(process.mean(probs), k, x_t, eta=0.0).prev_sample
    ours = process.step(x_t, probs, times[k], times[k - 1], Given(torch.zeros(0)), tau=0.0)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("k", [1, 20, STEPS - 1])
def test_ddim_with_full_eta_is_the_ancestral_step(setting, k):
    process, times, table, x_t, probs = setting
    draw = torch.randn_like(x_t)
    ddim = make_scheduler(diffusers.DDIMScheduler, table)
    theirs = ddim.step(process.mean(probs), k, x_t, eta=1.0, variance_noise=draw).prev_sample
    ours = process.step(x_t, probs, times[k], times[k - 1], Given(draw))
    assert (ours - theirs).abs().max() < 1e-5


def test_corruption_is_add_noise(setting):
    process, times, table, _, _ = setting
    x_0 = process.encode(torch.randint(0, V, (3, 5)))
    draw, k = torch.randn_like(x_0), torch.tensor([2, 25, 49])
    theirs = make_scheduler(diffusers.DDPMScheduler, table).add_noise(x_0, draw, k)
    assert (process.corrupt(x_0, times[k], Given(draw)) - theirs).abs().max() < 1e-5
