"""Bits a character of every family on one stream of characters: same transformer, same budget.

    python benchmarks/characters.py --name arxiv_char27 --minutes 15 --train_file train.jsonl \
        --validation_file validation.jsonl --test_file test.jsonl

The text has text8's alphabet, a to z and space; it is read in pieces, each by itself. Bits are exact for
the autoregressive model and bounds for the others, on the same pieces; the length of a piece and the end
of a text, a symbol like any other, are paid for. Samples are judged by their words: the share of them
that the training texts hold, the entropy of their distribution. The row `data` is the test text itself.
"""

import argparse
import string
import time
from pathlib import Path
from typing import Any

import common
import tokenizers
from likelihood import bits
from tokenizers import Regex, decoders, models, pre_tokenizers

from textdiff.evaluation import open_data
from textdiff.files import read
from textdiff.generation import generate_texts
from textdiff.likelihood import BOUNDS
from textdiff.metrics import distinct, entropy
from textdiff.model import TextModel
from textdiff.tokenizer import Tokenizer

ALPHABET = " " + string.ascii_lowercase
TWIN = "autoregressive"
# MDLM's training: one time a text, all weight on the bound itself
ELBO = ["model.network.objective=variational", "model.network.token_noise=0"]
ELBO += ["model.network.given_rate=0", "model.network.prefix_rate=0"]
SYSTEMS: dict[str, list[str]] = {
    TWIN: ["model.network.system=autoregressive"],
    "masked": ["model.network.process=masked"],
    "masked, ELBO": ["model.network.process=masked", *ELBO],
    "masked, ELBO, importance": ["model.network.process=masked", *ELBO, "model.network.times=importance"],
    "masked, ELBO, Muon 5e-3": ["model.network.process=masked", *ELBO, "model.learning_rate=5e-3"],
    "uniform": ["model.network.process=uniform"],
    "mask_and_replace": ["model.network.process=mask_and_replace"],
    "embedding, gumbel": ["model.network.process=embedding", "model.network.schedule=gumbel"],
    "embedding, warped": ["model.network.process=embedding", "model.network.schedule=warped"],
    "embedding, cosine": ["model.network.process=embedding", "model.network.schedule=cosine"],
    "simplex": ["model.network.process=simplex"],
    "hierarchical": ["model.network.process=hierarchical"],
}
WAYS = ({"sampler": "confidence", "decoder": "sample"}, {"sampler": "ancestral", "decoder": "softmax"})


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_texts(parser, "characters")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--bounds", nargs="+", choices=BOUNDS, default=["order", "diffusion"])
    parser.add_argument("--evaluations", type=int, default=16, help="terms of a bound, a piece")
    parser.add_argument("--test_texts", type=int, help="only the first test texts")
    parser.add_argument("--steps_of_samples", type=int, default=64)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3, help="of generation")
    return parser.parse_args()


def write_tokenizer(folder: Path) -> Path:
    """One token a character."""
    table = {character: i for i, character in enumerate(ALPHABET)}
    backend = tokenizers.Tokenizer(models.WordLevel(table, unk_token=" "))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    path = folder / "tokenizer.json"
    Tokenizer(backend, "<pad>", "<eos>").save(path)
    return path


def spelling(texts: list[str], known: set[str]) -> dict[str, float]:
    """Figures of samples, by their words; the first and the last word of a piece may be cut."""
    whole = [" ".join(text.split()[1:-1]) for text in texts]
    words = " ".join(whole).split()
    return {
        "known_words": 100 * sum(word in known for word in words) / max(len(words), 1),
        "entropy": entropy(whole),
        "distinct_2": distinct(whole, 2),
        "word_length": sum(map(len, words)) / max(len(words), 1),
    }


def samples(
    system: str, model: TextModel, known: set[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """What a model writes from nothing."""
    rows = []
    ways = [{**way, "steps": options.steps_of_samples} for way in WAYS]
    for way in [{"decoding": "sample"}] if model.system == TWIN else ways:
        shared = {"num_samples": options.samples, "dtype": "auto", **way}
        made = [generate_texts(model, seed=seed, **shared) for seed in range(options.seeds)]
        metrics = common.spread([spelling(one.texts, known) for one in made])
        rows.append({"system": system, **way, "nfe": made[0].nfe, "metrics": metrics})
        rows[-1]["examples_shown"] = made[0].texts[:4]
        print({k: v for k, v in rows[-1].items() if k != "examples_shown"}, flush=True)
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, bound, sample."""
    result = common.header("characters", options.name, "test")
    tokenizer = write_tokenizer(options.runs / options.name)
    flags = ["--config", options.config, "--data.tokenizer", str(tokenizer)]
    for key in ("train_file", "validation_file", "test_file", "text_column"):
        if getattr(options, key):
            flags += [f"--data.{key}", getattr(options, key)]
    systems = {}
    for name in options.systems:
        own = SYSTEMS[name] + options.set + (options.set_twin if name == TWIN else [])
        systems[name] = flags + [f"--{flag}" for flag in own]
    trained, budgets = common.train_all(options, systems)
    column = options.text_column
    known = {word for row in read(options.train_file) for word in row[column].split()}
    rows, written = [], []
    for name, model in trained.items():
        columns = {"text_column": column, "max_test_examples": options.test_texts}
        data = open_data(model, options.test_file, **columns)
        for row in bits(model, data, options.bounds, options.evaluations):
            rows.append({"system": name, **row})
            print(rows[-1], flush=True)
        if not written:
            texts = common.spaced([one.target for one in data.examples("test")], options.samples)
            written.append({"system": "data", "metrics": common.spread([spelling(texts, known)])})
        written += samples(name, model, known, options)
    details = common.asked(options) | {"budget": budgets, "evaluations": options.evaluations}
    return result | details | {"rows": rows, "samples": written}


def plot(result: dict[str, Any], path: Path) -> None:
    """Bits a character, the best bound of every system."""
    best = {}
    for row in result["rows"]:
        known = best.get(row["system"], row)
        best[row["system"]] = min(known, row, key=lambda one: one["bits_per_token"])
    order = sorted(best, key=lambda name: best[name]["bits_per_token"], reverse=True)
    with common.picture(path, 1, 7, 0.45 * len(order) + 1) as (panel,):
        values = [best[name]["bits_per_token"] for name in order]
        errors = [2 * best[name]["standard_error"] for name in order]
        bars = panel.barh([f"{name} ({best[name]['kind']})" for name in order], values, xerr=errors)
        panel.bar_label(bars, fmt="%.2f", padding=6)
        panel.set(
            xlabel=f"bits a character, {result['dataset']} {result['split']}",
            xlim=(0, 1.12 * max(values)),
        )


def main() -> None:
    """Run, save, plot."""
    options, start = arguments(), time.perf_counter()
    result = run(options) | {"wall_seconds": round(time.perf_counter() - start, 1)}
    path = common.write(result, f"characters-{options.name}")
    plot(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
