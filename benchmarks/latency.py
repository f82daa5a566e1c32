"""Seconds a text, one at a time and in batches: diffusion at several numbers of steps beside the twin.

    python benchmarks/latency.py --name e2e --test_file test.jsonl \
        --models runs/embedding/model runs/autoregressive/model

Rounds go through all rows before any row is measured again, since machines drift; the median of rounds is
reported with their range. Texts are the first ones of the file; what they are worth is measured by
`summarization.py`.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import common
import torch

from textdiff import load
from textdiff.evaluation import open_data
from textdiff.generation import generate_texts
from textdiff.hardware import fast_dtype
from textdiff.model import TextModel

MBR = "MBR"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--models", nargs="+", required=True, help="model directories")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--candidates", type=int, default=1, help="also MBR of so many, if above 1")
    parser.add_argument("--mbr_nfe", type=int, default=8)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def ways(model: TextModel, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Decodings of the twin, or numbers of steps; then MBR."""
    many = options.candidates
    if model.system == "autoregressive":
        found = {"greedy": {"decoding": "greedy"}, "beam": {"decoding": "beam"}}
        mbr = {f"sample, {MBR} of {many}": {"decoding": "sample", "candidates": many}}
    else:
        found = {f"confidence, {n} steps": {"sampler": "confidence", "steps": n} for n in options.nfe}
        how = {"sampler": "confidence", "steps": options.mbr_nfe, "candidates": many}
        mbr = {f"confidence, {options.mbr_nfe} steps, {MBR} of {many}": how}
    return found | (mbr if many > 1 else {})


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rows, round by round; the first round warms up and does not count."""
    result = common.header("latency", options.name, "test")
    rows: list[dict[str, Any]] = []
    for folder in options.models:
        model = load(folder)
        data = open_data(model, options.test_file, max_test_examples=options.texts)
        sources = [example.source for example in data.examples("test")]
        name = common.name_of(model)
        for way, how in ways(model, options).items():
            for size in options.batch_sizes:
                call = (model, sources, how | {"batch_size": size, "dtype": "auto"})
                row = {"system": name, "model": Path(folder).parent.name, "how": way, "batch_size": size}
                rows.append(row | {"call": call, "times": []})
    for number in range(options.rounds + 1):
        for row in rows:
            model, sources, how = row["call"]
            made = generate_texts(model, sources, **how)
            row["nfe"] = made.nfe
            if number:
                row["times"].append(made.seconds / len(sources))
        print(f"round {number} of {options.rounds}", flush=True)
    for row in rows:
        del row["call"]
        times = row.pop("times")
        row["seconds_per_text"] = {"median": statistics.median(times), "low": min(times)}
        row["seconds_per_text"]["high"] = max(times)
        print(row, flush=True)
    dtype = str(fast_dtype(model.device)).removeprefix("torch.")
    return result | {"texts": len(sources), "rounds": options.rounds, "dtype": dtype, "rows": rows}


def plot(result: dict[str, Any], path: Path) -> None:
    """Time against steps, beside the twin, a panel for every size of batch."""
    sizes = sorted({row["batch_size"] for row in result["rows"]})
    with common.picture(path, len(sizes), 4.5, 3.8) as panels:
        for panel, size in zip(panels, sizes, strict=True):
            rows = [row for row in result["rows"] if row["batch_size"] == size and MBR not in row["how"]]
            for name in dict.fromkeys(row["model"] for row in rows):
                own = [row for row in rows if row["model"] == name]
                times = [1000 * row["seconds_per_text"]["median"] for row in own]
                if own[0]["system"] == "autoregressive":
                    for row, value in zip(own, times, strict=True):
                        style = ":" if row["how"] == "greedy" else "--"
                        panel.axhline(
                            value, color="black", linestyle=style, label=f"{name}, {row['how']}"
                        )
                else:
                    panel.plot([row["nfe"] for row in own], times, "o-", label=name)
            panel.set(title=f"batch {size}", xlabel="network evaluations", ylabel="milliseconds a text")
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3, which="both")
            panel.legend(fontsize=8)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    found = run(arguments())
    target = common.write(found, f"latency-{found['dataset']}")
    plot(found, target.with_suffix(".png"))
    print(target)
