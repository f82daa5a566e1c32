"""Decoders turn logits into the probabilities that a process steps with.

Every decoder serves every process at every step: `softmax` keeps the posterior mean, `sample` draws one
token (with the ancestral step an exact sampler), `greedy` is Diffusion-LM's clamping, `top_k` and `top_p`
(Holtzman et al. 2020, arXiv:1904.09751) cut the tail. All take a temperature. Input `logits (B, L, V)`,
output `probs (B, L, V)`, rows sum to 1. Every token is decoded by itself: samplers hand over those that
are not given as one text, `(1, N, V)`, and `noise` that draws for these.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from textdiff.noise import Noise, category, nucleus


class Decoder(ABC):
    """logits -> probs.

    Args:
        temperature: divides the logits; below 1 sharpens.
    """

    single = False  # all mass on one token
    plain = False  # the network's own probabilities, as they are

    def __init__(self, temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"decoder: temperature must be finite and above 0, not {temperature}")
        self.temperature = temperature

    def __call__(self, logits: Tensor, noise: Noise) -> Tensor:
        """Probabilities `(B, L, V)` of `logits (B, L, V)`; `noise` serves random decoders."""
        return self.decode(torch.softmax(logits.float() / self.temperature, dim=-1), noise)

    @abstractmethod
    def decode(self, probs: Tensor, noise: Noise) -> Tensor:
        """Change the tempered probabilities `(B, L, V)`."""


class Softmax(Decoder):
    """The posterior mean."""

    @property
    def plain(self) -> bool:
        return self.temperature == 1 and type(self).decode is Softmax.decode

    def decode(self, probs: Tensor, noise: Noise) -> Tensor:
        return probs


class Greedy(Decoder):
    """All mass on the likeliest token (clamping)."""

    single = True

    def decode(self, probs: Tensor, noise: Noise) -> Tensor:
        return one_hot(probs.argmax(-1), probs)


class Sample(Decoder):
    """All mass on one drawn token.

    Args:
        temperature: divides the logits.
        p: draw from the likeliest tokens that hold at least p alone (SSD-LM's sampling projection).
    """

    single = True

    def __init__(self, temperature: float = 1.0, p: float = 1.0) -> None:
        super().__init__(temperature)
        if not 0 < p <= 1:
            raise ValueError(f"decoder sample: p must be in (0, 1], not {p}")
        self.p = p

    def decode(self, probs: Tensor, noise: Noise) -> Tensor:
        if self.p < 1:
            probs = nucleus(probs, self.p)
        return one_hot(category(probs, noise), probs)


class TopK(Decoder):
    """Mass on the k likeliest tokens, renormalised."""

    def __init__(self, k: int = 10, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if k < 1:
            raise ValueError(f"decoder top_k: k must be at least 1, not {k}")
        self.k = k

    def decode(self, probs: Tensor, noise: Noise) -> Tensor:
        top, index = probs.topk(min(self.k, probs.shape[-1]), dim=-1)
        return torch.zeros_like(probs).scatter(-1, index, top / top.sum(-1, keepdim=True))


class TopP(Decoder):
    """Mass on the smallest set of likeliest tokens that holds at least p, renormalised."""

    def __init__(self, p: float = 0.9, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if not 0 < p <= 1:
            raise ValueError(f"decoder top_p: p must be in (0, 1], not {p}")
        self.p = p

    def decode(self, probs: Tensor, noise: Noise) -> Tensor:
        return nucleus(probs, self.p)


def one_hot(ids: Tensor, like: Tensor) -> Tensor:
    """`(..., V)` with all mass on `ids (...)`, dtype and width of `like`."""
    return torch.zeros(*ids.shape, like.shape[-1], dtype=like.dtype, device=like.device).scatter_(
        -1, ids[..., None], 1.0
    )


DECODERS: dict[str, type[Decoder]] = {
    "softmax": Softmax,
    "greedy": Greedy,
    "sample": Sample,
    "top_k": TopK,
    "top_p": TopP,
}
