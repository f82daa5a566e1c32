"""Memory and time against the length of the source, read whole or in parts, and the number of documents.

    python benchmarks/long_sources.py --file qmsum/test.jsonl.gz --documents 60 240

Every measurement runs in a process of its own, whose highest resident memory above that before the first
document is reported (Linux). Models have random weights: cost does not depend on them.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import common
import torch

from textdiff import corpus
from textdiff.batches import pad
from textdiff.config import Config
from textdiff.data import TextData
from textdiff.diffusion import TextDiffusion
from textdiff.generation import generate_texts
from textdiff.hardware import tune_allocator
from textdiff.tokenizer import Tokenizer

SHAPE = {"width": 192, "depth": 4, "heads": 6, "encoder_depth": 3, "max_length": 64}
WINDOW, STEPS, LONGEST = 512, 16, 32768
WORDS = [256, 1024, 4096, 16384]
DOCUMENTS = [250, 500, 1000]


@cache
def reports() -> list[str]:
    """Sources of the built-in corpus."""
    return [row["source"] for row in corpus.rows("train", 2000)]


def text_of(words: int, number: int = 0) -> str:
    """Reports of the built-in corpus, one after the other, cut after so many words."""
    known, found, size = reports(), [], 0
    for report in [*known[number:], *known[:number]] * (1 + words // 20_000):
        found.append(report)
        size += len(report.split())
        if size >= words:
            break
    return " ".join(" ".join(found).split()[:words])


def sources_of(file: str, count: int) -> list[str]:
    """The first `count` documents of a file."""
    return [example.source for example in TextData(test_file=file).examples("test")[:count]]


def model_of(window: int | None, texts: list[str]) -> TextDiffusion:
    """An untrained summarizer that reads sources whole, or in parts of `window` tokens."""
    tune_allocator()
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(texts, 2048)
    config = Config(**SHAPE, source_window=window, max_source_length=1024 if window else LONGEST)
    return TextDiffusion(config, tokenizer)


def write(model: TextDiffusion, texts: list[str]) -> None:
    """Summaries of `STEPS` evaluations."""
    model.eval()
    generate_texts(model, texts, steps=STEPS, length=64, batch_size=64)


def train(model: TextDiffusion, texts: list[str]) -> None:
    """One forward and backward pass of all texts together."""
    source, valid = pad(model.tokenizer.encode(texts), 0)
    ids = torch.randint(len(model.tokenizer), (len(texts), 64))
    whole, index = torch.ones_like(ids, dtype=torch.bool), torch.arange(len(texts))
    batch = {"ids": ids, "valid": whole, "mask": whole, "source": source, "source_mask": valid}
    losses = model.train().loss(batch | {"index": index}, 0)
    losses.nll.mean().backward()


WORK = {"writing": write, "training": train}


def child(work: str, window: int, words: int, documents: int, file: str = "") -> dict[str, float]:
    """Peak and time of one kind of work, on `documents` different texts of `words` words or of a file."""
    texts = sources_of(file, documents) if file else [text_of(words, i) for i in range(documents)]
    model = model_of(window or None, texts if file else reports())
    WORK[work](model, [text_of(32)])  # what is loaded at the first use is not memory of a document
    memory, begin = common.Memory(), time.perf_counter()
    WORK[work](model, texts)
    seconds, peak = (time.perf_counter() - begin) / documents, memory.peak
    tokens = [len(ids) for ids in model.tokenizer.encode(texts)]
    most = {"most_tokens": max(tokens)} if file else {}
    return {
        "tokens": sum(tokens) / len(tokens),
        **most,
        "peak_bytes": peak,
        "seconds_per_document": seconds,
    }


def plot(rows: list[dict], path: Path) -> None:
    """Memory and time against words, of writing and of training."""
    with common.picture(path, 2, 4.5, 3.8) as panels:
        for work in WORK:
            for window in (WINDOW, 0):
                some = [r for r in rows if (r["work"], r["window"], r["documents"]) == (work, window, 1)]
                label = f"{work}, {f'parts of {window} tokens' if window else 'whole'}"
                style = {"marker": "o", "linestyle": "-" if window else "--"}
                words = [row["words"] for row in some]
                for panel, key, unit in (
                    (panels[0], "peak_bytes", 1e6),
                    (panels[1], "seconds_per_document", 1),
                ):
                    panel.plot(words, [row[key] / unit for row in some], label=label, **style)
        panels[0].set(ylabel="peak memory, MB")
        panels[1].set(ylabel="seconds a document")
        for panel in panels:
            panel.set(xlabel="words of the source", xscale="log", yscale="log")
            panel.grid(alpha=0.3, which="both")
        panels[0].legend(fontsize=8)


def asked_of(file: str, documents: list[int]) -> list[tuple[str, int, int, int, str]]:
    """The measurements of a file: so many of its first documents, or all if there are fewer."""
    found = []
    for asked in documents:
        texts = sources_of(file, asked)
        words = sum(len(text.split()) for text in texts) // len(texts)
        found += [("writing", window, words, len(texts), file) for window in (WINDOW, 0)]
    return found


def main() -> None:
    """All measurements, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, nargs="+", default=WORDS)
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS)
    parser.add_argument("--file", nargs="*", default=[], help="documents of people, instead")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work, *numbers = options.child[:4]
        print(json.dumps(child(work, *map(int, numbers), *options.child[4:])))
        return
    asked = [(work, w, n, 1) for work in WORK for w in (WINDOW, 0) for n in options.words]
    asked += [("writing", WINDOW, 400, n) for n in options.documents]
    if options.file:
        asked = [one for file in options.file for one in asked_of(file, options.documents)]
    name = "long_sources-files" if options.file else "long_sources"
    dataset = " ".join(options.file) or "textdiff/reports"
    result = common.header("long_sources", dataset, "all" if options.file else "train")
    result |= {"steps": STEPS, "shape": SHAPE, "dtype": "float32", "rows": []}
    for one in asked:
        command = [sys.executable, __file__, "--child", *map(str, one)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = dict(zip(("work", "window", "words", "documents", "file"), one, strict=False))
        result["rows"].append(row | json.loads(done.stdout))
        print(result["rows"][-1], flush=True)
    path = common.write(result, name)
    if not options.file:
        plot(result["rows"], path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
