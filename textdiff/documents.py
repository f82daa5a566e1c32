"""What the commands read: tables, text files and standard input as documents or as a text a line."""

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from textdiff.files import KNOWN, LINES, example_of, read

TABLES = ({*LINES} | {".parquet"}) - {".txt"}
COLUMN = "--text_column"


def read_documents(files: Sequence[str], column: str | None = None) -> list[tuple[str, str]]:
    """Names and texts of documents: the rows of tables, and text files whole, on one line.

    Raises:
        ValueError: nothing in a file, an empty document, or a column that no file has.
    """
    contents = [(file, open_file(file)) for file in files]
    if all(isinstance(content, str) for _, content in contents):
        refuse_column(", ".join(files), column)
    found: list[tuple[str, str]] = []
    for file, content in contents:
        text = isinstance(content, str)
        found += [(file, " ".join(content.split()))] if text else read_rows(file, content, column)
    return found


def read_texts(
    file: str, column: str | None = None, *, flag: str = COLUMN, alone: bool = False
) -> list[str]:
    """A text a line, or a row of a table.

    Args:
        column: of a table; None = the one that is known.
        flag: what names the column on the command line.
        alone: of a pair of known columns neither is meant more than the other.

    Raises:
        ValueError: no texts, an empty one (those that are written must match those that are read), or no
            column that is surely meant.
    """
    content = open_file(file)
    if not isinstance(content, str):
        return [text for _, text in read_rows(file, content, column, flag, alone)]
    refuse_column(file, column, flag)
    lines = [line.strip("\r") for line in content.split("\n")]
    while not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"{file}, line {number}: empty; remove it or give it text")
    return lines


def refuse_column(where: str, column: str | None, flag: str = COLUMN) -> None:
    """Text that is read line by line, or whole, has no columns to choose from."""
    if column is not None:
        raise ValueError(f"{where}: plain text has no columns; leave out {flag}")


def open_file(file: str) -> str | Iterable[Any]:
    """The rows of a table, or of JSON lines on standard input; of all else the text."""
    if Path(file.removesuffix(".gz")).suffix.lower() in TABLES:
        return read(file)
    text = read_text(file)
    rows = file == "-" and is_json(text.lstrip().partition("\n")[0])
    return json_rows(text) if rows else text


def read_rows(
    file: str, rows: Iterable[Any], column: str | None, flag: str = COLUMN, alone: bool = False
) -> Iterator[tuple[str, str]]:
    """Names and texts of rows; the arguments are those of `read_texts`."""
    number = 0
    for number, row in enumerate(rows, 1):
        where = f"{file}, row {number}"
        column = column or find_column(row, where, flag, alone)
        text = example_of(row, (None, column), where).target
        if not text.strip():
            raise ValueError(f"{where}: empty; remove it or give it text")
        yield where, text
    if not number:
        raise ValueError(f"{file} holds no rows; give it a row for every text")


def find_column(row: Any, where: str, flag: str, alone: bool) -> str:
    """The column of the texts: as in training that of a known pair, else the first known one.

    Raises:
        ValueError: none is known; with `alone`, a pair is.
    """
    found = [*row] if isinstance(row, dict) else [type(row).__name__]
    pairs = [pair for pair in KNOWN if None not in pair and {*pair} <= {*found}]
    if alone and pairs:
        names = " or ".join(map(repr, pairs[0]))
        raise ValueError(f"{where}: are the texts {names}? name their column by {flag}")
    for name, _ in pairs + KNOWN:
        if name in found:
            return name
    raise ValueError(f"{where}: no known column among {found}; name it by {flag}")


def is_json(line: str) -> bool:
    """Whether a line is a row of JSON lines."""
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def json_rows(text: str) -> Iterator[Any]:
    """The objects of JSON lines on standard input."""
    for number, line in enumerate(text.split("\n"), 1):
        try:
            yield from [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"standard input, line {number}: {error}; the first is JSON") from None


def read_text(file: str) -> str:
    """The whole of a UTF-8 file, gzipped or not, or of standard input."""
    name = "standard input" if file == "-" else file
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        text = (gzip.decompress(data) if file.endswith(".gz") else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 at byte {error.start}; convert it first") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: {error}; not a whole gzip file") from None
    if not text.strip():
        raise ValueError(f"{name} holds no text")
    return text
