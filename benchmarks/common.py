"""What the benchmarks share: training for a budget, rows of results, files, tables and plots."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch

from textdiff import cli
from textdiff.api import load
from textdiff.batches import CHUNK
from textdiff.metrics import bootstrap, paired_bootstrap, rouge, summarization_report
from textdiff.model import TextModel

RESULTS = Path(__file__).parent / "results"
PROBE = 10 + CHUNK  # warm-up, and all the lengths that are sorted together
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Metric = dict[str, float]


class StepClock(L.Callback):
    """Wall times of training steps, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())

    def median(self, skip: int = 15) -> float:
        """Seconds a step, after `skip` steps of warming up."""
        return statistics.median(self.gaps()[skip:])

    def mean(self, skip: int = 10) -> float:
        """Seconds a step, long batches and short ones: what a budget needs."""
        return statistics.mean(self.gaps()[skip:])

    def gaps(self) -> list[float]:
        """Seconds of every step but the first."""
        return [b - a for a, b in pairwise(self.times)]


def fit(args: list[str], steps: int, folder: Path) -> StepClock:
    """Train for `steps` without validation; the model lands in `folder/model`."""
    clock = StepClock()
    cli.EXTRA_CALLBACKS.append(clock)
    quiet = ["--report.examples", "0", "--model.validation_examples", "0"]
    try:
        budget = ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)]
        cli.run(["fit", *args, *quiet, *budget, "--trainer.default_root_dir", str(folder)])
    finally:
        cli.EXTRA_CALLBACKS.remove(clock)
    return clock


def train_for(
    args: list[str], minutes: float, folder: Path, steps: int | None = None
) -> tuple[TextModel, dict[str, Any]]:
    """Train for a budget of minutes: steps times the step time, measured first on the idle machine.

    With `steps`, for those instead. A folder that already holds a finished model is used as it is.
    """
    note = folder / "budget.json"
    asked = {"flags": args, "minutes": minutes} | ({} if steps is None else {"steps": steps})
    if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["asked"] != asked:
        sys.exit(f"{folder} holds a model of other flags or minutes; give another --name or --runs")
    if not note.is_file():
        probe = fit(args, PROBE, folder.with_name(folder.name + "-probe")).mean()
        steps = steps or int(minutes * 60 / probe)
        start = time.perf_counter()
        clock = fit(args, steps, folder)
        budget = {
            "asked": asked,
            "commit": commit(),
            "load_average": os.getloadavg()[1],
            "step_seconds_probe": probe,
            "step_seconds": clock.mean(),
            "steps": steps,
            "train_seconds": round(probe * steps, 1),
            "wall_seconds": round(time.perf_counter() - start, 1),
        }
        note.write_text(json.dumps(budget, indent=2) + "\n", encoding="utf-8")
    return load(folder / "model", "cpu"), json.loads(note.read_text(encoding="utf-8"))


def budgets_in_words(budgets: dict[str, dict[str, Any]]) -> str:
    """How equal the budgets were."""
    parts = []
    for name, one in budgets.items():
        seconds = f"{one['step_seconds']:.3f} s (probe {one['step_seconds_probe']:.3f} s)"
        parts.append(f"{name} {one['steps']:,} steps of {seconds}")
    return "Training: " + "; ".join(parts) + "."


def span(values: list[float]) -> Metric:
    """Mean and range, over seeds."""
    return {"mean": statistics.mean(values), "low": min(values), "high": max(values)}


def measure(runs: list[list[str]], references: list[list[str]], sources: list[str]) -> dict[str, Metric]:
    """Means over generation seeds; ROUGE with a bootstrap interval, the rest with the seeds' range."""
    reports = [summarization_report(texts, references, sources) for texts in runs]
    metrics = {}
    for name in reports[0]:
        metrics[name] = span([report[name] for report in reports])
    per_example = [rouge(texts, references) for texts in runs]
    for name in ROUGE:
        metrics[name] = bootstrap([scores[name] for scores in per_example])
    return metrics


def compare(rows: list[dict[str, Any]]) -> None:
    """Add to every row how far its ROUGE-L is ahead of the twin's greedy one, text by text.

    Takes the scores of single texts, `per_example`, out of the rows.
    """
    scores = [row.pop("per_example") for row in rows]
    base = next(i for i, row in enumerate(rows) if row.get("decoding") == "greedy")
    for row, own in zip(rows, scores, strict=True):
        row["rougeL_ahead_of_greedy"] = paired_bootstrap(own, scores[base])


def how(row: dict[str, Any]) -> str:
    """Sampler or decoding, and MBR, in words."""
    spec = row.get("sampler") or row.get("decoding") or ""
    parts = [spec["name"] if isinstance(spec, dict) else spec, row.get("training", "")]
    parts.append(f"MBR of {row['candidates']}" if row.get("candidates", 1) > 1 else "")
    return ", ".join(part for part in parts if part)


def commit() -> str:
    """Of the source."""
    told = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(told, capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()


def header(benchmark: str, dataset: str, split: str) -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "benchmark": benchmark,
        "dataset": dataset,
        "split": split,
        "commit": commit(),
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "torch": torch.__version__,
    }


def hardware() -> str:
    """Processor and number of threads, or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def write(result: dict[str, Any], name: str) -> Path:
    """Save a result file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
