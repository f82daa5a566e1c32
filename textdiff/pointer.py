"""Copying: a source token can be the answer itself (Vinyals et al. 2015, arXiv:1506.03134).

    p(v) = a_0 p_vocabulary(v) + sum_s a_s [source_s = v]

where a is a softmax over the null token and the source (the pointer sentinel mixture, Merity et al. 2017,
arXiv:1609.07843, equations 3 to 5). The memory's null token is the sentinel: a dropped source leaves the
vocabulary alone. Names and numbers that were never seen in training can so be written, and copying need
not be learned token by token.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textdiff.transformer import Context

STAY = 6.0  # logit of the sentinel at first: most of the mass, among some hundred tokens
LEAST = 1e-30  # probability of what is nowhere: finite in float32


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
        return replace(context, copied=(self.key(memory), F.pad(source, (1, 0))))

    def forward(self, h: Tensor, logits: Tensor, context: Context) -> Tensor:
        """Log probabilities `(B, L, V)` float32 of the mixture for `h (B, L, D)`, `logits (B, L, V)`."""
        keys, tokens = context.copied
        scores = (self.query(h) @ keys.transpose(-1, -2)).float() * h.shape[-1] ** -0.5
        scores = F.pad(self.stay[None], (0, scores.shape[-1] - 1)) + scores
        share = torch.softmax(scores.masked_fill(~context.mask[:, None], -torch.inf), -1)
        probs = torch.softmax(logits.float(), -1) * share[..., :1]
        place = tokens[:, None, 1:].expand(-1, share.shape[1], -1)
        # in place: of a vocabulary a copy costs as much as all of the copying
        return probs.scatter_add_(-1, place, share[..., 1:]).add_(LEAST).log()
