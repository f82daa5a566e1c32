"""What training makes small, in terms of the network's probabilities; each `(B, L)`.

    cross_entropy   -log p(w)                          (CDCD, Dieleman et al. 2022, arXiv:2211.15089)
    variational     the ELBO, as a rate over time: T KL(q(x_s | x_t, w) | p(x_s | x_t)) with s = t - 1 / T
                    (Kingma et al. 2021, arXiv:2107.00630; MDLM, Sahoo et al. 2024, arXiv:2406.07524)
    mean_square     |c[w] - x_0_hat|^2                 (Diffusion-LM, Li et al. 2022, arXiv:2205.14217)
    anchor          mean_square + cross_entropy        (Difformer, Gao et al. 2022, arXiv:2212.09412)

The mean of `variational` over a uniform time of the whole text is the bound itself, in nats, whatever the
schedule: one that follows the losses (`gumbel`, `warped`) samples the times that matter more often.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.config import find
from textdiff.process import Process

Objective = Callable[[Process, Tensor, Tensor, Tensor, Tensor], Tensor]
STEPS = 1000  # T


def token_nats(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p(ids), `(B, L)`, of `logits (B, L, V)`."""
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)


def cross_entropy(process: Process, logits: Tensor, ids: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Nats of the clean token `ids (B, L)` under `logits (B, L, V)`."""
    return token_nats(logits, ids)


def variational(process: Process, logits: Tensor, ids: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Nats of the ELBO at the times `t (B, L)` of the states `x_t`; its last step reads the token."""
    t = t.broadcast_to(ids.shape)
    s = (t - 1 / STEPS).clamp(min=0)
    step = process.divergence(x_t, torch.softmax(logits.float(), -1), ids, t, s)
    return STEPS * torch.where(s > 0, step, cross_entropy(process, logits, ids, x_t, t))


def mean_square(process: Process, logits: Tensor, ids: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Squared distance of the clean mean of a Gaussian process."""
    mean = process.mean(torch.softmax(logits.float(), -1))
    return (process.encode(ids) - mean).square().sum(-1)


def anchor(process: Process, logits: Tensor, ids: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Both, so that embeddings neither collapse nor go unread."""
    known = process, logits, ids, x_t, t
    return mean_square(*known) + cross_entropy(*known)


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": cross_entropy,
    "variational": variational,
    "mean_square": mean_square,
    "anchor": anchor,
}


def find_objective(name: str, process: Process) -> Objective:
    """The objective called `name`.

    Raises:
        ValueError: no such name, or one that needs a Gaussian process.
    """
    found = find("objective", name, OBJECTIVES)
    if name in ("mean_square", "anchor") and not process.gaussian:
        raise ValueError(
            f"objective {name} is a distance of states, which {type(process).__name__} has not: "
            "use cross_entropy or variational"
        )
    return found
