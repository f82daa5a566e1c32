"""How long the text will be: a distribution over target lengths, the final EOS included.

    p(n | source) = softmax(log histogram(n) + head(pooled source))

Without a source it is the training histogram. Lengths never come from a reference. Candidate i of n
takes the quantile (i + 1/2) / n: a single sample gets the median, several cover the distribution (the
"length beam" of Ghazvininejad et al. 2019, arXiv:1904.09324, section 4).
"""

import torch
from torch import Tensor, nn


class Length(nn.Module):
    """Distribution over 1 ... `max_length`.

    Args:
        max_length: longest target, EOS included.
        width: width of the pooled source; None for unconditional models.
    """

    def __init__(self, max_length: int, width: int | None) -> None:
        super().__init__()
        self.register_buffer("log_histogram", torch.zeros(max_length + 1))
        self.head = (
            None
            if width is None
            else nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, max_length + 1))
        )
        self.fit(torch.ones(max_length + 1))

    def fit(self, counts: Tensor) -> None:
        """Take the histogram of training lengths, `counts (max_length + 1,)`; length 0 is barred."""
        log = (counts.float() + 1e-2).log()
        self.log_histogram.copy_(log - log.logsumexp(0))
        self.log_histogram[0] = -1e4

    def forward(self, pooled: Tensor | None, batch: int) -> Tensor:
        """log p(n), `(B, max_length + 1)`, from `pooled (B, D)` or from the histogram alone."""
        logits = self.log_histogram.expand(batch, -1)
        if self.head is not None:
            logits = logits + self.head(pooled).float()
        return logits.log_softmax(-1)

    @torch.no_grad()
    def quantile(self, pooled: Tensor | None, u: Tensor) -> Tensor:
        """Lengths `(B,)` int64 at the quantiles `u (B,)` in [0, 1]."""
        cdf = self(pooled, len(u)).exp().cumsum(-1)
        return torch.searchsorted(cdf, (u.clamp(0, 1 - 1e-6) * cdf[:, -1])[:, None])[:, 0].clamp(min=1)
