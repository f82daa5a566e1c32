"""Diffusion on the vocabulary: the state has a number for every token.

`Simplex` is SSD-LM's logit simplex (Han et al. 2023, arXiv:2210.17432, section 3.1), also of TESS
(Karimi Mahabadi et al. 2024, arXiv:2305.08379). Its clean point is +K at the token and -K elsewhere, its
noise N(0, K^2 I); divided by K that is the Gaussian process on the corners c[w] = 2 onehot(w) - 1. K is
left in one place only: the network reads softmax(K x_t), the mean embedding of a noisy text.

`LinearSimplex` reads the noisy corner linearly, y = x_t W (FLM, arXiv:2602.16813): a state then has D
numbers with noise N(0, W^T W), and none of size V is drawn, stepped or kept. (The posterior and the
logits, which every process computes at every step, are numbers of all tokens.) In coordinates in which
that noise is white, y = z L^T with W^T W = L L^T (Cholesky), it is the Gaussian process on the codebook
W L^-T; the network reads z beside the posterior mean, where FLM reads y alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.fixed import once
from textdiff.noise import nucleus
from textdiff.process.gaussian import Gaussian, Scaled
from textdiff.process.process import column
from textdiff.schedule import Schedule


class Simplex(Gaussian):
    """State `(B, L, V)`; clean points are the corners of a cube.

    All corners are 2 sqrt(2) apart, twice as far as embeddings of radius 1 at right angles: the useful
    range of gamma lies 2 log 2 higher than theirs, and rises with log V, as V - 1 wrong tokens compete.

    Self-conditioning is the denoiser's: weights, zero at first, on the mean embedding of the last
    prediction. TESS's mean of the probabilities is one setting of them, which imported checkpoints have
    (`scripts/import_checkpoint.py`).

    Args:
        embedding: token table `(V, D)`, for what the network reads.
        schedule: t -> alpha_t, sigma_t.
        half_width: K. At t = 0 softmax(K x_t) has e^(2K) / (e^(2K) + V - 1) on the right token: 0.96 of
            1,000 tokens for K = 5, 0.31 of 50,000 (SSD-LM's own choice). Take at least log(9 V) / 2 (4.6
            and 6.5), which makes it 0.9. That is always above sqrt(2 log V) (3.7 and 4.7), from where on
            pure noise reads as a few random tokens, not as the mean of many (random energy model,
            Derrida 1981); but noise is what the posterior mean is there for, which knows no K.
        multi_hot: steps go towards +1 at every one of the likeliest tokens that hold at least so much
            probability, and -1 elsewhere (SSD-LM's multi-hot projection), not towards the mean; biased.
            Needs a sampler that steps, such as `renoise`, and a decoder that leaves several tokens, such
            as `softmax`: a drawn token is its own projection.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        schedule: Schedule,
        *,
        half_width: float = 5.0,
        multi_hot: float | None = None,
    ) -> None:
        super().__init__(embedding, schedule)
        if not 0 < half_width < math.inf:
            raise ValueError(f"simplex process: half_width must be positive, not {half_width}")
        if multi_hot is not None and not 0 < multi_hot <= 1:
            raise ValueError(f"simplex process: multi_hot must be in (0, 1], not {multi_hot}")
        self.half_width, self.multi_hot, self.projects = half_width, multi_hot, multi_hot is not None
        # what all corners share says nothing of the token, but counts V times
        size = self.state_width
        self.centre, self.spread = 2 / size - 1, 4 / size * (1 - 1 / size)

    @property
    def feature_width(self) -> int:
        return 2 * self.embedding.embedding_dim

    @property
    def state_width(self) -> int:
        return self.embedding.num_embeddings

    power = 1.0  # corners are 1 or -1 in every number

    def codebook(self) -> Tensor:
        """All corners, `(V, V)`: for tests; nothing else here needs them side by side."""
        return 2 * torch.eye(self.state_width).to(self.embedding.weight) - 1

    def encode(self, ids: Tensor) -> Tensor:
        return F.one_hot(ids, self.state_width).to(self.embedding.weight.dtype).mul_(2).sub_(1)

    def round(self, x_0: Tensor) -> Tensor:
        return x_0.argmax(-1)

    def mean(self, probs: Tensor) -> Tensor:
        if self.multi_hot is not None:
            probs = nucleus(probs, self.multi_hot).sign()
        return (2 * probs).sub_(1)

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(column(t, x_t))
        return 2 * alpha / sigma**2 * x_t

    def beside(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean embedding under softmax(K x_t)."""
        alpha, sigma = self.schedule(column(t, x_t))
        unit = self.half_width / (alpha**2 + sigma**2).sqrt()  # K where the variance is constant
        return self.reread(torch.softmax(unit * x_t, -1))


class LinearSimplex(Scaled):
    """State `(B, L, D)`: noisy corners of the simplex as a linear layer W sees them, noise made white.

    Clean points have different norms, the less the more tokens there are that look like them.

    Args:
        embedding: token table `(V, D)`; its normalised rows are W.
        schedule: t -> alpha_t, sigma_t.
        scale: root mean square radius of the clean points. One-hot corners themselves have sqrt(D / V):
            gamma is then lower by log(V / D) than theirs.
    """

    ridge = 1e-5  # of the mean square of W: W^T W has an inverse, where V < D too

    @once
    def codebook(self) -> Tensor:
        table = self.table()
        with torch.autocast(table.device.type, enabled=False):
            covariance = table.T @ table
            ridge = self.ridge * covariance.diagonal().mean()
            covariance = covariance + ridge * torch.eye(len(covariance)).to(table)
            white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), table.T, upper=False)
        return white.T * self.scale * (len(table) / table.shape[1]) ** 0.5
