"""Words that must or must not occur (token logic: Plaid, Gulrajani and Hashimoto 2023, arXiv:2305.18619,
section 5).

With tokens that are independent given x_t, e_j = p_j(EOS) and a_j = prod_r p_{j+r}(a_r) for a word of
tokens a_0 ... a_{m-1} that starts at j, a scan from left to right finds the word, ends or goes on, and
is worth from j on

    T_j = W a_j + E e_j + (1 - e_j - a_j) T_{j+1},    E after the last token                           (1)

with W = 1, E = 0 for the probability that the word occurs before the end. For that of none W = 0, E = 1,
and there is no end, e_j = 0: a word is not let through behind an EOS that may not be drawn.
Given w_i = v, e_i and the a_j over i are others. That is exact for words of one token, several of them
together included; starts of a longer word share tokens, and are taken as independent.

A word is the tokens that its text has at the start of a text and after a space (`Avoid`: also capitalised
and after a bracket). Tokens know no ends of words: "art" also occurs in "artist".
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.control.control import FLOOR, Control, Placed, View
from textdiff.tokenizer import Tokenizer

SURE = 1 - 1e-6  # a word of more probability is there
NEVER = math.log(FLOOR)
Pattern = list[list[int]]  # for every place the tokens of which any will do


def spelled(tokenizer: Tokenizer, word: str, context: str) -> list[int]:
    """Tokens of `word` right after `context`."""
    before, both = tokenizer.encode([context, context + word])
    joined = both[: len(before)] == before and len(both) > len(before)
    return both[len(before) :] if joined else tokenizer.encode([word])[0]


def in_text(tokenizer: Tokenizer, word: str) -> list[int]:
    """Tokens of `word` after another word and a space."""
    return spelled(tokenizer, f" {word}", "a")


def patterns(forms: Sequence[list[int]]) -> list[Pattern]:
    """All forms without repetition, those of one token as one pattern."""
    known = [*dict.fromkeys(tuple(ids) for ids in forms)]
    single = [ids[0] for ids in known if len(ids) == 1]
    long = [[[token] for token in ids] for ids in known if len(ids) > 1]
    return ([[single]] if single else []) + long


class Words(Control):
    """Words, any of which counts."""

    def __init__(self, words: str | Sequence[str], weight: float = 1.0) -> None:
        super().__init__(weight)
        self.words = [words] if isinstance(words, str) else list(words)
        if not self.words or not all(word.strip() for word in self.words):
            raise ValueError(f"control: give words that are not empty, not {words!r}")

    def forms(self, tokenizer: Tokenizer, word: str) -> list[list[int]]:
        """All ways in which `word` can be spelled."""
        return [*tokenizer.encode([word]), in_text(tokenizer, word)]

    def bind(self, tokenizer: Tokenizer) -> None:
        self.spellings = [ids for word in self.words for ids in self.forms(tokenizer, word)]
        self.patterns, self.eos_id = patterns(self.spellings), tokenizer.eos_id


def told(probs: Tensor, pattern: Pattern, eos_id: int, wanted: bool) -> Tensor:
    """p(the pattern occurs before the end, if `wanted`, else nowhere | x_t, w_i = v), `(B, M, V)`.

    By equation (1) in float64, as sums of what is small: rare words ask for little, but must ask.
    """
    size, length = len(pattern), probs.shape[1]
    count, worth, end_worth = length - size + 1, float(wanted), float(not wanted)
    if count < 1:
        return torch.full_like(probs, end_worth)
    parts = [probs[:, r : r + count, tokens].sum(-1) for r, tokens in enumerate(pattern)]
    factors, end = torch.stack(parts, -1).double(), worth * probs[..., eos_id].double()
    start = F.pad(factors.prod(-1), (0, size - 1))
    if not wanted:
        start = start.masked_fill(start > SURE, 0.0)  # what stands there already is past avoiding
    on, now = (1 - end - start).clamp(min=0), worth * start + end_worth * end
    reached = F.pad(on.cumprod(1), (1, 0), value=1.0)[:, :-1]  # the scan comes to j
    before = F.pad((reached * now).cumsum(1), (1, 0))[:, :-1]  # or was over before
    later = [torch.full_like(end[:, 0], end_worth)]  # T_{i+1}
    for j in range(length - 1, 0, -1):
        later.append(now[:, j] + on[:, j] * later[-1])
    later = torch.stack(later[::-1], 1)
    lives = F.pad((1 - end).clamp(min=FLOOR).log().cumsum(1), (1, 0))

    def past(low: Tensor, high: Tensor, then: Tensor) -> Tensor:
        """Worth where the word starts nowhere from `low` to before `high (M,)`, and `then` follows."""
        alive = (lives[:, high] - lives[:, low]).exp()
        return end_worth * (1 - alive) + alive * then

    place = torch.arange(length, device=probs.device)
    first = (place - size + 1).clamp(min=0)  # of the starts over i
    before, reached = before[:, first], reached[:, first]
    other = before + reached * past(first, place, later)  # w_i is neither of the pattern nor EOS
    out = other.to(probs)[..., None].repeat(1, 1, probs.shape[-1])
    if wanted:
        out[..., eos_id] = before.to(probs)
    for r, tokens in enumerate(pattern):
        begin = (place - r).clamp(0, count - 1)
        rest = factors[..., [k for k in range(size) if k != r]].prod(-1)[:, begin]
        ends = end[:, begin] if r else torch.zeros_like(rest)
        go = (1 - ends - rest).clamp(min=0) * past(torch.minimum(begin + 1, place), place, later)
        right = before + reached * past(first, begin, worth * rest + end_worth * ends + go)
        gain = torch.where(begin == place - r, right - other, 0.0)
        out[..., tokens] += gain.to(out)[..., None]
    return out


class Contain(Words):
    """At least one of the words occurs, in a text written in blocks by the end of the block at hand."""

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"

    @property
    def size(self) -> int:
        """Tokens of the shortest of the words."""
        return min(map(len, self.patterns))

    def least(self, given: Tensor) -> Tensor:
        return given + self.size + 1

    def per_token(self, view: View) -> Tensor:
        absent = torch.zeros_like(view.probs, dtype=torch.float64)
        for pattern in self.patterns:
            absent += torch.log1p(-told(view.probs, pattern, self.eos_id, True).double().clamp(max=SURE))
        return (-torch.expm1(absent)).clamp(min=FLOOR).log().to(view.probs)


class Avoid(Words):
    """None of the words occurs, but where it stands already."""

    def forms(self, tokenizer: Tokenizer, word: str) -> list[list[int]]:
        big = word[:1].upper() + word[1:]
        spellings = [form for one in (word, big) for form in super(Avoid, self).forms(tokenizer, one)]
        return [*spellings, spelled(tokenizer, word, "a ("), spelled(tokenizer, word, 'a "')]

    def per_token(self, view: View) -> Tensor:
        out = torch.zeros_like(view.probs)
        for pattern in self.patterns:
            out += told(view.probs, pattern, self.eos_id, False).clamp(min=FLOOR).log()
        return out


def unended(place: Tensor, least: int, eos_id: int, vocabulary: int) -> Tensor:
    """`(B, L, V)`: no EOS at those of `place (B, L)` before `least`, all else alike."""
    out = place.new_zeros((*place.shape, vocabulary), dtype=torch.float32)
    out[..., eos_id] = NEVER * (place < least)
    return out


class WordAt(Placed):
    """A word at a place.

    Args:
        word: what. place: token, from 0, at which it begins.
    """

    def __init__(self, word: str, place: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not word.strip() or place < 0:
            raise ValueError(f"control: give a word and a place from 0, not {word!r} at {place}")
        self.word, self.place = word, place

    def __str__(self) -> str:
        return f"{self.word!r} at token {self.place}"

    def bind(self, tokenizer: Tokenizer) -> None:
        self.ids = in_text(tokenizer, self.word) if self.place else tokenizer.encode([self.word])[0]
        self.eos_id = tokenizer.eos_id

    def least(self, given: Tensor) -> Tensor:
        if (given > self.place).any():
            raise ValueError(f"control: {self} lies within a prompt of {int(given.max())} tokens")
        return torch.full_like(given, self.place + len(self.ids) + 1)

    def at(self, place: Tensor, vocabulary: int) -> Tensor:
        out = unended(place, self.place, self.eos_id, vocabulary)
        token = torch.arange(vocabulary, device=place.device)
        for r, own in enumerate(self.ids):
            other = (place == self.place + r)[..., None] & (token != own)
            out = out.masked_fill(other, NEVER)
        return out


class AtLeast(Placed):
    """A text does not end before so many tokens.

    Args:
        tokens: how many, EOS not counted.
    """

    def __init__(self, tokens: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        if tokens < 1:
            raise ValueError(f"control: a text of at least {tokens} tokens is any; give 1 or more")
        self.tokens = tokens

    def __str__(self) -> str:
        return f"a text of at least {self.tokens} tokens"

    def bind(self, tokenizer: Tokenizer) -> None:
        self.eos_id = tokenizer.eos_id

    def least(self, given: Tensor) -> Tensor:
        return torch.full_like(given, self.tokens + 1)

    def at(self, place: Tensor, vocabulary: int) -> Tensor:
        return unended(place, self.tokens, self.eos_id, vocabulary)
