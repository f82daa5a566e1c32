"""Some tokens of a batch as those of one text.

All that is said of words costs a pass over the vocabulary a token, much of the time of a step. Tokens
that are given need none of their own, and padding neither: the N others go on as one text, `(1, N, ...)`,
which decoders, processes and objectives take like any other.
"""

from collections.abc import Sequence

from torch import Tensor

from textdiff.noise import Noise


def places(mask: Tensor) -> Tensor:
    """Where `mask (B, L)` is true, `(N,)` int64, counted through all B x L tokens, in their order."""
    return mask.flatten().nonzero()[:, 0]


def pick(x: Tensor, only: Tensor | None) -> Tensor:
    """The tokens of `x (B, L, ...)` at the places `only (N,)`, as `(1, N, ...)`; None = `x` itself."""
    if only is None:
        return x
    flat = x.flatten(0, 1)
    return (flat if len(only) == len(flat) else flat.index_select(0, only))[None]


def put(x: Tensor, only: Tensor, tokens: Tensor) -> Tensor:
    """`x (B, L, ...)` with `tokens (1, N, ...)` at the places `only (N,)`."""
    return x.flatten(0, 1).index_copy(0, only, tokens[0].to(x.dtype)).view_as(x)


class PickedNoise:
    """What of the draws of a batch falls on some of its tokens: the same numbers as in the whole text.

    Args:
        noise: of the batch.
        shape: (B, L).
        only: `(N,)` places of those tokens.
    """

    def __init__(self, noise: Noise, shape: tuple[int, int], only: Tensor) -> None:
        self.noise, self.shape, self.only = noise, tuple(shape), only

    def normal(self, shape: Sequence[int]) -> Tensor:
        """As `Noise.normal`, of the shape `(1, N, ...)`."""
        return pick(self.noise.normal((*self.shape, *shape[2:])), self.only)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """As `Noise.uniform`, of the shape `(1, N, ...)`."""
        return pick(self.noise.uniform((*self.shape, *shape[2:])), self.only)
