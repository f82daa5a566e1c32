"""A pre-norm transformer, (B, L, D) -> (B, L, D): bidirectional or causal, with cross-attention.

It knows nothing of vocabularies, noise or text. Rotary positions (Su et al. 2021, arXiv:2104.09864),
query-key normalisation (Henry et al. 2020, arXiv:2010.04245), GELU. Attention is PyTorch's fused
kernel, except on a CPU in bfloat16, where three plain operations are several times faster.

Legend: B batch, L length, S length of the memory, D width, H heads, K width of a head.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.hardware import steady_attention

KeyValue = tuple[Tensor, Tensor]  # keys and values, each (B, H, S, K)


@dataclass
class Context:
    """What cross-attention reads: computed once per source, then used at every step.

    Attributes:
        keys_values: one pair a layer.
        mask: `(B, S)` bool, False = hidden.
        pooled: `(B, D)` mean of the memory.
        copied: what a `Pointer` chooses from, if there is one; every tensor begins with `(B, S)`.
    """

    keys_values: list[KeyValue]
    mask: Tensor
    pooled: Tensor
    copied: tuple[Tensor, ...] | None = None

    def select(self, rows: Tensor) -> Self:
        """The same for some rows of the batch, `rows` int64 or bool."""
        pairs = [(k[rows], v[rows]) for k, v in self.keys_values]
        copied = self.copied and tuple(one[rows] for one in self.copied)
        some = {"mask": self.mask[rows], "pooled": self.pooled[rows], "copied": copied}
        return replace(self, keys_values=pairs, **some)

    def null(self) -> Self:
        """The memory's first row alone: what a dropped source leaves."""
        pairs = [(k[:, :, :1], v[:, :, :1]) for k, v in self.keys_values]
        copied = self.copied and tuple(one[:, :1] for one in self.copied)
        return replace(self, keys_values=pairs, mask=self.mask[:, :1], copied=copied)


def for_each(context: Context | None, reads: Tensor | None) -> Context | None:
    """Sources that were read once, for the texts that read them, `reads (B,)`; None = one for each."""
    return context if context is None or reads is None else context.select(reads)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention: `q (B, H, L, K)`, `k, v (B, H, S, K)`, additive `bias` -> `(B, H, L, K)`."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v
    with steady_attention(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def bias_of(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Additive attention bias `(B, 1, 1 or L, S)` that hides what `mask` marks False."""
    if mask is None:
        return None
    mask = mask[:, None, None] if mask.dim() == 2 else mask[:, None]
    return torch.where(mask, 0.0, -1e4).to(like.dtype)


def rotary_frequencies(width: int) -> Tensor:
    """Radians a position, `(K,)`, of both halves of a head of `width` K; they turn against each other."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, device="cpu") / width)
    return torch.cat([-frequency, frequency])


def rotary_table(place: Tensor, frequency: Tensor) -> Tensor:
    """Angles of the positions `place (..., L)`, as cos and sin `(2, ..., L, K)`."""
    angle = place[..., None] * frequency.to(place.device)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply the rotary positions of `table (2, ..., L, K)` to `x (B, H, L, K)`."""
    cos, sin = table
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([right, left], dim=-1), sin)


class Attention(nn.Module):
    """Multi-head attention; the caller brings keys and values, so that they can be kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.query_norm = nn.LayerNorm(width // heads, bias=False)
        self.key_norm = nn.LayerNorm(width // heads, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """`(B, L, D)` -> `(B, H, L, K)`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def remember(self, memory: Tensor, table: Tensor | None = None) -> KeyValue:
        """Keys and values of `memory (B, S, D)`."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        key = self.key_norm(self.split(key)).to(value.dtype)
        return (key if table is None else rotate(key, table)), self.split(value)

    def forward(
        self, x: Tensor, pair: KeyValue, bias: Tensor | None, table: Tensor | None = None
    ) -> Tensor:
        """`x (B, L, D)` reads `pair`; -> `(B, L, D)`."""
        q = self.query_norm(self.split(self.query(x))).to(pair[1].dtype)
        q = q if table is None else rotate(q, table)
        return self.out(attend(q, *pair, bias).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention if there is a memory, feed-forward; each a residual."""

    def __init__(self, width: int, heads: int, cross: bool, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.cross_attention = Attention(width, heads) if cross else None
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        bias: Tensor | None,
        memory: KeyValue | None,
        memory_bias: Tensor | None,
        past: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """One layer on `x (B, L, D)`; also the layer's own keys and values, `past` ones included."""
        normed = self.self_norm(x).to(table.dtype)  # once, as it is read twice
        pair = self.self_attention.remember(normed, table)
        if past is not None:
            pair = torch.cat([past[0], pair[0]], 2), torch.cat([past[1], pair[1]], 2)
        x = x + self.dropout(self.self_attention(normed, pair, bias, table))
        if memory is not None:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory, memory_bias))
        return x + self.dropout(self.feed(self.feed_norm(x))), pair


class Transformer(nn.Module):
    """A stack of blocks and a final normalisation.

    Args:
        width: D. depth: number of blocks. heads: H, must divide D.
        cross: blocks also attend to a memory, see `remember`.
        causal: position i sees positions <= i only.
        dropout: on every residual branch.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        cross: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"transformer: width {width} must be a multiple of 2 x heads ({heads})")
        self.causal = causal
        self.frequency = rotary_frequencies(width // heads)  # no buffer: float32 whatever the weights are
        self.blocks = nn.ModuleList(Block(width, heads, cross, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.reset(depth)

    def reset(self, depth: int) -> None:
        """Normal(0, 1 / inputs) weights, the residual outputs scaled by 1 / sqrt(2 depth) (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("out.weight", "feed.2.weight"))
                std = parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=std / (2 * depth) ** 0.5 if residual else std)

    def remember(self, memory: Tensor, mask: Tensor) -> Context:
        """Cross-attention keys and values of `memory (B, S, D)`, True in `mask (B, S)` = visible."""
        pairs = [block.cross_attention.remember(memory) for block in self.blocks]
        # read at every step: a strided copy here saves one at each of them
        pairs = [(key.contiguous(), value.contiguous()) for key, value in pairs]
        weight = mask.unsqueeze(-1).to(memory.dtype)
        pooled = (memory * weight).sum(1) / weight.sum(1)
        return Context(pairs, mask, pooled)

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        context: Context | None = None,
        past: list[KeyValue] | None = None,
        place: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """`x (B, L, D)` -> `(B, L, D)`, and every layer's keys and values, the `P` past ones first.

        Args:
            valid: `(B, P + L)` bool, False = padding that nobody attends to; not of a causal one.
            context: the memory, if the blocks cross-attend.
            past: keys and values of P earlier positions; `x` continues them.
            place: `(B, L)` positions of `x`, if they are not P ... P + L - 1 in every row.
        """
        assert valid is None or not self.causal  # padding on the right is never seen from before it
        start = 0 if past is None else past[0][0].shape[2]
        if place is None:
            place = torch.arange(start, start + x.shape[1], device=x.device)
        else:
            place = place[:, None]  # the same for all heads
        visible = valid
        if self.causal and x.shape[1] > 1:
            square = torch.ones(x.shape[1], start + x.shape[1], dtype=torch.bool, device=x.device)
            visible = square.tril(start).expand(len(x), -1, -1)
        like = (
            x
            if not torch.is_autocast_enabled(x.device.type)
            else x.new_empty(0, dtype=torch.get_autocast_dtype(x.device.type))
        )
        table = rotary_table(place, self.frequency).to(like.dtype)
        bias = bias_of(visible, like)
        memory_bias = None if context is None else bias_of(context.mask, like)
        pairs = []
        for i, block in enumerate(self.blocks):
            memory = None if context is None else context.keys_values[i]
            x, pair = block(x, table, bias, memory, memory_bias, None if past is None else past[i])
            pairs.append(pair)
        return self.norm(x), pairs
