"""What a training leaves behind: a model directory, a loss plot, scores beside a baseline, examples.

Everything lands in the run directory (`trainer.default_root_dir`): `model/`, `loss.png`, `metrics.json`
and `checkpoints/`.
"""

import json
import shlex
import time
from pathlib import Path
from typing import Any

import lightning as L

from textdiff.checkpoint import Best
from textdiff.corpus import fact_accuracy, generate
from textdiff.data import TextData
from textdiff.generation import generate_texts
from textdiff.metrics import bleu, lead, rouge, tokenizer_for
from textdiff.model import TextModel
from textdiff.storage import set_aside

Scores = dict[str, float]
WARM, TIMED = 5, 20  # batches: the first are slow, the next tell the pace


class Report(L.Callback):
    """Plots the loss while training; afterwards saves the model, scores it and shows examples.

    Args:
        examples: how many held-out examples to write at the end; 0 = none.
        show: how many of them to print.
    """

    def __init__(self, examples: int = 300, show: int = 5) -> None:
        for name, count in {"examples": examples, "show": show}.items():
            if count < 0:
                raise ValueError(f"report.{name} must be at least 0, not {count}")
        self.examples, self.show = examples, show
        self.curves: dict[str, list[tuple[int, float]]] = {"loss": [], "val_loss": []}
        self.earlier = False  # whether another run has left a model here
        self.batches, self.clock = 0, 0.0  # of this process

    def state_dict(self) -> dict[str, Any]:
        return {"curves": self.curves, "earlier": self.earlier}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves, self.earlier = state_dict["curves"], state_dict.get("earlier", False)

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        root = Path(trainer.default_root_dir).resolve()
        if trainer.ckpt_path is None or root not in Path(trainer.ckpt_path).resolve().parents:
            self.earlier = (root / "model").exists()
        if trainer.is_global_zero:
            size = sum(p.numel() for p in module.model.parameters()) / 1e6
            steps, epoch = trainer.estimated_stepping_batches, trainer.num_training_batches
            rounds = steps * trainer.accumulate_grad_batches / epoch  # 0 of a stream, which has no end
            print(
                f"{size:.2f}M parameters, precision {trainer.precision}, {steps:,.0f} steps"
                + f" ({rounds:.3g} epochs)" * (rounds > 0)
                + f"; results go to {trainer.default_root_dir}"
            )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.batches += 1
        if self.batches == WARM:
            self.clock = time.perf_counter()
        if self.batches == WARM + TIMED and trainer.is_global_zero:
            pace = (time.perf_counter() - self.clock) / TIMED
            steps = trainer.estimated_stepping_batches - trainer.global_step
            left = duration(pace * steps * trainer.accumulate_grad_batches)
            print(f"\n{pace:.2g} s a batch: about {left} to go")
        if trainer.global_step % 10 == 0 and trainer.global_step:
            self.note(trainer, "loss")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.note(trainer, "val_loss")

    def note(self, trainer: L.Trainer, name: str) -> None:
        """Remember a point of a curve, of the first of the batches that make a step."""
        points, step = self.curves[name], trainer.global_step
        if name in trainer.callback_metrics and (not points or points[-1][0] != step):
            points.append((step, float(trainer.callback_metrics[name])))

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder = Path(trainer.default_root_dir)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Best):
                callback.restore(trainer, module)
        model = module.evaluated.eval().to(trainer.strategy.root_device)
        place = folder / "model"
        if self.earlier and place.exists():
            model.save_pretrained(part := folder / "model.part")  # the disk may be full
            print(f"the model of an earlier run in {folder} is now {set_aside(place)}")
            part.rename(place)
        else:
            model.save_pretrained(place)
        plot_loss(self.curves, folder / "loss.png")
        seconds = time.perf_counter() - self.started
        metrics: dict[str, Any] = {"train_seconds": round(seconds, 1)}
        if self.examples:
            metrics |= evaluate(model, trainer.datamodule, self.examples, self.show)
        metrics["seconds"] = round(time.perf_counter() - self.started, 1)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        print(next_steps(folder, trainer.datamodule))


def plot_loss(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """A PNG of the loss against steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            style = {"linewidth": 1} if name == "loss" else {"marker": "o"}
            axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set(xlabel="step", ylabel="nats per token", yscale="log")
    axes.grid(alpha=0.3, which="both")
    if any(curves.values()):
        axes.legend()
    figure.savefig(path, dpi=120)


def evaluate(model: TextModel, data: TextData, count: int, show: int) -> dict[str, Any]:
    """Scores on held-out examples, printed beside LEAD-1; on the built-in corpus facts as well.

    They name the tokenizer of ROUGE and BLEU where it is not the default one.
    """
    split = "test" if data.has_split("test") else "validation"
    examples = data.examples(split)[:count]
    options = {"dtype": "auto", "progress": True, "batch_size": data.writing_size}
    if examples[0].source is None:
        made = generate_texts(model, num_samples=min(count, 16), **options)
        print("\nsamples\n" + "\n".join(f"  {text}" for text in made.texts[:show]))
        return {"samples": made.texts}
    sources = [example.source for example in examples]
    made = generate_texts(model, sources, **options)
    references = [example.references for example in examples]
    tokenizer = tokenizer_for(references)
    note = {} if tokenizer == "default" else {"tokenizer": tokenizer}
    rows = {"textdiff": summary_scores(made.texts, references, tokenizer)}
    rows["LEAD-1"] = summary_scores([lead(source) for source in sources], references, tokenizer)
    if data.hparams.dataset_name == "textdiff/reports":
        add_facts(rows, model, made.texts, sources, count, options)
    said = "".join(f", {name} {value}" for name, value in note.items())
    print(table(rows, f"{split}, {len(examples)} examples, {made.nfe} steps{said}"))
    for example, text in list(zip(examples, made.texts, strict=True))[:show]:
        print(f"\nsource     {example.source}\nreference  {example.target}\nsummary    {text}")
    more = {"lead1": rows["LEAD-1"], "nfe": made.nfe, "examples": len(examples)}
    return rows["textdiff"] | more | note


def summary_scores(texts: list[str], references: list[list[str]], tokenizer: str) -> Scores:
    """ROUGE F and BLEU, 0 to 100."""
    scores = rouge(texts, references, tokenizer)
    means = {name: sum(scores[name]) / len(texts) for name in ("rouge1", "rouge2", "rougeL")}
    return means | {"bleu": bleu(texts, references, tokenizer)}


def add_facts(
    rows: dict[str, Scores],
    model: TextModel,
    texts: list[str],
    sources: list[str],
    count: int,
    options: dict[str, Any],
) -> None:
    """Fact accuracy on the built-in corpus: held-out combinations, and names never seen."""
    reports = generate("test", len(texts))
    unseen = generate("unseen_names", count)
    written = generate_texts(model, [report.source for report in unseen], **options).texts
    answers = {"textdiff": (texts, written)}
    answers["LEAD-1"] = tuple([lead(s) for s in group] for group in (sources, [r.source for r in unseen]))
    for name, (known, new) in answers.items():
        rows[name]["fact_accuracy"] = share(map(fact_accuracy, known, reports))
        rows[name]["fact_accuracy_unseen_names"] = share(map(fact_accuracy, new, unseen))


def share(flags: Any) -> float:
    """Percent of True."""
    values = list(flags)
    return 100 * sum(values) / len(values)


def table(rows: dict[str, Scores], title: str) -> str:
    """Scores as aligned text."""
    names = list(next(iter(rows.values())))
    width = max(len(name) for name in names)
    lines = [f"\n{title}", " " * width + "".join(f"{row:>12}" for row in rows)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f"{row[name]:12.1f}" for row in rows.values()))
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one says it."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"{count:.{0 if count >= 10 else 1}f} {unit}"
    return f"{seconds:.0f} seconds"


def next_steps(folder: Path, data: TextData) -> str:
    """The lines to type next: the first works as it stands, the others with files of the reader."""
    model = shlex.quote(str(folder / "model"))
    use = f"textdiff generate {model} --num_samples 4"
    if data.conditioning != "none":
        text = shlex.quote(plain(data.examples("validation")[0].source))
        use = f"echo {text} | textdiff generate {model} -"
    lines = [
        f"\nmodel: {model}   plot: {folder / 'loss.png'}   scores: {folder / 'metrics.json'}",
        f"next:\n  {use}",
    ]
    if data.hparams.dataset_name == "textdiff/reports":
        lines += [
            "for documents of your own, say in my.jsonl, an object with source and target a line:",
            "  python -m textdiff.train --config summarization --data.train_file my.jsonl",
        ]
    elif data.conditioning != "none":
        lines += [
            "for more of them, text files, each a source, or tables with a source a row:",
            f"  textdiff summarize {model} report.txt more.jsonl",
        ]
    return "\n".join([*lines, ""])


def plain(text: str, most: int = 300) -> str:
    """The beginning of a text as `echo` writes it in any shell: on one line, no escapes, no option."""
    shown = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return " ".join(shown.split())[:most].strip("- ") or "A text."
