"""How likely a text is: nats that a diffusion model needs for it, never less than the truth.

Tokens are the data and x_{1/T} the first latent (Kingma et al. 2021, arXiv:2107.00630, eq. 11):

    -log p(w) <= KL(q(x_1 | w) | prior) + sum_{i=2..T} KL(q(x_s | x_t, w) | p(x_s | x_t))
                 - log p(w | x_{1/T}),       t = i / T, s = (i - 1) / T                          (1)

which is the ELBO of the ancestral sampler with T steps, for every process. The last term is unlike all
others, and one of T: it is always computed. Of the others a few are, one from each of as many equal parts
of time: an unbiased estimate.

A model trained with given tokens also writes in any order (`Confidence`). For a random order,

    -log p(w) <= E_k [n / (n - k) sum over open tokens of -log p(w_i | k given tokens)]           (2)

with k even on 0 ... n - 1: the ELBO of masked diffusion (Shi et al. 2024, arXiv:2406.04329; Ou et al.
2024, arXiv:2406.03736) for a denoiser that reads noise where that has masks, independent of the text.

For a Gaussian process the density of the state is known to any precision (Song et al. 2021,
arXiv:2011.13456, eq. 39). With z = x / sigma and v = alpha / sigma its ODE is dz / dv = x_0_hat, and

    log p(x_0) = log p(x_1) + N log(sigma_1 / sigma_0) + integral of tr d x_0_hat / d z dv        (3)
    -log p(w) <= E_q [log q(x_0 | w) - log p(x_0) - log r(w | x_0)]                               (4)

from v_0 to v_1: only what the network says is integrated. In x / alpha the noise grows on the way, at one
rate in all N numbers, and the errors of a step with it: 1.6 nats for 64 words of 128 numbers, where (3)
is 0.001 off. In (4) r is the network's reading of x_0. Densities themselves are never reported: they
depend on the scale of the embeddings.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.config import find
from textdiff.noise import Noise
from textdiff.objective import token_nats
from textdiff.process import Process, column, keep
from textdiff.sampler.ode import integrate

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t, t (B, L), mask (B, L) -> logits (B, L, V)
Parts = dict[str, Tensor]  # nats of every text, (B,), by where they come from
USUAL = {"steps": 1000, "evaluations": 64}  # where nobody says how many


def total(nats: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens of every text."""
    return (nats * mask).double().sum(1)


def strata(count: int, size: int, noise: Noise, rows: int) -> list[tuple[int, Tensor]]:
    """How large each of `size` equal parts of the numbers below `count` is, and one from it, `(B,)`."""
    size = min(size, count)
    edges = [count * i // max(size, 1) for i in range(size + 1)]
    return [
        (high - low, low + (noise.uniform((rows,)) * (high - low)).long().clamp(max=high - low - 1))
        for low, high in pairwise(edges)
    ]


@torch.no_grad()
def diffusion_bound(
    denoise: Denoise,
    process: Process,
    ids: Tensor,
    mask: Tensor,
    noise: Noise,
    steps: int = 1000,
    evaluations: int = 64,
) -> Parts:
    """The terms of (1): `prior`, `reconstruction`, and the sum as the process names its parts.

    Args:
        denoise: the model, source and padding included.
        ids: `(B, L)`. mask: `(B, L)`, True = tokens to pay for; all others are given.
        noise: random streams of the batch.
        steps: T. evaluations: terms that are computed of every text, from 2 on; all if not below T.
    """
    x_0 = process.encode(ids)

    def look(index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t, logits, t and s of a term for every text."""
        t, s = ((index.to(ids.device)[:, None] + end) / steps * mask for end in (1, 0))
        x_t = keep(mask, process.corrupt(x_0, t, noise), x_0)
        return x_t, denoise(x_t, t, mask), t, s

    last = total(token_nats(look(torch.zeros(len(ids), dtype=torch.long))[1], ids), mask).cpu()
    rest, few = steps - 1, min(evaluations, steps) - 1
    found: Parts = defaultdict(lambda: torch.zeros(len(ids), dtype=torch.float64))
    for width, index in strata(rest, few, noise, len(ids)):
        x_t, logits, t, s = look(1 + index)
        probs = torch.softmax(logits, -1).float()
        for name, nats in process.divergences(x_t, probs, ids, t, s).items():
            found[name] += width * total(nats, mask).cpu()
    prior = total(process.prior_divergence(ids), mask).cpu()
    return {"prior": prior, **found, "reconstruction": last}


@torch.no_grad()
def order_bound(
    denoise: Denoise, process: Process, ids: Tensor, mask: Tensor, noise: Noise, evaluations: int = 64
) -> Parts:
    """(2), as `order`; arguments of `diffusion_bound`."""
    x_0, count = process.encode(ids), mask.sum(1)
    found = torch.zeros(len(ids), dtype=torch.float64)
    for i in range(evaluations):
        share = (i + noise.uniform((len(ids),)).to(ids.device)) / evaluations
        given = torch.minimum((share * count).long(), count - 1)
        place = noise.uniform(mask.shape).to(ids.device).masked_fill(~mask, -1.0)
        rank = place.argsort(1, descending=True).argsort(1)
        open_ = mask & (rank >= given[:, None])
        x_t = keep(open_, process.prior(ids.shape, noise), x_0)
        nats = total(token_nats(denoise(x_t, open_.float(), open_), ids), open_)
        found += (nats * count / (count - given) / evaluations).cpu()
    return {"order": found}


@torch.no_grad()
def ode_log_density(
    denoise: Denoise,
    process: Process,
    x_0: Tensor,
    mask: Tensor,
    *,
    probes: int | None = None,
    noise: Noise | None = None,
    tolerance: float = 1e-4,
    most: int = 300,
) -> Tensor:
    """log p(x_0) by (3), nats `(B,)`, float64, of the states `x_0 (B, L, D)` at t = 0 where `mask`.

    Args:
        probes: random directions (Hutchinson) for the trace, which `noise` draws; None computes it
            exactly, with a backward pass for every number of a state.
    """
    schedule, shape = process.schedule, x_0.shape
    sigma_0, sigma_1 = (schedule(torch.tensor(t, device=x_0.device))[1].double() for t in (0.0, 1.0))
    part = mask[..., None].expand(shape).flatten(1).double()
    size = part.sum(1)
    draws = [noise.normal(shape).sign().double().to(x_0.device).flatten(1) for _ in range(probes or 0)]
    count = part.shape[1] if probes is None else probes

    def direction(i: int) -> Tensor:
        if probes is None:
            return F.one_hot(torch.tensor([i], device=x_0.device), count).double()
        return draws[i] / probes**0.5

    def flow(v: Tensor, joint: Tensor) -> Tensor:
        t = schedule.time(-2 * v.log())[:, None].float() * mask
        with torch.enable_grad():
            z = joint[:, 1:].detach().requires_grad_()
            x_t = keep(mask, (z.view(shape) * schedule(column(t, x_0))[1]).float(), x_0)
            clean = (
                process.mean(torch.softmax(denoise(x_t, t, mask), -1).float()).double().flatten(1) * part
            )
            trace = torch.zeros(len(z), dtype=torch.float64, device=z.device)
            for i in range(count):
                w = direction(i)
                (pull,) = torch.autograd.grad((clean * w).sum(), z, retain_graph=i + 1 < count)
                trace += (pull * w * part).sum(1)
        return torch.cat([trace[:, None], clean.detach()], 1)

    z_0 = (x_0.double() / sigma_0).flatten(1)
    start = torch.cat([torch.zeros(len(z_0), 1, dtype=torch.float64, device=z_0.device), z_0], 1)
    ends = math.exp(-schedule.gamma_min / 2), math.exp(-schedule.gamma_max / 2)
    end = integrate(flow, start, *ends, tolerance, most)
    alpha_1, variance = (one.double() for one in process.end())
    away = sigma_1 * end[:, 1:] - alpha_1 * process.centre
    square = away.square() / variance + (2 * torch.pi * variance).log()
    return end[:, 0] - 0.5 * (square * part).sum(1) + size * (sigma_1 / sigma_0).log()


@torch.no_grad()
def ode_bound(
    denoise: Denoise,
    process: Process,
    ids: Tensor,
    mask: Tensor,
    noise: Noise,
    *,
    evaluations: int | None = None,
    tolerance: float = 1e-4,
) -> Parts:
    """(4), as `ode`, from one draw of x_0; `evaluations` are random directions for its density."""
    clean, t = process.encode(ids), torch.zeros(ids.shape, device=ids.device)
    alpha, sigma = process.schedule(torch.zeros((), device=ids.device))
    x_0 = keep(mask, process.corrupt(clean, t, noise), clean)
    read = total(token_nats(denoise(x_0, t, mask), ids), mask)
    given = ((x_0 - alpha * clean) / sigma).square() + (2 * torch.pi * sigma**2).log()
    log_q = -0.5 * total(given.sum(-1), mask)
    options = {"probes": evaluations, "noise": noise, "tolerance": tolerance}
    log_p = ode_log_density(denoise, process, x_0, mask, **options)
    return {"ode": (log_q - log_p + read).cpu()}


# and the counts that they take
BOUNDS: dict[str, tuple[Callable[..., Parts], tuple[str, ...]]] = {
    "order": (order_bound, ("evaluations",)),
    "diffusion": (diffusion_bound, ("steps", "evaluations")),
    "ode": (ode_bound, ("evaluations",)),
    "ode_exact": (ode_bound, ()),
}


def find_bound(
    name: str, process: Process, steps: int | None = None, evaluations: int | None = None
) -> Callable[..., Parts]:
    """A bound by its name, with its counts; what it lacks are the first five arguments of all of them.

    Args:
        steps, evaluations: None = `USUAL`, where the bound takes them.

    Raises:
        ValueError: no such bound, one that the process has not, counts that it does not take or below 1.
    """
    function, takes = find("bound", name, BOUNDS)
    told = {"steps": steps, "evaluations": evaluations}
    for count, value in told.items():
        if value is not None and count not in takes:
            takers = " or ".join(bound for bound, (_, one) in BOUNDS.items() if count in one)
            raise ValueError(f"{count} is for bound {takers}, not {name}: leave it out")
        if value is not None and value < 1:
            raise ValueError(f"{count} must be at least 1, not {value}")
    counts = {count: told[count] or USUAL[count] for count in takes}
    if name == "diffusion" and counts["evaluations"] < min(2, counts["steps"]):
        raise ValueError("bound diffusion: evaluations must be at least 2: one is for the reconstruction")
    if name.startswith("ode") and not process.gaussian:
        raise ValueError(
            f"bound {name}: {type(process).__name__} has no density; choose order or diffusion"
        )
    return partial(function, **counts)
