"""The main job, `python -m textdiff.train`, and the same for its autoregressive twin.

    python benchmarks/quickstart.py --seeds 0 1 2

Both train by the quickstart's configuration, for the same number of steps, and are scored on both
held-out splits: combinations of facts never seen, and names never seen.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import common

from textdiff import cli

MEASURES = ("rouge1", "rouge2", "rougeL", "bleu", "fact_accuracy", "fact_accuracy_unseen_names")


def run(system: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one system with every seed, and turn its metrics.json into a row."""
    found = [train(system, options.runs / f"{name}-{seed}", seed, options) for seed in options.seeds]
    usual = found[0]  # what does not depend on the seed
    row = {"system": name, "nfe": usual["nfe"], "candidates": 1, "seeds": len(found)}
    row |= {key: [one[key] for one in found] for key in ("train_seconds", "seconds")}
    metrics = common.spread([{key: one[key] for key in MEASURES} for one in found])
    return row | {"examples": usual["examples"], "metrics": metrics, "lead1": usual["lead1"]}


def train(system: str, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The scores of one training."""
    flags = ["--seed_everything", str(seed), "--model.seed", str(seed)]
    flags += ["--model.network.system", system, "--report.examples", str(options.examples)]
    flags += [f"--{flag}" for flag in options.set_twin if system == "autoregressive"]
    root = ["--report.show", "0", "--trainer.default_root_dir", str(folder)]
    cli.run(["fit", "--config", cli.find_config("quickstart"), *flags, *root])
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def main() -> None:
    """Run and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark/quickstart"))
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    parser.add_argument("--set_twin", nargs="*", default=[], help="training flags of the twin, x=y")
    options = parser.parse_args()
    result = common.header("quickstart", "textdiff/reports", "test")
    systems = {"diffusion": "embedding", "autoregressive": "autoregressive"}
    rows = [run(kind, name, options) for kind, name in systems.items()]
    lead = {"system": "lead", "metrics": {key: {"mean": rows[0]["lead1"][key]} for key in MEASURES}}
    print(common.write(result | {"rows": [*rows, lead]}, "quickstart"))


if __name__ == "__main__":
    main()
