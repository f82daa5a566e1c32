"""Make pairs of keywords and text out of texts alone, to train a model that expands keywords.

    python scripts/make_keywords.py my.txt keywords.jsonl
    python -m textdiff.train --config expand --data.train_file keywords.jsonl
    echo "river mill flood" | textdiff generate runs/expand/model -

A pair is made of every sentence, of its first `--words` words. Keywords are up to `--count` of its
content words, a random number of them in random order, so that a model takes few or many. Content words
are all but the most frequent ones of the file, which make up half of everything that is written
(articles, prepositions, ...).
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from textdiff.files import example_of, read

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+")
FRAME = 0.5  # share of a text that its most frequent words make up


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", help="a text a line (.txt), or .jsonl, .csv, ... with a column of texts")
    parser.add_argument("pairs", type=Path, help="JSONL file to write")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--count", type=int, default=5, help="most keywords of a sentence")
    parser.add_argument("--words", type=int, default=40, help="most words of a sentence")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def frame_words(texts: list[str]) -> set[str]:
    """The most frequent words, in lower case, that make up half of `texts`."""
    counts = Counter(word.lower() for text in texts for word in WORD.findall(text))
    left, found = FRAME * counts.total(), set()
    for word, count in counts.most_common():
        left -= count
        if left < 0:
            break
        found.add(word)
    return found


def sentences(texts: list[str], most: int) -> Iterator[str]:
    """Of all texts, of each the first `most` words."""
    for text in texts:
        for sentence in SENTENCE.split(text.strip()):
            yield " ".join(sentence.split()[:most])


def pairs(texts: list[str], count: int, most: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows of source and target; sentences without a content word are left out."""
    frame = frame_words(texts)
    for i, text in enumerate(sentences(texts, most)):
        words = list(dict.fromkeys(word for word in WORD.findall(text) if word.lower() not in frame))
        if words:
            draws = Random(f"{seed} {i}")
            chosen = draws.sample(words, draws.randint(1, min(count, len(words))))
            yield {"source": " ".join(chosen), "target": text}


def main() -> None:
    """Read texts, write pairs."""
    options = arguments()
    if min(options.count, options.words) < 1:
        raise ValueError(f"--count and --words must be at least 1, not {options.count}, {options.words}")
    columns = (None, options.text_column)
    rows = enumerate(read(options.texts), 1)
    texts = [example_of(row, columns, f"{options.texts}, row {i}").target for i, row in rows]
    made = pairs(texts, options.count, options.words, options.seed)
    lines = [json.dumps(row, ensure_ascii=False) for row in made]
    if not lines:
        raise ValueError(f"{options.texts}: no text with a content word; give more texts")
    options.pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{options.pairs}: {len(lines):,} pairs of {len(texts):,} texts")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"make_keywords: {error}")
