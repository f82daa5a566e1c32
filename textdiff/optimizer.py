"""Optimizers, the learning-rate schedule and the average of weights.

`AdamW` (Loshchilov and Hutter 2019, arXiv:1711.05101), fused. `Muon` (Jordan et al. 2024; scaled to
AdamW's update size as in Liu et al. 2025, arXiv:2502.16982) for the matrices inside stacks of layers,
AdamW for embeddings, the projections to and from them, and everything with fewer dimensions.

`torch.optim.Muon` works on one matrix at a time and always in bfloat16, which costs four times the rest
of the training step on a processor without bfloat16 arithmetic. `Orthogonal` is the same update for all
matrices of a shape at once, on a CPU in float32.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

QUINTIC = 3.4445, -4.7750, 2.0315  # steepest at zero (Jordan et al. 2024)


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the whole model; no weight decay on vectors and embeddings."""
    return _adamw(model, list(model.parameters()), learning_rate, weight_decay)


def _adamw(
    model: nn.Module, parameters: list[Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    decayed = [p for p in parameters if p.dim() > 1 and id(p) not in tables]
    plain = [p for p in parameters if p.dim() < 2 or id(p) in tables]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    # Lightning would not clip gradients that the kernel could unscale itself; ours come unscaled
    optimizer._step_supports_amp_scaling = False
    return optimizer


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """U V^T, roughly, of `matrices (N, M, K)` = U S V^T: most singular values land near 1.

    Newton-Schulz iteration X <- a X + (b X X^T + c (X X^T)^2) X from X = matrix / Frobenius norm.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Orthogonal(torch.optim.Optimizer):
    """Nesterov momentum whose step on every matrix is orthogonal and of root mean square 0.2."""

    def __init__(
        self, parameters: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of all parameters that have a gradient; `Muon` evaluates the closure."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self.update(parameters, group)

    def update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of parameters of one shape."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = orthogonalise(torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"])))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_add_(parameters, updates.unbind(), alpha=-group["lr"] * size)


class Muon(torch.optim.Optimizer):
    """Muon on the matrices inside stacks of layers, AdamW on the rest, as one optimizer."""

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
        ids = {id(p) for stack in stacks for p in stack.parameters() if p.dim() == 2}
        inner = [p for p in model.parameters() if id(p) in ids]
        rest = [p for p in model.parameters() if id(p) not in ids]
        self.parts: list[torch.optim.Optimizer] = [
            Orthogonal(inner, learning_rate, weight_decay),
            _adamw(model, rest, learning_rate, weight_decay),
        ]
        super().__init__(inner + rest, {})
        # the parts' own groups, so that learning-rate schedules reach them
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The parts' states."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": Muon}


def update_average(decay: float, averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
    """average += (1 - decay) (weight - average), the decay warmed up with the number of steps."""
    warm = min(decay, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(averages, weights, 1 - warm)


def linear_decay(optimizer: torch.optim.Optimizer, warmup: int, steps: float) -> LambdaLR:
    """Linear warm-up, then linear decay to zero at `steps` (constant if that is infinite)."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(warmup, 1))
        return rise if steps == float("inf") else rise * max(0.0, 1 - step / max(steps, 1))

    return LambdaLR(optimizer, factor)
