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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.encoder import Encoder
from textdiff.packing import pick
from textdiff.pointer import Pointer
from textdiff.process import Process, Seen
from textdiff.schedule import Schedule
from textdiff.transformer import Context, Transformer

BARRED = -1e4  # logit of tokens that are never generated: finite, yet probability zero
TIME_FEATURES = 64


@dataclass
class Past:
    """The text before an open block: read once, then used at every step.

    Attributes:
        states: what the network keeps of P positions, such as a pair of keys and values a layer.
        mask: `(B, P)` bool, False = padding.
    """

    states: list[tuple[Tensor, ...]]
    mask: Tensor

    def __getitem__(self, rows: Tensor) -> "Past":
        """The same for some rows of the batch."""
        return Past([tuple(x[rows] for x in state) for state in self.states], self.mask[rows])


class Denoiser(nn.Module):
    """features -> transformer -> logits.

    Args:
        process: what noisy text is; owns the embedding table and the schedule.
        width, depth, heads, dropout: the transformer's.
        encoder_depth: blocks of the source encoder; 0 = no source.
        max_length: longest text, EOS and prefix included.
        max_source_length: most source tokens. source_window: see `Encoder`.
        barred: ids that are never generated.
        pointer: tokens of the source can be copied.
        blocks: also write open blocks: parts of a text whose end is not known.
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
        source_window: int | None = None,
        dropout: float = 0.0,
        barred: tuple[int, ...] = (),
        pointer: bool = False,
        blocks: bool = False,
    ) -> None:
        super().__init__()
        vocabulary, embedding_width = process.embedding.weight.shape
        self.process, self.max_length = process, max_length
        self.read = nn.Linear(process.feature_width, width)
        self.gamma = nn.Linear(TIME_FEATURES, width)
        self.position = nn.Embedding(max_length, width)
        self.remaining = nn.Embedding(max_length, width)
        self.open_end = nn.Parameter(torch.zeros(width)) if blocks else None
        self.given = nn.Parameter(torch.zeros(width))
        self.previous = nn.Linear(embedding_width, width, bias=False)
        self.transformer = Transformer(width, depth, heads, cross=encoder_depth > 0, dropout=dropout)
        self.out = nn.Linear(width, embedding_width)
        self.scale = embedding_width**-0.5  # of logits, as tables have unit variance a coordinate
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.encoder = (
            Encoder(
                embedding_width, width, encoder_depth, heads, max_source_length, dropout, source_window
            )
            if encoder_depth
            else None
        )
        if pointer and not encoder_depth:
            raise ValueError(
                "pointer: copies from a source that is read by cross-attention, and here is none"
            )
        self.pointer = Pointer(width) if pointer else None
        self.register_buffer("bar", bar_of(vocabulary, barred))
        nn.init.zeros_(self.previous.weight)
        nn.init.normal_(self.position.weight, std=0.5)
        nn.init.normal_(self.remaining.weight, std=0.5)

    evaluations = 1  # of the network, a call: the honest NFE

    def encode_source(self, source: Tensor, source_mask: Tensor) -> Context:
        """Read `source (B, S)` once: cross-attention keys and values for every step."""
        memory, mask = self.encoder(self.process.table(source), source_mask)
        context = self.transformer.remember(memory, mask)
        return context if self.pointer is None else self.pointer.remember(context, memory, source)

    def remember(
        self, ids: Tensor, valid: Tensor, context: Context | None = None, window: Tensor | None = None
    ) -> Past:
        """Read the text before a block: `ids (B, P)` with padding where not `valid`; P may be 0.

        Of a text longer than `window (B,)` its last tokens are read.
        """
        if window is not None:
            ids, valid = last(ids, valid, window)
        if not ids.shape[1]:
            return Past([], valid)
        t, mask = torch.zeros(ids.shape, device=ids.device), torch.zeros_like(valid)
        h = self.embed(self.process.given_features(ids), t, mask)
        h = h + self.position.weight[: ids.shape[1]] + self.open_end
        _, pairs = self.transformer(h, valid, context)
        return Past(pairs, valid)

    def embed(self, features: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        """What the network reads of every token, `(B, L, D)`, but for its place."""
        h = self.read(features)
        h = h + self.gamma(time_features(self.process.schedule, t.expand(mask.shape)))
        return h + self.given * ~mask[..., None]

    def places(self, valid: Tensor, past: Past | None) -> tuple[Tensor, Tensor]:
        """Positions `(B or 1, L)`, and what tells of the end of the text, `(B or 1, L, D)`."""
        place = torch.arange(valid.shape[1], device=valid.device)[None]
        if past is None:
            return place, self.remaining(tokens_left(valid))
        place = past.mask.sum(1, keepdim=True) + place
        return place.clamp(max=self.max_length - 1), self.open_end[None, None]

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        mask: Tensor,
        valid: Tensor,
        context: Context | None = None,
        previous: Tensor | None = None,
        past: Past | None = None,
        seen: Seen | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """Token logits `(B, L, V)`, or with `only` `(1, N, V)`.

        Args:
            x_t: state of the process, noise where `mask`, clean elsewhere.
            t: `(B, L)` time of every token, 0 where given.
            mask: `(B, L)`, True = to be generated. valid: `(B, L)`, False = padding.
            context: the source, from `encode_source`.
            previous: `(B, L, E)` the last prediction, by `process.reread`; a row of zeros = none.
            past: what all of this follows as an open block, from `remember`; None = a whole text.
            seen: what the process sees of `x_t` at `t`, if that is known: features of all tokens, and the
                evidence of those of `only`.
            only: `(N,)` the tokens that need logits, by their places among all B x L: much of the time of
                a call goes into the vocabulary.
        """
        seen = self.process.see(x_t, t, only) if seen is None else seen
        place, ending = self.places(valid, past)
        h = self.embed(seen.features, t, mask) + self.position(place) + ending
        if previous is not None:
            h = h + self.previous(previous)
        if past is None:
            h, _ = self.transformer(h, valid, context)
        else:
            visible = torch.cat([past.mask, valid], 1)
            h, _ = self.transformer(h, visible, context, past.states or None, place)
        read = self.out(pick(h, only)) * self.scale
        logits = F.linear(read, self.process.table(), self.bias + self.bar)
        if self.pointer is None:
            return logits + seen.log_posterior
        # the mixture is what is known before the noisy token is seen: a copied word may be a rare one
        prior = self.process.log_prior
        logits = self.pointer(h, logits + prior, context, only) + seen.log_posterior
        return logits.add_(self.bar - prior)


def bar_of(vocabulary: int, barred: Iterable[int]) -> Tensor:
    """What is added to logits `(V,)` so that the tokens `barred` are never generated."""
    bar = torch.zeros(vocabulary)
    bar[list(barred)] = BARRED
    return bar


def tokens_left(valid: Tensor) -> Tensor:
    """`(B, L)`: how many tokens of a text, `valid (B, L)`, follow each of its places; 0 on padding."""
    place = torch.arange(valid.shape[1], device=valid.device)
    return (valid.sum(1, keepdim=True) - 1 - place).clamp(min=0)


def time_features(schedule: Schedule, t: Tensor) -> Tensor:
    """Fourier features `(..., TIME_FEATURES)` of the place of gamma(t) in its range."""
    place = (schedule.gamma(t) - schedule.gamma_min) / (schedule.gamma_max - schedule.gamma_min)
    frequency = math.pi * torch.logspace(-1, 1.5, TIME_FEATURES // 2, device=t.device)
    angle = place[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def last(ids: Tensor, valid: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """At most the last `window (B,)` tokens of every row of `ids (B, P)`, padded on the right."""
    length = valid.sum(1)
    kept = torch.minimum(length, window)
    place = torch.arange(int(kept.max()), device=ids.device)
    start = (length - kept)[:, None]
    return ids.gather(1, (start + place).clamp(max=ids.shape[1] - 1)), place < kept[:, None]


class Wrapper(nn.Module):
    """A denoiser around another one, with the same signature; a subclass changes what it answers."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process, self.evaluations = denoiser.process, denoiser.evaluations

    @property
    def shift(self) -> Tensor | None:
        """What controls move the clean mean by at this step, see `control.Shifted`."""
        return getattr(self.denoiser, "shift", None)


class Guided(Wrapper):
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, eq. 6) with the same signature.

        logits = null + scale (conditional - null)

    Args:
        denoiser: a denoiser with a source encoder, trained with some sources dropped.
        scale: 1 = the conditional model, 0 = none of the source, above 1 = more of it.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        super().__init__(denoiser)
        if denoiser.encoder is None:
            raise ValueError("guidance_scale needs a model with a source encoder; this one has none")
        self.scale = scale
        self.evaluations = 2 * denoiser.evaluations

    def remember(
        self, ids: Tensor, valid: Tensor, context: Context, window: Tensor | None = None
    ) -> tuple[Past, Past]:
        """What an open block follows, read with the source and without it."""
        read = self.denoiser.remember
        return read(ids, valid, context, window), read(ids, valid, context.null(), window)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        context: Context,
        past: tuple[Past | None, Past | None] = (None, None),
        **inputs: Tensor,
    ) -> Tensor:
        conditional = self.denoiser(x_t, t, context=context, past=past[0], **inputs)
        null = self.denoiser(x_t, t, context=context.null(), past=past[1], **inputs)
        return null + self.scale * (conditional - null)


class GoesOn(Wrapper):
    """A denoiser that does not end a text, whose end is given.

    Args:
        denoiser: a `Denoiser` or a wrapper of one.
        eos_id: the end of a text.
    """

    def __init__(self, denoiser: nn.Module, eos_id: int) -> None:
        super().__init__(denoiser)
        self.eos_id = eos_id

    def forward(self, x_t: Tensor, t: Tensor, **inputs: Tensor | Context | None) -> Tensor:
        logits = self.denoiser(x_t, t, **inputs)
        logits[..., self.eos_id] += BARRED * pick(inputs["mask"], inputs.get("only"))
        return logits


class Continued(Wrapper):
    """A denoiser of the block that follows a text, with the signature of one of whole texts.

    Args:
        denoiser: a `Denoiser` with blocks, or a wrapper of one.
        past: the text before, from its `remember`.
    """

    def __init__(self, denoiser: nn.Module, past: Any) -> None:
        super().__init__(denoiser)
        self.past = past

    def forward(self, x_t: Tensor, t: Tensor, **inputs: Tensor | Context | None) -> Tensor:
        return self.denoiser(x_t, t, past=self.past, **inputs)
