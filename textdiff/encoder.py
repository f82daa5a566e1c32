"""The source encoder, of diffusion and of its autoregressive twin: read once, used at every step."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.transformer import Transformer


class Encoder(nn.Module):
    """Source tokens to a memory; its first row is a learned null token, all that a dropped source shows.

    With a `window` the source is read in parts, each by itself, and all are remembered side by side
    (Fusion-in-Decoder, Izacard and Grave 2021, arXiv:2007.01282): cost grows with the length, not with
    its square. A source can be longer than any in training; further parts count as the last one of those.

    Args:
        embedding_width: width of the embedded source. width, depth, heads, dropout: the transformer's.
        max_length: most source tokens in training.
        window: tokens of a part; None = all of them.
    """

    def __init__(
        self,
        embedding_width: int,
        width: int,
        depth: int,
        heads: int,
        max_length: int,
        dropout: float,
        window: int | None = None,
    ) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"source_window must be at least 1 token, not {window}")
        self.read = nn.Linear(embedding_width, width)
        self.position = nn.Embedding(min(window or max_length, max_length), width)
        self.part = nn.Embedding(math.ceil(max_length / window), width) if window else None
        self.transformer = Transformer(width, depth, heads, dropout=dropout)
        self.null = nn.Parameter(torch.randn(width))
        nn.init.normal_(self.position.weight, std=0.5)

    def forward(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`embedded (B, S, E)`, `mask (B, S)` -> memory `(B, 1 + S, D)` and its mask."""
        h = self.read_parts(self.read(embedded), mask)
        null = self.null.to(h.dtype).expand(len(h), 1, -1)
        return torch.cat([null, h], 1), torch.cat([torch.ones_like(mask[:, :1]), mask], 1)

    def read_parts(self, h: Tensor, mask: Tensor) -> Tensor:
        """`h (B, S, D)` read, every part of it by itself."""
        rows, length = mask.shape
        size = min(length, len(self.position.weight))
        more = -length % size
        h = F.pad(h, (0, 0, 0, more)).unflatten(1, (-1, size)) + self.position.weight[:size]
        if self.part is not None:
            part = torch.arange(h.shape[1], device=h.device).clamp(max=len(self.part.weight) - 1)
            h = h + self.part(part)[:, None]
        h, _ = self.transformer(h.flatten(0, 1), F.pad(mask, (0, more)).view(-1, size))
        return h.reshape(rows, -1, h.shape[-1])[:, :length]
