"""The contract of a diffusion process: where noisy text lives, how noise comes and how it goes.

Legend for the whole package: B batch, L target length, S source length, V vocabulary, D embedding
width. Times `t, s` are float32 in [0, 1], 0 = data, 1 = noise, s < t, broadcastable to `(B, L)`: time
is per token. `ids (B, L)` int64; `mask (B, L)` bool, True = to be generated; `valid (B, L)` bool,
False = padding; `logits, probs (B, L, V)`. A state `x_t` is opaque to everything but its process.

The network predicts one thing, token logits; a process turns them into the next state. It must keep
the laws of `tests/test_laws.py`, which run over every entry of `PROCESSES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.fixed import once
from textdiff.noise import Noise
from textdiff.packing import pick
from textdiff.schedule import Schedule


def scaled(rows: Tensor) -> Tensor:
    """Embeddings `(..., D)` of one norm, that of unit variance a coordinate."""
    return F.normalize(rows, dim=-1) * rows.shape[-1] ** 0.5


def column(t: Tensor, like: Tensor) -> Tensor:
    """`t` of shape (), (B,) or (B, L), ready to broadcast against `(B, L, D)`."""
    return t.reshape(t.shape + (1,) * (like.dim() - t.dim()))


def keep(mask: Tensor, new: Tensor, given: Tensor) -> Tensor:
    """`new` where `mask (B, L)`, `given` elsewhere; states `(B, L, ...)` of any process."""
    return torch.where(column(mask, new), new, given)


@dataclass
class Seen:
    """What a denoiser reads of noisy tokens; every token's follows from its own state and time.

    Attributes:
        log_posterior: the evidence, `(B, L, V)`, or `(1, N, V)` of the tokens that are asked for.
        features: `(B, L, F)` of all.
    """

    log_posterior: Tensor
    features: Tensor


class Process(nn.Module, ABC):
    """What noisy text is.

    `gaussian` says whether it has the `mean` and `score` of `process/gaussian.py`, `projects` whether its
    steps do something of their own with the probabilities of several tokens.

    Args:
        embedding: token table `(V, D)`, shared with the network.
        schedule: t -> alpha_t, sigma_t.

    Raises:
        ValueError: a schedule that does not rise.
    """

    gaussian = projects = False

    def __init__(self, embedding: nn.Embedding, schedule: Schedule) -> None:
        super().__init__()
        schedule.check()
        self.embedding, self.schedule = embedding, schedule
        self.register_buffer("log_prior", torch.zeros(embedding.num_embeddings))
        self.normalised = True  # False: a pretrained network reads embeddings at the scale they have

    def fit(self, classes: Callable[[int], Tensor]) -> None:
        """Learn from the data what noise is made of; `classes` parts the tokens in so many, `(V,)`."""

    @property
    def feature_width(self) -> int:
        """Width F of `features`."""
        return self.embedding.embedding_dim

    def table(self, ids: Tensor | None = None) -> Tensor:
        """`(V, D)`: the token embeddings that the network reads, unit variance a coordinate by itself.

        With `ids (...)` only theirs, `(..., D)`: a large table is not scaled for a few tokens.
        """
        if ids is None:
            return self.whole_table()
        return scaled(self.embedding(ids)) if self.normalised else self.embedding(ids)

    @once
    def whole_table(self) -> Tensor:
        return scaled(self.embedding.weight) if self.normalised else self.embedding.weight

    @abstractmethod
    def encode(self, ids: Tensor) -> Tensor:
        """Clean state x_0 of `ids`."""

    @abstractmethod
    def round(self, x_0: Tensor) -> Tensor:
        """`ids` of the nearest clean state."""

    @abstractmethod
    def prior(self, shape: tuple[int, int], noise: Noise) -> Tensor:
        """x_1 ~ p(x_1) for `shape` (B, L)."""

    @abstractmethod
    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """x_t ~ q(x_t | x_0)."""

    @abstractmethod
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
        """x_s ~ q(x_s | x_t, x_0 ~ probs); `tau` is the share of fresh noise, None the posterior's."""

    @abstractmethod
    def renoise(self, x_s: Tensor, s: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """x_t ~ q(x_t | x_s) for t >= s: on with the noising."""

    def time_of(self, noise: float) -> float:
        """Time at which so large a share of a text, or of the variance of its state, is noise."""
        return float(self.schedule.time(torch.tensor([noise], device=self.log_prior.device).logit()))

    def taken(self, ids: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """State at `t` of a text with mistakes, which more noise hides from a process on other states."""
        return self.corrupt(self.encode(ids), t, noise)

    @abstractmethod
    def divergence(self, x_t: Tensor, probs: Tensor, ids: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """KL of q(x_s | x_t, ids) from the model's step p(x_s | x_t), nats `(B, L)`."""

    def divergences(
        self, x_t: Tensor, probs: Tensor, ids: Tensor, t: Tensor, s: Tensor
    ) -> dict[str, Tensor]:
        """`divergence` in named parts, by what the nats are paid for; as a rule there is one."""
        return {"diffusion": self.divergence(x_t, probs, ids, t, s)}

    @abstractmethod
    def prior_divergence(self, ids: Tensor) -> Tensor:
        """KL of q(x_1 | ids) from the prior, nats `(B, L)`."""

    @abstractmethod
    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log q(x_t | token) for every token, `(B, L, V)`, up to a constant a position."""

    def log_posterior(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(token | x_t) of tokens that are independent, `(B, L, V)`, up to a constant."""
        return self.log_likelihood(x_t, t) + self.log_prior

    def see(self, x_t: Tensor, t: Tensor, only: Tensor | None = None) -> Seen:
        """What a denoiser reads of `x_t` at `t (B, L)`, with the evidence of the tokens `only (N,)`."""
        log_posterior = self.log_posterior(x_t, t)
        return Seen(pick(log_posterior, only), self.features(x_t, t, log_posterior))

    def see_open(self, x_t: Tensor, t: Tensor, ids: Tensor, only: Tensor) -> Seen:
        """The same where all other tokens are given, equal ones computed once.

        What is seen of a token takes its probability under every word: much of the time of a prediction.

        Args:
            ids: `(B, L)` the given tokens, any of one kind elsewhere.
        """
        (words, which), count = ids.unique(return_inverse=True), len(only)
        x_t = torch.cat([pick(x_t, only), self.encode(words[None])], 1)
        seen = self.see(x_t, F.pad(pick(t, only), (0, len(words))))
        place = (count + which).flatten().index_copy(0, only, torch.arange(count, device=only.device))
        # in float32, as gradients of a frequent word are sums of many
        features = F.embedding(place.view_as(ids), seen.features[0].float()).to(seen.features.dtype)
        return Seen(seen.log_posterior[:, :count], features)

    def given_features(self, ids: Tensor) -> Tensor:
        """Features `(B, L, F)` of the given tokens `ids (B, L)`."""
        nothing = ids[:0]
        t = torch.zeros(nothing.shape, device=ids.device)
        return self.see_open(self.encode(nothing), t, ids, nothing.flatten()).features

    def reread(self, probs: Tensor) -> Tensor:
        """Mean embedding `(B, L, D)` under `probs (B, L, V)`, as the network reads it."""
        return probs @ self.table()

    def features(self, x_t: Tensor, t: Tensor, log_posterior: Tensor) -> Tensor:
        """What the network reads, `(B, L, F)`: the posterior mean under the unigram prior.

        A soft mask: near the token's embedding where it is recognisable, near the mean of the
        language where it is not. `log_posterior` is the method's result, computed once a step.
        """
        return self.reread(torch.softmax(log_posterior, dim=-1))
