"""Diffusion on token embeddings (Diffusion-LM, Li et al. 2022, arXiv:2205.14217; CDCD, Dieleman et al.
2022, arXiv:2211.15089), the rows normalised to one norm so that no token can flee from the noise.
"""

import torch.nn.functional as F
from torch import Tensor

from textdiff.fixed import once
from textdiff.process.gaussian import Scaled
from textdiff.process.process import column


class Embedding(Scaled):
    """State `(B, L, D)`; clean points on a sphere.

    Args:
        embedding: token table `(V, D)`, learned with the network.
        schedule: t -> alpha_t, sigma_t.
        scale: radius of the sphere. Doubling it shifts gamma by 2 log 2: tune one of the two. At
            radius 1 the useful range of gamma does not depend on D.
    """

    @once
    def codebook(self) -> Tensor:
        return self.place(self.embedding.weight)

    def encode(self, ids: Tensor) -> Tensor:
        return self.place(self.embedding(ids))

    def place(self, rows: Tensor) -> Tensor:
        """Embeddings `(..., D)` on the sphere."""
        return F.normalize(rows, dim=-1) * self.scale

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        # all points have one norm, whose term is a constant: one matrix product is enough
        alpha, sigma = self.schedule(column(t, x_t))
        return F.linear(alpha / sigma**2 * x_t, self.codebook())
