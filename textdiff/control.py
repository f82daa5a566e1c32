"""Control without retraining: words that must or must not occur, and any classifier.

By Bayes' rule for one token, all else as the network sees it,

    log p(w_i = v | x_t, y) = log p(w_i = v | x_t) + log p(y | x_t, w_i = v) + constant              (1)

so a control y is one more term on the logits, with a weight; several add up. `Contain`, `Avoid` and
`WordAt` know the last probability in closed form for tokens that are independent given x_t (token logic:
Plaid, Gulrajani and Hashimoto 2023, arXiv:2305.18619, section 5); it is exact for words of one token, and
takes the places of a longer word as independent. A classifier f(p) = log p(y | p) on token
probabilities p gives it to first order, by its gradient

    log p(y | x_t, w_i = v) = f(p) + df/dp_i . (e_v - p_i)                                            (2)

and a score of finished texts by texts drawn from p. `steering.py` puts controls around a denoiser.
Nothing is summed or averaged over the batch: every text is steered alone.

Legend: B batch, M tokens of the whole text so far, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.tokenizer import Tokenizer

FLOOR = 1e-30  # least probability of what is asked for: finite, and small words' beginnings stay above
SURE = 1 - 1e-12  # most probability of a word: its absence stays possible
Score = Callable[[list[str]], Sequence[float]]


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
        self.weight = weight

    def bind(self, tokenizer: Tokenizer) -> None:
        """Learn the tokens of the model that is steered."""
        return

    def check(self, length: Tensor) -> None:
        """Refuse what texts of `length (B,)` tokens cannot have.

        Raises:
            ValueError: in words for users.
        """
        return

    @abstractmethod
    def per_token(self, view: View) -> Tensor:
        """log p(y | x_t, w_i = v), `(B, M, V)`, up to a constant a token."""

    def evidence(self, view: View) -> Tensor:
        """log p(y | x_t), `(B,)`, differentiable in `view.probs` or `view.x_t`."""
        raise ValueError(f"control: {type(self).__name__} has no gradient to shift the clean mean by")


class Words(Control):
    """Words, any of which counts; each is a sequence of tokens."""

    def __init__(self, words: str | Sequence[str], weight: float = 1.0) -> None:
        super().__init__(weight)
        self.words = [words] if isinstance(words, str) else list(words)
        if not self.words or not all(word.strip() for word in self.words):
            raise ValueError(f"control: give words that are not empty, not {words!r}")

    def bind(self, tokenizer: Tokenizer) -> None:
        self.ids = tokenizer.encode(self.words)

    def absent(self, view: View) -> Tensor:
        """log p(none of the words occurs | x_t, w_i = v), `(B, M, V)`.

        A word stands at j with q_j = prod_r p_{j+r}(a_r); given w_i = v, windows over i are certain in
        that factor or impossible.
        """
        total = torch.zeros_like(view.probs)
        for ids in self.ids:
            total = total + absent(view.probs, ids)
        return total


def absent(probs: Tensor, ids: list[int]) -> Tensor:
    """The same for one sequence of tokens; places of the text that it would leave do not count."""
    size, length = len(ids), probs.shape[1]
    windows = length - size + 1
    if windows < 1:
        return torch.zeros_like(probs)
    parts = [probs[:, r : r + windows, ids[r]] for r in range(size)]
    factors = torch.stack(parts, -1).double()  # (B, J, size); of rare words, whose differences count
    log_free = torch.log1p(-factors.prod(-1).clamp(max=SURE))  # of every window
    over = sum(F.pad(log_free, (r, size - 1 - r)) for r in range(size))  # of all windows over a place
    out = (log_free.sum(1, keepdim=True) - over)[..., None].expand_as(probs).to(probs).clone()
    for r, token in enumerate(ids):
        others = factors[..., [k for k in range(size) if k != r]].prod(-1)
        certain = torch.log1p(-others.clamp(max=SURE))  # of window j if w_{j+r} is its token
        out[..., token] += F.pad(certain, (r, size - 1 - r)).to(out)
    return out


class Contain(Words):
    """At least one of the words occurs."""

    def per_token(self, view: View) -> Tensor:
        return (-torch.expm1(self.absent(view))).clamp(min=FLOOR).log()

    def check(self, length: Tensor) -> None:
        shortest = min(self.ids, key=len)
        if length.min() <= len(shortest):
            raise ValueError(
                f"control: {self.words} needs {len(shortest)} tokens and EOS, but a text has "
                f"{int(length.min())}; ask for a longer text by length="
            )


class Avoid(Words):
    """None of the words occurs."""

    def per_token(self, view: View) -> Tensor:
        return self.absent(view)


class WordAt(Control):
    """A word at a place.

    Args:
        word: what. place: token, from 0, at which it begins.
    """

    def __init__(self, word: str, place: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not word.strip() or place < 0:
            raise ValueError(f"control: give a word and a place from 0, not {word!r} at {place}")
        self.word, self.place = word, place

    def bind(self, tokenizer: Tokenizer) -> None:
        (self.ids,) = tokenizer.encode([self.word])

    def check(self, length: Tensor) -> None:
        if length.min() <= self.place + len(self.ids):
            raise ValueError(
                f"control: {self.word!r} at token {self.place} does not fit a text of "
                f"{int(length.min())} tokens, EOS included; ask for a longer one by length="
            )

    def per_token(self, view: View) -> Tensor:
        out = torch.zeros_like(view.probs)
        for r, token in enumerate(self.ids[: max(0, out.shape[1] - self.place)]):
            out[:, self.place + r] = torch.log(torch.tensor(FLOOR))
            out[:, self.place + r, token] = 0.0
        return out


class Classifier(Control):
    """A differentiable classifier of token probabilities, by equation (2).

    Args:
        log_prob: `probs (B, M, V)`, `valid (B, M)` -> log p(y | probs), `(B,)`.
        shift: move the clean mean instead of the logits.
    """

    def __init__(
        self, log_prob: Callable[[Tensor, Tensor], Tensor], weight: float = 1.0, *, shift: bool = False
    ) -> None:
        super().__init__(weight)
        self.log_prob, self.shift = log_prob, shift

    def per_token(self, view: View) -> Tensor:
        with torch.enable_grad():
            free = replace(view, probs=view.probs.detach().requires_grad_())
            (slope,) = torch.autograd.grad(self.evidence(free).sum(), free.probs)
        return slope - (slope * view.probs).sum(-1, keepdim=True)

    def evidence(self, view: View) -> Tensor:
        return self.log_prob(view.probs, view.valid)


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
        scores = torch.tensor(list(self.score(self.tokenizer.decode(rows))), dtype=torch.float32)
        scores = scores.view(self.samples, -1, 1).to(view.probs.device)
        weight = torch.exp(scores - scores.amax(0)).expand(drawn.shape)  # p(y | text), scaled
        ones = torch.zeros_like(view.probs)
        sums = ones.clone()
        for some, one in zip(drawn, weight, strict=True):
            ones.scatter_add_(2, some[..., None], torch.ones_like(one)[..., None])
            sums.scatter_add_(2, some[..., None], one[..., None])
        mean = weight.mean(0)[..., None]
        return ((sums + mean) / (ones + 1)).clamp(min=FLOOR).log()

    def draw(self, probs: Tensor) -> Tensor:
        """Texts `(N, B, M)`, by strata: at every place the N draws cover its distribution evenly."""
        generator = torch.Generator().manual_seed(0)
        places = [torch.randperm(self.samples, generator=generator) for _ in range(probs.shape[1])]
        u = (torch.stack(places, 1).to(probs.device) + 0.5) / self.samples  # (N, M)
        cumulative = probs.cumsum(-1)
        target = u.T[None] * cumulative[..., -1:]  # (B, M, N)
        drawn = torch.searchsorted(cumulative, target.contiguous(), right=True)
        return drawn.clamp(max=probs.shape[-1] - 1).permute(2, 0, 1)
