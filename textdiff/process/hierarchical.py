"""Coarse to fine: a word becomes its class, then a mask; the way back is super-resolution of text.

    word  --- t = 0 ... t_half --->  class of the word  --- t_half ... 1 --->  mask               (1)

Pictures are sampled small and then enlarged; what text has instead of pixels of half the size is a
partition of the vocabulary c(w), here by the words that stand around a word (distributional classes,
Brown et al. 1992, Computational Linguistics 18(4)). Since c is a function of w the cascade is exact:

    log p(w) = log p(c) + log p(w | c),                                                           (2)

and the terms of the variational bound above t_half pay for the first, those below for the second; a step
across it pays for both, and is parted. The kernel is that of HDLM (arXiv:2510.08632) with the stages one
after the other. With u(t) the noise of the schedule, k_t = 1 - 2 u and m_t = 2 - 2 u, cut to 0 ... 1, are
the probabilities that the word, and that at least its class, is left; one of them is always 0 or 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from textdiff.noise import Noise, category
from textdiff.process.process import column
from textdiff.process.tokens import TINY, Tokens, still_kept
from textdiff.schedule import Schedule


class Hierarchical(Tokens):
    """Words 0 ... V - 1, classes from V on, and the mask.

    Args:
        embedding: token table `(V, D)`, for what the network reads.
        schedule: its sigmoid(-gamma) is 1 - u of (1).
        classes: how many; None = as many as a class has words, the square root of V.
    """

    def __init__(
        self, embedding: nn.Embedding, schedule: Schedule, *, classes: int | None = None
    ) -> None:
        vocabulary = embedding.num_embeddings
        classes = classes if classes is not None else round(vocabulary**0.5)
        if not 1 <= classes <= vocabulary:
            raise ValueError(
                f"hierarchical process: classes must be from 1 to the {vocabulary} tokens, not {classes}"
            )
        super().__init__(embedding, schedule, classes)
        self.register_buffer("class_of", torch.arange(vocabulary) % classes)

    def fit(self, classes: Callable[[int], Tensor]) -> None:
        self.class_of.copy_(classes(self.mask_id - len(self.class_of)))

    def coarsen(self, ids: Tensor) -> Tensor:
        """The class of every word, as a state."""
        return self.class_of[ids] + len(self.class_of)

    def left(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """k_t and m_t, of the shape of `t`."""
        kept = self.kept(t)
        return (2 * kept - 1).clamp(min=0), (2 * kept).clamp(max=1)

    def round(self, x_0: Tensor) -> Tensor:
        likeliest = self.log_likelihood(x_0, torch.zeros_like(x_0)) + self.log_prior
        return likeliest.argmax(-1)

    def prior(self, shape: tuple[int, int], noise: Noise) -> Tensor:
        return torch.full(shape, self.mask_id, device=self.class_of.device)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        words, classes = self.left(column(t, x_0))
        u = noise.uniform(x_0.shape)
        coarse = torch.where(u < classes, self.coarsen(x_0), self.mask_id)
        return torch.where(u < words, x_0, coarse)

    def renoise(self, x_s: Tensor, s: Tensor, t: Tensor, noise: Noise) -> Tensor:
        (words_s, classes_s), (words_t, classes_t) = self.left(column(s, x_s)), self.left(column(t, x_s))
        word = x_s < len(self.class_of)
        coarse = torch.where(word, self.coarsen(x_s.clamp(max=len(self.class_of) - 1)), x_s)
        x_t = torch.where(noise.uniform(x_s.shape) < still_kept(words_t, words_s), x_s, coarse)
        stays = noise.uniform(x_s.shape) < still_kept(classes_t, classes_s)
        return torch.where(stays, x_t, self.mask_id)

    def advance(
        self, x_t: Tensor, probs: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Of a clean word drawn from `probs` within the class that stands there: a class or the word.

        What has come so far stays, words and classes, with any `tau`: they can be drawn again, not anew.
        """
        refined, unmasked = self.shares(t, s, x_t)
        clean = category(self.within(x_t, probs), noise)
        shown = (x_t != self.mask_id) | (noise.uniform(x_t.shape) < unmasked)
        fine = noise.uniform(x_t.shape) < refined
        x_s = torch.where(shown, torch.where(fine, clean, self.coarsen(clean)), self.mask_id)
        return torch.where(x_t < len(self.class_of), x_t, x_s), clean

    def shares(self, t: Tensor, s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """From t to s: shares of what is no word that can be one, and of masks that are none any more."""
        (words_t, classes_t), (words_s, classes_s) = self.left(column(t, x_t)), self.left(column(s, x_t))
        refined = (words_s - words_t) / (1 - words_t).clamp(min=TINY)
        return refined, (classes_s - classes_t) / (1 - classes_t).clamp(min=TINY)

    def within(self, x_t: Tensor, probs: Tensor) -> Tensor:
        """`probs (B, L, V)` where `x_t` allows them, not normalised; the prior where that is nowhere."""
        possible = self.possible(x_t)
        inside = probs * possible
        none = inside.sum(-1, keepdim=True) == 0
        return torch.where(none, possible * self.log_prior.softmax(-1), inside)

    def possible(self, x_t: Tensor) -> Tensor:
        """Words that a state can come from, `(B, L, V)` bool."""
        words = torch.arange(len(self.class_of), device=x_t.device)
        x_t = x_t[..., None]
        return (x_t == words) | (x_t == self.coarsen(words)) | (x_t == self.mask_id)

    def divergence(self, x_t: Tensor, probs: Tensor, ids: Tensor, t: Tensor, s: Tensor) -> Tensor:
        classes, words = self.divergences(x_t, probs, ids, t, s).values()
        return classes + words

    def divergences(
        self, x_t: Tensor, probs: Tensor, ids: Tensor, t: Tensor, s: Tensor
    ) -> dict[str, Tensor]:
        # when is known: what is paid for is which class, and which word, as in (2)
        refined, unmasked = self.shares(t, s, x_t)
        probs = self.within(x_t, probs)
        same = self.class_of == self.class_of[ids][..., None]
        whole = probs.sum(-1).clamp(min=TINY)
        word = -(probs.gather(-1, ids[..., None])[..., 0] / whole).clamp(min=TINY).log()
        coarse = -((probs * same).sum(-1) / whole).clamp(min=TINY).log()
        hidden, shown = x_t == self.mask_id, x_t < len(self.class_of)
        pace = torch.where(hidden, unmasked, 1.0)
        return {
            "classes": torch.where(hidden, unmasked * coarse, 0.0),
            "words": torch.where(shown, 0.0, pace * refined * (word - coarse)),
        }

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.where(self.possible(x_t), 0.0, math.log(TINY))

    def time_of(self, noise: float) -> float:
        # of the words, whose classes stay
        return super().time_of(noise / 2)
