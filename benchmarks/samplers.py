"""Which sampler for how many steps, on a trained model: scores of texts for validation sources.

    python benchmarks/samplers.py --model runs/e2e/model --name e2e --validation_file validation.jsonl

The temperature of every sampler is chosen on the first texts, at 16 evaluations; the others are scored.
`scripts/update_readme.py` makes a table of it.
"""

import argparse
import time
from typing import Any

import common

from textdiff import load
from textdiff.config import named
from textdiff.data import TextData
from textdiff.generation import generate_texts
from textdiff.metrics import ROUGE_SCORER, bleu, rouge
from textdiff.sampler import SAMPLERS

WAYS: dict[str, dict[str, Any]] = {
    "confidence": {"sampler": "confidence"},
    "ancestral": {"sampler": "ancestral", "decoder": "softmax"},
    "ddim": {"sampler": "ddim", "decoder": "softmax"},
    "renoise": {"sampler": "renoise", "decoder": "sample"},
    "renoise, top-p 0.9": {"sampler": "renoise", "decoder": {"name": "sample", "p": 0.9}},
    "renoise, greedy": {"sampler": "renoise", "decoder": "greedy"},
    "renoise, tau 0.3": {"sampler": {"name": "renoise", "tau": 0.3}, "decoder": "sample"},
    "churn": {"sampler": "churn", "decoder": "softmax"},
    "dpm": {"sampler": "dpm", "decoder": "softmax"},
    "dpm, order 3": {"sampler": {"name": "dpm", "order": 3}, "decoder": "softmax"},
    "heun": {"sampler": "heun", "decoder": "softmax"},
    "corrector": {"sampler": "corrector", "decoder": "softmax"},
    "sde": {"sampler": "sde", "decoder": "softmax"},
}
TEMPERATURES = (0.3, 0.6, 1.0)
CHOICE = 16


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--texts", type=int, default=150, help="texts that are scored")
    parser.add_argument("--held", type=int, default=80, help="texts before them, for the temperature")
    return parser.parse_args()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All samplers at all numbers of evaluations."""
    result, start = common.header("samplers", options.name, "validation"), time.perf_counter()
    model, data = load(options.model), TextData(test_file=options.validation_file)
    examples = data.examples("test")[: options.held + options.texts]
    held, shown = examples[: options.held], examples[options.held :]
    process, rows = common.name_of(model), []

    def write(some: list[Any], **how: Any) -> list[str]:
        sources = [example.source for example in some]
        return generate_texts(model, sources, batch_size=128, dtype="auto", **how).texts

    for name in options.ways:
        way = WAYS[name]
        if SAMPLERS[named(way["sampler"])["name"]].gaussian and not model.process.gaussian:
            continue
        grid = [1.0] if name == "confidence" else TEMPERATURES
        wanted = [example.references for example in held]
        trials = {t: bleu(write(held, steps=CHOICE, temperature=t, **way), wanted) for t in grid}
        best = max(grid, key=trials.__getitem__)
        how = way if name == "confidence" else way | {"temperature": best}
        row = {"system": process, "how": name, "temperature": best, "bleu": {}, "rougeL": {}}
        for nfe in options.nfe:
            texts = write(shown, steps=nfe, **how)
            references = [example.references for example in shown]
            row["bleu"][nfe] = bleu(texts, references)
            row["rougeL"][nfe] = sum(rouge(texts, references)["rougeL"]) / len(texts)
        rows.append(row)
        print(row, flush=True)
    seconds = round(time.perf_counter() - start, 1)
    return result | {
        "model": options.model,
        "texts": len(shown),
        "scorer": ROUGE_SCORER,
        "wall_seconds": seconds,
        "rows": rows,
    }


if __name__ == "__main__":
    chosen = arguments()
    print(common.write(run(chosen), f"samplers-{chosen.name}"))
