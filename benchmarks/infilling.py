"""A third of the words of every text is missing: written with both sides in view, or with the left one.

    python benchmarks/infilling.py --name e2e --test_file test.jsonl \
        --models runs/embedding/model runs/autoregressive/model

Diffusion models write the gap of a known number of tokens, given what stands around it in each of three
ways (`textdiff.infill`); the autoregressive model writes on from the left side, and as many of its tokens
are taken. Scores are of the missing words against the true ones, and of whole texts against all
references.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import common

from textdiff import load
from textdiff.data import Example
from textdiff.evaluation import open_data
from textdiff.generation import Generation, generate_texts
from textdiff.metrics import ROUGE_SCORER, bleu, bootstrap, rouge
from textdiff.model import TextModel
from textdiff.tokenizer import OPEN

GAP = "___"
WAYS: dict[str, dict[str, Any]] = {
    "conditional, confidence": {"given": "conditional", "sampler": "confidence"},
    "conditional, ancestral": {"given": "conditional", "sampler": "ancestral"},
    "replacement, ancestral": {"given": "replace", "sampler": "ancestral"},
    "RePaint, ancestral": {"given": "repaint", "sampler": "ancestral"},
}


class Task(NamedTuple):
    """A text with a gap: `left ___ right`; `size` tokens are missing."""

    example: Example
    left: str
    missing: str
    right: str
    size: int

    @property
    def shown(self) -> str:
        """The text with its gap."""
        return f"{self.left} {GAP} {self.right}"


def tasks(model: TextModel, examples: list[Example], seed: int = 0) -> list[Task]:
    """A gap in every text of five words or more, with at least one word on both sides."""
    made = []
    for i, example in enumerate(examples):
        words = example.target.split()
        if len(words) < 5:
            continue
        count = max(1, len(words) // 3)
        start = Random(f"{seed} {i}").randint(1, len(words) - count - 1)
        parts = words[:start], words[start : start + count], words[start + count :]
        left, missing, right = map(" ".join, parts)
        (known,) = model.tokenizer.encode_gaps([f"{left} {GAP} {right}"], GAP)
        whole = len(model.tokenizer.encode([" ".join(words)])[0]) + 1
        size = whole - (len(known) - 1)
        if size > 0 and whole <= model.config.max_length:
            made.append(Task(example, left, missing, right, size))
    return made


def sources_of(some: list[Task]) -> list[str] | None:
    """What the model reads, if it reads anything."""
    sources = [task.example.source for task in some]
    return None if sources[0] is None else sources


def by_size(found: list[Task]) -> list[list[Task]]:
    """Tasks whose gaps are equally large."""
    sizes: dict[int, list[Task]] = defaultdict(list)
    for task in found:
        sizes[task.size].append(task)
    return list(sizes.values())


def fill(model: TextModel, some: list[Task], **options: Any) -> tuple[Generation, list[list[int]]]:
    """Gaps of one size: texts, and the ids of the gaps."""
    size = some[0].size
    shown = [task.shown for task in some]
    made = generate_texts(
        model, sources_of(some), prompt=shown, gap=GAP, gap_length=size, dtype="auto", **options
    )
    places = [ids.index(OPEN) for ids in model.tokenizer.encode_gaps(shown, GAP)]
    return made, [ids[at : at + size] for ids, at in zip(made.ids, places, strict=True)]


def go_on(model: TextModel, some: list[Task], **options: Any) -> tuple[Generation, list[list[int]]]:
    """From the left side alone, greedily; what follows the gap is not used."""
    left = [task.left for task in some]
    options |= {"decoding": "greedy", "dtype": "auto"}
    made = generate_texts(model, sources_of(some), prompt=left, **options)
    counts = [len(ids) for ids in model.tokenizer.encode(left)]
    gaps = [ids[n : n + task.size] for ids, n, task in zip(made.ids, counts, some, strict=True)]
    return made, [[i for i in gap if i != model.tokenizer.eos_id] for gap in gaps]


def score(model: TextModel, found: list[Task], seeds: int, **options: Any) -> dict[str, Any]:
    """One row: exactness of what was given, quality of what was not; mean NFE and seconds of a text.

    Those of the autoregressive model are left out: it goes on to the end of the text, for nothing.
    """
    twin = model.system == "autoregressive"
    groups, runs = [found] if twin else by_size(found), []
    order = [task for some in groups for task in some]
    seconds, nfe, changed = 0.0, 0.0, 0
    for seed in range(1 if twin else seeds):
        run: dict[str, list[str]] = defaultdict(list)
        for some in groups:
            made, ids = (go_on if twin else fill)(model, some, seed=seed, batch_size=128, **options)
            seconds, nfe = seconds + made.seconds, nfe + made.nfe * len(some)
            words = model.tokenizer.decode(ids)
            for task, text, written in zip(some, words, made.texts, strict=True):
                run["text"].append(text.strip())
                run["whole"].append(f"{task.left} {text.strip()} {task.right}")
                if not twin:
                    written = " ".join(written.split())
                    changed += not (written.startswith(task.left) and written.endswith(task.right))
        runs.append(run)
    missing, references = [[task.missing] for task in order], [task.example.references for task in order]
    of_gap = [rouge(one["text"], missing)["rougeL"] for one in runs]
    of_all = [rouge(one["whole"], references)["rougeL"] for one in runs]
    exact = [[a == b[0] for a, b in zip(one["text"], missing, strict=True)] for one in runs]
    written = len(order) * len(runs)
    cost = {} if twin else {"nfe": nfe / written, "seconds_per_example": seconds / written}
    return {
        **cost,
        "seeds": len(runs),
        "metrics": {
            "gap_rougeL": bootstrap(of_gap),
            "gap_bleu": common.span([bleu(one["text"], missing) for one in runs]),
            "gap_exact": common.span([100 * sum(one) / len(one) for one in exact]),
            "rougeL": bootstrap(of_all),
            "bleu": common.span([bleu(one["whole"], references) for one in runs]),
            **({} if twin else {"given_changed": common.span([100 * changed / written])}),
        },
        "examples_shown": [
            f"{task.left} [{text}] {task.right}"
            for task, text in zip(order[:5], runs[0]["text"][:5], strict=True)
        ],
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the result file")
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--models", nargs="+", required=True, help="model directories")
    parser.add_argument("--max_examples", type=int, help="only the first rows")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every model, every way, every number of evaluations."""
    result, rows, start = common.header("infilling", options.name, "test"), [], time.perf_counter()
    for folder in options.models:
        model = load(folder)
        data = open_data(model, options.test_file, max_test_examples=options.max_examples)
        found = tasks(model, data.examples("test"))
        twin = model.system == "autoregressive"
        name = common.name_of(model)
        ways = {"left side only, greedy": {}} if twin else WAYS
        for words, way in ways.items():
            for nfe in [None] if twin else options.nfe:
                how = way if twin else way | {"steps": nfe}
                row = {"system": name, "how": words, **score(model, found, options.seeds, **how)}
                rows.append(row | {"model": Path(folder).parent.name})
                print({k: v for k, v in row.items() if k != "examples_shown"}, flush=True)
    seconds = round(time.perf_counter() - start, 1)
    return result | {
        "texts": len(found),
        "scorer": ROUGE_SCORER,
        "wall_seconds": seconds,
        "rows": rows,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """ROUGE-L of the missing words against NFE."""
    with common.picture(path, 1, 6.5, 4) as (panel,):
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in result["rows"]:
            groups[f"{row['system']}: {row['how']}"].append(row)
        for label, rows in groups.items():
            means = [row["metrics"]["gap_rougeL"]["mean"] for row in rows]
            if len(rows) > 1:
                panel.plot([row["nfe"] for row in rows], means, "o-", label=label)
            else:
                panel.axhline(means[0], color="black", linestyle=":", label=label)
        panel.set_xscale("log", base=2)
        panel.set(xlabel="network evaluations a text", ylabel="ROUGE-L of the missing words")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)


if __name__ == "__main__":
    chosen = arguments()
    results = run(chosen)
    target = common.write(results, f"infilling-{chosen.name}")
    plot(results, target.with_suffix(".png"))
    print(target)
