"""Train on plain texts and measure what is written from nothing, beside the data's own figures.

    python benchmarks/unconditional.py --name gutenberg --minutes 15 --train_file train.jsonl \
        --validation_file validation.jsonl --test_file test.jsonl --text_column text

Entropy, distinct-n, self-BLEU and memorisation say whether samples are varied and new; the perplexity
under a judge, an autoregressive model trained with its own seed on the same data, whether they are
fluent. Perplexity alone is worthless (repetition lowers it): it stands beside the entropy. The row
`data` is the test set itself.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import common
import torch

from textdiff.batches import pad as pad_ids
from textdiff.data import TextData
from textdiff.generation import generate_texts
from textdiff.metrics import unconditional_report
from textdiff.model import TextModel


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="unconditional")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file")
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--minutes", type=float, default=15, help="training budget of every system")
    parser.add_argument("--nfe", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="generation seeds")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--set", nargs="*", default=[], help="further training flags, x=y")
    return parser.parse_args()


@torch.no_grad()
def judged(judge: TextModel, texts: list[str]) -> float:
    """Perplexity a token of `texts` under the judge, EOS included."""
    limit, eos = judge.config.max_length, judge.tokenizer.eos_id
    rows = [[*ids[: limit - 1], eos] for ids in judge.tokenizer.encode(texts) if ids]
    total = count = 0.0
    for i in range(0, len(rows), 64):
        ids, valid = pad_ids(rows[i : i + 64], judge.tokenizer.pad_id)
        losses = judge.loss({"ids": ids, "mask": valid, "valid": valid}, 0)
        total += float((losses.nll * valid).sum())
        count += float(valid.sum())
    return float(torch.tensor(total / count).exp())


def spread(reports: list[dict[str, float]]) -> dict[str, common.Metric]:
    """Mean and range over seeds."""
    names = reports[0]
    values = {name: [report[name] for report in reports] for name in names}
    return {name: {"mean": sum(v) / len(v), "low": min(v), "high": max(v)} for name, v in values.items()}


def report(texts: list[str], train: list[str], judge: TextModel) -> dict[str, float]:
    """All figures of one set of texts."""
    return unconditional_report(texts, train) | {"judge_perplexity": judged(judge, texts)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train diffusion, the twin and the judge; sample; measure."""
    folder = options.runs / options.name
    result = common.header("unconditional", options.name, "test")
    keys = ("train_file", "validation_file", "test_file", "text_column")
    files = {key: getattr(options, key) for key in keys if getattr(options, key)}
    flags = ["--config", options.config, *(f"--{flag}" for flag in options.set)]
    flags += [part for key, value in files.items() for part in (f"--data.{key}", value)]
    names = {"diffusion": ("diffusion", 0), "autoregressive": ("autoregressive", 0)}
    models, budgets = {}, {}
    for label, (system, seed) in {**names, "judge": ("autoregressive", 1)}.items():
        own = ["--model.network.system", system, "--model.seed", str(seed), "--data.seed", str(seed)]
        models[label], budgets[label] = common.train_for([*flags, *own], options.minutes, folder / label)
    data = TextData(**files, tokenizer=str(folder / "judge" / "model"), max_target_length=64)
    data.setup("test")
    train = [example.target for example in data.examples("train")]
    test = [example.target for example in data.examples("test")][: options.samples]
    rows = [{"system": "data", "metrics": spread([report(test, train, models["judge"])])}]
    settings = [("autoregressive", {"decoding": "sample"})]
    ways = [
        {"sampler": "confidence", "decoder": "sample"},
        {"sampler": "ancestral", "decoder": "softmax"},
    ]
    settings += [("diffusion", {**way, "steps": nfe}) for way in ways for nfe in options.nfe]
    for label, how in settings:
        made = [
            generate_texts(models[label], num_samples=options.samples, seed=seed, dtype="auto", **how)
            for seed in range(options.seeds)
        ]
        metrics = spread([report(one.texts, train, models["judge"]) for one in made])
        seconds = min(one.seconds for one in made) / options.samples
        rows.append(
            {
                "system": "embedding" if label == "diffusion" else label,
                **how,
                "nfe": made[0].nfe,
                "seeds": options.seeds,
                "seconds_per_example": seconds,
                "metrics": metrics,
                "examples_shown": made[0].texts[:8],
            }
        )
        print(rows[-1]["system"], how, {k: round(v["mean"], 2) for k, v in metrics.items()}, flush=True)
    return result | {"train_minutes": options.minutes, "budget": budgets, "rows": rows}


def main() -> None:
    """Run and save."""
    options, start = arguments(), time.perf_counter()
    result = run(options) | {"wall_seconds": round(time.perf_counter() - start, 1)}
    print(common.write(result, f"unconditional-{options.name}"))


if __name__ == "__main__":
    main()
