"""Give every row of a file the target that another model writes (sequence-level distillation).

    python scripts/distill.py runs/teacher/model train.jsonl distilled.jsonl --decoding beam
    python -m textdiff.train --config summarization --data.train_file distilled.jsonl \
        --data.validation_file validation.jsonl

One teacher answers one source in one way, where people have many: a student that predicts all tokens at
once need not mix them (Kim and Rush 2016, arXiv:1606.07947; Gu et al. 2018, arXiv:1711.02281, for
non-autoregressive students). The teacher sees no target, and a source of several rows is answered once.
Columns keep their names; `teacher` names the model and how it wrote. Validation and test keep their own
targets: without a file of them, validation would be a part of the teacher's texts. What the output file
already holds is not written again: an interrupted run goes on when it is started again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

from tqdm import tqdm

from textdiff import load
from textdiff.data import TextData
from textdiff.generation import generate_texts

HOW = ("decoding", "steps", "candidates")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", help="model directory or hub id")
    parser.add_argument("file", help="rows of source and target: .jsonl, .csv, .parquet, ...")
    parser.add_argument("output", type=Path, help="JSONL file to write")
    parser.add_argument("--text_column", help="of the sources; default: source, document, ...")
    parser.add_argument("--summary_column", help="of the targets that are replaced")
    parser.add_argument("--max_examples", type=int, help="only the first rows")
    parser.add_argument("--decoding", help="autoregressive teachers: greedy (default), beam, sample")
    parser.add_argument("--steps", type=int, help="diffusion teachers: network evaluations of a text")
    parser.add_argument("--candidates", type=int, help="write several, keep that of least risk")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=1024, help="sources between two savings")
    return parser.parse_args()


def resume(path: Path, sources: list[str], column: str, teacher: str) -> int:
    """Rows that `path` holds already; what was cut in the middle of one goes.

    Raises:
        ValueError: it holds something else.
    """
    if not path.exists():
        return 0
    *lines, tail = path.read_text(encoding="utf-8").split("\n")
    try:
        rows = [json.loads(line) for line in lines]
        own = [row[column] for row in rows] == sources[: len(rows)]
        own &= {row["teacher"] for row in rows} <= {teacher}
    except (ValueError, TypeError, KeyError):
        own = False
    start = json.dumps({column: ""}, ensure_ascii=False)[:-2]
    if not own or not (tail.startswith(start) or start.startswith(tail)):
        raise ValueError(
            f"{path} holds rows of another file, teacher or way of writing: give another name"
        )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def main() -> None:
    """Read sources, write what the teacher makes of them."""
    options = arguments()
    model = load(options.teacher)
    how: dict[str, Any] = {key: getattr(options, key) for key in HOW if getattr(options, key) is not None}
    data = TextData(
        test_file=options.file,
        text_column=options.text_column,
        summary_column=options.summary_column,
        max_test_examples=options.max_examples,
    )
    names = data.columns
    if names[0] is None:
        raise ValueError(
            f"{options.file}: texts alone; name the columns by --text_column, --summary_column"
        )
    sources = list(dict.fromkeys(example.source for example in data.examples("test")))
    weights = crc32(b"".join(w.cpu().numpy().tobytes() for w in model.state_dict().values()))
    teacher = f"{options.teacher} {weights:08x} {json.dumps(how)}"
    start = resume(options.output, sources, names[0], teacher)
    how |= {"batch_size": options.batch_size, "dtype": "auto"}
    with (
        options.output.open("a", encoding="utf-8") as file,
        tqdm(total=len(sources), initial=start, unit="text") as bar,
    ):
        for first in range(start, len(sources), options.chunk):
            some = sources[first : first + options.chunk]
            made = generate_texts(model, some, first=first, **how)
            for source, text in zip(some, made.texts, strict=True):
                row = {names[0]: source, names[1]: text, "teacher": teacher}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(some))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"distill: {error}")
