"""Which idea is worth its training: one lever changed at a time, on validation data alone.

    python benchmarks/ablation.py --config e2e --name e2e --steps 600 --rounds 2 \
        --train_file train.jsonl --validation_file validation.jsonl

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): every lever trains for `--steps` from
scratch, its learning rate falling to zero; the best `--keep` of them (the default counted, rounded up) go
on to the next round, from scratch again with `--grow` times the steps, always beside the unchanged
default. The last round trains with every one of `--seeds`. The autoregressive twin has levers of its own,
as many, and the same rounds. A lever is scored by validation ROUGE-L and BLEU of texts at several numbers
of evaluations; `--levers` takes some of them, or new ones of your own. With `--test_file` the models of
the last round write its texts, too, which choose nothing:

    python benchmarks/ablation.py --config e2e --name e2e-together --steps 1800 --rounds 1 --seeds 0 1 2 \
        --train_file train.jsonl --validation_file validation.jsonl --test_file test.jsonl \
        --levers "together: model.network.given_rate=0.9 model.learning_rate=2e-2"
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import common

from textdiff.data import Example, TextData
from textdiff.generation import generate_texts
from textdiff.metrics import bleu, rouge
from textdiff.model import TextModel

DEFAULT = "default"
LEVERS: dict[str, list[str]] = {
    DEFAULT: [],
    "pointer": ["model.network.pointer=true"],
    "no self-conditioning": ["model.network.self_conditioning=0.0"],
    "self-conditioning always": ["model.network.self_conditioning=1.0"],
    "given tokens 0.9": ["model.network.given_rate=0.9"],
    "no noise of its own": ["model.network.token_noise=0.0"],
    "source always seen": ["model.network.source_dropout=0.0"],
    "cosine": ["model.network.schedule=cosine"],
    "warped": ["model.network.schedule=warped"],
    "ELBO": ["model.network.objective=variational"],
    "embeddings 64": ["model.network.embedding_width=64"],
    "dropout 0.1": ["model.network.dropout=0.1"],
    "encoder 3, decoder 3": ["model.network.encoder_depth=3", "model.network.depth=3"],
    "AdamW": ["model.optimizer=adamw", "model.learning_rate=3e-3"],
    "Muon 5e-3": ["model.learning_rate=5e-3"],
    "Muon 2e-2": ["model.learning_rate=2e-2"],
}
TWIN_LEVERS: dict[str, list[str]] = {
    DEFAULT: [],
    "pointer": ["model.network.pointer=true"],
    "dropout 0.1": ["model.network.dropout=0.1"],
    "dropout 0.2": ["model.network.dropout=0.2"],
    "label smoothing 0.05": ["model.network.label_smoothing=0.05"],
    "label smoothing 0.1": ["model.network.label_smoothing=0.1"],
    "embeddings 64": ["model.network.embedding_width=64"],
    "encoder 3, decoder 3": ["model.network.encoder_depth=3", "model.network.depth=3"],
    "eight heads": ["model.network.heads=8"],
    "AdamW 1e-3": ["model.optimizer=adamw", "model.learning_rate=1e-3"],
    "AdamW 3e-3": ["model.optimizer=adamw", "model.learning_rate=3e-3"],
    "AdamW 5e-3": ["model.optimizer=adamw", "model.learning_rate=5e-3"],
    "Muon 1.5e-3": ["model.learning_rate=1.5e-3"],
    "Muon 5e-3": ["model.learning_rate=5e-3"],
    "Muon 1e-2": ["model.learning_rate=1e-2"],
    "weight decay 0.1": ["model.weight_decay=0.1"],
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="e2e")
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--system", choices=("diffusion", "autoregressive"), default="diffusion")
    parser.add_argument("--train_file")
    parser.add_argument("--validation_file")
    parser.add_argument("--test_file", help="the models of the last round write its texts, too")
    parser.add_argument("--dataset_name")
    parser.add_argument("--levers", nargs="+", help="names, or NAME: flag=value ...; default: all")
    parser.add_argument("--steps", type=int, default=600, help="of the first round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--keep", type=float, default=0.5, help="share that goes on to the next round")
    parser.add_argument("--grow", type=float, default=3, help="times the steps in every further round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training, last round")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--texts", type=int, default=200, help="validation texts that are written")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--set", nargs="*", default=[], help="further training flags of all, x=y")
    options = parser.parse_args()
    if not 0 < options.keep <= 1:
        parser.error(f"--keep must be above 0 and at most 1, not {options.keep}")
    return options


def levers_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """Flags by name, the default first."""
    known = LEVERS if options.system == "diffusion" else TWIN_LEVERS
    if options.levers is None:
        return known
    chosen = {DEFAULT: []}
    for one in options.levers:
        name, colon, flags = one.partition(":")
        if not colon and name not in known:
            raise SystemExit(f"ablation: no lever {name!r}; one of: {', '.join(known)}, or NAME: x=y ...")
        chosen[name] = flags.split() if colon else known[name]
    return chosen


def training_flags(options: argparse.Namespace, lever: list[str], seed: int) -> list[str]:
    """Flags of `python -m textdiff.train`."""
    flags = ["--config", options.config, "--seed_everything", str(seed), "--model.seed", str(seed)]
    for key in ("train_file", "validation_file", "dataset_name"):
        if getattr(options, key):
            flags += [f"--data.{key}", getattr(options, key)]
    return [*flags, "--model.network.system", options.system, *(f"--{x}" for x in options.set + lever)]


def score(model: TextModel, examples: list[Example], nfe: list[int]) -> dict[str, Any]:
    """ROUGE-L and BLEU of texts, by number of evaluations; and the mean of all of them, in one figure."""
    sources, references = zip(*((one.source, one.references) for one in examples), strict=True)
    ways = {"greedy": {}}
    if model.system == "diffusion":
        ways = {str(n): {"steps": n, "sampler": "confidence"} for n in nfe}
    found: dict[str, Any] = {"rougeL": {}, "bleu": {}}
    for name, how in ways.items():
        texts = generate_texts(model, sources, batch_size=128, dtype="auto", **how).texts
        scores = rouge(texts, references)["rougeL"]
        found["rougeL"][name] = sum(scores) / len(scores)
        found["bleu"][name] = bleu(texts, references)
    every = [*found["rougeL"].values(), *found["bleu"].values()]
    return found | {"mean": sum(every) / len(every)}


def trial(
    options: argparse.Namespace,
    name: str,
    flags: list[str],
    steps: int,
    seed: int,
    examples: list[Example],
    test: list[Example],
) -> dict[str, Any]:
    """One lever trained and scored; a finished one is read from its folder."""
    folder = options.runs / options.name / options.system / f"{name.replace(' ', '-')}-{steps}-{seed}"
    model, budget = common.train_for(training_flags(options, flags, seed), 0, folder, steps)
    row = {"lever": name, "flags": flags, "steps": steps, "seed": seed}
    told = {key: budget[key] for key in ("step_seconds", "commit", "hardware")}
    process = common.name_of(model)
    row = {"system": process, **row, **told, **score(model, examples, options.nfe)}
    return row | ({"test": score(model, test, options.nfe)} if test else {})


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    result, start, rows = common.header("ablation", options.name, "validation"), time.perf_counter(), []
    split = {"train_file": options.train_file, "validation_file": options.validation_file}
    data = TextData(**split) if options.train_file else TextData(dataset_name=options.dataset_name)
    examples = data.examples("validation")[: options.texts]
    test = TextData(test_file=options.test_file).examples("test") if options.test_file else []
    levers, steps = levers_of(options), options.steps
    for number in range(options.rounds):
        last = number + 1 == options.rounds
        for name, flags in levers.items():
            for seed in options.seeds if last else options.seeds[:1]:
                unseen = test if last else []
                row = trial(options, name, flags, steps, seed, examples, unseen)
                rows.append({"round": number + 1, **row})
                print(json.dumps(rows[-1]), flush=True)
        scores = {row["lever"]: row["mean"] for row in rows if row["round"] == number + 1}
        kept = math.ceil(len(scores) * options.keep)
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:kept]
        levers = {name: flags for name, flags in levers.items() if name in (DEFAULT, *best)}
        steps = int(steps * options.grow)
    seconds = round(time.perf_counter() - start, 1)
    return result | {
        "system": options.system,
        "texts": len(examples),
        "test_texts": len(test),
        "wall_seconds": seconds,
        "rows": rows,
    }


def gains(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """How far every lever of one round is above the default of the same seed, seed by seed."""
    base = {row["seed"]: row["mean"] for row in rows if row["lever"] == DEFAULT}
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["lever"], []).append(row["mean"] - base[row["seed"]])
    return found


def plot(result: dict[str, Any], path: Path) -> None:
    """The gain of every lever over the default of its round and seed, all seeds as dots."""
    rounds = sorted({row["round"] for row in result["rows"]})
    height = 1.2 + 0.25 * len({row["lever"] for row in result["rows"]})
    with common.picture(path, len(rounds), 5.5, height) as panels:
        for panel, number in zip(panels, rounds, strict=True):
            rows = [row for row in result["rows"] if row["round"] == number]
            above = gains(rows)
            order = sorted(above, key=lambda name: sum(above[name]) / len(above[name]))
            for i, name in enumerate(order):
                panel.plot(above[name], [i] * len(above[name]), "o", color="C0")
            panel.axvline(0, color="black", linewidth=0.8)
            panel.set_yticks(range(len(order)), order, fontsize=8)
            panel.set_ylim(-0.5, len(order) - 0.5)
            panel.set(
                title=f"{rows[0]['steps']:,} steps", xlabel="mean of ROUGE-L and BLEU above the default"
            )
            panel.grid(alpha=0.3)


if __name__ == "__main__":
    chosen = arguments()
    results = run(chosen)
    target = common.write(results, f"ablation-{chosen.name}-{chosen.system}")
    plot(results, target.with_suffix(".png"))
    print(target)
