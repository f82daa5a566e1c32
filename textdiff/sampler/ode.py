"""The probability-flow ODE by an adaptive solver: torchode (`pip install torchode`).

    dy / du = y - x_0_hat,   y = x / alpha,   u = log(sigma / alpha) = gamma / 2

is equation (2) of `solver.py` over the logarithm. Every text takes its own steps, by the largest error of
its numbers: its batch and padding matter by rounding alone, which adaptive steps magnify up to the
tolerance.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from textdiff.process import column
from textdiff.sampler.sampler import Predict
from textdiff.sampler.solver import Solver
from textdiff.schedule import Schedule

Flow = Callable[[Tensor, Tensor], Tensor]


def integrate(flow: Flow, y: Tensor, start: float, stop: float, tolerance: float, most: int) -> Tensor:
    """Solve dy / du = flow(u, y) from `start` to `stop`, for every row of `y (B, N)` by itself.

    Args:
        flow: `u (B,)`, `y (B, N)` -> `(B, N)`.
        tolerance: absolute and relative. most: steps of a row.

    Raises:
        ValueError: not reached in that many steps, or the library is not installed.
    """
    try:
        import torchode
        from torchode.step_size_controllers import max_norm
    except ImportError as error:
        raise ValueError("ode: install torchode, by pip install torchode") from error
    term = torchode.ODETerm(flow)
    control = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term, norm=max_norm)
    solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), control, max_steps=most)
    span = torch.tensor([[start, stop]], dtype=torch.float64, device=y.device).expand(len(y), 2)
    found = solver.solve(torchode.InitialValueProblem(y0=y, t_eval=span))
    if (found.status != torchode.Status.SUCCESS.value).any():
        raise ValueError(
            f"ode: a tolerance of {tolerance:g} is not reached in {most} steps of 6 evaluations; "
            "raise the tolerance, or the evaluations (steps=300 is usually enough)"
        )
    return found.ys[:, -1]


class ODE(Solver):
    """To a tolerance, in as many steps as it takes.

    The flow is that of the network's own probabilities: the decoder is for the last prediction, and
    self-conditioning is off, since the flow must be a function of the state.

    Args:
        steps: the most network evaluations, about 6 a step. tolerance: absolute and relative.
    """

    midway, many = False, True

    def __init__(self, steps: int = 600, *, tolerance: float = 1e-3) -> None:
        super().__init__(steps)
        if tolerance <= 0:
            raise ValueError(f"ode: tolerance must be positive, not {tolerance}")
        self.tolerance, self.most = tolerance, max(1, (steps - 3) // 6)

    def times(self, schedule: Schedule) -> Tensor:
        """Its ends."""
        return torch.tensor([1.0, 0.0])

    def probs(self, predict: Predict, x_t: Tensor, t: Tensor) -> Tensor:
        predict.read(x_t, t)
        return predict.fill(predict.latest)

    def solve(self, predict: Predict, x_1: Tensor) -> Tensor:
        schedule = predict.process.schedule
        alpha_1, alpha_0 = (schedule(torch.tensor(t, device=x_1.device))[0] for t in (1.0, 0.0))

        def flow(u: Tensor, y: Tensor) -> Tensor:
            t = predict.times(schedule.time(2 * u)[:, None].float())
            x_t = predict.clear((y.view_as(x_1) * schedule(column(t, x_1))[0]).float(), t)
            change = y.view_as(x_1) - self.clean(predict, x_t, t)
            return (change * predict.mask[..., None]).flatten(1)

        ends = schedule.gamma_max / 2, schedule.gamma_min / 2
        y = integrate(flow, (x_1 / alpha_1).double().flatten(1), *ends, self.tolerance, self.most)
        end = predict.times(0.0)
        probs = predict.guess(predict.clear((y.view_as(x_1) * alpha_0).float(), end), end)
        predict.show(probs)
        return probs
