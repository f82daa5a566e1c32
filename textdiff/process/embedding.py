"""Diffusion on token embeddings (Diffusion-LM, Li et al. 2022, arXiv:2205.14217; CDCD, Dieleman et al.
2022, arXiv:2211.15089), the rows normalised to one norm so that no token can flee from the noise.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.fixed import once
from textdiff.process.gaussian import Gaussian, column
from textdiff.schedule import Schedule


class Embedding(Gaussian):
    """State `(B, L, D)`; clean points on a sphere.

    Args:
        embedding: token table `(V, D)`, learned with the network.
        schedule: t -> alpha_t, sigma_t.
        scale: radius of the sphere. Doubling it shifts gamma by 2 log 2: tune one of the two. At
            radius 1 the useful range of gamma does not depend on D.
    """

    def __init__(self, embedding: nn.Embedding, schedule: Schedule, *, scale: float = 1.0) -> None:
        super().__init__(embedding, schedule)
        if scale <= 0:
            raise ValueError(f"embedding process: scale must be positive, not {scale}")
        self.scale = scale

    @once
    def codebook(self) -> Tensor:
        return self.place(self.embedding.weight)

    def encode(self, ids: Tensor) -> Tensor:
        return self.place(self.embedding(ids))

    def place(self, rows: Tensor) -> Tensor:
        """Embeddings `(..., D)` on the sphere."""
        return F.normalize(rows, dim=-1) * self.scale

    @property
    def power(self) -> float:
        return self.scale**2 / self.state_width

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        # all points have one norm, whose term is a constant: one matrix product is enough
        alpha, sigma = self.schedule(column(t, x_t))
        return F.linear(alpha / sigma**2 * x_t, self.codebook())
