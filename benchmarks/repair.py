"""How many wrong tokens of a text are mended, and how many right ones broken.

    python benchmarks/repair.py --name arxiv_char27 --test_file test.jsonl --models \
        runs/benchmark/arxiv_char27/uniform/model runs/benchmark/arxiv_char27/masked/model

A share of the tokens of every test text, all but its end, is replaced by others, each as likely; models
that were trained on texts alone repair it (`textdiff.denoise`) and are told the share. A model of the
process `hierarchical` is shown the class of every token instead and writes the tokens anew; beside it
stands the commonest token of each class.
`scripts/update_readme.py` makes a table of it.
"""

import argparse
import random
import time
from typing import Any

import common
import torch

from textdiff import load
from textdiff.evaluation import open_data
from textdiff.generation import generate_texts
from textdiff.model import TextModel
from textdiff.process import Hierarchical

DECODERS = ("greedy", "softmax")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--models", nargs="+", required=True, help="model directories")
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.15, 0.3])
    parser.add_argument("--steps", type=int, default=16)
    return parser.parse_args()


def spoil(model: TextModel, rows: list[list[int]], share: float) -> list[list[int]]:
    """`rows` with a share of their tokens replaced by others that are words."""
    words = sorted(set(range(len(model.tokenizer))) - set(model.tokenizer.special_ids))
    draw = random.Random(0)

    def other(token: int) -> int:
        return draw.choice([word for word in words if word != token])

    return [[other(token) if draw.random() < share else token for token in row] for row in rows]


def commonest(model: TextModel, rows: list[list[int]]) -> list[list[int]]:
    """Instead of every token that of its class which texts hold most often."""
    process = model.process
    same = process.class_of[:, None] == process.class_of
    best = process.log_prior.masked_fill(~same, -torch.inf).argmax(-1).tolist()
    return [[best[token] for token in row] for row in rows]


def figures(true: list[list[int]], wrong: list[list[int]], made: list[list[int]]) -> dict[str, float]:
    """Percentages of tokens."""
    parts = zip(true, wrong, made, strict=True)
    triples = [one for rows in parts for one in zip(*rows, strict=True)]
    bad = [(t, m) for t, w, m in triples if w != t]
    good = [m == t for t, w, m in triples if w == t]
    return {
        "right_before": 100 * len(good) / len(triples),
        "right_after": 100 * sum(m == t for t, _, m in triples) / len(triples),
        "mended": 100 * sum(m == t for t, m in bad) / max(len(bad), 1),
        "broken": 100 * (len(good) - sum(good)) / max(len(good), 1),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Spoil, repair, count."""
    result, start = common.header("repair", options.name, "test"), time.perf_counter()
    rows = []
    for path in options.models:
        model = load(path)
        data = open_data(model, options.test_file, text_column=options.text_column)
        pieces = [[*ids] for _, ids in data.table("test")]
        eos = model.tokenizer.eos_id
        whole = [[token for token in ids if token != eos] for ids in pieces if len(ids) > 1]
        whole = common.spaced([ids[: model.config.max_length - 1] for ids in whole], options.texts)
        true = model.tokenizer.encode(model.tokenizer.decode(whole))
        cascade = isinstance(model.process, Hierarchical)
        for share in [1.0] if cascade else options.shares:
            wrong = commonest(model, true) if cascade else spoil(model, true, share)
            # a text that says the classes is any of their words, such as its own
            meant = true if cascade else wrong
            texts = model.tokenizer.decode(meant)
            kept = [i for i, ids in enumerate(model.tokenizer.encode(texts)) if ids == meant[i]]
            for decoder in DECODERS:
                shared = {"noise": share, "steps": options.steps, "decoder": decoder, "dtype": "auto"}
                made = generate_texts(model, prompt=[texts[i] for i in kept], **shared)
                found = figures(
                    [true[i] for i in kept], [wrong[i] for i in kept], [ids[:-1] for ids in made.ids]
                )
                metrics = {name: common.span([value]) for name, value in found.items()}
                name = f"from classes, {decoder}" if cascade else f"{decoder}, noise {share:g}"
                rows.append({"system": common.name_of(model), "how": name})
                rows[-1] |= {"nfe": made.nfe, "texts": len(kept), "metrics": metrics}
                rows[-1]["examples_shown"] = [texts[kept[0]], made.texts[0]]
                print({key: rows[-1][key] for key in ("system", "how")} | found, flush=True)
    seconds = round(time.perf_counter() - start, 1)
    return result | {"steps": options.steps, "wall_seconds": seconds, "rows": rows}


if __name__ == "__main__":
    chosen = arguments()
    print(common.write(run(chosen), f"repair-{chosen.name}"))
