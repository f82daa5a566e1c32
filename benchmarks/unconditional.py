"""Train on plain texts and measure what is written from nothing, beside the data's own figures.

    python benchmarks/unconditional.py --name gutenberg --minutes 15 --train_file train.jsonl \
        --validation_file validation.jsonl --test_file test.jsonl --text_column text

Entropy, distinct-n, self-BLEU and memorisation say whether samples are varied and new; the perplexity
under a judge, an autoregressive model trained with its own seed on the same data, whether they are
fluent. Perplexity alone is worthless (repetition lowers it): it stands beside the entropy. The row
`data` is the test set itself. MAUVE, from the states of the judge, compares only with figures of the same
judge.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from textdiff.batches import pad as pad_ids
from textdiff.batches import to_device
from textdiff.control import AtLeast
from textdiff.data import TextData
from textdiff.generation import generate_texts
from textdiff.metrics import unconditional_report
from textdiff.model import TextModel

PART = 64  # tokens of a long text that are measured together
AXES = "entropy", "judge_perplexity"
Report = dict[str, float]
Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_texts(parser, "unconditional")
    parser.add_argument("--nfe", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=64, help="of generation")
    parser.add_argument("--seeds", type=int, default=3, help="generation seeds")
    parser.add_argument("--processes", nargs="+", default=["embedding"], help="of diffusion")
    parser.add_argument("--mauve", action="store_true", help="also MAUVE; wants thousands of samples")
    parser.add_argument("--long", type=int, default=0, help="tokens of texts written block by block")
    parser.add_argument("--long_samples", type=int, default=16)
    parser.add_argument("--block_length", type=int, default=32)
    parser.add_argument("--block_steps", type=int, default=32)
    return parser.parse_args()


@torch.no_grad()
def judged(judge: TextModel, rows: list[list[int]]) -> float:
    """Perplexity a token of texts under the judge, their EOS included where they end."""
    total = count = 0.0
    for i in range(0, len(rows), 64):
        ids, valid = pad_ids(rows[i : i + 64], judge.tokenizer.pad_id)
        batch = to_device({"ids": ids, "mask": valid, "valid": valid}, judge.device)
        losses = judge.loss(batch, 0)
        total += float((losses.nll * losses.mask).sum())
        count += float(losses.mask.sum())
    return float(torch.tensor(total / count).exp())


@torch.no_grad()
def features(judge: TextModel, rows: list[list[int]]) -> np.ndarray:
    """The judge's state at the last token of every text, `(N, D)`, what MAUVE takes of GPT-2."""
    states: list[torch.Tensor] = []
    hook = judge.network.register_forward_hook(lambda _, inputs, out: states.append(out[0]))
    try:
        for ids in rows:
            one = torch.tensor([ids], device=judge.device)
            batch = {"ids": one, "mask": one >= 0, "valid": one >= 0}
            judge.loss(batch, 0)
    finally:
        hook.remove()
    return torch.stack([state[0, -1] for state in states]).float().cpu().numpy()


def mauve_of(judge: TextModel, rows: list[list[int]], test: list[list[int]]) -> float:
    """MAUVE (Pillutla et al. 2021, arXiv:2102.01454), 0 to 100, with the judge in the place of GPT-2."""
    try:
        import mauve
    except ImportError:
        raise SystemExit("--mauve: install mauve-text, by pip install -e '.[mauve]'") from None
    found = [features(judge, [ids for ids in some if ids]) for some in (test, rows)]
    return 100 * float(mauve.compute_mauve(*found, verbose=False).mauve)


def report(rows: list[list[int]], train: list[str], judge: TextModel) -> Report:
    """All figures of one set of texts, given by their tokens."""
    return unconditional_report(judge.tokenizer.decode(rows), train) | {
        "judge_perplexity": judged(judge, rows)
    }


def long_rows(
    model: TextModel, judge: TextModel, train: list[str], options: argparse.Namespace
) -> list[Row]:
    """Texts of many tokens, block by block, none ending before: every part of them, seconds a token."""
    rows, how = [], {"sampler": "confidence", "decoder": "sample", "steps": options.block_steps}
    for length in (options.long // 4, options.long // 2, options.long):
        made = generate_texts(
            model,
            num_samples=options.long_samples,
            block_length=options.block_length,
            length=length,
            controls=[AtLeast(length - 1)],
            dtype="auto",
            **how,
        )
        tokens = sum(map(len, made.ids))
        rows.append(
            {
                "system": common.name_of(model),
                **how,
                "block_length": options.block_length,
                "length": length,
                "mean_length": tokens / options.long_samples,
                "nfe": made.nfe,
                "seconds_per_token": made.seconds / tokens,
            }
        )
    for start in range(0, options.long - PART + 1, PART):
        pieces = [ids[start : start + PART] for ids in made.ids if len(ids) >= start + PART]
        if pieces:
            figures = report(pieces, train, judge)
            rows.append(
                {"part": start // PART, "texts": len(pieces), "metrics": common.spread([figures])}
            )
    return [*rows, {"examples_shown": made.texts[:2]}]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train diffusion, the twin and the judge; sample; measure."""
    folder = options.runs / options.name
    result = common.header("unconditional", options.name, "test")
    keys = ("train_file", "validation_file", "test_file", "text_column")
    files = {key: getattr(options, key) for key in keys if getattr(options, key)}
    flags = ["--config", options.config, *(f"--{flag}" for flag in options.set)]
    flags += [part for key, value in files.items() for part in (f"--data.{key}", value)]
    systems = {}
    for name in (*options.processes, "autoregressive", "judge"):
        twin, seed = name not in options.processes, str(int(name == "judge"))
        own = ["--model.seed", seed, "--data.seed", seed]
        own += ["--model.network.system", "autoregressive"] if twin else ["--model.network.process", name]
        own += [f"--{flag}" for flag in options.set_twin if twin]
        systems[name] = [*flags, *own]
    models, budgets = common.train_all(options, systems)
    judge = models["judge"]
    size = judge.config.max_length
    data = TextData(**files, tokenizer=str(folder / "judge" / "model"), max_target_length=size)
    data.setup("test")
    train = [example.target for example in data.examples("train")]
    test = common.spaced([[*ids] for _, ids in data.table("test")], options.samples)
    own = report(test, train, judge) | ({"mauve": 100.0} if options.mauve else {})
    rows = [{"system": "data", "metrics": common.spread([own])}]
    settings = [("autoregressive", {"decoding": "sample"})]
    ways = [
        {"sampler": "confidence", "decoder": "sample"},
        {"sampler": "ancestral", "decoder": "softmax"},
    ]
    for name in options.processes:
        # with more steps than tokens `confidence` writes one a step
        counts = [sorted({min(nfe, size) for nfe in options.nfe}), options.nfe]
        found = zip(ways, counts, strict=True)
        settings += [(name, {**way, "steps": nfe}) for way, some in found for nfe in some]
    known = {"num_samples": options.samples, "batch_size": options.batch_size, "dtype": "auto"}
    for name, how in settings:
        made = [generate_texts(models[name], seed=i, **known, **how) for i in range(options.seeds)]
        figures = [report(one.ids, train, judge) for one in made]
        if options.mauve:
            figures = [
                found | {"mauve": mauve_of(judge, one.ids, test)}
                for found, one in zip(figures, made, strict=True)
            ]
        metrics = common.spread(figures)
        seconds = min(one.seconds for one in made) / options.samples
        rows.append(
            {
                "system": name,
                **how,
                "nfe": made[0].nfe,
                "seeds": options.seeds,
                "seconds_per_example": seconds,
                "metrics": metrics,
                "examples_shown": made[0].texts[:8],
            }
        )
        print(rows[-1]["system"], how, {k: round(v["mean"], 2) for k, v in metrics.items()}, flush=True)
    result |= common.asked(options) | {"budget": budgets, "rows": rows}
    if options.long:
        result["long"] = long_rows(models[options.processes[0]], judge, train, options)
    return result


def plot(result: dict[str, Any], path: Path) -> None:
    """Perplexity and entropy, the two together, at every number of steps; and along a long text."""
    with common.picture(path, 1 + ("long" in result), 5.5, 4.2) as panels:
        groups: dict[str, list[Row]] = {}
        for row in result["rows"]:
            groups.setdefault(f"{row['system']} ({common.how(row)})".replace(" ()", ""), []).append(row)
        for label, rows in groups.items():
            points = [[row["metrics"][key]["mean"] for row in rows] for key in AXES]
            panels[0].plot(*points, marker="o" if len(rows) > 1 else "*", label=label)
            for row, *point in zip(rows, *points, strict=True):
                note = {"fontsize": 6, "xytext": (3, 3), "textcoords": "offset points"}
                panels[0].annotate(str(row.get("nfe", "")), point, **note)
        panels[0].set(xlabel="entropy of words, bits", ylabel="perplexity under the judge", yscale="log")
        panels[0].set_title("numbers: network evaluations", fontsize=9)
        parts = [row for row in result.get("long", []) if "part" in row]
        for key in (*AXES, "distinct_2") if parts else ():
            values = [row["metrics"][key]["mean"] for row in parts]
            label = f"{key} (the first part: {values[0]:.3g})"
            panels[1].plot([value / values[0] for value in values], marker="o", label=label)
            panels[1].set(xlabel=f"part of {PART} tokens", ylabel="times the first part", ylim=(0, 2))
        for panel in panels:
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7)


def main() -> None:
    """Run, save, plot."""
    options, start = arguments(), time.perf_counter()
    result = run(options) | {"wall_seconds": round(time.perf_counter() - start, 1)}
    path = common.write(result, f"unconditional-{options.name}")
    plot(result, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
