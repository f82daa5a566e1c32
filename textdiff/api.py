"""`load`, `generate`, `pipeline`, and the `textdiff` command.

import textdiff
model = textdiff.load("runs/quickstart/model")
textdiff.generate(model, ["A long text ..."], steps=16)
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from textdiff.control import Avoid, Contain, SequenceClassifier
from textdiff.diffusion import TextDiffusion
from textdiff.generation import Generation, generate_texts
from textdiff.hardware import tune_allocator
from textdiff.model import TextModel
from textdiff.movie import write_movie
from textdiff.sampler import SAMPLERS
from textdiff.storage import find_folder, read_config
from textdiff.twin import SYSTEMS

__all__ = ["Generation", "TextDiffusion", "denoise", "generate", "infill", "load", "main", "pipeline"]

GAP = "___"
METRICS = ("nll", "rouge")


def load(source: str | Path, device: str = "auto") -> TextModel:
    """A trained model.

    Args:
        source: model directory, or id of one on the Hugging Face hub.
        device: "cpu", "cuda", ...; "auto" takes the GPU where there is one.

    Raises:
        ValueError: nothing there, or not a model of this package.
    """
    folder = find_folder(source)
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cpu":
        tune_allocator()
    return SYSTEMS[read_config(folder).system].from_pretrained(folder, chosen)


def generate(
    model: TextModel | str | Path,
    sources: Sequence[str] | None = None,
    *,
    return_dict: bool = False,
    **options: Any,
) -> list[str] | Generation:
    """Write one text for every source or prompt, or `num_samples` texts from nothing.

    Args:
        model: a loaded model, or where to load it from.
        sources: texts to summarize or rewrite.
        return_dict: give a `Generation` (ids, candidates, trajectory, NFE, seconds), not a list.
        options: `prompt`, `num_samples`, `length`, `candidates`, `utility`, `seed`, `batch_size`,
            `dtype`, `trajectory`, `progress`, `gap` of `generate_texts`; `steps`, `sampler`, `decoder`,
            `temperature`, `guidance_scale`, `given` (conditional, replace, repaint) of diffusion models;
            `decoding` of autoregressive ones.

    Raises:
        ValueError: a request that makes no sense or that the model cannot serve.
    """
    loaded = model if isinstance(model, TextModel) else load(model)
    made = generate_texts(loaded, sources, **options)
    return made if return_dict else made.texts


def infill(
    model: TextModel | str | Path,
    texts: Sequence[str],
    sources: Sequence[str] | None = None,
    *,
    gap: str = GAP,
    return_dict: bool = False,
    **options: Any,
) -> list[str] | Generation:
    """Write the missing words of texts: everything around a gap is given and stays.

    Given words are clean from the first step on, as in training, so that every gap is written with all
    that stands around it, on both sides, and with the other gaps.

    Args:
        model: a diffusion model, or where to load it from.
        texts: whole texts with one gap or several, `"The ___ sat on the ___."`.
        sources: one for every text, for models trained with them.
        gap: what stands for missing words, between words.
        return_dict: give a `Generation`, not a list of texts.
        options: `gap_length` (tokens for every gap, else what the predicted length of the text leaves)
            or `length` (tokens of every text, EOS included); and those of `generate`.

    Raises:
        ValueError: a text without a gap, one inside a word, or what `generate` refuses.
    """
    options = {"prompt": texts, "gap": gap} | options
    return generate(model, sources, return_dict=return_dict, **options)


def denoise(
    model: TextModel | str | Path,
    texts: Sequence[str],
    sources: Sequence[str] | None = None,
    *,
    noise: float = 0.15,
    return_dict: bool = False,
    **options: Any,
) -> list[str] | Generation:
    """Repair noisy texts: the way back from noise, begun where they stand (SDEdit, arXiv:2108.01073).

    A text keeps its number of tokens. Processes with random words (`uniform`, `mask_and_replace`) learn
    to tell wrong words from right ones and take the text as it is for x_t. Others hide right and wrong
    words alike under noise of their own, and can but rewrite the text.

    Args:
        model: a diffusion model, or where to load it from.
        texts: texts with mistakes. sources: one for every text, for models trained with them.
        noise: share of tokens that are wrong, 0 to 1: the more, the more is changed.
        return_dict: give a `Generation`, not a list of texts.
        options: those of `generate`.

    Raises:
        ValueError: a text longer than the model, a share that is none, or what `generate` refuses.
    """
    options = {"prompt": texts, "noise": noise, "decoder": "softmax"} | options
    return generate(model, sources, return_dict=return_dict, **options)


def pipeline(
    task: str, model: TextModel | str | Path, device: str = "auto", **defaults: Any
) -> Callable[..., list[dict[str, str]]]:
    """A callable in the manner of `transformers.pipeline`.

    Args:
        task: "summarization" (texts in, `summary_text` out) or "text-generation" (prompts in,
            `generated_text` out).
        model: a loaded model, or where to load it from.
        defaults: options of every call, see `generate`.
    """
    tasks = {
        "summarization": ("sources", "summary_text"),
        "text-generation": ("prompt", "generated_text"),
    }
    if task not in tasks:
        raise ValueError(f"unknown task {task!r}; choose one of: {', '.join(tasks)}")
    given, key = tasks[task]
    loaded = model if isinstance(model, TextModel) else load(model, device)

    def call(texts: str | Sequence[str], **options: Any) -> list[dict[str, str]]:
        inputs = {given: [texts] if isinstance(texts, str) else list(texts)}
        return [{key: text} for text in generate(loaded, **inputs, **(defaults | options))]

    return call


def main(args: list[str] | None = None) -> None:
    """The `textdiff` command: `textdiff train ...`, `textdiff generate MODEL [FILE] ...`, `infill`."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["train"]:
        from textdiff.train import main as train

        return train(args[1:])
    options = vars(parser().parse_args(args))
    command = {"generate": write, "infill": fill, "denoise": fill, "evaluate": measure}[
        options.pop("command")
    ]
    warnings.showwarning = lambda message, *_: print(f"textdiff: {message}", file=sys.stderr)
    try:
        command(**{key: value for key, value in options.items() if value is not None})
    except (ValueError, OSError) as error:
        sys.exit(f"textdiff: {error}")


def parser() -> argparse.ArgumentParser:
    """Arguments of `textdiff generate` and `textdiff infill`."""
    top = argparse.ArgumentParser("textdiff", description="Text diffusion language models.")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train a model; see `textdiff train --help`")
    sub = commands.add_parser("generate", help="write texts with a trained model")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument("file", nargs="?", help="one source (or prompt) per line; - = standard input")
    sub.add_argument("--num_samples", type=int, help="texts to write from nothing")
    sub.add_argument("--block_length", type=int, help="write that many tokens at a time, to any length")
    sub.add_argument("--decoding", help="autoregressive models: greedy, beam, sample")
    add_common(sub)
    sub = commands.add_parser("denoise", help="repair texts with mistakes")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument("file", help="one text per line; - = standard input")
    sub.add_argument("--sources", help="file of one source per line, for models trained with them")
    sub.add_argument("--noise", type=float, default=0.15, help="share of tokens that are wrong")
    add_common(sub)
    sub = commands.add_parser("evaluate", help="likelihood or ROUGE of a model on a file")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument("file", help=".jsonl, .csv, .parquet, .txt, ...")
    sub.add_argument(
        "--metric", choices=METRICS, default="nll", help="nll: bits a token; rouge: of texts"
    )
    sub.add_argument("--text_column", help="of the sources; alone: of the texts")
    sub.add_argument("--summary_column", help="of the texts")
    sub.add_argument("--max_examples", type=int, help="only the first rows")
    sub.add_argument("--bound", help="order, diffusion or ode; see the help of TextDiffusion.nats")
    sub.add_argument("--steps", type=int, help="of the bound `diffusion`, or of a written text")
    sub.add_argument("--evaluations", type=int, help="terms of the bound, a text")
    sub.add_argument("--seed", type=int)
    sub.add_argument("--device", default="auto")
    sub = commands.add_parser("infill", help="write the missing words of texts")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument("file", help=f"one text per line, with {GAP} for missing words; - = standard input")
    sub.add_argument("--sources", help="file of one source per line, for models trained with them")
    sub.add_argument("--gap", default=GAP, help="what stands for missing words")
    sub.add_argument("--gap_length", type=int, help="tokens for every gap; default: as predicted")
    sub.add_argument("--given", help="how words are given: conditional (exact), replace, repaint")
    add_common(sub)
    return top


def add_common(sub: argparse.ArgumentParser) -> None:
    """Arguments of all writing."""
    sub.add_argument("--length", type=int, help="tokens of every text; default: predicted")
    sub.add_argument("--steps", type=int, help="network evaluations of a text")
    sub.add_argument("--sampler", help=f"one of: {', '.join(SAMPLERS)}")
    sub.add_argument("--decoder", help="softmax, greedy, sample, top_k, top_p")
    sub.add_argument("--temperature", type=float, help="below 1 sharpens")
    sub.add_argument("--guidance_scale", type=float, help="above 1 follows the source more closely")
    sub.add_argument("--must_contain", nargs="+", metavar="WORD", help="words that must occur")
    sub.add_argument("--must_avoid", nargs="+", metavar="WORD", help="words that must not occur")
    sub.add_argument("--classifier", help="sequence classifier that steers: a local directory or hub id")
    sub.add_argument("--label", help="the class that it shall see")
    sub.add_argument("--control_weight", type=float, default=1.0, help="of words and classifier")
    sub.add_argument("--candidates", type=int, help="write several, give the one of least Bayes risk")
    sub.add_argument("--seed", type=int)
    sub.add_argument("--batch_size", type=int)
    sub.add_argument("--dtype", help="float32, bfloat16 or auto (the faster one)")
    sub.add_argument("--device", default="auto")
    sub.add_argument("--json", action="store_true", help="one JSON object a line, candidates included")
    sub.add_argument("--movie", help="also save this HTML page, which shows the text after every step")


def write(model: str, file: str | None = None, device: str = "auto", **options: Any) -> None:
    """Read sources or prompts, write texts."""
    loaded = load(model, device)
    if file is None and "num_samples" not in options and loaded.config.conditioning != "none":
        raise ValueError("give a FILE with one source per line, or - to read standard input")
    if file is not None:
        key = "prompt" if loaded.config.conditioning == "none" else "sources"
        options[key] = read_lines(file)
    show(loaded, **options)


def fill(model: str, file: str, sources: str | None = None, device: str = "auto", **options: Any) -> None:
    """Read texts with gaps or mistakes, write whole ones."""
    options |= {"prompt": read_lines(file)}
    if "noise" in options:
        options.setdefault("decoder", "softmax")
    if sources is not None:
        options["sources"] = read_lines(sources)
    show(load(model, device), **options)


def measure(
    model: str,
    file: str,
    metric: str,
    device: str = "auto",
    max_examples: int | None = None,
    text_column: str | None = None,
    summary_column: str | None = None,
    **options: Any,
) -> None:
    """Print the figures of a model on a file as JSON."""
    from textdiff.evaluation import likelihood, open_data, written

    loaded = load(model, device)
    columns = {"text_column": text_column, "summary_column": summary_column}
    data = open_data(loaded, file, max_test_examples=max_examples, **columns)
    found = {"nll": likelihood, "rouge": written}[metric](loaded, data, progress=True, **options)
    print(json.dumps(found, indent=1))


def show(
    loaded: TextModel,
    json: bool = False,
    movie: str | None = None,
    must_contain: Sequence[str] = (),
    must_avoid: Sequence[str] = (),
    classifier: str | None = None,
    label: str | None = None,
    control_weight: float = 1.0,
    **options: Any,
) -> None:
    """Write texts, under controls, and print them."""
    controls = [Contain(word, control_weight) for word in must_contain]
    controls += [Avoid(word, control_weight) for word in must_avoid]
    if (classifier is None) != (label is None):
        raise ValueError("--classifier and --label go together: give both")
    if classifier is not None:
        controls.append(SequenceClassifier(classifier, label, control_weight, pieces=True))
    options |= {"controls": controls} if controls else {}
    options |= {"progress": sys.stderr.isatty(), "trajectory": movie is not None}
    made = generate_texts(loaded, **options)
    for text, candidates in zip(made.texts, made.candidates, strict=True):
        print(dump(text, candidates) if json else " ".join(text.splitlines()))
    if movie is not None:
        write_movie(made, movie)


def read_lines(file: str) -> list[str]:
    """Non-empty lines of a UTF-8 file or of standard input."""
    name = "standard input" if file == "-" else file
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 at byte {error.start}; convert it first") from None
    lines = [line.strip("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{name} holds no text; give one source (or prompt) per line")
    return lines


def dump(text: str, candidates: list[str]) -> str:
    """One line of JSON."""
    return json.dumps({"text": text, "candidates": candidates}, ensure_ascii=False)
