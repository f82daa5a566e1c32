"""Which times training looks at; every entry of `TIMES` leaves the mean of the loss as it is.

    t = F^-1(u),   w = 1 / p(t),   E_u[w L_t] = integral of L_t dt                                  (1)
    p(t) ~ sqrt(E[L_t^2])                                                                           (2)

(2) has the least variance (importance sampling: Nichol and Dhariwal 2021, arXiv:2102.09672, equation 18;
for tokens VQ-Diffusion, Gu et al. 2022, arXiv:2111.14822). It is for losses that differ much from time to
time, as the ELBO's do. An adaptive schedule does something else: it moves the noise levels themselves.
"""

import torch
from torch import Tensor, nn

from textdiff.schedule import interpolate, remember


class Even(nn.Module):
    """p(t) = 1."""

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Times t of the even numbers `u (B,)`, and the weights w of their losses; None = 1.

        Evaluation, `self.training` False, is even whatever training looks at.
        """
        return u, None

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Learn from the losses of examples, `(B,)`, at the times `t (B,)`."""


class Importance(Even):
    """Equation (2), as seen in training, constant within bins of t.

    Args:
        bins: number of bins. floor: share of times that stay even; no weight is above 1 / floor.
        memory: how many observed batches the averages look back on.
    """

    def __init__(self, bins: int = 32, floor: float = 0.1, memory: int = 500) -> None:
        super().__init__()
        self.floor, self.memory = floor, memory
        self.register_buffer("edges", torch.linspace(0, 1, bins + 1, dtype=torch.float64))
        self.register_buffer("history", torch.zeros(2, bins, dtype=torch.float64))
        self.register_buffer("cdf", self.edges.clone())

    def place(self, t: Tensor) -> Tensor:
        """The bin of every time."""
        return torch.bucketize(t.double(), self.edges[1:-1], right=True)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training:
            return u, None
        t = interpolate(u, self.cdf, self.edges).float()
        return t, (self.edges.diff() / self.cdf.diff()).float()[self.place(t)]

    @torch.no_grad()
    def observe(self, t: Tensor, loss: Tensor) -> None:
        square, seen = remember(self.history, self.place(t), loss.double().square(), self.memory)
        if (seen > 1).all():  # until then even
            size = (square / seen).sqrt()
            share = (1 - self.floor) * size / size.sum().clamp(min=1e-9) + self.floor / len(size)
            self.cdf[1:] = share.cumsum(0) / share.sum()


TIMES: dict[str, type[Even]] = {"even": Even, "importance": Importance}
