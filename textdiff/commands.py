"""The `textdiff` command."""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from textdiff.api import GAP, REPAIRING, load, with_rescorer
from textdiff.config import Spec
from textdiff.control import AtLeast, Avoid, Contain, SequenceClassifier
from textdiff.documents import read_documents, read_texts
from textdiff.generation import generate_texts
from textdiff.model import TextModel
from textdiff.movie import write_movie
from textdiff.sampler import SAMPLERS

WRITING = ("length", "length_quantile", "sampler", "decoder", "decoding", "temperature", "guidance_scale")
WRITING += ("candidates", "rescorer", "dtype")
METRICS = {"nll": ("bound", "evaluations"), "rouge": WRITING}  # and what is asked for one of them alone
PART = 256  # texts that are written before the first of them is shown


def main(args: list[str] | None = None) -> None:
    """`textdiff train ...`, `textdiff generate MODEL [FILE] ...`, and the others of `parser`."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["train"]:
        from textdiff.train import main as train

        return train(args[1:])
    options = vars(parser().parse_args(args))
    command = COMMANDS[options.pop("command")]
    warnings.showwarning = lambda message, *_: print(f"textdiff: {message}", file=sys.stderr)
    try:
        command(**{key: value for key, value in options.items() if value is not None})
    except (ValueError, OSError) as error:
        sys.exit(f"textdiff: {error}")
    except KeyboardInterrupt:
        print("textdiff: stopped; lines that are written are complete", file=sys.stderr)
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """A user's mistake ends in one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"textdiff: {message}; see {self.prog} --help")

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[argparse.Namespace, list[str]]:
        """Nothing is unknown to a command and left to others: its own help is the one to see."""
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def spec(text: str) -> Spec:
    """A name, or `{name: renoise, tau: 0.3}`, read as in a configuration.

    Raises:
        ArgumentTypeError: neither.
    """
    from jsonargparse import get_loader  # slow to load
    from yaml import YAMLError

    try:
        found = get_loader("yaml")(text)
    except YAMLError as error:
        reason = " ".join(str(getattr(error, "problem", error)).split())
        wanted = "give a name or {name: ..., argument: value}"
        raise argparse.ArgumentTypeError(f"{text!r} is no YAML ({reason}); {wanted}") from None
    if not isinstance(found, dict):
        return text
    if not isinstance(found.get("name"), str):
        raise argparse.ArgumentTypeError(f"{text!r}: no name in it: say whose options these are")
    return found


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = Parser("textdiff", description="Text diffusion language models.")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train a model; see `textdiff train --help`")
    sub = commands.add_parser("summarize", help="summarize documents")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument(
        "files",
        nargs="+",
        metavar="file",
        help="a document (text), or one a row (.jsonl, .csv, .parquet, ...); - = one on standard input",
    )
    add_column(sub)
    add_common(sub)
    sub = commands.add_parser("generate", help="write texts with a trained model")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument("file", nargs="?", help="one source (or prompt) per line or row; - = standard input")
    add_column(sub)
    sub.add_argument("--num_samples", type=int, help="texts to write from nothing")
    sub.add_argument(
        "--block_length",
        type=int,
        help="write that many tokens at a time, to any --length; else max_length after the prompt",
    )
    add_common(sub)
    sub = commands.add_parser("denoise", help="repair texts with mistakes")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument("file", help="one text per line or row; - = standard input")
    add_column(sub, sources=True)
    sub.add_argument("--noise", type=float, default=0.15, help="share of tokens that are wrong")
    add_common(sub)
    sub = commands.add_parser("evaluate", help="likelihood or ROUGE of a model on a file")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument("file", help=".jsonl, .csv, .parquet, .txt, ...")
    sub.add_argument(
        "--metric", choices=METRICS, default="nll", help="nll: bits a token; rouge: of written texts"
    )
    sub.add_argument("--text_column", help="of the sources; alone: of the texts")
    sub.add_argument("--summary_column", help="of the texts")
    sub.add_argument("--max_examples", type=int, help="only the first rows")
    sub.add_argument(
        "--bound", help="order, diffusion, ode, ode_exact; see the help of TextDiffusion.nats"
    )
    sub.add_argument("--evaluations", type=int, help="terms of the bound, a text")
    add_writing(sub)
    sub = commands.add_parser("infill", help="write the missing words of texts")
    sub.add_argument("model", help="model directory or hub id")
    sub.add_argument("file", help=f"one text per line or row, {GAP} for missing words; - = stdin")
    add_column(sub, sources=True)
    sub.add_argument("--gap", default=GAP, help="what stands for missing words")
    sub.add_argument("--gap_length", type=int, help="tokens for every gap; default: as predicted")
    sub.add_argument("--given", help="how words are given: conditional (exact), replace, repaint")
    add_common(sub)
    return top


def add_column(sub: argparse.ArgumentParser, sources: bool = False) -> None:
    """Arguments that name columns of tables, and a file of sources beside that of the texts."""
    usual = "the only known one" if sources else "source, document, article, ..."
    sub.add_argument("--text_column", help=f"of a table; default: {usual}")
    if sources:
        sub.add_argument("--sources", help="one source per line or row, for models trained with them")
        sub.add_argument("--source_column", help="of the table of sources")


def add_writing(sub: argparse.ArgumentParser) -> None:
    """Arguments of how a text is written: those of `WRITING`, and steps, batches, seed and device."""
    sub.add_argument("--length", type=int, help="tokens of every text; default: predicted")
    sub.add_argument("--length_quantile", type=float, help="among predicted lengths; below 0.5 shorter")
    sub.add_argument("--steps", type=int, help="network evaluations of a text; of the bound `diffusion`")
    sub.add_argument("--sampler", type=spec, help=f"{', '.join(SAMPLERS)}, {{name: renoise, tau: 0.3}}")
    sub.add_argument("--decoder", type=spec, help="softmax, greedy, sample, top_p, {name: top_k, k: 5}")
    sub.add_argument("--decoding", type=spec, help="autoregressive models: greedy, beam, sample")
    sub.add_argument("--temperature", type=float, help="below 1 sharpens")
    sub.add_argument("--guidance_scale", type=float, help="above 1 follows the source more closely")
    sub.add_argument("--candidates", type=int, help="write several, give the one of least Bayes risk")
    sub.add_argument("--rescorer", help="let this autoregressive model choose: the likeliest text")
    sub.add_argument("--batch_size", type=int)
    sub.add_argument("--dtype", help="float32, bfloat16 or auto (the faster one)")
    sub.add_argument("--seed", type=int)
    sub.add_argument("--device", default="auto")


def add_common(sub: argparse.ArgumentParser) -> None:
    """Arguments of all whose texts are shown."""
    add_writing(sub)
    sub.add_argument("--must_contain", nargs="+", metavar="WORD", help="words that must occur")
    sub.add_argument("--must_avoid", nargs="+", metavar="WORD", help="words that must not occur")
    sub.add_argument("--min_length", type=int, help="tokens before which no text ends")
    sub.add_argument("--classifier", help="sequence classifier that steers: a local directory or hub id")
    sub.add_argument("--label", help="the class that it shall see")
    sub.add_argument(
        "--pieces", action="store_true", help="let it have another vocabulary, and read tokens as pieces"
    )
    sub.add_argument("--control_weight", type=float, help="of words and classifier; default: 1")
    sub.add_argument("--json", action="store_true", help="one JSON object a line, candidates included")
    sub.add_argument("--movie", help="also save this HTML page, which shows the text after every step")


def summarize(
    model: str,
    files: Sequence[str],
    text_column: str | None = None,
    device: str = "auto",
    **options: Any,
) -> None:
    """Read documents, write their summaries."""
    loaded = load(model, device)
    found = read_documents(files, text_column)
    show(loaded, names=[name for name, _ in found], sources=[text for _, text in found], **options)


def write(
    model: str,
    file: str | None = None,
    text_column: str | None = None,
    device: str = "auto",
    **options: Any,
) -> None:
    """Read sources or prompts, write texts."""
    if file is None and text_column is not None:
        raise ValueError("--text_column is for a FILE: give one, or leave it out")
    loaded = load(model, device)
    if file is None and "num_samples" not in options and loaded.config.conditioning != "none":
        raise ValueError("give a FILE with one source per line, or - to read standard input")
    if file is not None:
        key = "prompt" if loaded.config.conditioning == "none" else "sources"
        options[key] = read_texts(file, text_column)
    show(loaded, **options)


def fill(
    model: str,
    file: str,
    text_column: str | None = None,
    sources: str | None = None,
    source_column: str | None = None,
    device: str = "auto",
    **options: Any,
) -> None:
    """Read texts with gaps or mistakes, write whole ones."""
    options |= {"prompt": read_texts(file, text_column, alone=True)}
    if "noise" in options:
        options.setdefault("decoder", REPAIRING)
    if sources is not None:
        options["sources"] = read_texts(sources, source_column, flag="--source_column")
    elif source_column is not None:
        raise ValueError("--source_column is for --sources: give that file, or leave it out")
    show(load(model, device), **options)


def measure(
    model: str,
    file: str,
    metric: str,
    device: str = "auto",
    max_examples: int | None = None,
    text_column: str | None = None,
    summary_column: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> None:
    """Print the figures of a model on a file as JSON."""
    from textdiff.evaluation import likelihood, open_data, written  # Lightning with it: slow to load

    for other, names in METRICS.items():
        if wrong := [name for name in names if other != metric and name in options]:
            raise ValueError(f"--{wrong[0]} is for --metric {other}, not {metric}: leave it out")
    loaded = load(model, device)
    options = with_rescorer(options, loaded)
    columns = {"text_column": text_column, "summary_column": summary_column}
    sizes = {} if batch_size is None else {"eval_batch_size": batch_size}
    options |= {"batch_size": batch_size} if sizes and metric == "rouge" else {}
    data = open_data(loaded, file, max_test_examples=max_examples, **columns, **sizes)
    found = {"nll": likelihood, "rouge": written}[metric](loaded, data, progress=True, **options)
    print(json.dumps(found, indent=1))


def show(
    loaded: TextModel,
    names: Sequence[str] | None = None,
    json: bool = False,
    movie: str | None = None,
    must_contain: Sequence[str] = (),
    must_avoid: Sequence[str] = (),
    min_length: int | None = None,
    classifier: str | None = None,
    label: str | None = None,
    pieces: bool = False,
    control_weight: float | None = None,
    **options: Any,
) -> None:
    """Write texts, under controls, and print them."""
    if control_weight is not None and not (must_contain or must_avoid or classifier):
        raise ValueError(
            "--control_weight is for --must_contain, --must_avoid and --classifier: leave it out"
        )
    weight = 1.0 if control_weight is None else control_weight
    controls = [Contain(word, weight) for word in must_contain]
    controls += [Avoid(word, weight) for word in must_avoid]
    controls += [AtLeast(min_length)] if min_length is not None else []
    if (classifier is None) != (label is None):
        raise ValueError("--classifier and --label go together: give both")
    if classifier is not None:
        controls.append(SequenceClassifier(classifier, label, weight, pieces=pieces))
    elif pieces:
        raise ValueError("--pieces is for --classifier: leave it out")
    options |= {"controls": controls} if controls else {}
    options |= {"progress": sys.stderr.isatty(), "trajectory": movie is not None}
    options = with_rescorer(options, loaded)
    for first, part in parts(options, whole=movie is not None):
        made = generate_texts(loaded, first=first, **part)
        for i, (text, candidates) in enumerate(zip(made.texts, made.candidates, strict=True), first):
            name = {} if names is None else {"document": names[i]}
            print(dump(text, candidates, **name) if json else " ".join(text.splitlines()))
        sys.stdout.flush()
    if movie is not None:
        write_movie(made, movie)


def parts(options: dict[str, Any], whole: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Requests for a few hundred texts each, and the number of their first: what is done is not lost."""
    texts = {name: options[name] for name in ("sources", "prompt") if name in options}
    counts = {len(one) for one in texts.values()}
    if whole or len(counts) != 1:  # texts from nothing, or lists that do not match
        yield 0, options
        return
    size = max(PART, options.get("batch_size", 0))
    for first in range(0, max(counts.pop(), 1), size):
        yield first, options | {name: one[first : first + size] for name, one in texts.items()}


def dump(text: str, candidates: list[str], **more: str) -> str:
    """One line of JSON."""
    return json.dumps({"text": text, "candidates": candidates, **more}, ensure_ascii=False)


COMMANDS: dict[str, Callable[..., None]] = {
    "summarize": summarize,
    "generate": write,
    "infill": fill,
    "denoise": fill,
    "evaluate": measure,
}
