"""Scores of generated text: strings in, floats out, 0 to 100 where a docstring names no unit.

ROUGE: Lin (2004, Text Summarization Branches Out), F1 of n-grams (1, 2), of the longest common
subsequence (L) and of its union over sentences (Lsum), by `rouge-score`. BLEU: Papineni et al.
(ACL 2002), by `sacrebleu` (Post, WMT 2018). Bootstrap: Efron (1979); paired: Koehn (EMNLP 2004).
Distinct-n: Li et al. (NAACL 2016). Self-BLEU: Zhu et al. (Texygen, SIGIR 2018). Memorisation:
Lovelace et al. (LD4LG, arXiv:2212.09462). Distinct-n, entropy and self-BLEU depend on the amount
of text: compare them at equal numbers of texts only.

Tokenizers. "default": rouge-score's own, lower-cased runs of [a-z0-9], comparable with published
figures but blind to other scripts, which score 0. "unicode": runs of letters, marks and digits of
any script (NFKC, case-folded), Chinese, Japanese and Korean one character at a time; on ASCII text
equal to "default". "characters": for other scripts without spaces (Thai, Lao, Khmer). BLEU then
uses sacrebleu's "13a", "zh", "char"; all other scores count "unicode" words. `tokenizer_for` chooses
where nobody is asked.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from itertools import chain, zip_longest
from math import log2
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np

Texts = Sequence[str]
References = Sequence[str | Texts]
Tokenize = Callable[[str], list[str]]
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ROUGE_SCORER = f"rouge-score {version('rouge-score')}"
UNSPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"  # Thai, Lao, Burmese, Khmer
BLEU_SCORER = f"sacrebleu {version('sacrebleu')}"


@cache
def _spaced(character: str) -> str:
    if unicodedata.category(character)[0] not in "LMN":
        return " "
    return f" {character} " if unicodedata.east_asian_width(character) == "W" else character


def words(text: str) -> list[str]:
    """The "unicode" tokens of a text."""
    return "".join(map(_spaced, unicodedata.normalize("NFKC", text).casefold())).split()


def characters(text: str) -> list[str]:
    """Every letter, mark and digit of a text."""
    return list("".join(words(text)))


TOKENIZERS: dict[str, tuple[Tokenize | None, str]] = {
    "default": (None, "13a"),
    "unicode": (words, "zh"),
    "characters": (characters, "char"),
}


def tokenizer_for(references: References) -> str:
    """Where most words of the references hold no ASCII letter or digit "unicode", else "default".

    Where most of these are of scripts without spaces "characters": a clause would be one word.
    """
    texts = chain.from_iterable([r] if isinstance(r, str) else r for r in references)
    found = [word for text in texts for word in words(text)]
    seen, unspaced = (
        sum(re.search(letters, word) is not None for word in found) for letters in ("[a-z0-9]", UNSPACED)
    )
    if 2 * seen >= len(found):
        return "default"
    return "characters" if 2 * unspaced > len(found) else "unicode"


def _tokenizers(name: str) -> tuple[Tokenize | None, str]:
    if name not in TOKENIZERS:
        raise ValueError(f"tokenizer {name!r} is unknown; choose one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name]


def _ngrams(texts: Texts, n: int) -> list[tuple[str, ...]]:
    rows = ([tokens[i:] for i in range(n)] for tokens in map(words, texts))
    return [gram for row in rows for gram in zip(*row, strict=False)]


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def _reference_lists(predictions: Texts, references: References) -> list[list[str]]:
    if isinstance(predictions, str) or not 0 < len(predictions) == len(references):
        raise ValueError("give a list of predictions and as many references, at least one")
    lists = [[r] if isinstance(r, str) else list(r or ()) for r in references]
    for i, texts in enumerate(lists):
        if not texts or not all(isinstance(text, str) for text in (predictions[i], *texts)):
            raise ValueError(f"example {i} needs a prediction and at least one reference, as text")
    return lists


def _one_sentence_a_line(text: str) -> str:
    return text if "\n" in text else re.sub(r"(?<=[.!?…])\s+|(?<=[。！？])", "\n", text)


def _rouge_scorer(tokenizer: str, use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    tokenize, _ = _tokenizers(tokenizer)
    if use_stemmer and tokenize:
        raise ValueError(f"use_stemmer is English: needs tokenizer 'default', not {tokenizer!r}")
    return RougeScorer(ROUGE, use_stemmer, tokenizer=tokenize and SimpleNamespace(tokenize=tokenize))


def rouge(
    predictions: Texts, references: References, tokenizer: str = "default", use_stemmer: bool = False
) -> dict[str, list[float]]:
    """ROUGE F1 of every example, by `ROUGE_SCORER`: for means, and for `bootstrap`.

    Of several references each metric takes its best. Lsum reads one sentence a line; a text
    without newline is split after . ! ? … before a space and after 。！？. No tokens score 0.
    """
    lists = _reference_lists(predictions, references)
    scorer = _rouge_scorer(tokenizer, use_stemmer)
    scores = [
        scorer.score_multi([*map(_one_sentence_a_line, targets)], _one_sentence_a_line(text))
        for targets, text in zip(lists, predictions, strict=True)
    ]
    return {name: [100.0 * score[name].fmeasure for score in scores] for name in ROUGE}


def _rouge_means(*inputs: Any, **options: Any) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in rouge(*inputs, **options).items()}


@cache
def _rouge_metric_class() -> type:
    import evaluate
    from datasets import Features, Value

    text = Value("string")

    class Rouge(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=f"ROUGE F1 by {ROUGE_SCORER}, mean over examples, 0 to 100",
                citation="Lin (2004), ROUGE: a package for automatic evaluation of summaries",
                inputs_description="references: a text, or a list of texts, per prediction",
                features=[Features(predictions=text, references=kind) for kind in ([text], text)],
            )

        def _compute(self, **inputs: Any) -> dict[str, float]:
            return _rouge_means(**inputs)

    return Rouge


def rouge_metric(**options: Any) -> Any:
    """An `evaluate.Metric` that needs no hub; `options` are its own (cache_dir, num_process, ...).

    `compute(predictions=, references=, tokenizer=, use_stemmer=)` gives the means of `rouge`, 0 to
    100 (the hub's metric of this name says 0 to 1).
    """
    return _rouge_metric_class()(**options)


def bleu(predictions: Texts, references: References, tokenizer: str = "default") -> float:
    """Corpus BLEU by `BLEU_SCORER`; examples may differ in their number of references."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(tokenize=_tokenizers(tokenizer)[1])
    columns = [*map(list, zip_longest(*_reference_lists(predictions, references)))]
    return scorer.corpus_score(list(predictions), columns).score


def _per_example(scores: Sequence[Any]) -> np.ndarray:
    sizes = {np.size(row) for row in scores}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError("scores must be one list of numbers, or lists of one length, one per seed")
    return np.atleast_2d(np.asarray(scores, dtype=float)).mean(axis=0)


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    rng, n = np.random.default_rng(seed), len(values)
    return np.array([values[rng.integers(n, size=n)].mean() for _ in range(resamples)])


def _summary(name: str, values: np.ndarray, means: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return {name: float(values.mean()), "low": float(low), "high": float(high)}


def bootstrap(scores: Sequence[Any], seed: int = 0, resamples: int = 1000) -> dict[str, float]:
    """Mean and 95 % percentile interval of scores (examples,) or (generation seeds, examples).

    Seeds are averaged and examples resampled: an interval over examples, not over trainings.
    """
    values = _per_example(scores)
    return _summary("mean", values, _resampled_means(values, seed, resamples))


def paired_bootstrap(
    a: Sequence[Any], b: Sequence[Any], seed: int = 0, resamples: int = 1000
) -> dict[str, float]:
    """mean(a) - mean(b) on the same examples, its 95 % interval and its two-sided p."""
    a, b = _per_example(a), _per_example(b)
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} examples and b {len(b)}; compare on the same examples")
    means = _resampled_means(a - b, seed, resamples)
    tail = 1 + min(int((means <= 0).sum()), int((means >= 0).sum()))
    return _summary("difference", a - b, means) | {"p": min(1.0, 2 * tail / (resamples + 1))}


def length_ratio(predictions: Texts, references: References) -> float:
    """Words of all predictions / words of all first references: a ratio, 1 is equal length."""
    first = [texts[0] for texts in _reference_lists(predictions, references)]
    return _percent(len(_ngrams(predictions, 1)), len(_ngrams(first, 1))) / 100


def repetition(texts: Texts) -> float:
    """Percent of neighbouring word pairs that are one word twice."""
    pairs = _ngrams(texts, 2)
    return _percent(sum(left == right for left, right in pairs), len(pairs))


def distinct(texts: Texts, n: int) -> float:
    """Percent of different n-grams among all n-grams of all texts together."""
    grams = _ngrams(texts, n)
    return _percent(len(set(grams)), len(grams))


def empty_rate(texts: Texts) -> float:
    """Percent of texts without a single word."""
    return _percent(sum(not words(text) for text in texts), len(texts))


def lead(source: str) -> str:
    """The first sentence: the LEAD-1 baseline."""
    return _one_sentence_a_line(source).strip().split("\n")[0]


def _inside(predictions: Texts, known: Texts) -> tuple[int, int]:
    """How many predicted words stand in the known text of the same number, and how many there are."""
    if len(predictions) != len(known):
        raise ValueError(f"{len(predictions)} predictions but {len(known)} sources; give one each")
    pairs = [(words(p), set(words(s))) for p, s in zip(predictions, known, strict=True)]
    return sum(w in s for p, s in pairs for w in p), sum(len(p) for p, _ in pairs)


def copy_rate(predictions: Texts, sources: Texts) -> float:
    """Percent of predicted words that stand in their source."""
    return _percent(*_inside(predictions, sources))


def coverage(predictions: Texts, sources: Texts) -> float:
    """Percent of the words of the sources, keywords for instance, that stand in their text."""
    return copy_rate(sources, predictions)


def invented(predictions: Texts, sources: Texts, references: References) -> float:
    """Percent of predicted words that stand neither in their source nor in a reference."""
    known = zip(sources, _reference_lists(predictions, references), strict=True)
    inside, count = _inside(predictions, [" ".join([source, *own]) for source, own in known])
    return _percent(count - inside, count)


def invented_numbers(predictions: Texts, sources: Texts) -> float:
    """Percent of the numbers of predictions that their source does not hold."""
    numbers, held = ([" ".join(re.findall(r"\d+", t)) for t in texts] for texts in (predictions, sources))
    inside, count = _inside(numbers, held)
    return _percent(count - inside, count)


def entropy(texts: Texts) -> float:
    """-sum_w p(w) log2 p(w) over the words of all texts together, bits per word."""
    counts = Counter(chain.from_iterable(map(words, texts)))
    total = counts.total()
    return sum(count / total * log2(total / count) for count in counts.values())


def self_bleu(texts: Texts, sample: int = 200) -> float:
    """Mean sentence BLEU-4 of `sample` texts (a fixed draw), each against all the others.

    100: all alike. It grows with `sample`, and its cost with the square.
    """
    from sacrebleu.metrics import BLEU

    chosen = Random(0).sample(list(texts), min(len(texts), sample))
    if len(chosen) < 2:
        raise ValueError(f"self-BLEU compares at least two texts, not {len(chosen)}")
    score = BLEU(effective_order=True).sentence_score
    rest = [chosen[:i] + chosen[i + 1 :] for i in range(len(chosen))]
    return float(np.mean([score(*pair).score for pair in zip(chosen, rest, strict=True)]))


def memorisation(texts: Texts, train_texts: Iterable[str], n: int = 4) -> float:
    """Percent of the texts' n-grams found in `train_texts`, which may be a stream, read once."""
    counts = Counter(_ngrams(texts, n))
    found: set[tuple[str, ...]] = set()
    for text in train_texts:
        found.update(counts.keys() & _ngrams([text], n))
    return _percent(sum(counts[gram] for gram in found), counts.total())


def summarization_report(
    predictions: Texts, references: References, sources: Texts = (), tokenizer: str = "default"
) -> dict[str, float]:
    """The standard row of a summarization table; with `sources` also what comes from them."""
    row = _rouge_means(predictions, references, tokenizer=tokenizer) | {
        "bleu": bleu(predictions, references, tokenizer),
        "length_ratio": length_ratio(predictions, references),
        "repetition": repetition(predictions),
        "distinct_1": distinct(predictions, 1),
        "distinct_2": distinct(predictions, 2),
        "empty_rate": empty_rate(predictions),
    }
    if not sources:
        return row
    return row | {
        "copy_rate": copy_rate(predictions, sources),
        "coverage": coverage(predictions, sources),
        "invented": invented(predictions, sources, references),
        "invented_numbers": invented_numbers(predictions, sources),
    }


def unconditional_report(texts: Texts, train_texts: Iterable[str]) -> dict[str, float]:
    """The standard row of unconditional text; put the row of held-out text beside it."""
    return {
        "entropy": entropy(texts),
        **{f"distinct_{n}": distinct(texts, n) for n in range(1, 5)},
        "self_bleu": self_bleu(texts),
        "memorisation": memorisation(texts, train_texts),
        "repetition": repetition(texts),
        "mean_length": len(_ngrams(texts, 1)) / len(texts),
        "empty_rate": empty_rate(texts),
    }
