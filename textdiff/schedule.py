"""Noise schedules: time t in [0, 1] to signal alpha_t and noise sigma_t (0 = data, 1 = noise).

A variance-preserving Gaussian process x_t = alpha_t x_0 + sigma_t eps is fixed by

    gamma(t) = log(sigma_t^2 / alpha_t^2),   alpha_t^2 = sigmoid(-gamma),   sigma_t^2 = sigmoid(gamma)

which increases strictly and stays finite: gamma(0) = gamma_min, gamma(1) = gamma_max (Kingma et al.
2021, arXiv:2107.00630, eq. 2 to 4). Since only the signal-to-noise ratio matters, everything is told
as gamma: to the network, to the samplers, to the adaptive schedules. Discrete processes read alpha^2
as the probability to keep a token.

Fixed curves: `Linear` (Ho et al. 2020, arXiv:2006.11239), `Cosine` (Nichol and Dhariwal 2021,
arXiv:2102.09672, eq. 17), `Sqrt` (Li et al. 2022, arXiv:2205.14217, section 4.2). Adaptive ones make
time uniform in *information*, the token cross-entropy C(gamma), measured during training: `Gumbel`
(LangFlow, arXiv:2604.11748: C is H times a Gumbel distribution function) and `Warped` (Dieleman et al.
2022, arXiv:2211.15089, section 4.3: any monotone C, as a piecewise-linear function).
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Schedule(nn.Module, ABC):
    """t -> alpha_t, sigma_t.

    Args:
        gamma_min: log noise-to-signal ratio at t = 0 (low enough that every token is recognised).
        gamma_max: the same at t = 1 (high enough that nothing is).
    """

    def __init__(self, gamma_min: float = -5.0, gamma_max: float = 5.0) -> None:
        super().__init__()
        if gamma_min >= gamma_max:
            raise ValueError(f"schedule: gamma_min {gamma_min} must be below gamma_max {gamma_max}")
        self.gamma_min, self.gamma_max = gamma_min, gamma_max

    @abstractmethod
    def gamma(self, t: Tensor) -> Tensor:
        """log(sigma_t^2 / alpha_t^2), float32, same shape as `t`, strictly increasing."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, float32, both of the shape of `t`."""
        gamma = self.gamma(t)
        return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()

    def observe(self, t: Tensor, nll: Tensor) -> None:
        """Learn from the training loss `nll` (nats a token) at times `t`, both `(B,)`."""
        return


class Curve(Schedule):
    """A classical curve alpha_bar(u) = alpha^2, run over the part of it that meets the end points."""

    @abstractmethod
    def alpha_bar(self, u: Tensor) -> Tensor:
        """alpha^2 at the curve's own time u, float64."""

    @abstractmethod
    def inverse(self, alpha_bar: float) -> float:
        """The curve's own time u at which alpha^2 has this value."""

    def gamma(self, t: Tensor) -> Tensor:
        start = self.inverse(1 / (1 + math.exp(self.gamma_min)))
        stop = self.inverse(1 / (1 + math.exp(self.gamma_max)))
        alpha_bar = self.alpha_bar(start + (stop - start) * t.double())
        return (torch.log1p(-alpha_bar) - alpha_bar.log()).float()


class Linear(Curve):
    """beta linear in time, 0.1 to 20: the continuous limit of DDPM's schedule."""

    low, high = 0.1, 20.0

    def alpha_bar(self, u: Tensor) -> Tensor:
        return torch.exp(-(self.low * u + 0.5 * (self.high - self.low) * u**2))

    def inverse(self, alpha_bar: float) -> float:
        slope, integral = self.high - self.low, -math.log(alpha_bar)
        return (math.sqrt(self.low**2 + 2 * slope * integral) - self.low) / slope


class Cosine(Curve):
    """alpha = cos(pi u / 2)."""

    def alpha_bar(self, u: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * u) ** 2

    def inverse(self, alpha_bar: float) -> float:
        return 2 / math.pi * math.acos(math.sqrt(alpha_bar))


class Sqrt(Curve):
    """alpha^2 = 1 - sqrt(u), Diffusion-LM's curve: noise rises fast at first."""

    def alpha_bar(self, u: Tensor) -> Tensor:
        return 1 - u.sqrt()

    def inverse(self, alpha_bar: float) -> float:
        return (1 - alpha_bar) ** 2


class Adaptive(Schedule):
    """Keeps the mean cross-entropy per bin of gamma, as seen in training, and fits a curve to it.

    Args:
        bins: number of bins of gamma.
        memory: how many observed batches the averages look back on.
    """

    def __init__(
        self,
        gamma_min: float = -5.0,
        gamma_max: float = 5.0,
        *,
        bins: int = 64,
        memory: int = 500,
    ) -> None:
        super().__init__(gamma_min, gamma_max)
        self.memory = memory
        edges = torch.linspace(gamma_min, gamma_max, bins + 1, dtype=torch.float64)
        self.register_buffer("edges", edges)
        self.register_buffer("history", torch.zeros(2, bins, dtype=torch.float64))

    @abstractmethod
    def fit(self, nll: Tensor, weight: Tensor) -> None:
        """Adapt to the mean nats `nll (bins,)`, known with `weight (bins,)` observations."""

    @torch.no_grad()
    def observe(self, t: Tensor, nll: Tensor) -> None:
        gamma = self.gamma(t).double()
        index = torch.bucketize(gamma, self.edges[1:-1])
        batch = torch.zeros_like(self.history)
        batch[0].index_add_(0, index, nll.double())
        batch[1].index_add_(0, index, torch.ones_like(gamma))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(batch)
        self.history.mul_(1 - 1 / self.memory).add_(batch)
        self.fit(self.history[0] / self.history[1].clamp(min=1e-9), self.history[1])

    @property
    def centres(self) -> Tensor:
        """Middle gamma of every bin, `(bins,)`."""
        return (self.edges[1:] + self.edges[:-1]) / 2


class Gumbel(Adaptive):
    """gamma = mu - beta log(-log u): information-uniform if C(gamma) = H exp(-exp(-(gamma-mu)/beta)).

    mu, beta and H follow the measured losses by one damped Gauss-Newton step a batch.
    """

    def __init__(
        self,
        gamma_min: float = -5.0,
        gamma_max: float = 5.0,
        *,
        location: float = 0.0,
        spread: float = 1.0,
        bins: int = 64,
        memory: int = 500,
    ) -> None:
        super().__init__(gamma_min, gamma_max, bins=bins, memory=memory)
        start = torch.tensor([location, math.log(spread), math.log(5.0)], dtype=torch.float64)
        self.register_buffer("parameters_", start)

    def gamma(self, t: Tensor) -> Tensor:
        mu, beta = self.parameters_[0], self.parameters_[1].exp()
        ends = torch.tensor([self.gamma_min, self.gamma_max], dtype=torch.float64, device=t.device)
        low, high = torch.exp(-torch.exp(-(ends - mu) / beta)).clamp(1e-12, 1 - 1e-12)
        u = low + (high - low) * t.double()
        bounds = (self.gamma_min, self.gamma_max)
        # the clipped ends leave a sliver of time without a strict increase: a small slope mends it
        curve = (mu - beta * torch.log(-torch.log(u))).clamp(*bounds)
        line = self.gamma_min + (self.gamma_max - self.gamma_min) * t.double()
        return (0.98 * curve + 0.02 * line).float()

    def fit(self, nll: Tensor, weight: Tensor) -> None:
        mu, beta, height = self.parameters_[0], *self.parameters_[1:].exp()
        z = (self.centres - mu) / beta
        curve = height * torch.exp(-torch.exp(-z))
        slope = -curve * torch.exp(-z) / beta  # d curve / d mu
        jacobian = torch.stack([slope, slope * z * beta, curve], 1)
        weight = weight.clamp(max=30.0)[:, None]  # well-known bins count alike
        normal = jacobian.T @ (weight * jacobian) + 1e-3 * torch.eye(3).to(weight)
        move = torch.linalg.solve(normal, jacobian.T @ (weight * (nll - curve)[:, None]))[:, 0]
        self.parameters_.add_(0.1 * move.clamp(-1, 1))
        self.parameters_[0].clamp_(self.gamma_min, self.gamma_max)
        self.parameters_[1].clamp_(math.log(0.1), math.log(10.0))


class Warped(Adaptive):
    """Any increasing C(gamma): its normalised piecewise-linear curve is the distribution of gamma.

    Args:
        floor: share of time spread evenly over gamma, so that no noise level is forgotten.
    """

    def __init__(
        self,
        gamma_min: float = -5.0,
        gamma_max: float = 5.0,
        *,
        floor: float = 0.1,
        bins: int = 64,
        memory: int = 500,
    ) -> None:
        super().__init__(gamma_min, gamma_max, bins=bins, memory=memory)
        self.floor = floor
        self.register_buffer("cdf", torch.linspace(0, 1, bins + 1, dtype=torch.float64))

    def gamma(self, t: Tensor) -> Tensor:
        t64 = t.double()
        right = torch.searchsorted(self.cdf, t64.contiguous(), right=True)
        right = right.clamp(1, len(self.cdf) - 1)
        low, high = self.cdf[right - 1], self.cdf[right]
        share = (t64 - low) / (high - low)
        left, edge = self.edges[right - 1], self.edges[right]
        return (left + share * (edge - left)).float()

    def fit(self, nll: Tensor, weight: Tensor) -> None:
        seen = weight > 0.5
        if seen.sum() < 8:
            return
        known = nll[seen].cummax(0).values  # C increases; noise in the estimate must not bend it
        place = torch.searchsorted(self.centres[seen], self.edges).clamp(1, len(known) - 1)
        x, y = self.centres[seen], known
        share = (self.edges - x[place - 1]) / (x[place] - x[place - 1])
        curve = (y[place - 1] + share.clamp(0, 1) * (y[place] - y[place - 1])).clamp(min=0)
        mass = curve.diff().clamp(min=0)
        mass = mass / mass.sum().clamp(min=1e-9)
        mass = (1 - self.floor) * mass + self.floor / len(mass)
        self.cdf[1:] = mass.cumsum(0) / mass.sum()


SCHEDULES: dict[str, type[Schedule]] = {
    "linear": Linear,
    "cosine": Cosine,
    "sqrt": Sqrt,
    "gumbel": Gumbel,
    "warped": Warped,
}
