"""Reference-free minimum Bayes risk: of several candidates, the one most like the others.

y* = argmax_i 1/(N-1) sum_{j != i} u(y_i, y_j): Kumar & Byrne (NAACL 2004); over a model's own
samples, Eikema & Aziz (COLING 2020; EMNLP 2022, arXiv:2108.04718). Equal candidates vote as often
as they occur. Utilities, 0 to 1, see `metrics.words`: every script counts. The score that served
as utility flatters; report others beside it.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import fsum

from textdiff.metrics import words

_words = lru_cache(maxsize=4096)(words)


def _f1(match: int, hypothesis: list[str], reference: list[str]) -> float:
    return 2 * match / (len(hypothesis) + len(reference)) if match else 0.0


def unigram_f1(hypothesis: str, reference: str) -> float:
    """F1 of the words (ROUGE-1)."""
    h, r = _words(hypothesis), _words(reference)
    return _f1((Counter(h) & Counter(r)).total(), h, r)


def rouge_l(hypothesis: str, reference: str) -> float:
    """F1 of the longest common subsequence; one integer is one table row (Hyyrö, AWOCA 2004)."""
    h, r = _words(hypothesis), _words(reference)
    masks: Counter[str] = Counter()
    for i, token in enumerate(r):
        masks[token] += 1 << i
    full = row = (1 << len(r)) - 1
    for token in h:
        hits = row & masks[token]
        row = (row + hits | row - hits) & full
    return _f1(len(r) - row.bit_count(), h, r)


def bleu(hypothesis: str, reference: str) -> float:
    """Sentence BLEU-4 by sacrebleu, orders 2 to 4 plus one: Lin & Och (COLING 2004, ORANGE)."""
    from sacrebleu import sentence_bleu

    h, r = (" ".join(_words(text)) for text in (hypothesis, reference))
    return sentence_bleu(h, [r], smooth_method="add-k", tokenize="none").score / 100


UTILITIES = {"rougeL": rouge_l, "bleu": bleu, "unigram_f1": unigram_f1}


def mbr(candidates: Sequence[str], utility: str = "rougeL") -> int:
    """Index of the candidate of highest mean utility against the others; of equals the first."""
    if isinstance(candidates, str) or not candidates:
        raise ValueError("MBR needs a list of at least one candidate")
    if utility not in UTILITIES:
        raise ValueError(f"utility {utility!r} is unknown; choose one of {', '.join(UTILITIES)}")
    u, votes = UTILITIES[utility], Counter(candidates)
    # fsum rounds once: the gains, and so the choice, do not depend on the candidates' order.
    gain = {h: fsum((m - (h == r)) * u(h, r) for r, m in votes.items()) for h in votes}
    return max(range(len(candidates)), key=lambda i: gain[candidates[i]])


def rerank(groups: Sequence[Sequence[str]], utility: str = "rougeL") -> list[str]:
    """The chosen text of every group of candidates."""
    return [group[mbr(group, utility)] for group in groups]
