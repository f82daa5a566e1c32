"""Bits a token of trained models on one file: exact for the autoregressive one, bounds for the others.

python benchmarks/likelihood.py --name e2e --test_file test.jsonl --models runs/a/model runs/b/model
"""

import argparse
import time
from pathlib import Path
from typing import Any

import common

from textdiff import load
from textdiff.data import TextData
from textdiff.evaluation import likelihood, open_data
from textdiff.likelihood import BOUNDS
from textdiff.model import TextModel


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--models", nargs="+", required=True, help="model directories")
    parser.add_argument("--bounds", nargs="+", choices=BOUNDS, default=["order", "diffusion"])
    parser.add_argument("--evaluations", type=int, default=16, help="terms of a bound, a text")
    parser.add_argument("--text_column")
    parser.add_argument("--summary_column")
    return parser.parse_args()


def bits(model: TextModel, data: TextData, bounds: list[str], evaluations: int) -> list[dict[str, Any]]:
    """One model under every bound, or exactly if it can."""
    rows, exact = [], model.system == "autoregressive"
    for bound in [None] if exact else bounds:
        start = time.perf_counter()
        counted = not exact and "evaluations" in BOUNDS[bound][1]
        how = {} if exact else {"bound": bound, "evaluations": evaluations if counted else None}
        found = likelihood(model, data, **how)
        rows.append({**found, "seconds": round(time.perf_counter() - start, 1)})
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every model under every bound."""
    result, rows = common.header("likelihood", options.name, "test"), []
    columns = {"text_column": options.text_column, "summary_column": options.summary_column}
    for folder in options.models:
        model = load(folder)
        data = open_data(model, options.test_file, **columns)
        known = {"system": common.name_of(model), "model": Path(folder).parent.name}
        for row in bits(model, data, options.bounds, options.evaluations):
            rows.append(known | row)
            print(rows[-1], flush=True)
    return result | {"evaluations": options.evaluations, "rows": rows}


if __name__ == "__main__":
    chosen = arguments()
    print(common.write(run(chosen), f"likelihood-{chosen.name}"))
