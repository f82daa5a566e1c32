"""Explicit random streams: one per example, so that no text depends on its batch.

Every draw is keyed by (seed, example index, block, step) through the counter-based Philox generator
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and made at the example's own
length. The same seed therefore gives the same text whatever the batch size, the neighbours or the
padding, and training resumes and distributes exactly.

Legend: B batch, L padded length.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MANY = 2**16  # numbers that are worth a thread, 1 ms: a GPU would wait 25 ms for the noise of 256 texts
TINY = 2.0**-26  # half of the step between uniform numbers
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
        self.seed, self.indices, self.step = seed, list(indices), step
        self.block = block
        self.device = None if valid is None else valid.device
        self.lengths = None if valid is None else valid.sum(1).tolist()

    @cached_property
    def generators(self) -> list[np.random.Generator]:
        """One for every example, made when the step draws at all."""
        counter = [0, 0, self.block, self.step]
        streams = [np.random.Philox(key=[self.seed, i], counter=counter) for i in self.indices]
        return [np.random.Generator(stream) for stream in streams]

    def at(self, step: int) -> Self:
        """The same streams at another step."""
        there = copy(self)
        there.step = step
        vars(there).pop("generators", None)
        return there

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal draws, float32, shape `(B, L, ...)` or `(B,)`; zero on padding."""
        return self._draw(shape, lambda g, size: g.standard_normal(size, dtype=np.float32))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform draws in [0, 1), float32, shape `(B, L, ...)` or `(B,)`; zero on padding."""
        return self._draw(shape, lambda g, size: g.random(size, dtype=np.float32))

    def _draw(
        self, shape: Sequence[int], draw: Callable[[np.random.Generator, tuple], np.ndarray]
    ) -> Tensor:
        out, generators = np.zeros(tuple(shape), dtype=np.float32), self.generators

        def fill(rows: range) -> None:
            for i in rows:
                if len(shape) == 1:
                    out[i] = draw(generators[i], ())
                    continue
                length = shape[1] if self.lengths is None else self.lengths[i]
                out[i, :length] = draw(generators[i], (length, *shape[2:]))

        rows = range(len(generators))
        threads = min(torch.get_num_threads(), len(rows), out.size // MANY)
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, [rows[k::threads] for k in range(threads)]))
        else:
            fill(rows)
        return torch.from_numpy(out).to(self.device)


def clocks(vocabulary: int) -> int:
    """Uniform numbers that `race` needs for one draw."""
    return 2 * math.isqrt(vocabulary - 1) + 2


def race(probs: Tensor, u: Tensor) -> Tensor:
    """A draw `(...)` int64 from `probs (..., V)`, which need no sum of 1, by `u (..., clocks(V))`.

    Of clocks that ring at the rates p_v the first one is v with probability p_v / sum(p). Two races, of
    about sqrt(V) groups and within the first of them, need few numbers; and probabilities that differ by
    rounding change a draw once in a million times, where the inverse of the distribution function has V
    edges to cross: a text must not depend on what else is in its batch.
    """
    side = u.shape[-1] // 2
    grid = F.pad(probs, (0, side * side - probs.shape[-1])).unflatten(-1, (side, side))
    wait = (-torch.log1p(-u.double())).clamp(min=TINY)
    group = (grid.sum(-1) / wait[..., :side]).argmax(-1)
    within = grid.gather(-2, group[..., None, None].expand(*group.shape, 1, side))[..., 0, :]
    return group * side + (within / wait[..., side:]).argmax(-1)


def category(probs: Tensor, noise: Noise) -> Tensor:
    """A draw `(B, L)` int64 from `probs (B, L, V)`, see `race`."""
    return race(probs, noise.uniform((*probs.shape[:2], clocks(probs.shape[-1]))))


def nucleus(probs: Tensor, p: float) -> Tensor:
    """`probs (..., V)` on the smallest set of likeliest tokens that holds at least p, renormalised."""
    top, index = probs.sort(dim=-1, descending=True)
    top = top * (top.cumsum(-1) - top < p)
    return torch.zeros_like(probs).scatter(-1, index, top / top.sum(-1, keepdim=True))


def low_discrepancy(seed: int, indices: Tensor) -> Tensor:
    """One time per example in [0, 1), float32 `(B,)`: even over any run of consecutive indices.

    A golden-ratio sequence: it needs no state and no agreement between ranks, and any batch of
    neighbouring indices covers [0, 1] evenly (low-discrepancy times: Kingma et al. 2021,
    arXiv:2107.00630, appendix I.1).
    """
    start = np.random.default_rng(seed).random()
    return torch.frac(start + indices.double() * GOLDEN).float()
