"""Control without retraining: a property that texts shall have, told to a model token by token.

By Bayes' rule for one token, all else as the network sees it,

    log p(w_i = v | x_t, y) = log p(w_i = v | x_t) + log p(y | x_t, w_i = v) + constant              (1)

so a control y is one more term on the logits, with a weight; several add up. Nothing is summed or
averaged over the batch: every text is steered alone. `steering.py` puts controls around a denoiser.

Legend: B batch, M tokens of the whole text so far, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.tokenizer import Tokenizer

FLOOR = 1e-30  # least probability of what is asked for: finite, and small words' beginnings stay above


@dataclass
class View:
    """What a control sees at one step: the whole text, from its first token.

    Attributes:
        probs: `(B, M, V)` of every token; one-hot where given, zero on padding.
        valid: `(B, M)` bool, False = padding, on the right.
        x_t, t: the process's state and times of the part that is being written.
    """

    probs: Tensor
    valid: Tensor
    x_t: Tensor
    t: Tensor


class Control(ABC):
    """A property y that the text shall have.

    Args:
        weight: w of this control; 1 is Bayes' rule, more insists.
    """

    shift = False  # moves the clean mean, not the logits

    def __init__(self, weight: float = 1.0) -> None:
        if not math.isfinite(weight):
            raise ValueError(f"control: a weight must be a finite number, not {weight}")
        self.weight = weight

    def bind(self, tokenizer: Tokenizer) -> None:
        """Learn the tokens of the model that is steered."""
        return

    def least(self, given: Tensor) -> Tensor:
        """Tokens, EOS included, that a text needs to have it, `(B,)`, beside `given (B,)` first ones.

        Raises:
            ValueError: the given ones rule it out.
        """
        return given + 1

    @abstractmethod
    def per_token(self, view: View) -> Tensor:
        """log p(y | x_t, w_i = v), `(B, M, V)`, up to a constant a token."""

    def evidence(self, view: View) -> Tensor:
        """log p(y | x_t), `(B,)`, differentiable in `view.probs` or `view.x_t`."""
        raise ValueError(f"control: {type(self).__name__} has no gradient to shift the clean mean by")


class Placed(Control):
    """A property that tokens have by their places alone: the text need not be looked at for it."""

    @abstractmethod
    def at(self, place: Tensor, vocabulary: int) -> Tensor:
        """log p(y | w_i = v) of tokens that stand at `place (B, L)`, `(B, L, V)`, up to a constant."""

    def per_token(self, view: View) -> Tensor:
        place = torch.arange(view.probs.shape[1], device=view.probs.device)
        return self.at(place.expand(view.probs.shape[:2]), view.probs.shape[2])
