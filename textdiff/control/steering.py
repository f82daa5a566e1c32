"""Wrappers of a denoiser that follow controls, with its own signature.

`Steered` adds log p(y | x_t, w_i = v) to the logits (`control.py`, equation 1). `Shifted` moves the clean
mean instead,

    E[x_0 | x_t, y] = E[x_0 | x_t] + (sigma_t^2 / alpha_t) grad log p(y | x_t)                        (1)

exact for the exact classifier (classifier guidance, Dhariwal and Nichol 2021, arXiv:2105.05233, eq. 10;
on text, Diffusion-LM, Li et al. 2022, arXiv:2205.14217, section 5.1), which token logits cannot express
in general.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from textdiff.control.control import Control, Placed, View
from textdiff.control.words import Avoid, Contain, WordAt
from textdiff.decoder import one_hot
from textdiff.denoiser import Wrapper
from textdiff.packing import pick
from textdiff.process import Gaussian, Seen
from textdiff.sampler import Sampler
from textdiff.transformer import Context


class Watched(Wrapper):
    """What both ways of steering share: the view of a text, its part before a block included."""

    def __init__(self, denoiser: nn.Module, controls: Sequence[Control]) -> None:
        super().__init__(denoiser)
        self.controls = controls

    def remember(
        self, ids: Tensor, valid: Tensor, context: Context | None, window: Tensor | None = None
    ) -> tuple[object, Tensor, Tensor]:
        """The denoiser's own past, and what controls see: all of it."""
        return self.denoiser.remember(ids, valid, context, window), ids, valid

    def ask(self, x_t: Tensor, t: Tensor, past: object, **inputs: Tensor | None) -> Tensor:
        """The denoiser's logits."""
        own = {} if past is None else {"past": past[0]}
        return self.denoiser(x_t, t, **own, **inputs).float()

    def look(
        self, logits: Tensor, x_t: Tensor, t: Tensor, past: object, mask: Tensor, valid: Tensor
    ) -> View:
        """The view of the whole text."""
        probs = torch.softmax(logits, -1)
        known = one_hot(self.process.round(x_t), probs)
        probs = torch.where(mask[..., None], probs, known) * valid[..., None]
        if past is not None:
            _, ids, before = past
            joined = torch.cat([one_hot(ids, probs) * before[..., None], probs], 1)
            valid = torch.cat([before, valid], 1)
            order = (~valid).long().argsort(dim=1, stable=True)  # no gap before the block
            probs = joined.gather(1, order[..., None].expand_as(joined))
            valid = valid.gather(1, order)
        return View(probs, valid, x_t, t)


def full(x_t: Tensor) -> torch.autocast:
    """Float32 arithmetic, whatever the denoiser computes in."""
    return torch.autocast(x_t.device.type, enabled=False)


def least_length(controls: Sequence[Control], given: Tensor) -> Tensor:
    """Tokens `(B,)`, EOS included, with room for all controls after `given (B,)` first ones."""
    wanted = {tuple(sorted(one.words)): one.size for one in controls if isinstance(one, Contain)}
    room = given + sum(wanted.values()) + 1
    return torch.stack([room, *(control.least(given) for control in controls)]).amax(0)


def refuse_short(controls: Sequence[Control], given: Tensor, length: Tensor) -> None:
    """Refuse texts of `length (B,)` tokens too short for one of the controls; several may overlap."""
    for control in controls:
        least = control.least(given)
        for n, most in zip(least.tolist(), length.tolist(), strict=True):
            if n > most:
                raise ValueError(
                    f"control: {control} needs {n} tokens, EOS included, but a text has {most}; ask for "
                    "a longer one by length="
                )


def refuse_contradictions(controls: Sequence[Control]) -> None:
    """Refuse words that must occur and must not, and two words at one place."""
    barred = [ids for control in controls if isinstance(control, Avoid) for ids in control.spellings]
    wanted = [(control, control.spellings) for control in controls if isinstance(control, Contain)]
    placed = [control for control in controls if isinstance(control, WordAt)]
    for control, spellings in [*wanted, *((control, [control.ids]) for control in placed)]:
        if all(any(holds(ids, bad) for bad in barred) for ids in spellings):
            raise ValueError(f"control: {control} must occur and must not; drop one of the two")
    stands: dict[int, int] = {}
    for control in placed:
        for place, token in enumerate(control.ids, control.place):
            if stands.setdefault(place, token) != token:
                raise ValueError(f"control: {control} stands where another word is to stand")


def holds(ids: list[int], part: list[int]) -> bool:
    """Whether the tokens `part` occur in `ids`, next to each other."""
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


def steer(denoiser: nn.Module, controls: Sequence[Control], sampler: Sampler) -> nn.Module:
    """`denoiser` under controls that are bound; itself without any.

    Raises:
        ValueError: controls that contradict each other or that the sampler cannot follow.
    """
    refuse_contradictions(controls)
    moved = [control for control in controls if control.shift]
    if moved and not sampler.shifts:
        raise ValueError(
            "control: a shift of the clean mean needs a sampler that steps from it, such as ancestral"
        )
    denoiser = Shifted(denoiser, moved) if moved else denoiser
    told = [control for control in controls if not control.shift]
    return Steered(denoiser, told) if told else denoiser


class Steered(Watched):
    """A denoiser whose logits follow controls.

    Args:
        denoiser: a `Denoiser` or a wrapper of one.
        controls: bound to its tokenizer.
    """

    def __init__(self, denoiser: nn.Module, controls: Sequence[Control]) -> None:
        super().__init__(denoiser, [one for one in controls if not isinstance(one, Placed)])
        self.placed = [one for one in controls if isinstance(one, Placed)]

    def places(self, past: object, valid: Tensor) -> Tensor:
        """Where in the whole text `(B, L)` the tokens of `valid (B, L)` stand."""
        place = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
        return place if past is None else past[2].sum(1, keepdim=True) + place

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        past: object = None,
        seen: Seen | None = None,
        only: Tensor | None = None,
        **inputs: Tensor | None,
    ) -> Tensor:
        part = None if self.controls else only  # who judges a text needs all of it
        seen = None if self.controls else seen
        logits = self.ask(x_t, t, past, seen=seen, only=part, **inputs)
        place = pick(self.places(past, inputs["valid"]), part)
        with full(x_t):
            told = [control.weight * control.at(place, logits.shape[-1]) for control in self.placed]
            if self.controls:  # only they need the whole text, which blocks make long
                view = self.look(logits, x_t, t, past, inputs["mask"], inputs["valid"])
                index = place.clamp(max=view.valid.shape[1] - 1)[..., None].expand_as(logits)  # padding
                for control in self.controls:
                    told.append(control.weight * control.per_token(view).gather(1, index))
        logits = logits + sum(told)
        return pick(logits, only) if self.controls else logits


class Shifted(Watched):
    """A denoiser that also says where controls want the clean mean, equation (1), in `shift`.

    Only classifiers can do that, on Gaussian processes and with samplers that step from the mean, such as
    `ancestral`; it costs a backward pass a step.

    Args:
        denoiser: a `Denoiser` or a wrapper of one.
        controls: with `evidence`.
    """

    def __init__(self, denoiser: nn.Module, controls: Sequence[Control]) -> None:
        super().__init__(denoiser, controls)
        if not isinstance(self.process, Gaussian):
            raise ValueError("control: a shift of the clean mean needs a Gaussian process")
        self.moved: Tensor | None = None

    @property
    def shift(self) -> Tensor | None:
        return self.moved

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        past: object = None,
        seen: Seen | None = None,
        only: Tensor | None = None,
        **inputs: Tensor | None,
    ) -> Tensor:
        with torch.enable_grad():  # through what is seen, so that it is seen anew
            free = x_t.detach().requires_grad_()
            logits = self.ask(free, t, past, **inputs)
            with full(x_t):
                view = self.look(logits, free, t, past, inputs["mask"], inputs["valid"])
                value = sum(control.weight * control.evidence(view) for control in self.controls)
                (slope,) = torch.autograd.grad(value.sum(), free)
        alpha, sigma = self.process.schedule(t[..., None])
        self.moved = sigma**2 / alpha * slope * inputs["mask"][..., None]
        return pick(logits.detach(), only)
