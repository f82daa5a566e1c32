"""Rows of local files: JSONL, JSON, CSV, TSV, Parquet, plain text, gzipped or not."""

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

SURROGATE = re.compile("[\ud800-\udfff]")  # legal in JSON, but no text
# columns of source and target, looked for in this order
KNOWN = [("source", "target"), ("src", "trg"), ("document", "summary"), ("article", "highlights")]
KNOWN += [("dialogue", "summary"), ("text", "summary"), ("text", None)]


class Example(NamedTuple):
    """A row as text; `references` holds at least the target."""

    source: str | None
    target: str
    references: list[str]


def _json(lines: Iterator[str]) -> Iterable[Any]:
    first = next(lines, "")
    lines = chain([first], lines)
    return json.loads("".join(lines)) if first.lstrip()[:1] == "[" else _jsonl(lines)


def _jsonl(lines: Iterable[str]) -> Iterable[Any]:
    return (json.loads(line) for line in lines if line.strip())


def _text(lines: Iterable[str]) -> Iterable[Any]:
    return ({"text": line.rstrip("\r\n")} for line in lines if line.strip())


def _parquet(path: Path) -> Iterable[Any]:
    from pyarrow import parquet

    return chain.from_iterable(b.to_pylist() for b in parquet.ParquetFile(path).iter_batches())


LINES = {".jsonl": _jsonl, ".json": _json, ".csv": partial(csv.DictReader, strict=True), ".txt": _text}
LINES[".tsv"] = partial(csv.DictReader, strict=True, delimiter="\t")


def read(path: str | Path) -> Iterator[Any]:
    """Rows of a local file by its extension, `.gz` allowed; blank lines are no rows."""
    path, number = Path(path), 0
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind not in (known := [*LINES, ".parquet"]):
        raise ValueError(f"{path}: unknown extension {kind!r}; use one of {', '.join(known)}")
    csv.field_size_limit(sys.maxsize)  # the default refuses long documents

    def lines() -> Iterator[str]:
        nonlocal number
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")

    try:
        yield from _parquet(path) if kind == ".parquet" else LINES[kind](lines())
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        where = f"{path}, line {number}" if number else path
        raise ValueError(f"{where}: {error}; correct the file (UTF-8 text)") from error


def _string(row: Any, column: str, where: str) -> str:
    found = list(row) if isinstance(row, dict) else [type(row).__name__]
    if None in found:  # of a table
        raise ValueError(f"{where}: more fields than columns; put quotes around texts with separators")
    if column not in found:
        raise ValueError(f"{where}: no column {column!r} among {found}; name another, or correct the row")
    if not isinstance(row[column], str):
        kind = type(row[column]).__name__
        raise ValueError(f"{where}: {column!r} is {kind}, not text: correct or remove the row")
    if not row[column].isascii() and SURROGATE.search(row[column]):
        raise ValueError(f"{where}: {column!r} has half a surrogate pair: correct the row")
    return row[column]


def example_of(row: Any, columns: tuple[str | None, str], where: str) -> Example:
    source, target = (column and _string(row, column, where) for column in columns)
    references = (source and row.get("references")) or [target]
    if not isinstance(references, list) or target not in references:
        raise ValueError(
            f"{where}: 'references' must be a list of all right answers, {columns[1]!r} among them; "
            "rename the column if it holds something else"
        )
    for answer in references:
        _string({"references": answer}, "references", where)
    return Example(source, target, references)


def find_columns(row: Any, given: tuple[str | None, str | None], where: str) -> tuple[str | None, str]:
    """(source or None, target): as `given`, else the first known pair in `row`; a first row or None.

    Raises:
        ValueError: the row has neither.
    """
    found = [*row] if isinstance(row, dict) else []
    known = [pair for pair in ([given] if any(given) else KNOWN) if {*pair} <= {*found, None}]
    if row is not None and not (known and known[0][0]):
        wanted = f"columns {given}" if any(given) else "known pair of columns"
        place = f"{where}: no {wanted} among {found or type(row).__name__}"
        raise ValueError(f"{place}; set text_column and summary_column")
    source, target = known[0] if known else KNOWN[0]
    return (source, target) if target else (None, source)
