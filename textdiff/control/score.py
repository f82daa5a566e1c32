"""Any score of finished texts as a control: no gradient is needed.

p(y | x_t, w_i = v) is about the mean of p(y | text) over texts with w_i = v, drawn from p(w | x_t)
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from textdiff.control.control import FLOOR, Control, View
from textdiff.tokenizer import Tokenizer

Score = Callable[[list[str]], Sequence[float]]
LEAST = -1e4  # scores below, -inf too, count as this


class TextScore(Control):
    """Any score of finished texts, differentiable or not.

    p(y | w_i = v) is the mean of p(y | text) over texts drawn from the token probabilities that have v at
    i, pulled towards the mean of all by one text's weight. The draws do not depend on the batch.

    Args:
        score: texts -> log p(y | text), one each.
        samples: texts drawn a step.
    """

    def __init__(self, score: Score, weight: float = 1.0, *, samples: int = 32) -> None:
        super().__init__(weight)
        if samples < 2:
            raise ValueError(f"control: samples must be at least 2, not {samples}")
        self.score, self.samples = score, samples

    def bind(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def per_token(self, view: View) -> Tensor:
        drawn = self.draw(view.probs)  # (N, B, M)
        length = view.valid.sum(1).tolist()
        rows = [text[:n] for texts in drawn.tolist() for text, n in zip(texts, length, strict=True)]
        scores = self.scores(self.tokenizer.decode(rows)).view(self.samples, -1, 1).to(view.probs.device)
        weight = torch.exp(scores - scores.amax(0)).expand(drawn.shape)  # p(y | text), scaled
        ones = torch.zeros_like(view.probs)
        sums = ones.clone()
        for some, one in zip(drawn, weight, strict=True):
            ones.scatter_add_(2, some[..., None], torch.ones_like(one)[..., None])
            sums.scatter_add_(2, some[..., None], one[..., None])
        mean = weight.mean(0)[..., None]
        return ((sums + mean) / (ones + 1)).clamp(min=FLOOR).log()

    def scores(self, texts: list[str]) -> Tensor:
        """The scores of `texts`, finite."""
        try:
            values = [float(value) for value in self.score(texts)]
        except TypeError as error:
            raise ValueError(f"control: a score must be one number a text ({error})") from None
        if len(values) != len(texts) or any(math.isnan(value) or value == math.inf for value in values):
            raise ValueError(
                f"control: a score must be one number a text, not nan and not above all; {len(texts)} "
                f"texts gave {len(values)} values, {values[:3]} ..."
            )
        return torch.tensor(values).clamp(min=LEAST)

    def draw(self, probs: Tensor) -> Tensor:
        """Texts `(N, B, M)`, by strata: at every place the N draws cover its distribution evenly."""
        generator = torch.Generator().manual_seed(0)
        places = [torch.randperm(self.samples, generator=generator) for _ in range(probs.shape[1])]
        u = (torch.stack(places, 1).to(probs.device) + 0.5) / self.samples  # (N, M)
        cumulative = probs.cumsum(-1)
        target = u.T[None] * cumulative[..., -1:]  # (B, M, N)
        drawn = torch.searchsorted(cumulative, target.contiguous(), right=True)
        return drawn.clamp(max=probs.shape[-1] - 1).permute(2, 0, 1)
