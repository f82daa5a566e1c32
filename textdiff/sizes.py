"""Sizes that a user would otherwise have to guess, chosen from the training texts."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

SEEN = 20  # times that a word must occur to be worth a token of its own
FEWEST, MOST = 512, 8192  # tokens of a vocabulary
ENOUGH = 0.99  # share of the texts that fit
STEP = 8  # lengths are multiples of it
# the longest texts in training, unless the user asks for more: cost grows with them
LONGEST = {("source", "none"): STEP, ("source", "cross"): 1024, ("source", "prefix"): 256}
LONGEST |= {("target", "none"): 64, ("target", "cross"): 256, ("target", "prefix"): 128}


def vocabulary(texts: Iterable[str]) -> int:
    """Tokens of a tokenizer: as many as there are words that occur `SEEN` times, within bounds."""
    counts = Counter(word for text in texts for word in text.split())
    return min(MOST, max(FEWEST, sum(count >= SEEN for count in counts.values())))


def length(lengths: Sequence[int], most: int) -> int:
    """A length that all but one in a hundred texts fit into, at least `STEP` and at most `most`."""
    ranked = sorted(lengths)
    fits = ranked[math.ceil(ENOUGH * len(ranked)) - 1]
    return min(most, max(STEP, -(-fits // STEP) * STEP))
