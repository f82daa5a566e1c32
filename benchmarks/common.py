"""What the benchmarks share: training for a budget, rows of results, files, tables and plots."""

import argparse
import ctypes
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch

from textdiff import cli
from textdiff.api import load
from textdiff.batches import CHUNK
from textdiff.config import named
from textdiff.metrics import bootstrap, paired_bootstrap, rouge, summarization_report
from textdiff.model import TextModel

RESULTS = Path(__file__).parent / "results"
PROBE = 10 + CHUNK  # warm-up, and all the lengths that are sorted together
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Metric = dict[str, float]


class StepClock(L.Callback):
    """Wall times of training steps, from the end of one to the end of the next; steps and precision."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.steps, self.precision = 0, ""

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.precision = trainer.precision

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps = trainer.global_step  # fewer than asked for at a limit of time

    def median(self, skip: int = 15) -> float:
        """Seconds a step, after `skip` steps of warming up."""
        return statistics.median(self.gaps()[skip:])

    def mean(self, skip: int = 10) -> float:
        """Seconds a step, long batches and short ones: what a budget needs."""
        return statistics.mean(self.gaps()[skip:] or self.gaps() or [math.nan])  # of a few steps all

    def gaps(self) -> list[float]:
        """Seconds of every step but the first."""
        return [b - a for a, b in pairwise(self.times)]


def fit(args: list[str], steps: int, folder: Path) -> StepClock:
    """Train for `steps`, no time lost on validation; the model lands in `folder/model`."""
    clock = StepClock()
    cli.EXTRA_CALLBACKS.append(clock)
    quiet = ["--report.examples", "0", "--model.validation_examples", "0"]
    try:
        budget = ["--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1"]
        budget += ["--trainer.limit_val_batches", "0"]
        cli.run(["fit", *args, *quiet, *budget, "--trainer.default_root_dir", str(folder)])
    finally:
        cli.EXTRA_CALLBACKS.remove(clock)
    return clock


def add_budget(parser: argparse.ArgumentParser, minutes: float = 15) -> None:
    """The flags of a benchmark that trains."""
    parser.add_argument("--minutes", type=float, default=minutes, help="training budget of a system")
    parser.add_argument(
        "--steps",
        nargs="+",
        default=[],
        metavar="N or NAME=N",
        help="training steps of every system, or of the one named, instead of minutes",
    )
    parser.add_argument(
        "--train_only",
        nargs="+",
        metavar="NAME",
        help="train these and stop; several calls can do it at once",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--set", nargs="*", default=[], help="further training flags, x=y")


def several(text: str) -> int:
    """A number of candidates among which there is a choice."""
    if (count := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"{count}: of one text none is chosen; give 2 or more")
    return count


def add_rescoring(parser: argparse.ArgumentParser) -> None:
    """The flags of texts that the twin chooses among candidates of diffusion."""
    parser.add_argument(
        "--rescore",
        type=several,
        nargs="+",
        default=[],
        metavar="N",
        help="also the likeliest, by the twin, of so many texts of diffusion",
    )
    parser.add_argument(
        "--rescore_nfe", type=int, nargs="+", default=[2, 4], help="steps of each of them"
    )


def add_texts(parser: argparse.ArgumentParser, config: str) -> None:
    """The flags of a benchmark that trains on texts alone."""
    parser.add_argument("--config", default=config)
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file")
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--text_column", default="text")
    add_budget(parser)
    parser.add_argument("--set_twin", nargs="*", default=[], help="and those of autoregressive models")


def steps_of(asked: list[str], name: str) -> int | None:
    """The steps that `--steps` asks for: those of this name, else those of all."""
    told = dict(("", one) if "=" not in one else one.split("=") for one in asked)
    found = told.get(name, told.get(""))
    return None if found is None else int(found)


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """The budget, for a result file."""
    return {"train_steps": options.steps} if options.steps else {"train_minutes": options.minutes}


def train_all(
    options: argparse.Namespace,
    flags: dict[str, list[str] | Callable[[], list[str]]],
    copies: dict[str, str] | None = None,
) -> tuple[dict[str, TextModel], dict[str, dict[str, Any]]]:
    """Train every system of `flags`, one after the other, in `runs/name/system`.

    Args:
        options: of `add_budget`, and `name`.
        flags: training flags of every system; or how to get them once the systems before are trained.
        copies: systems that take as many steps as another one.
    """
    models, budgets, folder = {}, {}, options.runs / options.name
    for name in options.train_only or flags:
        steps = steps_of(options.steps, name)
        if steps is None and name in (copies or {}):
            steps = budgets[copies[name]]["steps"]
        known = flags[name]() if callable(flags[name]) else flags[name]
        models[name], budgets[name] = train_for(known, options.minutes, folder / name, steps)
    if options.train_only:
        sys.exit()
    return models, budgets


def train_for(
    args: list[str], minutes: float, folder: Path, steps: int | None = None
) -> tuple[TextModel, dict[str, Any]]:
    """Train for a budget of minutes: steps times the step time, measured first on the idle machine.

    With `steps`, for those instead. A folder that already holds a finished model is used as it is.
    """
    note = folder / "budget.json"
    asked = {"flags": args} | ({"minutes": minutes} if steps is None else {"steps": steps})
    if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["asked"] != asked:
        sys.exit(f"{folder} holds a model of other flags or minutes; give another --name or --runs")
    if not note.is_file():
        budget = {"asked": asked, "commit": commit(), "hardware": hardware()}
        budget["load_average_before"] = os.getloadavg()[0]
        if steps is None:
            probe = fit(args, PROBE, folder.with_name(folder.name + "-probe")).mean()
            steps = int(minutes * 60 / probe)
            budget |= {"step_seconds_probe": probe, "train_seconds": round(probe * steps, 1)}
        start = time.perf_counter()
        clock = fit(args, steps, folder)
        budget |= {
            "load_average": os.getloadavg()[1],
            "step_seconds": clock.mean(),
            "precision": clock.precision,
            "steps": clock.steps,
            "wall_seconds": round(time.perf_counter() - start, 1),
        }
        note.write_text(json.dumps(budget, indent=2) + "\n", encoding="utf-8")
    return load(folder / "model"), json.loads(note.read_text(encoding="utf-8"))


def budgets_in_words(budgets: dict[str, dict[str, Any]]) -> str:
    """How equal the budgets were."""
    parts = []
    for name, one in budgets.items():
        probe = f" (probe {one['step_seconds_probe']:.3f} s)" if "step_seconds_probe" in one else ""
        parts.append(f"{name} {one['steps']:,} steps of {one['step_seconds']:.3f} s{probe}")
    return "Training: " + "; ".join(parts) + "."


def spaced(rows: list[Any], count: int) -> list[Any]:
    """`count` of the rows, or all, from everywhere: neighbours are pieces of one text."""
    return rows[:: max(1, len(rows) // count)][:count]


def span(values: list[float]) -> Metric:
    """Mean and range, over seeds."""
    return {"mean": statistics.mean(values), "low": min(values), "high": max(values)}


def spread(reports: list[dict[str, float]]) -> dict[str, Metric]:
    """Mean and range of every figure, over seeds."""
    return {name: span([report[name] for report in reports]) for name in reports[0]}


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


def name_of(model: TextModel) -> str:
    """The process of a diffusion model, else the system: what rows of results call it."""
    return named(model.config.process)["name"] if model.system == "diffusion" else model.system


def how(row: dict[str, Any]) -> str:
    """Sampler or decoding, and MBR, in words; or what the row itself says."""
    spec = row.get("how") or row.get("sampler") or row.get("decoding") or ""
    parts = [spec["name"] if isinstance(spec, dict) else spec]
    parts += [row.get(name, "") for name in ("start", "training")]
    place = row.get("length_quantile", 0.5)
    parts.append(f"lengths at {place:g}" if place != 0.5 else "")
    if row.get("decoder") == "sample" and "temperature" in row:
        parts.append(f"drawn at {row['temperature']:g}")
    parts.append(chosen(row))
    return ", ".join(part for part in parts if part)


def chosen(row: dict[str, Any]) -> str:
    """How one of several candidates was chosen, in words; nothing for a single text."""
    many = row.get("candidates", 1)
    if "rescorer" in row:
        return f"best of {many} by the twin"
    return f"MBR of {many}" if many > 1 else ""


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


@contextmanager
def picture(path: Path, panels: int, width: float, height: float, **shared: bool) -> Iterator[list[Any]]:
    """Panels side by side, each `width` by `height` inches, that are saved as a picture at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panels * width, height), layout="constrained")
    yield list(figure.subplots(1, panels, squeeze=False, **shared)[0])
    figure.savefig(path, dpi=120)


class Memory:
    """Peak of resident memory above that at the start, bytes; Linux alone.

    What the allocator keeps of freed memory is given back first: else new megabytes would hide there.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        self.start = self.read("VmRSS")

    @staticmethod
    def read(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    @property
    def peak(self) -> int:
        return self.read("VmHWM") - self.start


def device() -> torch.device:
    """Where benchmarks run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
