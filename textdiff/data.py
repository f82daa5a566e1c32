"""Texts in, batches of token ids out: files, hub data sets and the built-in corpus.

The layout of a batch and the order of the training stream are those of `batches.py`.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from textdiff import sizes
from textdiff.batches import Batches, Collator, Pair, Ranks, Rows, pieces, ranked, share
from textdiff.files import Example, example_of, find_columns, read
from textdiff.tokenizer import Tokenizer

BUILT_IN = {"train": 20_000, "validation": 500, "test": 500, "unseen_names": 500}
TOKENIZER_ROWS = 50_000  # rows that a new tokenizer learns from
LENGTH_ROWS = 5_000  # rows that tell how long texts are
SIDES = ("source", "target")
LEAST = {"batch_size": 1, "eval_batch_size": 1, "max_source_length": 1, "max_target_length": 2}
LEAST |= {"shuffle_buffer": 1, "num_workers": 0, "seed": 0}
LEAST |= {f"max_{split}_examples": 1 for split in ("train", "validation", "test")}


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
        source_prefix: text put before every source; None = none, or that of the model to start from
        max_source_length: tokens of the longest source; the rest is cut; None = as the data need
        max_target_length: the same for targets, EOS included; unconditional text is split
        vocab_size: tokens of a tokenizer trained on the data; None = as the data need
        tokenizer: directory or file of the tokenizer to use instead
        batch_size: training examples per device and step; None = as their lengths allow
        eval_batch_size: evaluation examples per device and step
        conditioning: cross (attention to the source) or prefix (source inside the sequence)
        num_workers: processes that pad batches
        streaming: read and tokenize while training, with little memory
        shuffle_buffer: examples shuffled together while streaming
        max_train_examples: use only the first rows
        max_validation_examples: use only the first rows
        max_test_examples: use only the first rows
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
        source_prefix: str | None = None,
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        vocab_size: int | None = None,
        tokenizer: str | None = None,
        batch_size: int | None = 64,
        eval_batch_size: int = 128,
        conditioning: Literal["cross", "prefix"] = "cross",
        num_workers: int = 0,
        streaming: bool = False,
        shuffle_buffer: int = 10_000,
        max_train_examples: int | None = None,
        max_validation_examples: int | None = None,
        max_test_examples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.hparams.source_prefix = source_prefix or ""
        for name, least in LEAST.items():
            if self.hparams[name] is not None and self.hparams[name] < least:
                raise ValueError(f"{name}={self.hparams[name]}: give at least {least}")
        if conditioning not in ("cross", "prefix"):
            raise ValueError(f"conditioning={conditioning!r}: choose cross or prefix")
        if bool(dataset_name) == any((train_file, validation_file, test_file)):
            raise ValueError(
                "data: give either dataset_name or train_file (and other files), "
                "or --config quickstart for the built-in corpus"
            )
        self.position = 0
        self.tokenizer: Tokenizer | None = None
        self._tables: dict[str, list[Pair]] = {}
        self._texts: dict[str, list[Example]] = {}
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

            most = {key: self.hparams.get(f"max_{key}_examples") or n for key, n in BUILT_IN.items()}
            return {key: corpus.rows(key, n) for key, n in most.items()}
        from datasets import exceptions, load_dataset

        try:
            return load_dataset(name, config, streaming=self.hparams.streaming)
        except (OSError, ValueError, RuntimeError, exceptions.DatasetsError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"cannot load data set {name!r} ({reason}); check the name") from error

    def _open(self, split: str) -> Iterator[Any] | None:
        """Rows of a split, None where there is none."""
        if self.hparams.dataset_name:
            return iter(self._splits[split]) if split in self._splits else None
        return read(path) if (path := self.hparams.get(f"{split}_file")) else None

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
            known = islice(numbered, 20_000) if held else numbered  # a stream need not be read to its end
            numbered = ((n, row) for n, row in known if (n % 20 == 2 and n <= 20_000) == held)
        return islice(numbered, self.hparams.get(f"max_{split}_examples"))

    @cached_property
    def columns(self) -> tuple[str | None, str]:
        """(source or None, target): as given, else the first known pair among those of row 1."""
        given = self.hparams.text_column, self.hparams.summary_column
        return find_columns(next(self._open(self._first), None), given, self._name(self._first))

    @property
    def _first(self) -> str:
        """The first split that there is: columns and lengths are found in it."""
        return next(split for split in ("train", "validation", "test") if self.has_split(split))

    @property
    def writing_size(self) -> int:
        """Texts that training writes at once: no more than it evaluates, where that was made small."""
        return min(64, self.hparams.eval_batch_size)

    @property
    def conditioning(self) -> str:
        """How a batch holds the source: none, cross or prefix."""
        return self.hparams.conditioning if self.columns[0] else "none"

    def _name(self, split: str) -> str:
        return self.hparams.get(f"{split}_file") or self.hparams.dataset_name or "train_file"

    def _examples(self, split: str, limit: int | None = None) -> Iterator[Example]:
        """Rows as text; a few empty ones are dropped and reported, many are an error."""
        kept, empty, where = 0, [], self._name(split)
        for number, row in islice(self._rows(split), limit):
            example = example_of(row, self.columns, f"{where}, row {number}")
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
        if split not in self._texts and self.columns[0]:
            self._texts[split] = list(self._examples(split))
        elif split not in self._texts:
            texts = self.tokenizer.decode([ids for _, ids in self.table(split)])
            self._texts[split] = [Example(None, text, [text]) for text in texts]
        return self._texts[split]

    def prepare_data(self) -> None:
        """Fetch the data set, once per machine."""
        self._open("train")

    def setup(self, stage: str | None = None) -> None:
        """Load or train the tokenizer and tokenize the splits that the stage needs."""
        self.tokenizer = self.tokenizer or self._make_tokenizer()
        self._choose_lengths()
        splits = {"validate": ["validation"], "test": ["test"], "predict": []}
        for split in splits.get(stage or "fit", ["train", "validation"]):
            self.table(split)

    def _make_tokenizer(self) -> Tokenizer:
        if self.hparams.tokenizer:
            return Tokenizer.load(self.hparams.tokenizer)
        size = self.hparams.vocab_size
        if size is None:
            size = self.hparams.vocab_size = sizes.vocabulary(self._some_texts())
        self._say(f"training a tokenizer of {size:,} tokens (--data.vocab_size)")
        return Tokenizer.train(self._some_texts(), size)

    def _some_texts(self) -> Iterator[str]:
        return (x for row in islice(self._examples("train"), TOKENIZER_ROWS) for x in row[:2] if x)

    def _choose_lengths(self) -> None:
        """Set the lengths and the batch size that were not given."""
        names = {side: f"max_{side}_length" for side in SIDES}
        unset = [side for side in SIDES if self.hparams[names[side]] is None]
        rows = list(islice(self._examples(self._first), LENGTH_ROWS)) if unset else []
        if unset and not rows:
            raise ValueError(f"{self._name(self._first)}: its first rows have no text; remove them")
        for side in unset:
            prefix, end = (self.hparams.source_prefix, 0) if side == "source" else ("", 1)  # EOS
            texts = [prefix + (getattr(row, side) or "") for row in rows]
            lengths = [len(ids) + end for ids in self.tokenizer.encode(texts)]
            found = self.hparams[names[side]] = sizes.length(
                lengths, sizes.LONGEST[side, self.conditioning]
            )
            if getattr(rows[0], side) is not None:
                self._say(f"{side}s of at most {found} tokens (--data.{names[side]})")
        if self.hparams.batch_size is None:
            found = self.hparams.batch_size = sizes.batch(
                sum(self.hparams[name] for name in names.values())
            )
            self._say(f"batches of {found} examples (--data.batch_size)")

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
        size, sep = self.hparams.max_target_length, self.tokenizer.sep_id
        source = source[: self.hparams.max_source_length] or [sep]
        given = {"none": [], "cross": source, "prefix": [*source, sep]}[self.conditioning]
        if given:
            first = given if self.conditioning == "prefix" else []
            yield given, [*first, *target[: size - 1], self.tokenizer.eos_id]
            return
        for piece in pieces([*target, self.tokenizer.eos_id], size):
            yield given, piece

    def _report(self, split: str, counts: Counter[str]) -> None:
        fate = "cut to" if self.columns[0] else "split into pieces of"
        for side in SIDES:
            if counts[side]:
                percent = f"{100 * counts[side] / counts['rows']:.3g} % of {counts['rows']:,}"
                name, where = f"max_{side}_length", f"{split} {side}s were {fate}"
                self._say(f"{percent} {where} {self.hparams[name]} tokens; raise --data.{name}")

    def _loader(self, batches: Iterable[Rows]) -> DataLoader:
        workers = self.hparams.num_workers
        collator = Collator(self.conditioning, self.tokenizer.pad_id)
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        return DataLoader(collator, sampler=batches, batch_size=None, **options)

    def _ranks(self) -> Ranks:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        """The training stream from `position` on; without a length while streaming."""
        ranks, table, options = self._ranks(), self.table("train"), self.hparams
        size = options.batch_size * ranks[1]
        tables = (lambda: self._stream(size)) if options.streaming else (lambda: [table])
        length = self.batches_of(ranks[1])
        return self._loader(Batches(tables, size, options.seed, self.position, ranks, length))

    def batches_of(self, world: int) -> int | None:
        """Training batches of an epoch over `world` processes; None while streaming."""
        size = self.hparams.batch_size * world
        return None if self.hparams.streaming else max(1, len(self.table("train")) // size)

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
        skip = self.conditioning == "prefix"
        return [ids[len(given) * skip :] for given, ids in self.table("train")]

    def token_counts(self) -> Tensor:
        """(V,) int64: how often each token stands in the training targets, EOS included."""
        flat = np.concatenate(self._targets())
        return torch.from_numpy(np.bincount(flat, minlength=len(self.tokenizer)))

    def neighbours(self) -> Tensor:
        """(N, 2) int64: tokens that stand next to each other in training targets."""
        targets = [np.asarray(target, dtype=np.int64) for target in self._targets()]
        pairs = [np.stack([one[:-1], one[1:]], 1) for one in targets]
        return torch.from_numpy(np.concatenate(pairs))

    def length_counts(self) -> Tensor:
        """(max_target_length + 1,) int64: how many training targets have each length with EOS."""
        lengths = [len(target) for target in self._targets()]
        return torch.from_numpy(np.bincount(lengths, minlength=self.hparams.max_target_length + 1))
