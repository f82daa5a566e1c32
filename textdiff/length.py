"""How long the text will be: a distribution over target lengths, the final EOS included.

    p(n | source) = softmax(log histogram(n) + head(pooled source))

or the histogram alone where nothing is given.

Lengths never come from a reference. Candidate i of n
takes the quantile (i + 1/2) / n: a single sample gets the median, several cover the distribution (the
"length beam" of Ghazvininejad et al. 2019, arXiv:1904.09324, section 4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Length(nn.Module):
    """Distribution over 1 ... `max_length`.

    Args:
        max_length: longest target, EOS included.
        width: D, width of what the length is told from.
    """

    def __init__(self, max_length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("log_histogram", torch.zeros(max_length + 1))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, max_length + 1))
        nn.init.zeros_(self.head[2].weight)
        nn.init.zeros_(self.head[2].bias)
        self.fit(torch.ones(max_length + 1))

    def fit(self, counts: Tensor) -> None:
        """Take the histogram of training lengths, `counts` from 0 up to `max_length`; 0 is barred."""
        log = F.pad((counts.float() + 1e-2).log(), (0, len(self.log_histogram) - len(counts)), value=-1e4)
        self.log_histogram.copy_(log - log.logsumexp(0))
        self.log_histogram[0] = -1e4

    def forward(self, pooled: Tensor) -> Tensor:
        """log p(n), `(B, max_length + 1)`, from `pooled (B, D)`; a row of zeros = nothing given."""
        told = (pooled != 0).any(-1, keepdim=True)
        return (self.log_histogram + self.head(pooled).float() * told).log_softmax(-1)

    @torch.no_grad()
    def quantile(self, pooled: Tensor, u: Tensor, least: Tensor) -> Tensor:
        """Lengths `(B,)` int64 at the quantiles `u (B,)` in [0, 1) of p(n | n >= least (B,))."""
        log_probs = self(pooled)
        length = torch.arange(log_probs.shape[1], device=u.device)
        probs = log_probs.exp() * (length >= least[:, None])
        cdf = probs.cumsum(-1)
        found = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
        return found.clamp(max=len(length) - 1)
