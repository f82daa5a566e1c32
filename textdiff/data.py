"""Texts in, batches of token ids out: files, hub data sets and the built-in corpus.

A batch is a dict: `ids (B, L)` int64, targets that end in one EOS; `mask (B, L)` bool, True = to be
generated; `valid (B, L)` bool, False = padding; `source (B, S)` and `source_mask (B, S)` if sources
are encoded; `index (B,)` int64, the example's place in the training stream (evaluation: its row),
which keys its noise; `position`, an int, the number of the batch. `conditioning="prefix"` puts the
source into `ids`, before the target, never masked: the partial noising of DiffuSeq (Gong et al.,
ICLR 2023, arXiv:2210.08933, section 3.1).

The training stream is a pure function of (seed, epoch, global batch size): a shuffle is cut into
chunks of `CHUNK` batches, each sorted by length, cut, and its batches shuffled, so that neighbours
are about equally long and little is padding. Rank r of w takes every w-th example of a batch.
"""

import csv
import gzip
import json
import math
import re
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from textdiff.tokenizer import Tokenizer

BUILT_IN = {"train": 20_000, "validation": 500, "test": 500, "unseen_names": 500}
# columns of source and target, looked for in this order
KNOWN = [("source", "target"), ("src", "trg"), ("document", "summary"), ("article", "highlights")]
KNOWN += [("dialogue", "summary"), ("text", "summary"), ("text", None)]
SURROGATE = re.compile("[\ud800-\udfff]")  # legal in JSON, but no text
CHUNK = 50  # batches that are sorted by length together
TOKENIZER_ROWS = 50_000  # rows that a new tokenizer learns from
LEAST = {"batch_size": 1, "eval_batch_size": 1, "max_source_length": 1, "max_target_length": 2}
LEAST |= {"shuffle_buffer": 1, "num_workers": 0, "seed": 0}

Pair = tuple[Sequence[int], Sequence[int]]  # what is given (source, prefix), what `ids` will be
Ranks = tuple[int, int]  # rank, world size
Rows = tuple[int, np.ndarray, list[Pair]]  # position, index, examples: a batch before padding


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


LINES = {".jsonl": _jsonl, ".json": _json, ".csv": csv.DictReader, ".txt": _text}
LINES[".tsv"] = partial(csv.DictReader, delimiter="\t")


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
    if column not in found:
        raise ValueError(f"{where}: no column {column!r} among {found}; name it by text_column")
    if not isinstance(row[column], str):
        kind = type(row[column]).__name__
        raise ValueError(f"{where}: {column!r} is {kind}, not text: correct or remove the row")
    if not row[column].isascii() and SURROGATE.search(row[column]):
        raise ValueError(f"{where}: {column!r} has half a surrogate pair: correct the row")
    return row[column]


def _example(row: Any, columns: tuple[str | None, str], where: str) -> Example:
    source, target = (column and _string(row, column, where) for column in columns)
    references = row.get("references") or target
    return Example(source, target, [references] if isinstance(references, str) else references)


def pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Lists or arrays of ids as `ids (B, L)` int64, padded on the right, and `valid (B, L)`."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    valid = torch.arange(max(lengths.tolist(), default=0)) < lengths[:, None]
    ids = torch.full(valid.shape, pad_id)
    flat = np.concatenate([np.empty(0, np.int64), *sequences]).astype(np.int64)
    ids[valid] = torch.from_numpy(flat)
    return ids, valid


def ranked(pairs: Sequence[Pair], rows: np.ndarray) -> np.ndarray:
    """`rows` by the length of `ids`, then of what is given."""
    lengths = [(len(pairs[row][0]), len(pairs[row][1])) for row in rows]
    return rows[np.lexsort(np.array(lengths).T)]


def arrange(pairs: Sequence[Pair], size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of the batches of an epoch. What fills no batch is left out, but for a lone batch."""
    order = rng.permutation(len(pairs))[: len(pairs) // size * size or len(pairs)]
    for start in range(0, len(order), CHUNK * size):
        chunk = ranked(pairs, order[start : start + CHUNK * size])
        starts = np.arange(0, len(chunk), size)
        yield from (chunk[i : i + size] for i in rng.permutation(starts))


def share(position: int, index: np.ndarray, pairs: list[Pair], ranks: Ranks) -> Rows:
    """What one rank gets of a global batch."""
    rank, world = ranks
    if len(pairs) < world:
        raise ValueError(f"{len(pairs)} examples are too few for {world} devices: use fewer")
    return position, index[rank::world], pairs[rank::world]


@dataclass
class Batches(Sampler[Rows]):
    """The training stream from batch number `position` on, an epoch at a time.

    `tables` gives the examples of a pass: one list (then `length` is its number of batches), or one
    per shuffle buffer of a stream. `size` is the global batch size, `ranks` (rank, world size).
    """

    tables: Callable[[], Iterable[Sequence[Pair]]]
    size: int
    seed: int = 0
    position: int = 0
    ranks: Ranks = (0, 1)
    length: int | None = None

    def __post_init__(self) -> None:
        self.epoch = self.position // self.length if self.length else 0
        self.first = self.epoch * (self.length or 0)

    def __len__(self) -> int:
        return self.length  # None raises the TypeError that says "no length" to torch and Lightning

    def __iter__(self) -> Iterator[Rows]:
        start, number = self.position, self.first
        while number <= start:
            number = self.first
            for pairs, rows in self._epoch():
                if number >= start:
                    self.position = number + 1
                    index = number * self.size + np.arange(len(rows))
                    yield share(number, index, [pairs[row] for row in rows], self.ranks)
                number += 1
            self.epoch, self.first = self.epoch + 1, number

    def _epoch(self) -> Iterator[tuple[Sequence[Pair], np.ndarray]]:
        for buffer, pairs in enumerate(self.tables()):
            if buffer and len(pairs) < self.size:
                return
            rng = np.random.default_rng((self.seed, self.epoch, buffer))
            yield from ((pairs, rows) for rows in arrange(pairs, self.size, rng))


@dataclass(frozen=True)
class Collator(Dataset):
    """Pads `Rows`; `layout` is "none" (unconditional), "cross" or "prefix"."""

    layout: str
    pad_id: int

    def __getitem__(self, rows: Rows) -> dict[str, Any]:
        position, index, pairs = rows
        given, targets = zip(*pairs, strict=True)
        ids, valid = pad(targets, self.pad_id)
        batch = {"ids": ids, "valid": valid, "mask": valid.clone()}
        if self.layout == "cross":
            batch["source"], batch["source_mask"] = pad(given, self.pad_id)
        if self.layout == "prefix":
            starts = torch.tensor([len(prefix) for prefix in given])
            batch["mask"] &= torch.arange(ids.shape[1]) >= starts[:, None]
        return batch | {"index": torch.from_numpy(index), "position": position}


class TextData(LightningDataModule):
    """Local files, a hub data set or the built-in corpus as batches and as text.

    `tokenizer` exists after `setup`. Set `position`, the number of the first batch, before
    `train_dataloader` to go on where an earlier run stopped.

    Args:
        train_file: .jsonl, .json, .csv, .tsv, .parquet or .txt (a text per line), .gz too
        validation_file: if absent, every 20th training row (at most 1,000) is kept for validation
        test_file: rows for the final evaluation
        dataset_name: hub id or local directory, instead of files; textdiff/reports is built in
        dataset_config: configuration of the hub data set
        text_column: source column; given alone: unconditional text; guessed if absent
        summary_column: target column
        source_prefix: text put before every source
        max_source_length: tokens of the longest source; the rest is cut
        max_target_length: tokens of the longest target, EOS included; unconditional text is split
        vocab_size: tokens of a tokenizer trained on the data
        tokenizer: directory or file of the tokenizer to use instead
        batch_size: training examples per device and step
        eval_batch_size: evaluation examples per device and step
        conditioning: cross (attention to the source) or prefix (source inside the sequence)
        num_workers: processes that pad batches
        streaming: read and tokenize while training, with little memory
        shuffle_buffer: examples shuffled together while streaming
        max_train_examples: use only the first rows
        max_validation_examples: use only the first rows
        seed: seed of the order of the examples
    """

    def __init__(
        self,
        train_file: str | None = None,
        validation_file: str | None = None,
        test_file: str | None = None,
        dataset_name: str | None = None,
        dataset_config: str | None = None,
        text_column: str | None = None,
        summary_column: str | None = None,
        source_prefix: str = "",
        max_source_length: int = 256,
        max_target_length: int = 64,
        vocab_size: int = 8192,
        tokenizer: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        conditioning: Literal["cross", "prefix"] = "cross",
        num_workers: int = 0,
        streaming: bool = False,
        shuffle_buffer: int = 10_000,
        max_train_examples: int | None = None,
        max_validation_examples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name, least in LEAST.items():
            if self.hparams[name] < least:
                raise ValueError(f"{name}={self.hparams[name]}: give at least {least}")
        if conditioning not in ("cross", "prefix"):
            raise ValueError(f"conditioning={conditioning!r}: choose cross or prefix")
        if bool(dataset_name) == any((train_file, validation_file, test_file)):
            raise ValueError("data: give either dataset_name or train_file (and other files)")
        self.position = 0
        self.tokenizer: Tokenizer | None = None
        self._tables: dict[str, list[Pair]] = {}
        self._said: set[str] = set()

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            rank_zero_info(message)

    @cached_property
    def _splits(self) -> Mapping[str, Iterable[Any]]:
        name, config = self.hparams.dataset_name, self.hparams.dataset_config
        if name == "textdiff/reports":
            from textdiff import corpus

            return {key: corpus.rows(key, self._limit(key) or n) for key, n in BUILT_IN.items()}
        from datasets import exceptions, load_dataset

        try:
            return load_dataset(name, config, streaming=self.hparams.streaming)
        except (OSError, ValueError, RuntimeError, exceptions.DatasetsError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"cannot load data set {name!r} ({reason}); check the name") from error

    def _limit(self, split: str) -> int | None:
        return self.hparams.get(f"max_{split}_examples")

    def _open(self, split: str) -> Iterator[Any] | None:
        """Rows of a split, None where there is none."""
        if self.hparams.dataset_name:
            return iter(self._splits[split]) if split in self._splits else None
        path = self.hparams.get(f"{split}_file")
        return read(path) if path else None

    def has_split(self, split: str) -> bool:
        """Whether the data bring this split (validation can also be taken from train)."""
        return self._open(split) is not None

    def _rows(self, split: str) -> Iterator[tuple[int, Any]]:
        """Rows with their numbers in the file, from 1."""
        carved = split in ("train", "validation") and not self.has_split("validation")
        rows = self._open("train" if carved else split)
        if rows is None:
            raise ValueError(f"no {split} data: give {split}_file or a data set that has it")
        numbered = enumerate(rows, 1)
        if carved:
            self._say("no validation data: every 20th training row, at most 1,000, is kept for it")
            held = split == "validation"
            numbered = ((n, row) for n, row in numbered if (n % 20 == 2 and n <= 20_000) == held)
        return islice(numbered, self._limit(split))

    @cached_property
    def columns(self) -> tuple[str | None, str]:
        """(source or None, target): as given, else the first known pair among those of row 1."""
        given = self.hparams.text_column, self.hparams.summary_column
        split = next(split for split in ("train", "validation", "test") if self.has_split(split))
        row = next(self._open(split), None)
        found = [*row] if isinstance(row, dict) else []
        known = [pair for pair in ([given] if any(given) else KNOWN) if {*pair} <= {*found, None}]
        if row is not None and not (known and known[0][0]):
            wanted = f"columns {given}" if any(given) else "known pair of columns"
            where = f"{self._name(split)}: no {wanted} among {found or type(row).__name__}"
            raise ValueError(f"{where}; set text_column and summary_column")
        source, target = known[0] if known else KNOWN[0]
        return (source, target) if target else (None, source)

    @property
    def layout(self) -> str:
        """How a batch holds the source: none, cross or prefix."""
        return self.hparams.conditioning if self.columns[0] else "none"

    def _name(self, split: str) -> str:
        return self.hparams.get(f"{split}_file") or self.hparams.dataset_name or "train_file"

    def _examples(self, split: str, limit: int | None = None) -> Iterator[Example]:
        """Rows as text; a few empty ones are dropped and reported, many are an error."""
        kept, empty, where = 0, [], self._name(split)
        for number, row in islice(self._rows(split), limit):
            example = _example(row, self.columns, f"{where}, row {number}")
            if all(text is None or text.strip() for text in example[:2]):
                kept += 1
                yield example
            else:
                empty.append(number)
        rows = kept + len(empty)
        if not rows:
            raise ValueError(f"{where}: no {split} rows; give a larger file or {split}_file")
        report = f"{where}: {len(empty):,} of {rows:,} rows have an empty text, first {empty[:5]}"
        if len(empty) > rows / 10 and (limit or not self.hparams.streaming):
            raise ValueError(f"{report}; remove them")
        if empty:
            self._say(f"{report}: dropped")

    def examples(self, split: str) -> list[Example]:
        """Examples as text, in the order of `index`; unconditional ones as the model sees them."""
        if self.columns[0]:
            return list(self._examples(split))
        texts = self.tokenizer.decode([ids for _, ids in self.table(split)])
        return [Example(None, text, [text]) for text in texts]

    def prepare_data(self) -> None:
        """Fetch the data set, once per machine."""
        self._open("train")

    def setup(self, stage: str | None = None) -> None:
        """Load or train the tokenizer and tokenize the splits that the stage needs."""
        self.tokenizer = self.tokenizer or self._make_tokenizer()
        splits = {"validate": ["validation"], "test": ["test"], "predict": []}
        for split in splits.get(stage or "fit", ["train", "validation"]):
            self.table(split)

    def _make_tokenizer(self) -> Tokenizer:
        if self.hparams.tokenizer:
            return Tokenizer.load(self.hparams.tokenizer)
        self._say(f"training a tokenizer of {self.hparams.vocab_size:,} tokens")
        examples = islice(self._examples("train"), TOKENIZER_ROWS)
        texts = (text for example in examples for text in example[:2] if text)
        return Tokenizer.train(texts, self.hparams.vocab_size)

    def table(self, split: str) -> list[Pair]:
        """All examples of a split as ids; of a training stream the first shuffle buffer."""
        if split not in self._tables:
            first = self.hparams.streaming and split == "train"
            limit = self.hparams.shuffle_buffer if first else None
            self._tables[split] = list(self._pairs(split, limit))
            where = " in the first shuffle buffer" * first
            self._say(f"{split}: {len(self._tables[split]):,} examples{where}")
        return self._tables[split]

    def _stream(self, size: int) -> Iterator[list[Pair]]:
        pairs, buffer = self._pairs("train"), self.hparams.shuffle_buffer
        while chunk := list(islice(pairs, max(1, buffer // size) * size)):
            yield chunk

    def _pairs(self, split: str, limit: int | None = None) -> Iterator[Pair]:
        """Ids of all examples; what is too long is cut, counted and said."""
        examples, counts, options = self._examples(split, limit), Counter(), self.hparams
        code = "H" if len(self.tokenizer) <= 2**16 else "i"
        while chunk := list(islice(examples, 1000)):
            texts = [options.source_prefix + example.source for example in chunk if example.source]
            sources = self.tokenizer.encode(texts) or [[]] * len(chunk)
            targets = self.tokenizer.encode([example.target for example in chunk])
            counts["source"] += sum(len(ids) > options.max_source_length for ids in sources)
            counts["target"] += sum(len(ids) >= options.max_target_length for ids in targets)
            counts["rows"] += len(chunk)
            for given, ids in chain.from_iterable(map(self._fit, sources, targets)):
                yield array(code, given), array(code, ids)
        self._report(split, counts)

    def _fit(self, source: list[int], target: list[int]) -> Iterator[Pair]:
        """What is given and what `ids` will be; unconditional text in consecutive pieces."""
        room, sep = self.hparams.max_target_length - 1, self.tokenizer.sep_id
        source = source[: self.hparams.max_source_length] or [sep]
        given = {"none": [], "cross": source, "prefix": [*source, sep]}[self.layout]
        before = given if self.layout == "prefix" else []
        starts = range(0, len(target) or 1, room)
        for start in starts[:1] if given else starts:
            yield given, [*before, *target[start : start + room], self.tokenizer.eos_id]

    def _report(self, split: str, counts: Counter[str]) -> None:
        fate = "cut to" if self.columns[0] else "split into pieces of"
        for side in ("source", "target"):
            if cut := counts[side]:
                percent = f"{100 * cut / counts['rows']:.3g} % of {counts['rows']:,}"
                length = f"max_{side}_length"
                self._say(
                    f"{percent} {split} {side}s were {fate} {self.hparams[length]} tokens; "
                    f"raise --data.{length}"
                )

    def _loader(self, batches: Iterable[Rows]) -> DataLoader:
        workers = self.hparams.num_workers
        collator = Collator(self.layout, self.tokenizer.pad_id)
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        return DataLoader(collator, sampler=batches, batch_size=None, **options)

    def _ranks(self) -> Ranks:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        """The training stream from `position` on; without a length while streaming."""
        ranks, table, options = self._ranks(), self.table("train"), self.hparams
        size = options.batch_size * ranks[1]
        tables = (lambda: self._stream(size)) if options.streaming else (lambda: [table])
        length = None if options.streaming else max(1, len(table) // size)
        return self._loader(Batches(tables, size, options.seed, self.position, ranks, length))

    def _evaluation(self, split: str) -> DataLoader:
        """Every example once, by length, in batches that are about equally large."""
        pairs, ranks = self.table(split), self._ranks()
        wanted = math.ceil(len(pairs) / (self.hparams.eval_batch_size * ranks[1]))
        # no rank may be left without an example: the ranks wait for each other
        parts = max(1, min(wanted, len(pairs) // ranks[1]))
        batches = enumerate(np.array_split(ranked(pairs, np.arange(len(pairs))), parts))
        return self._loader([share(i, rows, [pairs[r] for r in rows], ranks) for i, rows in batches])

    def val_dataloader(self) -> DataLoader:
        """Validation batches; `index` is the row."""
        return self._evaluation("validation")

    def test_dataloader(self) -> DataLoader:
        """Test batches; `index` is the row."""
        return self._evaluation("test")

    def _targets(self) -> list[Sequence[int]]:
        skip = self.layout == "prefix"
        return [ids[len(given) * skip :] for given, ids in self.table("train")]

    def token_counts(self) -> Tensor:
        """(V,) int64: how often each token stands in the training targets, EOS included."""
        flat = np.concatenate(self._targets())
        return torch.from_numpy(np.bincount(flat, minlength=len(self.tokenizer)))

    def length_counts(self) -> Tensor:
        """(max_target_length + 1,) int64: how many training targets have each length with EOS."""
        lengths = [len(target) for target in self._targets()]
        return torch.from_numpy(np.bincount(lengths, minlength=self.hparams.max_target_length + 1))
