"""Give every row of a file the target that another model writes (sequence-level distillation).

    python scripts/distill.py runs/teacher/model train.jsonl distilled.jsonl --decoding beam
    python -m textdiff.train --config summarization --data.train_file distilled.jsonl

One teacher answers one source in one way, where people have many: a student that predicts all tokens at
once need not mix them (Kim and Rush 2016, arXiv:1606.07947; Gu et al. 2018, arXiv:1711.02281, for
non-autoregressive students). The teacher sees no target, and a source of several rows is answered once.
Validation and test keep their own targets, and figures of a student name its teacher. What the output
file already holds is not written again: an interrupted run goes on when it is started again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from textdiff import load
from textdiff.evaluation import open_data
from textdiff.generation import generate_texts

CHUNK = 1024  # rows written at once


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", help="model directory or hub id")
    parser.add_argument("file", help="rows with sources: .jsonl, .csv, .parquet, ...")
    parser.add_argument("output", type=Path, help="JSONL file to write")
    parser.add_argument("--text_column", help="of the sources; default: source, document, ...")
    parser.add_argument("--summary_column", help="of the targets that are replaced")
    parser.add_argument("--max_examples", type=int, help="only the first rows")
    parser.add_argument("--decoding", help="autoregressive teachers: greedy (default), beam, sample")
    parser.add_argument("--steps", type=int, help="diffusion teachers: network evaluations of a text")
    parser.add_argument(
        "--candidates", type=int, default=1, help="write several, keep that of least risk"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    return parser.parse_args()


def resume(path: Path, sources: list[str]) -> int:
    """Rows that `path` holds already, cut back to whole chunks: a chunk shares its random numbers.

    Raises:
        ValueError: they are rows of another file.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    complete = [line for line in lines if line.endswith("\n")]
    count = len(complete) if len(complete) == len(sources) else len(complete) // CHUNK * CHUNK
    try:
        found = [json.loads(line)["source"] for line in complete]
    except (ValueError, TypeError, KeyError):
        found = None
    if found != sources[: len(complete)]:
        raise ValueError(f"{path} holds rows of another file: give another name, or remove it")
    if lines:
        path.write_text("".join(complete[:count]), encoding="utf-8")
    return count


def main() -> None:
    """Read sources, write what the teacher makes of them."""
    options = arguments()
    teacher = load(options.teacher)
    columns = {"text_column": options.text_column, "summary_column": options.summary_column}
    data = open_data(teacher, options.file, max_test_examples=options.max_examples, **columns)
    sources = list(dict.fromkeys(example.source for example in data.examples("test")))
    start = resume(options.output, sources)
    how: dict[str, Any] = {key: getattr(options, key) for key in ("decoding", "steps")}
    how = {key: value for key, value in how.items() if value is not None}
    how |= {"candidates": options.candidates, "batch_size": options.batch_size, "dtype": "auto"}
    with (
        options.output.open("a", encoding="utf-8") as file,
        tqdm(total=len(sources), initial=start, unit="text") as bar,
    ):
        for first in range(start, len(sources), CHUNK):
            chunk = sources[first : first + CHUNK]
            made = generate_texts(teacher, chunk, seed=first, **how)
            rows = zip(chunk, made.texts, strict=True)
            file.writelines(
                json.dumps({"source": s, "target": t}, ensure_ascii=False) + "\n" for s, t in rows
            )
            file.flush()
            bar.update(len(chunk))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"distill: {error}")
