"""Explicit random streams: one per example, so that no text depends on its batch.

Every draw is keyed by (seed, example index, block, step) through the counter-based Philox generator
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and made at the example's own
length. The same seed therefore gives the same text whatever the batch size, the neighbours or the
padding, and training resumes and distributes exactly.

Legend: B batch, L padded length.
"""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0.6180339887498949  # its multiples modulo 1 are the most even sequence on a circle


class Noise:
    """Random draws for a batch of examples.

    Args:
        seed: names the whole experiment, 0 <= seed < 2**63.
        indices: global index of every example, B integers.
        valid: `(B, L)` bool, False = padding on the right; None draws full length everywhere.
        step: number of the draw's step; `at` moves to another one.
        block: number of the block, where a text is written in several.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        valid: Tensor | None = None,
        step: int = 0,
        block: int = 0,
    ) -> None:
        self.seed, self.indices, self.valid, self.step = seed, list(indices), valid, step
        self.block = block
        self.device = None if valid is None else valid.device
        self.lengths = None if valid is None else valid.sum(1).tolist()
        self.generators = [
            np.random.Generator(np.random.Philox(key=[seed, i], counter=[0, 0, block, step]))
            for i in self.indices
        ]

    def at(self, step: int) -> Self:
        """The same streams at another step."""
        return type(self)(self.seed, self.indices, self.valid, step, self.block)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal draws, float32, shape `(B, L, ...)` or `(B,)`; zero on padding."""
        return self._draw(shape, lambda g, size: g.standard_normal(size, dtype=np.float32))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform draws in [0, 1), float32, shape `(B, L, ...)` or `(B,)`; zero on padding."""
        return self._draw(shape, lambda g, size: g.random(size, dtype=np.float32))

    def _draw(
        self, shape: Sequence[int], draw: Callable[[np.random.Generator, tuple], np.ndarray]
    ) -> Tensor:
        out = np.zeros(tuple(shape), dtype=np.float32)
        for i, generator in enumerate(self.generators):
            if len(shape) == 1:
                out[i] = draw(generator, ())
                continue
            length = shape[1] if self.lengths is None else self.lengths[i]
            out[i, :length] = draw(generator, (length, *shape[2:]))
        return torch.from_numpy(out).to(self.device)


def category(probs: Tensor, noise: Noise) -> Tensor:
    """A draw `(B, L)` int64 from `probs (B, L, V)`, by inverting the distribution function."""
    cumulative = probs.cumsum(-1)
    u = noise.uniform((*probs.shape[:2], 1)) * cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative, u, right=True)[..., 0]
    return drawn.clamp(max=probs.shape[-1] - 1)


def low_discrepancy(seed: int, indices: Tensor) -> Tensor:
    """One time per example in [0, 1), float32 `(B,)`: even over any run of consecutive indices.

    A golden-ratio sequence: it needs no state and no agreement between ranks, and any batch of
    neighbouring indices covers [0, 1] evenly (low-discrepancy times: Kingma et al. 2021,
    arXiv:2107.00630, appendix I.1).
    """
    start = np.random.default_rng(seed).random()
    return torch.frac(start + indices.double() * GOLDEN).float()
