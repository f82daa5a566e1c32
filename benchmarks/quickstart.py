"""The main job, `python -m textdiff.train`, and the same for its autoregressive twin.

    python benchmarks/quickstart.py

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


def run(system: str, name: str, folder: Path, examples: int) -> dict[str, Any]:
    """Train one system and turn its metrics.json into a row."""
    flags = ["--model.network.system", system, "--report.examples", str(examples)]
    root = ["--report.show", "0", "--trainer.default_root_dir", str(folder / name)]
    cli.run(["fit", "--config", cli.find_config("quickstart"), *flags, *root])
    found = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
    row = {
        "system": name,
        "nfe": found["nfe"],
        "candidates": 1,
        "seeds": 1,
        "examples": found["examples"],
    }
    row |= {"train_seconds": found["train_seconds"], "seconds": found["seconds"]}
    return row | {"metrics": {key: {"mean": found[key]} for key in MEASURES}, "lead1": found["lead1"]}


def main() -> None:
    """Run and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark/quickstart"))
    parser.add_argument("--examples", type=int, default=300)
    options = parser.parse_args()
    result = common.header("quickstart", "textdiff/reports", "test")
    systems = {"diffusion": "embedding", "autoregressive": "autoregressive"}
    rows = [run(kind, name, options.runs, options.examples) for kind, name in systems.items()]
    lead = {"system": "lead", "metrics": {key: {"mean": rows[0]["lead1"][key]} for key in MEASURES}}
    print(common.write(result | {"rows": [*rows, lead]}, "quickstart"))


if __name__ == "__main__":
    main()
