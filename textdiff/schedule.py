"""Noise schedules: time t in [0, 1] to signal alpha_t and noise sigma_t (0 = data, 1 = noise).

A Gaussian process x_t = alpha_t x_0 + sigma_t eps is fixed, up to its scale, by

    gamma(t) = log(sigma_t^2 / alpha_t^2)

which increases strictly and stays finite: gamma(0) = gamma_min, gamma(1) = gamma_max (Kingma et al.
2021, arXiv:2107.00630, eq. 2 to 4). Since only the signal-to-noise ratio matters, everything is told
as gamma: to the network, to the samplers, to the adaptive schedules. Discrete processes keep a token
with probability sigmoid(-gamma). The scale is that of a constant variance, alpha^2 = sigmoid(-gamma) and
sigma^2 = sigmoid(gamma), but for `SubVP` and `VE`.

The same process is the stochastic differential equation (Song et al. 2021, arXiv:2011.13456)

    dx = f x dt + g dw,      f = d log alpha / dt,      g^2 = sigma^2 d gamma / dt                 (1)

Fixed curves: `Linear` (Ho et al. 2020, arXiv:2006.11239; Song et al.'s VP), Song et al.'s `SubVP` and
`VE`, `Cosine` (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17), `Sqrt` (Li et al. 2022,
arXiv:2205.14217, section 4.2). Adaptive ones make time uniform in *information*, the token cross-entropy
C(gamma), measured during training: `Gumbel` (LangFlow, arXiv:2604.11748: C is H times a Gumbel
distribution function) and `Warped` (Dieleman et al. 2022, arXiv:2211.15089, section 4.3: any monotone C,
as a piecewise-linear function).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class Schedule(nn.Module, ABC):
    """t -> alpha_t, sigma_t.

    Args:
        gamma_min: log noise-to-signal ratio at t = 0 (low enough that every token is recognised).
        gamma_max: the same at t = 1 (high enough that nothing is).
    """

    def __init__(self, gamma_min: float = -5.0, gamma_max: float = 5.0) -> None:
        super().__init__()
        if not -math.inf < gamma_min < gamma_max < math.inf:
            raise ValueError(
                f"schedule: gamma_min {gamma_min} must be below gamma_max {gamma_max}, both finite"
            )
        self.gamma_min, self.gamma_max = gamma_min, gamma_max

    def check(self) -> None:
        """Refuse a curve that does not rise from end to end, at 10,001 times.

        Raises:
            ValueError: with the times at which it does not, the first three stretches of them.
        """
        name, t = type(self).__name__, torch.linspace(0, 1, 10_001)
        try:
            gamma = self.gamma(t)
        except (ValueError, OverflowError) as error:
            ends = f"gamma from {self.gamma_min} to {self.gamma_max}"
            raise ValueError(
                f"schedule {name}: {ends} is beyond what can be computed ({error})"
            ) from None
        wrong = (~gamma.isfinite()).nonzero()[:, 0].tolist()
        if wrong:
            raise ValueError(f"schedule {name}: gamma is {gamma[wrong[0]]:g} at t = {t[wrong[0]]:.4f}")
        turns = F.pad((gamma.diff() <= 0).int(), (1, 1)).diff().nonzero()[:, 0].tolist()
        if turns:
            ends = [f"{gamma[i]:.4g} at t = {t[i]:.4f}" for i in turns]
            falls = [f"from {one} to {other}" for one, other in zip(ends[::2], ends[1::2], strict=True)]
            more = f", and {len(falls) - 3} times more" if len(falls) > 3 else ""
            raise ValueError(f"schedule {name}: gamma must rise, but goes {', '.join(falls[:3])}{more}")

    @abstractmethod
    def gamma(self, t: Tensor) -> Tensor:
        """log(sigma_t^2 / alpha_t^2), float32, same shape as `t`, strictly increasing."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, float32, both of the shape of `t`."""
        gamma = self.gamma(t)
        return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()

    def drift(self, t: Tensor) -> Tensor:
        """f of equation (1), of the shape of `t`."""
        return slope(lambda at: self(at)[0].log(), t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g^2 of equation (1), of the shape of `t`."""
        return self(t)[1].square() * slope(self.gamma, t)

    def time(self, gamma: Tensor) -> Tensor:
        """The time t of `gamma`, float64, of its shape; by bisection, for any curve."""
        low = torch.zeros_like(gamma, dtype=torch.float64)
        high = torch.ones_like(low)
        for _ in range(30):
            middle = (low + high) / 2
            above = self.gamma(middle) > gamma
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def observe(self, t: Tensor, nll: Tensor) -> None:
        """Learn from the training loss `nll` (nats a token) at times `t`, both `(B,)`."""
        return


def slope(curve: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d curve / dt at every entry of `t`, float32."""
    with torch.enable_grad():
        at = t.detach().double().requires_grad_()
        return torch.autograd.grad((curve(at) + 0 * at).sum(), at)[0].to(t.dtype)


class Curve(Schedule):
    """A classical curve alpha_bar(u) = alpha^2, run over the part of it that meets the end points."""

    @abstractmethod
    def alpha_bar(self, u: Tensor) -> Tensor:
        """alpha^2 at the curve's own time u, float64."""

    @abstractmethod
    def inverse(self, alpha_bar: float) -> float:
        """The curve's own time u at which alpha^2 has this value."""

    def gamma(self, t: Tensor) -> Tensor:
        alpha_bar = self.along(t)
        return (self.power * torch.log1p(-alpha_bar) - alpha_bar.log()).float()

    power = 1  # sigma^2 = (1 - alpha^2)^power

    def edge(self, gamma: float) -> float:
        """alpha^2 at `gamma`."""
        return 1 / (1 + math.exp(gamma))

    def along(self, t: Tensor) -> Tensor:
        """alpha^2 at `t`, float64."""
        start, stop = self.inverse(self.edge(self.gamma_min)), self.inverse(self.edge(self.gamma_max))
        return self.alpha_bar(start + (stop - start) * t.double())


class Linear(Curve):
    """beta linear in time, 0.1 to 20: the continuous limit of DDPM's schedule."""

    low, high = 0.1, 20.0

    def alpha_bar(self, u: Tensor) -> Tensor:
        return torch.exp(-(self.low * u + 0.5 * (self.high - self.low) * u**2))

    def inverse(self, alpha_bar: float) -> float:
        slope, integral = self.high - self.low, -math.log(alpha_bar)
        return (math.sqrt(self.low**2 + 2 * slope * integral) - self.low) / slope


class SubVP(Linear):
    """beta as in `Linear`, sigma = 1 - alpha^2: less noise than where the variance is constant."""

    power = 2

    def edge(self, gamma: float) -> float:
        ratio = math.exp(gamma / 2)  # (1 - alpha^2) / alpha
        return ((math.sqrt(ratio**2 + 4) - ratio) / 2) ** 2

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.along(t)
        return alpha_bar.sqrt().float(), (1 - alpha_bar).float()


class VE(Schedule):
    """alpha = 1, sigma geometric in time: NCSN's ladder (Song and Ermon 2019, arXiv:1907.05600)."""

    def gamma(self, t: Tensor) -> Tensor:
        return (self.gamma_min + (self.gamma_max - self.gamma_min) * t.double()).float()

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (self.gamma(t) / 2).exp()
        return torch.ones_like(sigma), sigma


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
    """Spends time where the cross-entropy C(gamma), as seen in training, rises.

    The distribution function of gamma is C, normalised, piecewise linear between the edges of bins.

    Args:
        floor: share of time spread evenly over gamma, so that no noise level is forgotten.
        bins: number of bins of gamma.
        memory: how many observed batches the averages look back on.
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
        super().__init__(gamma_min, gamma_max)
        self.floor, self.memory = floor, memory
        edges = torch.linspace(gamma_min, gamma_max, bins + 1, dtype=torch.float64)
        self.register_buffer("edges", edges)
        self.register_buffer("history", torch.zeros(2, bins, dtype=torch.float64))
        self.register_buffer("cdf", torch.linspace(0, 1, bins + 1, dtype=torch.float64))

    @abstractmethod
    def fit(self, x: Tensor, nll: Tensor, weight: Tensor) -> Tensor:
        """C at the edges, from mean nats `nll (n,)` seen `weight (n,)` times at gamma `x (n,)`."""

    def gamma(self, t: Tensor) -> Tensor:
        return interpolate(t, self.cdf, self.edges).float()

    def time(self, gamma: Tensor) -> Tensor:
        return interpolate(gamma, self.edges, self.cdf).clamp(0, 1)

    @torch.no_grad()
    def observe(self, t: Tensor, nll: Tensor) -> None:
        gamma = self.gamma(t).double()
        index = torch.bucketize(gamma, self.edges[1:-1])
        total, weight = remember(self.history, index, nll, self.memory)
        seen = weight > 0.5
        if seen.sum() >= 8:
            centres = (self.edges[1:] + self.edges[:-1]) / 2
            self.follow(self.fit(centres[seen], total[seen] / weight[seen], weight[seen]))

    def follow(self, curve: Tensor) -> None:
        """Take C at the edges `(bins + 1,)` as the distribution function of gamma."""
        mass = curve.diff().clamp(min=0)
        mass = mass / mass.sum().clamp(min=1e-9)
        mass = (1 - self.floor) * mass + self.floor / len(mass)
        self.cdf[1:] = mass.cumsum(0) / mass.sum()


def remember(history: Tensor, index: Tensor, values: Tensor, memory: int) -> Tensor:
    """`history (2, bins)`, sums and counts of what about `memory` batches had, with one more, in place.

    `values (B,)` fall into the bins `index (B,)`; those of all processes are added.
    """
    batch = torch.zeros_like(history)
    batch[0].index_add_(0, index, values.double())
    batch[1].index_add_(0, index, torch.ones_like(values, dtype=torch.float64))
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(batch)
    return history.mul_(1 - 1 / memory).add_(batch)


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The straight lines through `xs (n,)`, which rise, and `ys (n,)`, at every entry of `x`; float64."""
    x, rise = x.double().contiguous(), ys.diff() / xs.diff()
    line = torch.searchsorted(xs[1:-1], x, right=True)  # of those at the ends also what is beyond
    return torch.addcmul(ys[line], x - xs[line], rise[line])


class Gumbel(Adaptive):
    """C(gamma) = H exp(-exp(-(gamma - mu) / beta)): LangFlow's curve, three numbers.

    They are the least-squares fit to the measured losses, found anew every time: H is linear, mu and
    beta come from a grid that closes in on its best point, so no start can lead astray.
    """

    def __init__(
        self,
        gamma_min: float = -5.0,
        gamma_max: float = 5.0,
        *,
        location: float = 0.0,
        spread: float = 1.0,
        floor: float = 0.1,
        bins: int = 64,
        memory: int = 500,
    ) -> None:
        super().__init__(gamma_min, gamma_max, floor=floor, bins=bins, memory=memory)
        start = torch.tensor([location, spread, 1.0], dtype=torch.float64)
        self.register_buffer("parameters_", start)
        self.follow(gumbel(self.edges, start[0], start[1]))

    def fit(self, x: Tensor, nll: Tensor, weight: Tensor) -> Tensor:
        weight = weight.clamp(max=30.0)  # well-known bins count alike
        like = {"dtype": x.dtype, "device": x.device}
        mu = torch.linspace(self.gamma_min, self.gamma_max, 25, **like)
        log_beta = torch.linspace(math.log(0.1), math.log(10.0), 13, **like)
        for _ in range(8):
            grid = torch.cartesian_prod(mu, log_beta)
            curve = gumbel(x, grid[:, :1], grid[:, 1:].exp())
            height = (weight * nll * curve).sum(1) / (weight * curve**2).sum(1).clamp(min=1e-9)
            best = (weight * (nll - height[:, None] * curve) ** 2).sum(1).argmin()
            mu = grid[best, 0] + (mu[1] - mu[0]) * torch.linspace(-1, 1, 5, **like)
            log_beta = grid[best, 1] + (log_beta[1] - log_beta[0]) * torch.linspace(-1, 1, 5, **like)
        self.parameters_.copy_(torch.stack([grid[best, 0], grid[best, 1].exp(), height[best]]))
        return gumbel(self.edges, *self.parameters_[:2])


def gumbel(x: Tensor, mu: Tensor, beta: Tensor) -> Tensor:
    """Gumbel distribution function."""
    return torch.exp(-torch.exp(-(x - mu) / beta))


class Warped(Adaptive):
    """Any increasing C: isotonic regression of the measured losses."""

    def fit(self, x: Tensor, nll: Tensor, weight: Tensor) -> Tensor:
        known = isotonic(nll, weight)
        place = torch.searchsorted(x, self.edges).clamp(1, len(x) - 1)
        share = (self.edges - x[place - 1]) / (x[place] - x[place - 1])
        return known[place - 1] + share.clamp(0, 1) * (known[place] - known[place - 1])


def isotonic(values: Tensor, weight: Tensor) -> Tensor:
    """Nearest increasing sequence `(n,)` in weighted least squares, by the max-min formula.

    max over a <= i of min over b >= i of the mean of values[a .. b] (Robertson, Wright and Dykstra
    1988, "Order restricted statistical inference", theorem 1.4.4).
    """
    total, mass = ((F.pad(v.cumsum(0), (1, 0))) for v in (values * weight, weight))
    upper = torch.ones(len(values), len(values), dtype=torch.bool, device=values.device).triu()
    means = (total[1:] - total[:-1, None]) / (mass[1:] - mass[:-1, None])
    least = means.masked_fill(~upper, torch.inf).flip(1).cummin(1).values.flip(1)
    return least.masked_fill(~upper, -torch.inf).max(0).values


SCHEDULES: dict[str, type[Schedule]] = {
    "linear": Linear,
    "cosine": Cosine,
    "sqrt": Sqrt,
    "subvp": SubVP,
    "ve": VE,
    "gumbel": Gumbel,
    "warped": Warped,
}
