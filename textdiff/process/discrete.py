"""Diffusion on tokens themselves: a token is kept, or becomes noise (D3PM, Austin et al. 2021,
arXiv:2107.03006).

    q(x_t | w) = k_t [x_t = w] + (1 - k_t) pi(x_t),      k_0 = 1, k_1 = 0                         (1)
    q(x_s | x_t, w)  proportional to  (a [x_t = x_s] + (1 - a) pi(x_t)) q(x_s | w),   a = k_t / k_s  (2)

pi is where everything ends: the mask (`Masked`: absorbing diffusion, MDLM, Sahoo et al. 2024,
arXiv:2406.07524), a random word (`Uniform`: multinomial diffusion, Hoogeboom et al. 2021,
arXiv:2102.05379), or now and then a random word among masks (`MaskAndReplace`: VQ-Diffusion, Gu et al.
2022, arXiv:2111.14822, with one schedule for both). k_t is sigmoid(-gamma) of the schedule, stretched to
reach both ends.

A share tau of all tokens can be drawn from q(x_s | w) instead of (2), as if x_t had not been: they may
change again, and all frequencies stay what they are. For masks that is remasking (ReMDM, Wang et al.
2025, arXiv:2503.00307, with sigma_t = tau (1 - k_s)).

A state is `(B, L)` int64, the mask is number V. Product (2) has four terms, and a draw from it costs
nothing of size V: the token stays, becomes the clean one, or is drawn from pi.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.noise import Noise, category
from textdiff.process.process import column
from textdiff.process.tokens import TINY, Tokens, still_kept
from textdiff.schedule import Schedule


class Discrete(Tokens):
    """Kept or noise, equation (1).

    Args:
        embedding: token table `(V, D)`, for what the network reads.
        schedule: its sigmoid(-gamma) is the probability to be kept.
        replace: share of noise that is a random word, 0 to 1; the rest is the mask.
    """

    def __init__(self, embedding: nn.Embedding, schedule: Schedule, *, replace: float) -> None:
        super().__init__(embedding, schedule)
        if not 0 <= replace <= 1:
            raise ValueError(f"discrete process: replace must be from 0 to 1, not {replace}")
        self.replace = replace
        pi, name = self.pi(torch.arange(self.mask_id + 1)), type(self).__name__
        for wrong in (~(pi >= 0)).nonzero()[:1, 0].tolist():
            raise ValueError(f"{name}: pi of token {wrong} is {pi[wrong]:g}, but must not be negative")
        if abs(pi.sum() - 1) > 1e-3:
            raise ValueError(f"{name}: pi of all tokens and the mask sums to {pi.sum():g}, not 1")

    def pi(self, x_t: Tensor) -> Tensor:
        """pi(x_t), of the shape of `x_t`."""
        word = self.replace / self.mask_id
        return torch.where(x_t == self.mask_id, 1 - self.replace, word)

    def draw(self, shape: tuple[int, int], noise: Noise) -> Tensor:
        """Tokens from pi."""
        u = noise.uniform(shape)
        word = (u / max(self.replace, TINY) * self.mask_id).long().clamp(max=self.mask_id - 1)
        return torch.where(u < self.replace, word, self.mask_id)

    def round(self, x_0: Tensor) -> Tensor:
        return torch.where(x_0 == self.mask_id, self.log_prior.argmax(), x_0)

    def prior(self, shape: tuple[int, int], noise: Noise) -> Tensor:
        return self.draw(shape, noise)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        stays = noise.uniform(x_0.shape) < self.kept(column(t, x_0), x_0)
        return torch.where(stays, x_0, self.draw(x_0.shape, noise))

    def renoise(self, x_s: Tensor, s: Tensor, t: Tensor, noise: Noise) -> Tensor:
        k_s, k_t = self.kept(column(s, x_s), x_s), self.kept(column(t, x_s), x_s)
        stays = noise.uniform(x_s.shape) * k_s < k_t
        return torch.where(stays, x_s, self.draw(x_s.shape, noise))

    def advance(
        self, x_t: Tensor, probs: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """A draw from (2), for a clean token drawn from `probs`."""
        clean = category(probs, noise)
        k_t, k_s = self.kept(column(t, x_t), clean), self.kept(column(s, x_t), clean)
        pi = self.pi(x_t)
        a = still_kept(k_t, k_s)
        stay = a * k_s * (x_t == clean) + a * (1 - k_s) * pi
        become = (1 - a) * k_s * pi
        total = stay + become + (1 - a) * (1 - k_s) * pi
        u = noise.uniform(x_t.shape) * total
        new = torch.where(u < stay + become, clean, self.draw(x_t.shape, noise))
        # a total of zero: the prediction denies what stands there, which cannot change any more
        return torch.where((u < stay) | (total == 0), x_t, new), clean

    def time_of(self, noise: float) -> float:
        if not self.replace:
            return super().time_of(noise)
        # of the words that are seen, masks left out
        return super().time_of(noise / (noise + (1 - noise) * self.replace))

    def taken(self, ids: Tensor, t: Tensor, noise: Noise) -> Tensor:
        # random words are mistakes already
        return ids.clone() if self.replace else super().taken(ids, t, noise)

    def divergence(self, x_t: Tensor, probs: Tensor, ids: Tensor, t: Tensor, s: Tensor) -> Tensor:
        true = F.one_hot(ids, self.mask_id).to(probs)
        true, model = self.posterior(x_t, true, t, s), self.posterior(x_t, probs, t, s)
        return (torch.special.xlogy(true, true) - torch.special.xlogy(true, model.clamp(min=TINY))).sum(
            -1
        )

    def posterior(self, x_t: Tensor, probs: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Equation (2) for a clean token drawn from `probs (B, L, V)`: p(x_s | x_t), `(B, L, V + 1)`."""
        t, s = t.broadcast_to(x_t.shape)[..., None], s.broadcast_to(x_t.shape)[..., None]
        states = torch.arange(self.mask_id + 1, device=x_t.device)
        k_t, k_s = self.kept(t, states[:-1]), self.kept(s, states[:-1])
        a, pi = still_kept(k_t, k_s), self.pi(states).to(probs)
        here, pi_here = (x_t[..., None] == states).to(probs), self.pi(x_t)[..., None]
        share = probs / (k_t * here[..., :-1] + (1 - k_t) * pi_here).clamp(min=TINY)

        def clean(part: Tensor) -> Tensor:
            lost = (part * (1 - k_s) * share).sum(-1, keepdim=True)
            return F.pad(part * k_s * share, (0, 1)) + pi * lost

        return here * clean(a) + pi_here * clean(1 - a)

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        kept, pi = self.kept(column(t, x_t)), self.pi(x_t)
        other = ((1 - kept) * pi).clamp(min=TINY)
        gain = ((kept + other) / other).log()[..., None].expand(*x_t.shape, 1)
        zeros = torch.zeros(*x_t.shape, self.mask_id + 1, dtype=gain.dtype, device=gain.device)
        return zeros.scatter(-1, x_t[..., None], gain)[..., :-1]


class Masked(Discrete):
    """Noise is the mask; a token that has left it stays."""

    def __init__(self, embedding: nn.Embedding, schedule: Schedule) -> None:
        super().__init__(embedding, schedule, replace=0.0)


class Spindle(Masked):
    """Masked, the tokens that say most first: the common ones are the frame in which they are written.

    k_t(w) = k_t - strength sin(pi k_t) (1 - H / H(w)) (DiffusionBERT, He et al. 2023, arXiv:2211.15029,
    equations 10 to 12), where H(w) = -log p(w) of the unigrams and H their mean, of the language and not
    of the text; the last factor is cut where k_t(w) would not fall with t. A share of noise, as `textdiff
    denoise` asks for one, is that of k_t.

    Args:
        strength: lambda; 0 = masked.
    """

    def __init__(self, embedding: nn.Embedding, schedule: Schedule, *, strength: float = 0.3) -> None:
        super().__init__(embedding, schedule)
        if strength < 0:
            raise ValueError(f"spindle process: strength must not be negative, but is {strength}")
        self.strength = strength

    def kept(self, t: Tensor, words: Tensor | None = None) -> Tensor:
        kept = super().kept(t)
        if words is None or not self.strength:
            return kept
        information = -torch.log_softmax(self.log_prior, -1)
        mean = (information * (-information).exp()).sum()
        most = 1 / (math.pi * self.strength)
        news = F.pad((1 - mean / information.clamp(min=TINY)).clamp(-most, most), (0, 1))
        # in float64: where the factor is cut the curve is flat, and rounding must not make it rise
        kept = kept.double()
        own = kept - self.strength * torch.sin(math.pi * kept) * news.double()[words]
        return own.clamp(0, 1).float()

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        # a mask itself tells something: of a token that says much it comes early
        words = torch.arange(self.mask_id, device=x_t.device)
        hidden = (1 - self.kept(column(t, x_t)[..., None], words)).clamp(min=TINY).log()
        return super().log_likelihood(x_t, t) + hidden * (x_t == self.mask_id)[..., None]


class Uniform(Discrete):
    """Noise is any word: tokens can change until the end."""

    def __init__(self, embedding: nn.Embedding, schedule: Schedule) -> None:
        super().__init__(embedding, schedule, replace=1.0)


class MaskAndReplace(Discrete):
    """Noise is the mask, or sometimes a random word, so that given words are not blindly trusted."""

    def __init__(self, embedding: nn.Embedding, schedule: Schedule, *, replace: float = 0.1) -> None:
        super().__init__(embedding, schedule, replace=replace)
