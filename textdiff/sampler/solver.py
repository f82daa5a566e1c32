"""Samplers from the differential equations of a Gaussian process (Song et al. 2021, arXiv:2011.13456).

    reverse SDE      dx = (f x - g^2 score) dt + g dw                                            (1)
    its ODE          dy / d rho = (y - x_0_hat) / rho,   y = x / alpha,   rho = sigma / alpha      (2)
    Langevin         x <- x + a score + sqrt(2 a) z                                              (3)

f and g^2 are the schedule's, score = (alpha x_0_hat - x) / sigma^2, x_0_hat is the mean clean point under
the network's probabilities. (2) is the form of Karras et al. 2022 (arXiv:2206.00364, eq. 4), in which an
Euler step is DDIM.

Every class is one step. `steps` counts network evaluations: a step that needs two makes half as many.
"""

import torch
from torch import Tensor

from textdiff.process import column
from textdiff.sampler.sampler import Predict, Sampler
from textdiff.schedule import Schedule

TINY = 1e-12


class Solver(Sampler):
    """A sampler that reads the clean mean."""

    gaussian, draws = True, False

    def probs(self, predict: Predict, x_t: Tensor, t: Tensor) -> Tensor:
        """What the mean is taken under, `(B, L, V)`."""
        return predict(x_t, t)

    def clean(self, predict: Predict, x_t: Tensor, t: Tensor) -> Tensor:
        """Clean mean `(B, L, D)`, moved by controls."""
        mean = predict.process.mean(self.probs(predict, x_t, t))
        return mean if predict.shift is None else mean + predict.shift

    def score(self, predict: Predict, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p(x_t), `(B, L, D)`."""
        alpha, sigma = predict.process.schedule(column(t, x_t))
        return (alpha * self.clean(predict, x_t, t) - x_t) / sigma**2


class EulerMaruyama(Solver):
    """Euler steps of the reverse SDE (1): needs hundreds of them.

    Args:
        steps: network evaluations.
        discrete: f and g^2 are not those at t, but what q(x_t | x_s) itself takes away and adds: reverse
            diffusion (Song et al. 2021, appendix E; algorithms 2 and 3).
    """

    def __init__(self, steps: int = 16, *, discrete: bool = False) -> None:
        super().__init__(steps)
        self.discrete = discrete

    def step(
        self, predict: Predict, x_t: Tensor, t: Tensor, s: Tensor, history: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        schedule, width = predict.process.schedule, column(t - s, x_t)
        if self.discrete:
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(column(t, x_t)), schedule(column(s, x_t))
            ratio = alpha_t / alpha_s
            drift, variance = ratio - 1, (sigma_t**2 - (ratio * sigma_s) ** 2).clamp(min=0)
        else:
            drift = width * schedule.drift(column(t, x_t))
            variance = width * schedule.diffusion(column(t, x_t))
        mean = x_t - drift * x_t + variance * self.score(predict, x_t, t)
        return mean + variance.sqrt() * predict.noise.normal(x_t.shape), history


class PredictorCorrector(Solver):
    """An ancestral step, then Langevin steps (3) at the new time (Song et al. 2021, algorithms 2 to 5).

    The length a = 2 (snr |z| / |score|)^2 is every text's own; the authors' code takes means over a
    batch, on which texts would then depend. Their factor alpha, for one kind of schedule, is left out.

    Args:
        steps: network evaluations, 1 + `corrections` a step.
        corrections: Langevin steps. snr: r of the paper.
    """

    def __init__(self, steps: int = 16, *, corrections: int = 1, snr: float = 0.16) -> None:
        super().__init__(steps)
        if corrections < 1 or snr <= 0:
            raise ValueError(
                f"corrector: corrections must be at least 1 and snr positive, not {corrections}, {snr}"
            )
        self.corrections, self.snr, self.cost = corrections, snr, 1 + corrections

    def step(
        self, predict: Predict, x_t: Tensor, t: Tensor, s: Tensor, history: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        x_s, history = super().step(predict, x_t, t, s, history)
        for _ in range(self.corrections):
            x_s = predict.clear(x_s, s)
            score, noise = self.score(predict, x_s, s), predict.noise.normal(x_s.shape)
            length = 2 * (self.snr * norm(noise, predict.mask) / norm(score, predict.mask)).square()
            x_s = x_s + length * score + (2 * length).sqrt() * noise
        return x_s, history


def norm(x: Tensor, mask: Tensor) -> Tensor:
    """Length of every text's vector where `mask`, `(B, 1, 1)` for `x (B, L, D)`."""
    return (x * mask[..., None]).square().sum((1, 2), keepdim=True).sqrt().clamp(min=TINY)


class AnnealedLangevin(Solver):
    """NCSN: Langevin steps (3) at falling noise levels (Song and Ermon 2019, arXiv:1907.05600).

    a = epsilon sigma^2. The last prediction is its final denoising (Jolicoeur-Martineau et al. 2021,
    arXiv:2009.05475). It takes hundreds of evaluations.

    Args:
        steps: network evaluations, `repeats` a level.
        repeats: steps at a level; None = 20, or fewer so that there are ten levels.
        epsilon: length of a step.
    """

    midway, many = False, True

    def __init__(self, steps: int = 200, *, repeats: int | None = None, epsilon: float = 0.2) -> None:
        super().__init__(steps)
        if (repeats is not None and repeats < 1) or epsilon <= 0:
            raise ValueError(
                f"langevin: repeats must be at least 1 and epsilon positive, not {repeats}, {epsilon}"
            )
        if repeats is not None and (steps - 1) // repeats < 2:
            raise ValueError(
                f"langevin: {steps} steps of {repeats} repeats are not two levels; raise steps"
            )
        self.repeats = repeats or min(20, max(1, (steps - 1) // 10))
        self.epsilon, self.cost = epsilon, self.repeats

    def times(self, schedule: Schedule) -> Tensor:
        """Levels from t = 1 to t = 0, where the last prediction is made."""
        levels = torch.linspace(1, 0, max(1, (self.steps - 1) // self.cost))
        return torch.cat([levels, torch.zeros(1 if self.steps == 1 else 2)])

    def step(
        self, predict: Predict, x_t: Tensor, t: Tensor, s: Tensor, history: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        alpha_t, sigma_t = predict.process.schedule(column(t, x_t))
        for _ in range(self.repeats):
            score, noise = self.score(predict, x_t, t), predict.noise.normal(x_t.shape)
            x_t = x_t + self.epsilon * sigma_t**2 * score + (2 * self.epsilon) ** 0.5 * sigma_t * noise
            x_t = predict.clear(x_t, t)
        return x_t * (predict.process.schedule(column(s, x_t))[0] / alpha_t), history


class Heun(Solver):
    """Second order steps of the ODE (2) (Karras et al. 2022, algorithm 1)."""

    cost = 2

    def step(
        self, predict: Predict, x_t: Tensor, t: Tensor, s: Tensor, history: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        alpha_t, sigma_t = predict.process.schedule(column(t, x_t))
        alpha_s, sigma_s = predict.process.schedule(column(s, x_t))
        y, rho_t, rho_s = x_t / alpha_t, sigma_t / alpha_t, sigma_s / alpha_s
        first = (y - self.clean(predict, x_t, t)) / rho_t
        guess = y + (rho_s - rho_t) * first
        x_s = predict.clear(alpha_s * guess, s)
        second = (x_s / alpha_s - self.clean(predict, x_s, s)) / rho_s
        return alpha_s * (y + (rho_s - rho_t) * (first + second) / 2), history


class DPMSolver(Solver):
    """DPM-Solver++ with the predictions of the last steps (Lu et al. 2022, arXiv:2211.01095).

    The grid is even in gamma. With lambda = -gamma / 2, h = lambda_s - lambda_t and D, D' the first and
    second derivative of the clean mean over lambda, by the line or the parabola through the last ones,

        x_s = sigma_s / sigma_t x_t - alpha_s ((e^-h - 1) x_0 - ((e^-h - 1) / h + 1) h D
                                               + ((e^-h - 1 + h) / h^2 - 1/2) h^2 D')

    Orders 1 and 2 equal the scheduler of `diffusers` with `solver_type="heun"`. Its order 3 takes D' / 2,
    the parabola's coefficient, as the authors' code does, and converges with order 2. The first step is
    DDIM, of order 1 but small: where there is hardly any signal the clean mean stands still, and up to 96
    steps a second evaluation for a better start costs more than it gains.

    Args:
        steps: network evaluations, one a step. order: 1 (DDIM on that grid), 2 or 3.
    """

    midway = False

    def __init__(self, steps: int = 16, *, order: int = 2) -> None:
        super().__init__(steps)
        if order not in (1, 2, 3):
            raise ValueError(f"dpm: order must be 1, 2 or 3, not {order}")
        self.order = order

    def times(self, schedule: Schedule) -> Tensor:
        """Even in gamma."""
        grid = torch.linspace(schedule.gamma_max, schedule.gamma_min, self.steps + 1)
        times = schedule.time(grid.to(next(schedule.buffers(), grid).device)).cpu()
        times[[0, -1]] = torch.tensor([1.0, 0.0]).to(times)
        return times

    def step(
        self, predict: Predict, x_t: Tensor, t: Tensor, s: Tensor, history: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        schedule, x_0 = predict.process.schedule, self.clean(predict, x_t, t)
        (_, sigma_t), (alpha_s, sigma_s) = schedule(column(t, x_t)), schedule(column(s, x_t))
        now, then = (-0.5 * schedule.gamma(column(time, x_t)) for time in (t, s))
        h = (then - now).clamp(min=TINY)  # zero where given, and not used
        decay = torch.expm1(-h)
        x_s = sigma_s / sigma_t * x_t - alpha_s * decay * x_0
        if self.order > 1 and history:
            slope = (x_0 - history[0]) / (now - history[1]).clamp(min=TINY)
            if self.order == 3 and len(history) > 2:
                older = (history[0] - history[2]) / (history[1] - history[3]).clamp(min=TINY)
                bend = 2 * (slope - older) / (now - history[3]).clamp(min=TINY)
                slope = slope + bend / 2 * (now - history[1])
                x_s = x_s - alpha_s * ((decay + h) / h**2 - 0.5) * h**2 * bend
            x_s = x_s + alpha_s * (decay / h + 1) * h * slope
        return x_s, [x_0, now, *history[:2]]


class Churn(Solver):
    """Noise is added, then more of it taken away by DDIM (Karras et al. 2022, algorithm 2).

    From t back to t + gamma (t - s), then down to s: errors of earlier steps are washed out, as by
    `ancestral`, in an amount that can be chosen.

    Args:
        steps: network evaluations. gamma: 0 = DDIM; 1 to 2 where there are few steps.
    """

    def __init__(self, steps: int = 16, *, gamma: float = 1.0) -> None:
        super().__init__(steps)
        if gamma < 0:
            raise ValueError(f"churn: gamma must not be negative, but is {gamma}")
        self.gamma = gamma

    def step(
        self, predict: Predict, x_t: Tensor, t: Tensor, s: Tensor, history: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        above = (t + self.gamma * (t - s)).clamp(max=1)
        noisier = predict.clear(predict.process.renoise(x_t, t, above, predict.noise), above)
        probs = predict(noisier, above)
        how = {"tau": 0.0, "shift": predict.shift}
        return predict.process.step(noisier, probs, above, s, predict.noise, **how), history
