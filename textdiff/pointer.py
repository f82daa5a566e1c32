"""Copying: a source token can be the answer itself (Vinyals et al. 2015, arXiv:1506.03134).

    p(v) = a_0 p_vocabulary(v) + c_v,   c_v = sum_s a_s [source_s = v]                              (1)
    log p(v) = log p_vocabulary(v) + log(1 + c_v / (a_0 p_vocabulary(v))) + log a_0                 (2)

where a is a softmax over the null token and the source (the pointer sentinel mixture, Merity et al. 2017,
arXiv:1609.07843, equations 3 to 5). The memory's null token is the sentinel: a dropped source leaves the
vocabulary alone. Names and numbers that were never seen in training can so be written, and copying need
not be learned token by token.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.packing import pick
from textdiff.transformer import Context

STAY = 6.0  # logit of the sentinel at first: most of the mass, among some hundred tokens
MOST = 300.0  # gain of a copied word: guidance must not lift one that is never generated
LEAST = 1e-30  # of what is copied, for a finite logarithm


def first_places(ids: Tensor) -> Tensor:
    """For every place of `ids (B, S)` the first one with the same token, `(B, S)`."""
    tokens, order = ids.sort(stable=True)
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    begins = F.pad(tokens[:, 1:] != tokens[:, :-1], (1, 0), value=True)
    start = (place * begins).cummax(1).values if ids.shape[1] else place
    return torch.zeros_like(ids).scatter(1, order, order.gather(1, start))


class Pointer(nn.Module):
    """Where to copy from.

    Args:
        width: D, of the memory and of what reads it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.stay = nn.Parameter(torch.tensor(STAY))
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def remember(self, context: Context, memory: Tensor, source: Tensor) -> Context:
        """`context` with what can be copied: `memory (B, 1 + S, D)` of the tokens `source (B, S)`."""
        shifted = (F.pad(one, (1, 0)) for one in (source, first_places(source)))
        return replace(context, copied=(self.key(memory), *shifted))

    def forward(self, h: Tensor, logits: Tensor, context: Context, only: Tensor | None = None) -> Tensor:
        """Logits `(B, L, V)` float32 of (2), but for log a_0, for `h (B, L, D)` and `logits (B, L, V)`.

        With `only (N,)`, places among the tokens of `h`, logits of these alone, `(1, N, V)`. Of a
        vocabulary only the tokens of the source are touched: all the others keep their logits.
        """
        keys, tokens, first = context.copied
        scores = (self.query(h) @ keys.transpose(-1, -2)).float() * h.shape[-1] ** -0.5
        scores = F.pad(self.stay[None], (0, scores.shape[-1] - 1)) + scores
        scores = scores.masked_fill(~context.mask[:, None], -torch.inf)
        log_stay = pick(scores[..., :1] - scores.logsumexp(-1, keepdim=True), only)
        share = torch.softmax(scores, -1)[..., 1:]
        place, first = (one[:, None, 1:].expand_as(share) for one in (tokens, first))
        mass = torch.zeros_like(share).scatter_add(-1, first, share)  # of a token, at its first place
        mass = pick(mass, only)
        if only is not None:  # the rows themselves: `pick` would copy all that is expanded
            place = tokens[only // h.shape[1], 1:][None]
        logits = logits.float()
        log_vocabulary = logits.gather(-1, place) - logits.logsumexp(-1, keepdim=True)
        odds = mass.clamp(min=LEAST).log() - log_stay - log_vocabulary
        gain = F.softplus(odds.clamp(max=MOST))
        return logits.scatter_add(-1, place, gain.masked_fill(mass == 0, 0.0))
