"""Semi-autoregressive blocks: a text of any length, written some tokens at a time.

    block k ~ p(next n tokens | the tokens before, source),   k = 1, 2, ...

as in SSD-LM (Han et al. 2023, arXiv:2210.17432, section 3), with any process and any sampler. What comes
before a block is clean and read once for it; where it outgrows the model's positions, its last part is
read. An open block does not know how long the text will be: the text ends itself by EOS, and what a block
holds beyond that is EOS too.

Legend: B batch, L longest text, P most tokens before a block, N most tokens of a block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textdiff.batches import pad
from textdiff.config import Config
from textdiff.decoder import Decoder
from textdiff.denoiser import Continued
from textdiff.hardware import precision
from textdiff.noise import Noise
from textdiff.sampler import Predict, Sampler
from textdiff.transformer import Context


def cut_blocks(
    batch: dict[str, Tensor], where: Tensor, size: Tensor, eos_id: int, max_length: int
) -> dict[str, Tensor]:
    """A training batch of whole texts as one of open blocks and what comes before them.

    Args:
        batch: as `TextData` makes it; a text that goes on elsewhere does not end in EOS.
        where: `(B,)` in [0, 1), the place of the block's start among the tokens to be written.
        size: `(B,)` int64, its tokens, fewer where the text goes on elsewhere or is full.

    Returns:
        The batch with `ids, mask, valid (B, N)` of the blocks, and `before, before_valid (B, P)`.
    """
    ids, valid = batch["ids"], batch["valid"]
    length, open_ = valid.sum(1), batch["mask"].sum(1)
    start = length - open_ + (where * open_).long()
    ends = ids.gather(1, length[:, None] - 1)[:, 0] == eos_id
    stop = torch.minimum(start + size, torch.where(ends, max_length, length))
    place = start[:, None] + torch.arange(int((stop - start).max()), device=ids.device)
    block = ids.gather(1, place.clamp(max=ids.shape[1] - 1))
    block = block.masked_fill(place >= length[:, None], eos_id)
    shown = place < stop[:, None]
    before = torch.arange(int(start.max()), device=ids.device) < start[:, None]
    cut = {"ids": block, "mask": shown, "valid": shown}
    return batch | cut | {"before": ids[:, : before.shape[1]], "before_valid": before}


def check_blocks(config: Config, size: int, total: list[int], given: list[int]) -> None:
    """Refuse blocks that the model cannot write; `total` and `given` are tokens of every text."""
    most = config.max_length
    if not config.block_rate:
        raise ValueError(
            "block_length: this model was not trained to write in blocks; train it with "
            "--model.network.block_rate 0.2"
        )
    trained = min(config.block_length, most - 1)
    if not 1 <= size <= trained:
        raise ValueError(
            f"block_length must be from 1 to the {trained} tokens of the blocks that the model was "
            f"trained on, not {size}"
        )
    if config.conditioning == "prefix" and max(total) > most:
        raise ValueError(
            f"length {max(total)} with the source is beyond the model's {most} positions; ask for a "
            "shorter text"
        )
    full = [i for i in range(len(given)) if given[i] >= total[i]]
    if full:
        raise ValueError(
            f"a prompt of {given[full[0]]} tokens fills the whole length {total[full[0]]}; shorten it or "
            "ask for a longer text by length="
        )


@dataclass
class Texts:
    """Texts while they are written.

    Attributes:
        ids: B lists, the prompts at first. total: B lengths at which they stop at the latest.
        done: B, finished by EOS or by length.
        frames: for every step so far all the texts as they were.
        evaluations: of the network, for the text that took most.
    """

    ids: list[list[int]]
    total: list[int]
    done: list[bool]
    frames: list[list[list[int]]]
    evaluations: int = 0


@dataclass
class BlockWriter:
    """Writes texts block by block with one denoiser, sampler and decoder.

    Attributes:
        denoiser: with `remember`; a `Denoiser` trained for blocks or a wrapper of one.
        size: tokens of a block. max_length: of it and what is read before it.
        seed, index: B numbers, name all randomness, see `Noise`.
        context: the sources, or None.
        dtype: precision inside the network. watch: keep the prediction of every step.
    """

    denoiser: nn.Module
    sampler: Sampler
    decoder: Decoder
    size: int
    max_length: int
    eos_id: int
    seed: int
    index: list[int]
    context: Context | None = None
    dtype: torch.dtype = torch.float32
    watch: bool = False

    def __call__(self, prompts: list[list[int]], total: list[int], device: torch.device) -> Texts:
        """Continue `prompts` to EOS, or to `total` tokens, prompts included."""
        texts = Texts([[*ids] for ids in prompts], total, [False] * len(prompts), [])
        block = 0
        while not all(texts.done):
            self.write(texts, block, device)
            block += 1
        return texts

    def write(self, texts: Texts, block: int, device: torch.device) -> None:
        """The next block of all texts that are not done; finished ones cost nothing."""
        rows = [i for i, done in enumerate(texts.done) if not done]
        count = [min(self.size, texts.total[i] - len(texts.ids[i])) for i in rows]
        valid = torch.arange(max(count), device=device) < torch.tensor(count, device=device)[:, None]
        before, known = pad([texts.ids[i] for i in rows], 0, device)
        window = torch.tensor([self.max_length - n for n in count], device=device)
        context = None if self.context is None else self.context.select(torch.tensor(rows, device=device))
        noise = Noise(self.seed, [self.index[i] for i in rows], valid, block=block)
        frames: list[Tensor] = []
        with precision(device, self.dtype):
            past = self.denoiser.remember(before, known, context, window)
        predict = Predict(
            Continued(self.denoiser, past),
            self.decoder,
            torch.zeros(valid.shape, dtype=torch.int64, device=device),
            valid,
            valid,
            context,
            noise,
            self.dtype,
            watch=frames.append if self.watch else None,
        )
        made = self.sampler(predict)
        texts.evaluations += predict.evaluations
        for frame in frames:
            shown = [[*ids] for ids in texts.ids]
            for i, row, n in zip(rows, frame.tolist(), count, strict=True):
                shown[i] += self.until_eos(row[:n])
            texts.frames.append(shown)
        for i, row, n in zip(rows, made.tolist(), count, strict=True):
            texts.ids[i] += self.until_eos(row[:n])
            ended = texts.ids[i][-1] == self.eos_id
            texts.done[i] = ended or len(texts.ids[i]) >= texts.total[i]

    def until_eos(self, ids: list[int]) -> list[int]:
        """`ids` up to the first EOS, which stays."""
        return ids[: ids.index(self.eos_id) + 1] if self.eos_id in ids else ids
