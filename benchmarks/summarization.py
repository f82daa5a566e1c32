"""Train and evaluate on one conditional data set: diffusion, its autoregressive twin, LEAD-1 and copy.

    python benchmarks/summarization.py --config e2e --name e2e-15min --minutes 15 \
        --train_file train.jsonl --validation_file validation.jsonl --test_file test.jsonl

All systems see the same data, one after the other, for as many steps as fill the minutes at the pace
of a short probe (with `--from_twin` diffusion has the twin's as well, as a start), and are scored on the
whole test set in the same run. Single samples and MBR of several candidates are separate rows; nothing is
ever chosen by a reference. Temperatures, the length penalty of the beam and the length quantile of
diffusion are chosen by ROUGE-L on validation.
`scripts/update_readme.py` turns the results into tables.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import yaml

from textdiff.cli import find_config
from textdiff.data import TextData
from textdiff.files import read
from textdiff.generation import generate_texts
from textdiff.hardware import fast_dtype
from textdiff.metrics import ROUGE_SCORER, lead, rouge
from textdiff.model import TextModel

SYSTEMS = ("diffusion", "autoregressive")  # the kinds, for which training settings are counted
SPLITS = ("train_file", "validation_file", "test_file", "dataset_name")
DISTILLED = "-distilled"
PENALTIES = (0.6, 1.0, 1.4)
QUANTILES = (0.2, 0.3, 0.4, 0.5)
TEMPERATURES = (0.1, 0.3, 0.5, 0.7, 1.0)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="summarization")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--train_file")
    parser.add_argument("--validation_file")
    parser.add_argument("--test_file")
    parser.add_argument("--dataset_name")
    common.add_budget(parser)
    parser.add_argument("--processes", nargs="+", default=["embedding"], help="of diffusion")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 8, 16, 64])
    parser.add_argument("--seeds", type=int, default=3, help="generation seeds")
    parser.add_argument("--samplers", nargs="+", default=["confidence", "ancestral"])
    parser.add_argument("--candidates", type=int, default=8, help="for MBR; 1: no MBR")
    parser.add_argument("--mbr_nfe", type=int, default=16)
    common.add_rescoring(parser)
    parser.add_argument("--max_examples", type=int, help="only the first test examples")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument(
        "--equal_examples", action="store_true", help="also a twin of the first process's steps"
    )
    parser.add_argument(
        "--distill", action="store_true", help="also train every process on what the twin writes"
    )
    parser.add_argument(
        "--distill_only", action="store_true", help="and no process on people's texts before"
    )
    parser.add_argument("--distill_decoding", default="beam", help="beam or greedy")
    parser.add_argument("--distill_examples", type=int, help="only the first training examples")
    parser.add_argument(
        "--distill_start", action="store_true", help="from the model of people's texts, not from nothing"
    )
    parser.add_argument(
        "--distill_twin", action="store_true", help="also train the twin on what it writes by --distill"
    )
    parser.add_argument("--set_twin", nargs="*", default=[], help="and those of the twin alone")
    parser.add_argument("--start", type=Path, help="folder of a run whose models are fine-tuned")
    parser.add_argument(
        "--from_twin", action="store_true", help="every process starts from the weights of the twin"
    )
    for system in SYSTEMS:
        parser.add_argument(f"--trials_{system}", type=int, default=1, help="training settings tried")
    options = parser.parse_args()
    if options.from_twin and (options.start or options.distill_start or options.equal_examples):
        parser.error("--from_twin: leave out --start, --distill_start and --equal_examples")
    for name in ("distill_twin", "distill_only"):
        if getattr(options, name) and not options.distill:
            parser.error(f"--{name}: needs the texts of --distill")
    if options.distill_only and (options.distill_start or options.equal_examples):
        parser.error("--distill_only: leave out --distill_start and --equal_examples")
    if options.distill and not (options.train_file and options.validation_file):
        parser.error("--distill writes a training file anew: give --train_file and --validation_file")
    if options.distill_only and set(options.train_only or []) - {"autoregressive"}:
        parser.error(
            "--train_only: of --distill_only the twin alone is trained before its texts are there"
        )
    if any(name.endswith(DISTILLED) for name in options.train_only or []):
        parser.error(
            "--train_only: distilled systems are trained after their teacher, by the whole command"
        )
    return options


def training_flags(options: argparse.Namespace, name: str) -> list[str]:
    """Flags of `python -m textdiff.train` for the twin or for a process."""
    flags = ["--config", options.config]
    for key in SPLITS:
        if getattr(options, key):
            flags += [f"--data.{key}", getattr(options, key)]
    twin = name == "autoregressive"
    flags += ["--model.network.system", name if twin else "diffusion"]
    flags += [] if twin or name == "embedding" else ["--model.network.process", name]
    flags += ["--model.init_from", str(options.start / name / "model")] if options.start else []
    if options.from_twin and not twin:
        flags += ["--model.init_from", str(options.runs / options.name / "autoregressive" / "model")]
    return [*flags, *(f"--{flag}" for flag in options.set + (options.set_twin if twin else []))]


def config_of(name: str) -> dict[str, Any]:
    """The data settings of a configuration."""
    return yaml.safe_load(Path(find_config(name)).read_text(encoding="utf-8")).get("data", {})


def open_data(options: argparse.Namespace) -> TextData:
    """All splits, by what the configuration and the flags say; read before anything is trained.

    Raises:
        SystemExit: files or columns that are missing.
    """
    own = [flag.removeprefix("data.").split("=", 1) for flag in options.set if flag.startswith("data.")]
    told = config_of(options.config) | dict(own)
    told |= {key: value for key, value in vars(options).items() if key in SPLITS and value}
    names = (*SPLITS, "dataset_config", "text_column", "summary_column")
    try:
        data = TextData(**{name: told[name] for name in names if told.get(name)})
        data.examples("test"), data.examples("validation")
    except ValueError as error:
        sys.exit(f"summarization: {error}")
    return data


def students(options: argparse.Namespace) -> list[str]:
    """Systems that learn from what the trained twin writes."""
    return (options.processes + ["autoregressive"] * options.distill_twin) * options.distill


def distilled(options: argparse.Namespace, name: str, flags: list[str]) -> list[str]:
    """Flags of process `name` with training texts that the trained twin writes, and its tokenizer."""
    folder = options.runs / options.name
    teacher, file = folder / "autoregressive" / "model", folder / "distilled.jsonl"
    script = Path(__file__).parent.parent / "scripts" / "distill.py"
    call = [script, teacher, options.train_file, file, "--decoding", options.distill_decoding]
    if options.distill_examples:
        call += ["--max_examples", options.distill_examples]
    for key in ("text_column", "summary_column"):
        if column := config_of(options.config).get(key):
            call += [f"--{key}", column]
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, call)], check=True)
    print(f"{file}: {time.perf_counter() - start:.0f} s", flush=True)
    goes_on = options.distill_start or (options.from_twin and name == "autoregressive")
    trained = ["--model.init_from", str(folder / name / "model")] if goes_on else []
    return [*flags, *trained, "--data.train_file", str(file), "--data.tokenizer", str(teacher)]


def count_rows(options: argparse.Namespace) -> int:
    """Sources that the teacher answered."""
    return sum(1 for _ in read(options.runs / options.name / "distilled.jsonl"))


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
    result["per_example"] = [rouge(one, references)["rougeL"] for one in texts]
    result["examples_shown"] = texts[0][:5]
    shown = {name: round(result["metrics"][name]["mean"], 2) for name in ("rougeL", "bleu")}
    print(
        {k: v for k, v in result.items() if k not in ("metrics", "per_example", "examples_shown")}
        | shown,
        flush=True,
    )
    return result


def write(
    model: TextModel, examples: list[Any], batch_size: int, seeds: int = 1, **options: Any
) -> list[Any]:
    """Generations of several seeds."""
    sources = [example.source for example in examples]
    common_options = {"dtype": "auto", "batch_size": batch_size, **options}
    return [generate_texts(model, sources, seed=seed, **common_options) for seed in range(seeds)]


def choose(
    model: TextModel, held: list[Any], size: int, settings: list[dict[str, Any]], **fixed: Any
) -> tuple[dict[str, Any], dict[str, float]]:
    """The setting with the best ROUGE-L on held-out validation examples, and the ROUGE-L of all."""
    references = [example.references for example in held]
    written = [write(model, held, size, **one, **fixed)[0].texts for one in settings]
    scores = [statistics.mean(rouge(texts, references)["rougeL"]) for texts in written]
    best = settings[max(range(len(settings)), key=scores.__getitem__)]
    names = [json.dumps(one) for one in settings]
    return best, dict(zip(names, scores, strict=True))


def mbr_row(
    name: str,
    model: TextModel,
    examples: list[Any],
    held: list[Any],
    options: argparse.Namespace,
    settings: list[dict[str, Any]],
) -> dict[str, Any]:
    """MBR with the setting that is best on validation, tried there with fewer candidates and texts."""
    grid = [one | {"candidates": 4} for one in settings]
    best, trials = choose(model, held[:100], options.batch_size, grid)
    chosen = best | {"candidates": options.candidates}
    made = write(model, examples, options.batch_size, options.seeds, **chosen)
    return row(name, made, examples, model, **chosen, utility="rougeL", validation_rougeL=trials)


def rescored_rows(
    name: str,
    model: TextModel,
    twin: TextModel,
    examples: list[Any],
    held: list[Any],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Of several candidates the one that the twin finds likeliest; lengths are chosen as for MBR."""
    rows = []
    for many in options.rescore:
        usual = {"sampler": "confidence", "steps": max(options.rescore_nfe), "candidates": many}
        grid = [usual | {"length_quantile": q} for q in QUANTILES]
        best, trials = choose(model, held[:100], options.batch_size, grid, rescorer=twin)
        for nfe in options.rescore_nfe:
            how = best | {"steps": nfe}
            made = write(model, examples, options.batch_size, options.seeds, rescorer=twin, **how)
            told = {"rescorer": "autoregressive", "validation_rougeL": trials}
            rows.append(row(name, made, examples, model, **how, **told))
    return rows


def diffusion_rows(
    model: TextModel, examples: list[Any], held: list[Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Single samples at every NFE, the surest tokens first or all together; then MBR."""
    size, name, rows = options.batch_size, common.name_of(model), []

    # the likeliest token is the same at every temperature: with `confidence` only lengths are to choose
    usual = {"sampler": "confidence", "steps": options.mbr_nfe}
    single, lengths = choose(model, held, size, [usual | {"length_quantile": q} for q in QUANTILES])

    def grid(**how: Any) -> list[dict[str, Any]]:
        return [single | how | {"temperature": t} for t in TEMPERATURES]

    for sampler in options.samplers:
        best, trials = single, lengths
        if sampler != "confidence":
            best, trials = choose(model, held, size, grid(sampler=sampler, decoder="softmax"))
        for nfe in sorted(options.nfe):
            chosen = best | {"steps": nfe}
            made = write(model, examples, size, options.seeds, **chosen)
            rows.append(
                row(name, made, examples, model, candidates=1, validation_rougeL=trials, **chosen)
            )
            if made[0].nfe < nfe:  # every token had a step of its own: more change nothing
                break
    if options.candidates == 1:
        return rows
    # candidates differ by length and noise, or are drawn too: as many settings as the twin's
    drawn = grid(decoder="sample")[:-1]
    return [*rows, mbr_row(name, model, examples, held, options, [single, *drawn])]


def greedy_row(model: TextModel, examples: list[Any], batch_size: int, **details: Any) -> dict[str, Any]:
    """The twin's likeliest next token, always."""
    made = write(model, examples, batch_size)
    return row("autoregressive", made, examples, model, decoding="greedy", candidates=1, **details)


def twin_rows(
    model: TextModel, examples: list[Any], held: list[Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Greedy, beam 4, sampling with MBR."""
    size, name = options.batch_size, "autoregressive"
    rows = [greedy_row(model, examples, size)]
    grid = [{"decoding": {"name": "beam", "beams": 4, "length_penalty": p}} for p in PENALTIES]
    chosen, trials = choose(model, held, size, grid)
    made = write(model, examples, size, **chosen)
    rows.append(row(name, made, examples, model, candidates=1, validation_rougeL=trials, **chosen))
    if options.candidates == 1:
        return rows
    sample = [{"decoding": {"name": "sample", "temperature": t}} for t in TEMPERATURES]
    return [*rows, mbr_row(name, model, examples, held, options, sample)]


def plot(result: dict[str, Any], path: Path) -> None:
    """ROUGE-L against NFE and against seconds a text."""
    from matplotlib import color_sequences

    labels = {"nfe": "network evaluations a text", "seconds_per_example": "seconds a text"}
    keys = [key for key in labels if any(key in one for one in result["rows"])]
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in (one for one in result["rows"] if "nfe" in one):
        groups.setdefault(f"{one['system']} ({common.how(one)})", []).append(one)
    height = 4 + 0.2 * len(groups)  # names stand below, where they hide no curve
    with common.picture(path, len(keys), 4 + 4 / len(keys), height, sharey=True) as panels:
        for panel, key in zip(panels, keys, strict=True):
            panel.set_prop_cycle("color", color_sequences["tab20"])  # of ten colours some came twice
            for label, rows in groups.items():
                points = [(one[key], one["metrics"]["rougeL"]["mean"]) for one in rows if key in one]
                panel.plot(*np.array(points).reshape(-1, 2).T, marker="o", label=label)
            panel.set(xlabel=labels[key], xscale="log")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("ROUGE-L")
        figure, (lines, names) = panels[0].figure, panels[0].get_legend_handles_labels()
        figure.suptitle(f"{result['dataset']}, {result['split']}", fontsize=10)
        figure.legend(lines, names, fontsize=8, loc="outside lower center")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train what is not trained yet, evaluate, save."""
    started = time.perf_counter()
    result = common.header("summarization", options.name, "test")  # before the code can change
    data = open_data(options)
    # the twin first: others can start from it
    on_people = [] if options.distill_only else options.processes
    flags = {name: training_flags(options, name) for name in ("autoregressive", *on_people)}
    copies = {"equal_examples": options.processes[0]} if options.equal_examples else {}
    flags |= dict.fromkeys(copies, flags["autoregressive"])
    for name in students(options):
        of_name = flags.get(name) or training_flags(options, name)
        flags[f"{name}{DISTILLED}"] = partial(distilled, options, name, of_name)
        copies |= {f"{name}{DISTILLED}": name} if name in flags else {}
    models, budgets = common.train_all(options, flags, copies)
    examples = data.examples("test")[: options.max_examples]
    held = data.examples("validation")[:300]
    sources = [example.source for example in examples]
    rows = [row("lead", [[lead(source) for source in sources]], examples, None)]
    rows.append(row("copy", [sources], examples, None))
    rows += twin_rows(models["autoregressive"], examples, held, options)
    if options.equal_examples:
        trained = models["equal_examples"]
        rows.append(greedy_row(trained, examples, options.batch_size, training="equal examples"))
    if options.distill_twin:
        trained = models[f"autoregressive{DISTILLED}"]
        found = twin_rows(trained, examples, held, options)
        rows += [one | {"training": "distilled"} for one in found]
    for name in options.processes:
        for trained in [one for one in (name, f"{name}{DISTILLED}") if one in models]:
            found = diffusion_rows(models[trained], examples, held, options)
            twin = models["autoregressive"]
            found += rescored_rows(name, models[trained], twin, examples, held, options)
            told = {"training": "distilled"} if trained != name else {}
            told |= {"start": "from the twin"} if options.from_twin else {}
            rows += [one | told for one in found]
    common.compare(rows)
    result |= {
        **common.asked(options),
        "budget": budgets,
        "test_examples": len(examples),
        "batch_size": options.batch_size,
        "scorer": ROUGE_SCORER,
        "training_seeds": 1,
        "dtype": str(fast_dtype(models["autoregressive"].device)).removeprefix("torch."),
        "note": common.budgets_in_words(budgets),
        **({"distilled_rows": count_rows(options)} if options.distill else {}),
        "trials": {system: getattr(options, f"trials_{system}") for system in SYSTEMS},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    return result


def main() -> None:
    """Run, save, plot, print the table."""
    options = arguments()
    path = common.write(run(options), f"summarization-{options.name}")
    result = json.loads(path.read_text(encoding="utf-8"))
    plot(result, path.with_suffix(".png"))
    sys.path.append(str(Path(__file__).parent.parent / "scripts"))
    from update_readme import SUMMARY, table

    print(f"\n{table(result, SUMMARY)}\n\n{path}")


if __name__ == "__main__":
    main()
