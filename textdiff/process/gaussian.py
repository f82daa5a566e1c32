"""Gaussian diffusion on a codebook c: (V, D): embedding and simplex diffusion are two codebooks.

    x_t = alpha_t c[w] + sigma_t eps,   eps ~ N(0, I)                                            (1)
    x_0_hat = sum_v p(v) c[v]                                                     the clean mean (2)
    z_t = (x_t - alpha_t x_0_hat) / sigma_t                                      predicted noise (3)
    x_s = alpha_s x_0_hat + sigma_s (sqrt(1 - tau) z_t + sqrt(tau) eps)                          (4)

tau = 0 is DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12), tau = 1 draws fresh noise (SSD-LM, Han et
al. 2023, arXiv:2210.17432), tau = 1 - (alpha_t sigma_s / (alpha_s sigma_t))^2 is the DDPM posterior (Ho
et al. 2020, arXiv:2006.11239, eq. 7). The network's probabilities stand for the clean token, so
scores and noise are algebra: score = (alpha_t x_0_hat - x_t) / sigma_t^2.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.noise import Noise
from textdiff.process.process import Process, column
from textdiff.schedule import Schedule


class Gaussian(Process):
    """The algebra shared by all Gaussian processes; a subclass gives the codebook."""

    gaussian = True
    # mean and variance a number of clean points, as far as pure noise at t = 1 still shows them
    centre, spread = 0.0, 1.0

    @property
    def feature_width(self) -> int:
        return self.embedding.embedding_dim + self.state_width

    @property
    def state_width(self) -> int:
        """Numbers a token in a state."""
        return self.embedding.embedding_dim

    @abstractmethod
    def codebook(self) -> Tensor:
        """Clean point of every token, `(V, D)`."""

    @property
    @abstractmethod
    def power(self) -> float:
        """Mean square of a number of the clean points."""

    def encode(self, ids: Tensor) -> Tensor:
        return self.codebook()[ids]

    def round(self, x_0: Tensor) -> Tensor:
        codebook = self.codebook()
        return (x_0 @ codebook.T - 0.5 * codebook.square().sum(-1)).argmax(-1)

    def mean(self, probs: Tensor) -> Tensor:
        """Clean mean `(B, L, D)` under `probs (B, L, V)`, equation (2)."""
        return probs @ self.codebook()

    def prior(self, shape: tuple[int, int], noise: Noise) -> Tensor:
        alpha, variance = self.end()
        return noise.normal((*shape, self.state_width)).mul_(variance.sqrt()).add_(alpha * self.centre)

    def end(self) -> tuple[Tensor, Tensor]:
        """alpha_1, and the variance of the prior: 1, but for schedules that let it grow."""
        alpha, sigma = self.schedule(torch.ones((), device=self.embedding.weight.device))
        return alpha, alpha**2 * self.spread + sigma**2

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        alpha, sigma = self.schedule(column(t, x_0))
        return alpha * x_0 + sigma * noise.normal(x_0.shape)

    def renoise(self, x_s: Tensor, s: Tensor, t: Tensor, noise: Noise) -> Tensor:
        alpha_s, sigma_s = self.schedule(column(s, x_s))
        alpha_t, sigma_t = self.schedule(column(t, x_s))
        ratio = alpha_t / alpha_s
        spread = (sigma_t**2 - (ratio * sigma_s) ** 2).clamp(min=0).sqrt()
        return ratio * x_s + spread * noise.normal(x_s.shape)

    def score(self, x_t: Tensor, probs: Tensor, t: Tensor) -> Tensor:
        """grad log p(x_t), `(B, L, D)`, exact if `probs` are."""
        return self.express("score", x_t, self.mean(probs), t)

    def express(self, what: str, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """A clean mean as what another network might predict, `(B, L, D)`.

        Args:
            what: "clean", "noise" (equation 3), "score" (minus noise / sigma_t), or "velocity", alpha_t
                noise - sigma_t clean (Salimans and Ho 2022, arXiv:2202.00512, appendix D).
        """
        alpha, sigma = self.schedule(column(t, x_t))
        noise = (x_t - alpha * x_0) / sigma
        known = {
            "clean": lambda: x_0,
            "noise": lambda: noise,
            "score": lambda: -noise / sigma,
            "velocity": lambda: alpha * noise - sigma * x_0,
        }
        return known[what]()

    def clean(self, what: str, x_t: Tensor, value: Tensor, t: Tensor) -> Tensor:
        """The clean mean that a `value` of `express` tells of, for any schedule."""
        alpha, sigma = self.schedule(column(t, x_t))
        known = {
            "clean": lambda: value,
            "noise": lambda: (x_t - sigma * value) / alpha,
            "score": lambda: (x_t + sigma**2 * value) / alpha,
            "velocity": lambda: (alpha * x_t - sigma * value) / (alpha**2 + sigma**2),
        }
        return known[what]()

    def step(
        self,
        x_t: Tensor,
        probs: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,
        *,
        tau: float | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Equation (4).

        Args:
            tau: share of fresh noise, 0 to 1; None is the DDPM posterior.
            shift: `(B, L, D)` added to the clean mean: gradient guidance, which token logits
                cannot express in general.
        """
        alpha_t, sigma_t = self.schedule(column(t, x_t))
        alpha_s, sigma_s = self.schedule(column(s, x_t))
        fresh = 1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
        if tau is not None:
            fresh = torch.full_like(fresh, tau)
        x_0 = self.mean(probs) if shift is None else self.mean(probs) + shift
        # equation (4), sorted by x_0, x_t and eps: a state of the simplex is too large for more terms
        old = sigma_s * (1 - fresh).sqrt() / sigma_t
        x_s = ((alpha_s - old * alpha_t) * x_0).addcmul_(x_t, old)
        return x_s.addcmul_(noise.normal(x_t.shape), sigma_s * fresh.sqrt()) if tau != 0 else x_s

    def divergence(self, x_t: Tensor, probs: Tensor, ids: Tensor, t: Tensor, s: Tensor) -> Tensor:
        # both steps have the posterior's variance (Kingma et al. 2021, eq. 12)
        error = (self.encode(ids) - self.mean(probs)).square().sum(-1)
        return 0.5 * ((-self.schedule.gamma(s)).exp() - (-self.schedule.gamma(t)).exp()) * error

    def prior_divergence(self, ids: Tensor) -> Tensor:
        alpha, variance = self.end()
        square = (self.encode(ids) - self.centre).square().sum(-1)
        share = 1 - alpha**2 * self.spread / variance
        return 0.5 * (alpha**2 * square / variance + self.state_width * (share - 1 - share.log()))

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        codebook = self.codebook()
        alpha, sigma = self.schedule(column(t, x_t))
        product = F.linear(alpha / sigma**2 * x_t, codebook)
        # one more number a token, not a position and token: the product is large enough
        return torch.addcmul(product, (alpha / sigma) ** 2, codebook.square().sum(-1), value=-0.5)

    def features(self, x_t: Tensor, t: Tensor, log_posterior: Tensor) -> Tensor:
        """Posterior mean and what stands beside it, `(B, L, F)`."""
        posterior = super().features(x_t, t, log_posterior)
        return torch.cat([posterior, self.beside(x_t, t).to(posterior)], dim=-1)

    def beside(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The state as the network reads it: scaled to unit variance."""
        alpha, sigma = self.schedule(column(t, x_t))
        return x_t / (alpha**2 * self.power + sigma**2).sqrt()


class Scaled(Gaussian):
    """Clean points of one root mean square radius, `scale`.

    Raises:
        ValueError: a scale that is not positive.
    """

    def __init__(self, embedding: nn.Embedding, schedule: Schedule, *, scale: float = 1.0) -> None:
        super().__init__(embedding, schedule)
        if not scale > 0:
            raise ValueError(f"{type(self).__name__}: scale must be positive, not {scale}")
        self.scale = scale

    @property
    def power(self) -> float:
        return self.scale**2 / self.state_width
