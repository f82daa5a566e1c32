"""The denoiser: noisy state, time and source in, token logits out.

    h       = read(features(x_t, t)) + position + remaining + gamma + previous
    logits  = out(transformer(h, source)) . table + log p(token | x_t)

The last term is the analytic skip (Plaid, Gulrajani and Hashimoto 2023, arXiv:2305.18619, section 3.3):
with it the network starts at the exact posterior of independent tokens. Self-conditioning (Chen et al.
2023, arXiv:2208.04202) reads the mean embedding of the last prediction through weights that start at
zero. Positions count from both ends: a denoiser sees noise where others see text, so it must be told
where it is, and the length is known before the words are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.process import Process
from textdiff.transformer import Context, Transformer

BARRED = -1e4  # logit of tokens that are never generated: finite, yet probability zero


class Encoder(nn.Module):
    """Source tokens to a memory; its first row is a learned null token, all that a dropped source shows.

    Args:
        embedding_width: width of the embedded source. width, depth, heads, dropout: the transformer's.
        max_length: most source tokens.
    """

    def __init__(
        self,
        embedding_width: int,
        width: int,
        depth: int,
        heads: int,
        max_length: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.read = nn.Linear(embedding_width, width)
        self.position = nn.Embedding(max_length, width)
        self.transformer = Transformer(width, depth, heads, dropout=dropout)
        self.null = nn.Parameter(torch.randn(width))
        nn.init.normal_(self.position.weight, std=0.5)

    def forward(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`embedded (B, S, E)`, `mask (B, S)` -> memory `(B, 1 + S, D)` and its mask."""
        h = self.read(embedded) + self.position.weight[: embedded.shape[1]]
        h, _ = self.transformer(h, mask)
        null = self.null.to(h.dtype).expand(len(h), 1, -1)
        return torch.cat([null, h], 1), torch.cat([torch.ones_like(mask[:, :1]), mask], 1)


class Denoiser(nn.Module):
    """features -> transformer -> logits.

    Args:
        process: what noisy text is; owns the embedding table and the schedule.
        width, depth, heads, dropout: the transformer's.
        encoder_depth: blocks of the source encoder; 0 = no source.
        max_length: longest text, EOS and prefix included.
        max_source_length: most source tokens.
        barred: ids that are never generated.
    """

    def __init__(
        self,
        process: Process,
        *,
        width: int,
        depth: int,
        heads: int,
        encoder_depth: int,
        max_length: int,
        max_source_length: int,
        dropout: float = 0.0,
        barred: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        vocabulary, embedding_width = process.embedding.weight.shape
        self.process, self.max_length = process, max_length
        self.read = nn.Linear(process.feature_width, width)
        self.gamma = nn.Linear(64, width)
        self.position = nn.Embedding(max_length, width)
        self.remaining = nn.Embedding(max_length, width)
        self.given = nn.Parameter(torch.zeros(width))
        self.previous = nn.Linear(embedding_width, width, bias=False)
        self.transformer = Transformer(width, depth, heads, cross=encoder_depth > 0, dropout=dropout)
        self.out = nn.Linear(width, embedding_width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.encoder = (
            Encoder(embedding_width, width, encoder_depth, heads, max_source_length, dropout)
            if encoder_depth
            else None
        )
        bar = torch.zeros(vocabulary)
        bar[list(barred)] = BARRED
        self.register_buffer("bar", bar)
        nn.init.zeros_(self.previous.weight)
        nn.init.normal_(self.position.weight, std=0.5)
        nn.init.normal_(self.remaining.weight, std=0.5)

    evaluations = 1  # of the network, a call: the honest NFE

    def encode_source(self, source: Tensor, source_mask: Tensor) -> Context:
        """Read `source (B, S)` once: cross-attention keys and values for every step."""
        memory, mask = self.encoder(self.process.table()[source], source_mask)
        return self.transformer.remember(memory, mask)

    def time_features(self, t: Tensor) -> Tensor:
        """Fourier features `(..., 64)` of the place of gamma(t) in its range."""
        schedule = self.process.schedule
        place = (schedule.gamma(t) - schedule.gamma_min) / (schedule.gamma_max - schedule.gamma_min)
        frequency = math.pi * torch.logspace(-1, 1.5, 32, device=t.device)
        angle = place[..., None] * frequency
        return torch.cat([angle.sin(), angle.cos()], -1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        mask: Tensor,
        valid: Tensor,
        context: Context | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Token logits `(B, L, V)`.

        Args:
            x_t: state of the process, noise where `mask`, clean elsewhere.
            t: `(B, L)` time of every token, 0 where given.
            mask: `(B, L)`, True = to be generated. valid: `(B, L)`, False = padding.
            context: the source, from `encode_source`.
            previous: `(B, L, E)` the last prediction, by `process.reread`; a row of zeros = none.
        """
        log_posterior = self.process.log_posterior(x_t, t)
        place = torch.arange(mask.shape[1], device=t.device)
        left = (valid.sum(1, keepdim=True) - 1 - place).clamp(min=0)
        h = self.read(self.process.features(x_t, t, log_posterior))
        h = h + self.gamma(self.time_features(t.expand(mask.shape)))
        h = h + self.position.weight[: mask.shape[1]] + self.remaining(left)
        h = h + self.given * ~mask[..., None]
        if previous is not None:
            h = h + self.previous(previous)
        h, _ = self.transformer(h, valid, context)
        table = self.process.table()
        logits = F.linear(self.out(h), table * table.shape[1] ** -0.5, self.bias + self.bar)
        return logits + log_posterior


class Guided(nn.Module):
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, eq. 6) with the same signature.

        logits = null + scale (conditional - null)

    Args:
        denoiser: a denoiser with a source encoder, trained with some sources dropped.
        scale: 1 = the conditional model, 0 = none of the source, above 1 = more of it.
    """

    evaluations = 2

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__()
        if denoiser.encoder is None:
            raise ValueError("guidance_scale needs a model with a source encoder; this one has none")
        self.denoiser, self.scale = denoiser, scale
        self.process, self.encode_source = denoiser.process, denoiser.encode_source

    def forward(self, x_t: Tensor, t: Tensor, *, context: Context, **inputs: Tensor) -> Tensor:
        conditional = self.denoiser(x_t, t, context=context, **inputs)
        null = self.denoiser(x_t, t, context=context.null(), **inputs)
        return null + self.scale * (conditional - null)
