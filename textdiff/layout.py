"""What is given and what is to be written: a request as ids, mask and valid of one batch."""

import warnings
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from textdiff.batches import pad
from textdiff.control import least_length, refuse_short
from textdiff.decoder import Decoder
from textdiff.model import Request, TextModel
from textdiff.process import Process
from textdiff.sampler import Sampler
from textdiff.tokenizer import OPEN

Layout = tuple[Tensor, Tensor, Tensor]  # ids, mask, valid, each (B, L)
Lengths = Callable[[Tensor, Tensor, Tensor], Tensor]  # first tokens, which are shown, least -> (B,)


def partway(options: dict[str, Any]) -> bool:
    """Whether given tokens are noisy, or the text itself, so that samplers must go step by step."""
    return options.get("noise") is not None or options.get("given", "conditional") != "conditional"


def check_given(sampler: Sampler, options: dict[str, Any]) -> None:
    """Refuse what cannot go together with tokens that are given in another way, or with mistakes."""
    noise = options.get("noise")
    if noise is not None and not 0 < noise <= 1:
        raise ValueError(f"noise is the share of wrong words, above 0 and at most 1, not {noise}")
    if not partway(options):
        return
    what = f"given={options['given']}" if noise is None else "repairing a text"
    if not sampler.midway:
        raise ValueError(f"{what} is for samplers that go step by step, such as ancestral")
    if options.get("block_length") is not None or options.get("controls"):
        raise ValueError(f"{what} knows no block_length and no controls; leave them out")


def warn_idle(process: Process, sampler: Sampler, decoder: Decoder) -> None:
    """Say where a process that projects several tokens (SSD-LM's multi-hot) gets one at every place."""
    if process.projects and (decoder.single or not sampler.shifts):
        warnings.warn(
            "multi_hot changes nothing of tokens that are drawn or settled; to use it take a sampler "
            "that steps, such as renoise, and the decoder softmax",
            stacklevel=2,
        )


def spread(ids: list[int], count: int) -> list[int]:
    """`ids` with `count` open places: evenly in its gaps, or at its end if it has none."""
    gaps = ids.count(OPEN)
    if not gaps:
        return ids + [OPEN] * count
    sizes = iter([count * (i + 1) // gaps - count * i // gaps for i in range(gaps)])
    return [part for one in ids for part in ([OPEN] * next(sizes) if one == OPEN else [one])]


def lay_out(request: Request, model: TextModel, lengths: Lengths) -> Layout:
    """Given tokens and empty places; `lengths` predicts how many, EOS included."""
    device, pad_id = model.device, model.tokenizer.pad_id
    # the length is told from the first tokens, as in training
    first, shown = pad([[*takewhile(lambda i: i != OPEN, ids)] for ids in request.prompt], 0, device)
    hidden = request.hidden.to(device)
    gaps = torch.tensor([ids.count(OPEN) for ids in request.prompt], device=device)
    known = torch.tensor([len(ids) for ids in request.prompt], device=device) - gaps
    own = known - hidden  # prompt tokens that belong to the text
    controls, count = request.options.get("controls", ()), torch.full_like(own, request.length or 0)
    written = own - (gaps > 0).long()  # without the EOS of a text with gaps
    if request.gap_length:
        count = own + gaps * request.gap_length
    elif not request.length:
        count = lengths(first, shown, torch.maximum(least_length(controls, written), own + gaps))
    total = count + hidden
    check_length(total, known + (gaps - 1).clamp(min=0), model.config.max_length)
    refuse_short(controls, written, count)
    open_ = (total - known).tolist()
    ids, valid = pad(list(map(spread, request.prompt, open_)), pad_id, device)
    mask = ids == OPEN
    return ids.masked_fill(mask, pad_id), mask, valid


def lay_text(request: Request, model: TextModel) -> Layout:
    """Whole texts to be repaired; the source of a prefix model and the EOS stay."""
    rows, most = [[*ids, model.tokenizer.eos_id] for ids in request.prompt], model.config.max_length
    if request.length or request.gap_length or any(OPEN in ids for ids in rows):
        raise ValueError(
            "a text that is repaired has its own length and no gaps: leave out length and gap"
        )
    if any(len(ids) - hidden < 2 for ids, hidden in zip(rows, request.hidden.tolist(), strict=True)):
        raise ValueError(
            "noise is for texts to be repaired: give them as prompt=[...], none of them empty"
        )
    if (longest := max(map(len, rows))) > most:
        raise ValueError(
            f"a text of {longest} tokens, EOS included, is beyond the model's {most} positions: split it"
        )
    ids, valid = pad(rows, model.tokenizer.pad_id, model.device)
    place, start = torch.arange(ids.shape[1], device=model.device), request.hidden.to(model.device)
    return ids, (place >= start[:, None]) & (place < valid.sum(1, keepdim=True) - 1), valid


def check_length(total: Tensor, given: Tensor, most: int) -> None:
    """Refuse what does not fit the positions of the model or leaves nothing to write."""
    if total.max() > most:
        raise ValueError(
            f"length {int(total.max())} is beyond the model's {most} positions; ask for a shorter text, "
            "write in blocks (block_length) or train with a larger --data.max_target_length"
        )
    full = (given >= total).nonzero()[:, 0]
    if len(full):
        raise ValueError(
            f"a prompt of {int(given[full[0]])} tokens fills the whole length {int(total[full[0]])}; "
            "shorten it or ask for a longer text"
        )
