"""Seconds a text, one at a time and in batches: diffusion at several numbers of steps beside the twin.

    python benchmarks/latency.py --name e2e --test_file test.jsonl \
        --models runs/embedding/model runs/autoregressive/model \
        --quality benchmarks/results/summarization-e2e.json

Rounds go through all rows before any row is measured again, since machines drift; the median of rounds is
reported with their range. Texts are the first ones of the file. With `--quality`, a result of
`summarization.py` about the same models, they are written with the settings that were chosen there, and
the ROUGE-L of all its texts stands beside the time. With `--rescore` candidates are chosen by the first
autoregressive model among them, whose time counts. A batch counts texts: their candidates are computed
together.
"""

import argparse
import json
import statistics
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import common
import torch

from textdiff import load
from textdiff.config import named
from textdiff.evaluation import open_data
from textdiff.generation import generate_texts
from textdiff.hardware import fast_dtype
from textdiff.model import TextModel

MARKS = "osD^vP*X"
SETTINGS = "sampler steps decoder temperature length_quantile decoding utility rescorer".split()
SPAN = "low", "median", "high"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--models", nargs="+", required=True, help="model directories")
    parser.add_argument("--quality", type=Path, help="result of summarization.py about these models")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--candidates", type=int, default=1, help="also MBR of so many, if above 1")
    parser.add_argument("--mbr_nfe", type=int, default=8)
    common.add_rescoring(parser)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--texts_alone", type=int, help="of them, where one is written at a time")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def ways(model: TextModel, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Decodings of the twin, or numbers of steps; then several candidates."""
    mbr = {"candidates": options.candidates}
    if model.system == "autoregressive":
        found = [{"decoding": name} for name in ("greedy", "beam")]
        found += [{"decoding": "sample", **mbr}] * (options.candidates > 1)
    else:
        found = [{"steps": n} for n in options.nfe]
        found += [{"steps": options.mbr_nfe, **mbr}] * (options.candidates > 1)
        told = {"rescorer": "autoregressive"}
        found += [
            {"steps": n, "candidates": many, **told}
            for many in options.rescore
            for n in options.rescore_nfe
        ]
        found = [{"sampler": "confidence"} | one for one in found]
    return {way_of(one): one for one in found}


def way_of(row: dict[str, Any]) -> str:
    """A way to write, in words."""
    steps = "sampler" in row
    way = f"{row['sampler']}, {row['steps']} steps" if steps else named(row["decoding"])["name"]
    return ", ".join(filter(None, [way, common.chosen(row)]))


def quality(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """`rougeL` and `options` of a result of `summarization.py`, by name of the model and way to write."""
    found = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        if row["system"] in ("lead", "copy"):
            continue
        options = {key: row[key] for key in SETTINGS if key in row}
        if row["candidates"] > 1:
            options["candidates"] = row["candidates"]
        found[key_of(row)] = {"rougeL": row["metrics"]["rougeL"]["mean"], "options": options}
    return found


def key_of(row: dict[str, Any]) -> tuple[str, str]:
    """Model and way to write of a row of `summarization.py`, as they are called here."""
    name = "-".join([row["system"], *([row["training"]] if "training" in row else [])])
    return name, way_of(row)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rows, round by round; the first round warms up and does not count."""
    result = common.header("latency", options.name, "test")
    worth = quality(options.quality) if options.quality else {}
    rows: list[dict[str, Any]] = []
    models = {folder: load(folder) for folder in options.models}
    twins = [model for model in models.values() if model.system == "autoregressive"]
    if options.rescore and not twins:
        sys.exit("latency: --rescore needs the twin among --models")
    for folder, model in models.items():
        data = open_data(model, options.test_file, max_test_examples=options.texts)
        sources = [example.source for example in data.examples("test")]
        name = common.name_of(model)
        for way, how in ways(model, options).items():
            key = Path(folder).parent.name, way
            if worth and key not in worth:
                known = "; ".join(f"{one}: {other}" for one, other in worth)
                sys.exit(f"latency: {options.quality} has no {key[0]}: {way}; it has {known}")
            row: dict[str, Any] = {"system": name, "model": key[0], "how": way, "options": how}
            row |= worth.get(key, {})
            for size in options.batch_sizes:
                count = size * row["options"].get("candidates", 1)
                given = row["options"] | {"batch_size": count, "dtype": "auto"}
                given |= {"rescorer": twins[0]} if "rescorer" in given else {}
                call = (model, sources[: options.texts_alone] if size == 1 else sources, given)
                rows.append(row | {"batch_size": size, "call": call, "times": []})
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
    alone = {} if options.texts_alone is None else {"texts_alone": options.texts_alone}
    result |= {"texts": len(sources), **alone, "rounds": options.rounds, "dtype": dtype}
    return result | ({"quality": options.quality.name} if worth else {}) | {"rows": rows}


def plot(result: dict[str, Any], path: Path) -> None:
    """Quality (without it: steps) against time, a panel for every size of batch; bars are ranges."""
    sizes = sorted({row["batch_size"] for row in result["rows"]})
    axis = "rougeL" if any("rougeL" in row for row in result["rows"]) else "nfe"
    with common.picture(path, len(sizes), 5, 4, sharey=True) as panels:
        for panel, size in zip(panels, sizes, strict=True):
            rows = [row for row in result["rows"] if row["batch_size"] == size and axis in row]
            groups: dict[str, list[dict[str, Any]]] = {}
            for row in rows:  # numbers of steps make a curve, all else is a point
                parts = row["how"].split(", ")
                told = [one for one in parts if one != "confidence" and not one.endswith(" steps")]
                groups.setdefault(", ".join([row["model"], *told]), []).append(row)
            for (label, own), mark in zip(groups.items(), cycle(MARKS), strict=False):
                times = [[1000 * row["seconds_per_text"][key] for row in own] for key in SPAN]
                low, middle, high = (torch.tensor(one) for one in times)
                bars = torch.stack([middle - low, high - middle])
                values = [row[axis] for row in own]
                panel.errorbar(middle, values, xerr=bars, fmt=f"{mark}-", capsize=2, label=label)
                if len(own) > 1:
                    for row, x, y in zip(own, middle, values, strict=True):
                        panel.annotate(
                            row["nfe"], (x, y), (4, -11), textcoords="offset points", fontsize=8
                        )
            panel.set(title=f"batch {size}", xlabel="milliseconds a text", xscale="log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("{x:g}")
            panel.tick_params(axis="x", which="both", labelsize=8)
            panel.grid(alpha=0.3, which="both")
        panels[0].set_ylabel("ROUGE-L" if axis == "rougeL" else "network evaluations")
        panels[-1].legend(fontsize=8)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    found = run(arguments())
    target = common.write(found, f"latency-{found['dataset']}")
    plot(found, target.with_suffix(".png"))
    print(target)
