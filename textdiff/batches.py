"""Batches of token ids, and the order in which training sees them.

A batch is a dict: `ids (B, L)` int64, targets that end in one EOS (a piece of a longer text that does not
hold its end has none); `mask (B, L)` bool, True = to be generated; `valid (B, L)` bool, False = padding;
`source (B, S)`, `source_mask (B, S)` if sources are encoded, one a row, or each once with `reads (B,)`,
which of them a row has; `index (B,)` int64, the example's place in the training stream (evaluation: its
row), which keys its noise; `position`, an int, the number of the batch. `conditioning="prefix"` puts the
source into `ids`, before the target, never masked: the partial noising of DiffuSeq (Gong et al.,
ICLR 2023, arXiv:2210.08933, section 3.1).

The training stream is a pure function of (seed, epoch, global batch size): a shuffle is cut into
chunks of `CHUNK` batches, each sorted by length, cut, and its batches shuffled, so that neighbours
are about equally long and little is padding. Rank r of w takes every w-th example of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

CHUNK = 50  # batches that are sorted by length together

Pair = tuple[Sequence[int], Sequence[int]]  # what is given (source, prefix), what `ids` will be
Ranks = tuple[int, int]  # rank, world size
Rows = tuple[int, np.ndarray, list[Pair]]  # position, index, examples: a batch before padding


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Lists or arrays of ids as `ids (B, L)` int64, padded on the right, and `valid (B, L)`."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    valid = torch.arange(max(lengths.tolist(), default=0)) < lengths[:, None]
    ids = torch.full(valid.shape, pad_id)
    flat = np.concatenate([np.empty(0, np.int64), *sequences]).astype(np.int64)
    ids[valid] = torch.from_numpy(flat)
    return ids.to(device), valid.to(device)


def portions(lengths: Sequence[int], size: float, most: int) -> list[list[int]]:
    """Rows of similar `lengths`, at most `size` together; fewer of those longer than `most`."""
    parts: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):  # the longest comes last
        full = not parts or len(parts[-1]) + 1 > size * min(1, most / max(lengths[row], 1))
        parts.append([row]) if full else parts[-1].append(row)
    return parts


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors there."""
    return {key: one.to(device) if isinstance(one, Tensor) else one for key, one in batch.items()}


def pieces(text: list[int], size: int) -> Iterator[list[int]]:
    """A long text, EOS included, in consecutive pieces; no piece is EOS alone."""
    stops = [*range(size, len(text), size), len(text)]
    if len(stops) > 1 and stops[-1] - stops[-2] == 1:
        stops[-2] -= 1
    for start, stop in pairwise([0, *stops]):
        yield text[start:stop]


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
    """Pads `Rows`; `conditioning` is "none" (unconditional), "cross" or "prefix"."""

    conditioning: str
    pad_id: int

    def __getitem__(self, rows: Rows) -> dict[str, Any]:
        position, index, pairs = rows
        given, targets = zip(*pairs, strict=True)
        ids, valid = pad(targets, self.pad_id)
        batch = {"ids": ids, "valid": valid, "mask": valid.clone()}
        if self.conditioning == "cross":
            batch["source"], batch["source_mask"] = pad(given, self.pad_id)
        if self.conditioning == "prefix":
            starts = torch.tensor([len(prefix) for prefix in given])
            batch["mask"] &= torch.arange(ids.shape[1]) >= starts[:, None]
        return batch | {"index": torch.from_numpy(index), "position": position}
