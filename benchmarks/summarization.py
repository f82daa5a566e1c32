"""Train and evaluate on one conditional data set: diffusion, its autoregressive twin, LEAD-1 and copy.

    python benchmarks/summarization.py --config e2e --name e2e-15min --minutes 15 \
        --train_file train.jsonl --validation_file validation.jsonl --test_file test.jsonl

All systems see the same data for the same time on the same machine, one after the other, and are scored
on the whole test set in the same run. Single samples and MBR of several candidates are separate rows;
nothing is ever chosen by a reference. `--table` only prints the Markdown table of existing results.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import common

from textdiff.data import TextData
from textdiff.generation import generate_texts
from textdiff.metrics import ROUGE_SCORER, bleu, lead
from textdiff.model import TextModel

COLUMNS = ("rouge1", "rouge2", "rougeL", "bleu", "length_ratio", "repetition", "distinct_2")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="summarization")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--train_file")
    parser.add_argument("--validation_file")
    parser.add_argument("--test_file")
    parser.add_argument("--dataset_name")
    parser.add_argument("--minutes", type=float, default=15, help="training budget of every system")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 8, 16, 64])
    parser.add_argument("--seeds", type=int, default=3, help="generation seeds")
    parser.add_argument("--candidates", type=int, default=8, help="for MBR")
    parser.add_argument("--mbr_nfe", type=int, default=16)
    parser.add_argument("--max_examples", type=int, help="only the first test examples")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--set", nargs="*", default=[], help="further training flags, x=y")
    parser.add_argument("--set_twin", nargs="*", default=[], help="and those of the twin alone")
    parser.add_argument("--trials", type=int, default=1, help="settings tried on validation, each system")
    parser.add_argument("--table", action="store_true", help="print the table of existing results")
    return parser.parse_args()


def training_flags(options: argparse.Namespace, system: str) -> list[str]:
    """Flags of `python -m textdiff.train` for one system."""
    flags = ["--config", options.config]
    for key in ("train_file", "validation_file", "test_file", "dataset_name"):
        if getattr(options, key):
            flags += [f"--data.{key}", getattr(options, key)]
    own = options.set + (options.set_twin if system == "autoregressive" else [])
    return [*flags, "--model.network.system", system, *(f"--{flag}" for flag in own)]


def row(
    system: str, made: list[Any], examples: list[Any], model: TextModel | None, **details: Any
) -> dict[str, Any]:
    """One line of the results, from the generations of every seed."""
    texts = [one if isinstance(one, list) else one.texts for one in made]
    references = [example.references for example in examples]
    sources = [example.source for example in examples]
    timed = [one for one in made if not isinstance(one, list)]
    result: dict[str, Any] = {"system": system, **details, "seeds": len(made)}
    if model is not None:
        result["parameters"] = sum(p.numel() for p in model.parameters())
    if timed:
        result["nfe"] = timed[0].nfe * details.get("candidates", 1)
        seconds = statistics.median(one.seconds for one in timed)
        result["seconds_per_example"] = seconds / len(examples)
    result["metrics"] = common.measure(texts, references, sources)
    result["examples_shown"] = texts[0][:5]
    shown = {name: round(result["metrics"][name]["mean"], 2) for name in ("rougeL", "bleu")}
    print(
        {**{k: v for k, v in result.items() if k not in ("metrics", "examples_shown")}, **shown},
        flush=True,
    )
    return result


def write(
    model: TextModel, examples: list[Any], batch_size: int, seeds: int = 1, **options: Any
) -> list[Any]:
    """Generations of several seeds."""
    sources = [example.source for example in examples]
    common_options = {"dtype": "bfloat16", "batch_size": batch_size, **options}
    return [generate_texts(model, sources, seed=seed, **common_options) for seed in range(seeds)]


def diffusion_rows(
    model: TextModel, examples: list[Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Single samples at every NFE, then MBR."""
    size, name = options.batch_size, model.config.process
    rows = []
    for sampler in ("ancestral", "ddim"):
        for nfe in options.nfe:
            made = write(model, examples, size, options.seeds, steps=nfe, sampler=sampler)
            rows.append(row(name, made, examples, model, sampler=sampler, candidates=1))
    mbr = {"steps": options.mbr_nfe, "candidates": options.candidates}
    made = write(model, examples, size, options.seeds, **mbr)
    details = {"sampler": "ancestral", "candidates": options.candidates, "utility": "rougeL"}
    return [*rows, row(name, made, examples, model, **details)]


def twin_rows(
    model: TextModel, examples: list[Any], held: list[Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Greedy, beam 4 with the length penalty chosen on validation, sampling with MBR."""
    size, name = options.batch_size, "autoregressive"
    rows = [row(name, write(model, examples, size), examples, model, decoding="greedy", candidates=1)]
    penalties = {p: beam_score(model, held, size, p) for p in (0.6, 1.0, 1.4)}
    best = max(penalties, key=penalties.get)
    beam = {"name": "beam", "beams": 4, "length_penalty": best}
    made = write(model, examples, size, decoding=beam)
    details = {"decoding": "beam4", "length_penalty": best, "decoding_trials": len(penalties)}
    rows.append(row(name, made, examples, model, candidates=1, **details))
    made = write(model, examples, size, options.seeds, decoding="sample", candidates=options.candidates)
    details = {"decoding": "sample", "candidates": options.candidates, "utility": "rougeL"}
    return [*rows, row(name, made, examples, model, **details)]


def beam_score(model: TextModel, held: list[Any], size: int, penalty: float) -> float:
    """Validation BLEU of beam 4 at a length penalty."""
    beam = {"name": "beam", "beams": 4, "length_penalty": penalty}
    made = write(model, held, size, decoding=beam)[0]
    return bleu(made.texts, [example.references for example in held])


def markdown(result: dict[str, Any]) -> str:
    """The table for README."""
    lines = ["| system | how | NFE | s / text | " + " | ".join(COLUMNS) + " |"]
    lines.append("|---|---|---:|---:|" + "---:|" * len(COLUMNS))
    for one in result["rows"]:
        how = one.get("sampler") or one.get("decoding") or "-"
        how += f", MBR {one['candidates']}" if one.get("candidates", 1) > 1 else ""
        seconds = f"{one['seconds_per_example']:.4f}" if "seconds_per_example" in one else "-"
        cells = [f"{one['metrics'][name]['mean']:.1f}" for name in COLUMNS]
        cells = [one["system"], how, str(one.get("nfe", "-")), seconds, *cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """ROUGE-L against NFE and against seconds a text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = {"nfe": "network evaluations a text", "seconds_per_example": "seconds a text"}
    keys = [key for key in labels if any(key in one for one in result["rows"])]
    size = {"figsize": (5.5 * len(keys), 4), "layout": "constrained"}
    figure, panels = plt.subplots(1, len(keys), sharey=True, squeeze=False, **size)
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in (one for one in result["rows"] if "nfe" in one):
        how = one.get("sampler") or one["decoding"]
        how += f", MBR {one['candidates']}" if one["candidates"] > 1 else ""
        groups.setdefault(f"{one['system']} ({how})", []).append(one)
    for panel, key in zip(panels[0], keys, strict=True):
        for label, rows in groups.items():
            points = [(one[key], one["metrics"]["rougeL"]["mean"]) for one in rows]
            panel.plot(*zip(*points, strict=True), marker="o", label=label)
        panel.set(xlabel=labels[key], xscale="log")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"ROUGE-L, {result['dataset']} {result['split']}")
    panels[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train what is not trained yet, evaluate, save."""
    folder, started = options.runs / options.name, time.perf_counter()
    result = common.header("summarization", options.name, "test")  # before the code can change
    models, budgets = {}, {}
    for system in ("diffusion", "autoregressive"):
        flags = training_flags(options, system)
        models[system], budgets[system] = common.train_for(flags, options.minutes, folder / system)
    files = {key: getattr(options, key) for key in ("train_file", "validation_file", "test_file")}
    data = TextData(**files, dataset_name=options.dataset_name)
    examples = data.examples("test")[: options.max_examples]
    held = data.examples("validation")[:300]
    sources = [example.source for example in examples]
    rows = [row("lead", [[lead(source) for source in sources]], examples, None)]
    rows.append(row("copy", [sources], examples, None))
    rows += twin_rows(models["autoregressive"], examples, held, options)
    rows += diffusion_rows(models["diffusion"], examples, options)
    result |= {
        "train_minutes": options.minutes,
        "budget": budgets,
        "test_examples": len(examples),
        "batch_size": options.batch_size,
        "dtype": "bfloat16",
        "scorer": ROUGE_SCORER,
        "training_seeds": 1,
        "selection": {"split": "validation", "trials": options.trials},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    return result


def main() -> None:
    """Run, or print the table of an earlier run."""
    options = arguments()
    path = common.RESULTS / f"summarization-{options.name}.json"
    if not options.table:
        path = common.write(run(options), path.stem)
    result = json.loads(path.read_text(encoding="utf-8"))
    plot(result, path.with_suffix(".png"))
    print(markdown(result))


if __name__ == "__main__":
    main()
