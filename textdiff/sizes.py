"""Sizes that a user would otherwise have to guess, chosen from the training texts."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

SEEN = 20  # times that a word must occur to be worth a token of its own
FEWEST, MOST = 512, 8192  # tokens of a vocabulary
UNSPACED = 12  # characters a word from which a text is one without spaces between words
ENOUGH = 0.99  # share of the texts that fit
STEP = 8  # lengths are multiples of it
# the longest texts in training, unless the user asks for more: cost grows with them
LONGEST = {("source", "none"): STEP, ("source", "cross"): 1024, ("source", "prefix"): 256}
LONGEST |= {("target", "none"): 64, ("target", "cross"): 256, ("target", "prefix"): 128}
EPOCHS, SHORTEST, LONG = 50, 1000, 10_000  # of training; the last two in steps
LEAST, MANY = 16, 64  # examples of a batch
TOKENS = 2**14  # of a batch, sources and targets, as long as it is not the smallest


def vocabulary(texts: Iterable[str]) -> int:
    """Tokens of a tokenizer: as many as there are words that occur `SEEN` times, within bounds."""
    counts = Counter(unit for text in texts for unit in units(text))
    return min(MOST, max(FEWEST, sum(count >= SEEN for count in counts.values())))


def units(text: str) -> Iterator[str]:
    """Words; where nothing stands between them (Chinese, Thai, ...) characters and pairs of them."""
    words = text.split()
    if len(text) < UNSPACED * len(words):
        yield from words
    else:
        yield from text
        yield from map("".join, pairwise(text))


def length(lengths: Sequence[int], most: int) -> int:
    """A length that all but one in a hundred texts fit into, at least `STEP` and at most `most`."""
    ranked = sorted(lengths)
    fits = ranked[math.ceil(ENOUGH * len(ranked)) - 1]
    return min(most, max(STEP, -(-fits // STEP) * STEP))


def batch(longest: int) -> int:
    """Examples of a batch, by the tokens of the longest: time and memory of a step grow with both."""
    return max(LEAST, min(MANY, TOKENS // longest))


def steps(epoch: int | None) -> int:
    """Steps of training, from those of an epoch; None = a stream without an end."""
    return LONG if epoch is None else min(LONG, max(SHORTEST, EPOCHS * epoch))
