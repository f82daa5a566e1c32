"""How long the text will be: a distribution over target lengths, the final EOS included.

    p(n | source) = softmax(log histogram(n) + head(mean, counts)),   counts_k = sum_j sigmoid(w_k . h_j)

over the encoded source tokens h_j. A mean alone cannot tell whether a name that will be copied has two
tokens or three; the soft counts can, and a length that is wrong by one spoils the text.

Lengths never come from a reference. Candidate i of n takes the quantile (i + 1/2) / n: a single sample
gets the median, several cover the distribution (the "length beam" of Ghazvininejad et al. 2019,
arXiv:1904.09324, section 4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Length(nn.Module):
    """Distribution over 1 ... `max_length`.

    Args:
        max_length: longest target, EOS included.
        width: D, width of what the length is told from.
        counters: how many kinds of tokens are counted.
    """

    def __init__(self, max_length: int, width: int, counters: int = 32) -> None:
        super().__init__()
        self.counters = nn.Linear(width, counters)
        nn.init.constant_(self.counters.bias, -3.0)  # few tokens count at first
        self.register_buffer("log_histogram", torch.zeros(max_length + 1))
        self.head = nn.Sequential(
            nn.Linear(width + counters, width), nn.GELU(), nn.Linear(width, max_length + 1)
        )
        nn.init.zeros_(self.head[2].weight)
        nn.init.zeros_(self.head[2].bias)
        self.fit(torch.ones(max_length + 1))

    def fit(self, counts: Tensor) -> None:
        """Take the histogram of training lengths, `counts` from 0 up to `max_length`; 0 is barred."""
        log = F.pad((counts.float() + 1e-2).log(), (0, len(self.log_histogram) - len(counts)), value=-1e4)
        self.log_histogram.copy_(log - log.logsumexp(0))
        self.log_histogram[0] = -1e4

    def forward(self, told: Tensor, mask: Tensor) -> Tensor:
        """log p(n), `(B, max_length + 1)`, told from `(B, S, D)` where `mask (B, S)`: maybe nothing."""
        seen = mask[..., None].float()
        mean = (told.float() * seen).sum(1) / seen.sum(1).clamp(min=1)
        counts = (self.counters(told).float().sigmoid() * seen).sum(1)
        scores = self.head(torch.cat([mean, counts / 4], -1))
        return (self.log_histogram + scores.float()).log_softmax(-1)

    @torch.no_grad()
    def quantile(self, told: Tensor, mask: Tensor, u: Tensor, least: Tensor) -> Tensor:
        """Lengths `(B,)` int64 at the quantiles `u (B,)` in [0, 1) of p(n | n >= least (B,))."""
        log_probs = self(told, mask)
        length = torch.arange(log_probs.shape[1], device=u.device)
        probs = log_probs.exp() * (length >= least[:, None])
        cdf = probs.cumsum(-1)
        found = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
        return found.clamp(max=len(length) - 1)
