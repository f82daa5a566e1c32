"""Two other ways to hold tokens given, for models that were not trained with clean ones.

`Replacing` shows them noisy, like all others, as NCSN and score SDEs do for images: open tokens see the
noise and not the words, so what they become does not fit the words exactly, however many steps there are.
`Resampling` goes back and forth at every step to lessen that (RePaint, Lugmayr et al. 2022,
arXiv:2201.09865, algorithm 1).
"""

from copy import copy

import torch
from torch import Tensor

from textdiff.process import keep
from textdiff.sampler.sampler import Predict, Sampler
from textdiff.schedule import Schedule


class Replacing(Predict):
    """The network is told nothing of given tokens: they have the time and the noise of all others."""

    def hold(self, ids: Tensor, mask: Tensor) -> None:
        self.given = ~mask & self.valid
        super().hold(ids, self.valid)

    def clear(self, x_t: Tensor, t: Tensor) -> Tensor:
        noisy = self.process.corrupt(self.process.encode(self.ids), t, self.noise)
        return super().clear(keep(self.given, noisy, x_t), t)

    def answer(self, probs: Tensor) -> Tensor:
        return torch.where(self.given, self.ids, super().answer(probs))


class Resampling(Sampler):
    """Every step of another sampler several times, with noise added in between.

    A multistep solver begins anew after it: what it remembers was predicted on the way to another state.

    Args:
        sampler: whose steps they are; its `steps` count network evaluations of all together.
        repeats: how often each is made; 1 = the sampler itself.
    """

    def __init__(self, sampler: Sampler, repeats: int = 5) -> None:
        super().__init__(sampler.steps)
        if repeats < 1:
            raise ValueError(f"repaint: repeats must be at least 1, not {repeats}")
        self.sampler, self.repeats = sampler, min(repeats, max(1, sampler.steps - 1))
        self.cost = self.repeats * sampler.cost
        self.gaussian, self.draws, self.shifts = sampler.gaussian, sampler.draws, sampler.shifts

    def times(self, schedule: Schedule) -> Tensor:
        """As even as the sampler's, but fewer."""
        alike = copy(self.sampler)
        alike.steps = (self.steps - 1) // self.repeats + 1
        return alike.times(schedule)

    def step(
        self, predict: Predict, x_t: Tensor, t: Tensor, s: Tensor, history: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        for i in range(self.repeats):
            x_s, history = self.sampler.step(predict, x_t, t, s, history)
            if i + 1 < self.repeats:
                back = predict.process.renoise(predict.clear(x_s, s), s, t, predict.noise)
                x_t, history = predict.clear(back, t), []
        return x_s, history


# how tokens are held given, and what goes around a sampler for it
GIVEN: dict[str, tuple[type[Predict], type[Resampling] | None]] = {
    "conditional": (Predict, None),
    "replace": (Replacing, None),
    "repaint": (Replacing, Resampling),
}
