"""What processes on tokens share: states are numbers, and a schedule of what is kept."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from textdiff.noise import Noise
from textdiff.process.process import Process
from textdiff.schedule import Schedule

TINY = 1e-30  # probability of what cannot be: finite, and far below everything


class Tokens(Process):
    """States `(B, L)` int64: words are themselves, the mask is the highest number, `mask_id`.

    Args:
        embedding: token table `(V, D)`, for what the network reads.
        schedule: its sigmoid(-gamma), stretched to reach both ends, is the probability to be kept.
        others: states between the words and the mask.
    """

    def __init__(self, embedding: nn.Embedding, schedule: Schedule, others: int = 0) -> None:
        super().__init__(embedding, schedule)
        self.mask_id = embedding.num_embeddings + others

    def kept(self, t: Tensor, words: Tensor | None = None) -> Tensor:
        """k_t, of the shape of `t`: from 1 at t = 0 to 0 at t = 1, the same for all `words`."""
        first, last = self.ends()
        return ((torch.sigmoid(-self.schedule.gamma(t)) - last) / (first - last)).clamp(0, 1)

    def ends(self) -> Tensor:
        """sigmoid(-gamma) at t = 0 and at t = 1."""
        return torch.sigmoid(-self.schedule.gamma(torch.tensor([0.0, 1.0], device=self.log_prior.device)))

    def time_of(self, noise: float) -> float:
        first, last = self.ends()
        return float(self.schedule.time(-torch.logit(last + (1 - noise) * (first - last))))

    def encode(self, ids: Tensor) -> Tensor:
        return ids.clone()

    def step(
        self,
        x_t: Tensor,
        probs: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,
        *,
        tau: float | None = None,
    ) -> Tensor:
        """One of `advance`, or for a share tau of the tokens a draw from q(x_s | clean token)."""
        x_s, clean = self.advance(x_t, probs, t, s, noise)
        if tau is None:
            return x_s
        return torch.where(noise.uniform(x_t.shape) < tau, self.corrupt(clean, s, noise), x_s)

    @abstractmethod
    def advance(
        self, x_t: Tensor, probs: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """x_s of the process's own posterior, and the clean tokens drawn for it, both `(B, L)`."""

    def prior_divergence(self, ids: Tensor) -> Tensor:
        return torch.zeros(ids.shape, device=ids.device)


def still_kept(k_t: Tensor, k_s: Tensor) -> Tensor:
    """Share of what is kept at s that still is at t."""
    return torch.where(k_s > 0, k_t / k_s.clamp(min=TINY), 1.0).clamp(max=1)
