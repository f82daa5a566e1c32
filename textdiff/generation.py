"""From texts to texts with any trained model: batching, candidates, reranking, progress.

Text i with candidate c carries the number i * candidates + c, and all randomness is keyed by it, so a
text does not depend on the batch size or on its neighbours. Candidates differ in noise and in length
(quantile (c + 1/2) / candidates of the predicted distribution) and are chosen by minimum Bayes risk, or
by a `rescorer`; neither sees a reference. With a `length_quantile` q all quantiles u are u^(log q / log
1/2): the median is q.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from textdiff.batches import pad, portions
from textdiff.fixed import fixed_weights
from textdiff.hardware import fast_dtype
from textdiff.model import Request, TextModel
from textdiff.noise import Noise
from textdiff.options import DTYPES, check_request, check_values, choose, listed
from textdiff.rerank import rerank
from textdiff.rescore import rescore
from textdiff.tokenizer import STAND_IN


@dataclass
class Generation:
    """What `generate` made.

    Attributes:
        texts: one a source (or prompt, or sample).
        ids: token ids of all candidates in order, `len(texts) * candidates` lists.
        candidates: their texts, a list for every text.
        trajectory: for every candidate the text after each step, if asked for.
        nfe: network evaluations of one candidate, that of a rescorer among them.
        seconds: wall time.
    """

    texts: list[str]
    ids: list[list[int]]
    candidates: list[list[str]]
    trajectory: list[list[str]]
    nfe: int
    seconds: float


@dataclass
class Task:
    """What to write, a row for every candidate; `hidden` counts prompt tokens that are the source.

    Candidates share their source: row i reads number i // candidates.
    """

    sources: list[list[int]] | None
    prompts: list[list[int]]
    hidden: list[int]
    candidates: int = 1

    def __len__(self) -> int:
        return len(self.prompts)


def generate_texts(
    model: TextModel,
    sources: Sequence[str] | None = None,
    *,
    prompt: Sequence[str] | None = None,
    num_samples: int | None = None,
    length: int | None = None,
    gap: str | None = None,
    gap_length: int | None = None,
    candidates: int = 1,
    utility: str | None = None,
    rescorer: TextModel | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 64,
    dtype: str = "float32",
    trajectory: bool = False,
    progress: bool = False,
    **options: Any,
) -> Generation:
    """Write one text for every source or prompt, or `num_samples` texts from nothing.

    Args:
        model: a trained model.
        sources: texts to condition on (summarize, rewrite, ...), for models trained with them.
        prompt: first words of every text.
        num_samples: how many texts, where there is neither source nor prompt.
        length: tokens of every text, EOS included; None = predicted. With `block_length` the most.
        gap: what stands for words to be written in a prompt, which then is a whole text.
        gap_length: tokens for every gap; None = what the predicted length leaves, shared evenly.
        candidates: texts drawn for each answer; the one of least Bayes risk is given.
        utility: similarity by which they are compared: "rougeL" (None), "bleu" or "unigram_f1".
        rescorer: an autoregressive model that chooses among them instead: the likeliest a token, by it.
        seed: same seed, same texts.
        first: number of the first text: a part of many is written as it would be among all of them.
        batch_size: candidates computed at once; does not change the texts.
        dtype: "float32" or "bfloat16" inside the network, or "auto": the faster one on this device.
        trajectory: also return the text after every step, else none.
        progress: show a progress bar.
        options: the model's own: steps, sampler, decoder, temperature, guidance_scale, block_length,
            length_quantile (place in the predicted lengths, above 0 and below 1; below 1/2 texts are
            shorter), controls (of `textdiff.control`); decoding. Unless a decoder is named, tokens are
            drawn (`sample`) without a source and with a temperature, and the likeliest (`softmax`) else.

    Raises:
        ValueError: a request that makes no sense or that the model cannot serve.
    """
    start = time.perf_counter()
    sources, prompt = listed(sources), listed(prompt)
    numbers = {"length": length, "gap_length": gap_length, "candidates": candidates}
    numbers = check_values(numbers | {"batch_size": batch_size, "num_samples": num_samples})
    length, gap_length, candidates, batch_size, num_samples = numbers.values()
    if first < 0:
        raise ValueError(f"first must be at least 0, not {first}")
    check_request(model, sources, prompt, gap, numbers, utility, rescorer, seed, dtype)
    sized = length is not None or gap_length is not None
    options = choose(model, options, candidates, sized, gap)
    task = prepare(model, sources, prompt, num_samples, candidates, gap)
    precise = DTYPES[dtype] or fast_dtype(model.device)
    request = partial(
        make_request,
        model,
        task,
        seed=int(seed),
        first=first * candidates,
        length=length,
        gap_length=gap_length,
        options=options,
        watch=trajectory,
        dtype=precise,
    )
    parts = batches(task, batch_size, model.config.max_source_length, progress)
    with fixed_weights(model.device):
        rows, watched, nfe = write_all(model, request, parts, len(task))
    texts = model.tokenizer.decode(rows)
    groups = [texts[i : i + candidates] for i in range(0, len(texts), candidates)]
    best = texts
    if rescorer is not None:
        given = prompt if options.get("noise") is None else None  # a text to be repaired is not
        best = rescore(rescorer, sources, groups, given, batch_size=batch_size, dtype=precise)
        nfe += 1
    elif candidates > 1:
        best = rerank(groups, utility or "rougeL")
    return Generation(best, rows, groups, watched, nfe, time.perf_counter() - start)


def prepare(
    model: TextModel,
    sources: Sequence[str] | None,
    prompt: Sequence[str] | None,
    num_samples: int | None,
    candidates: int,
    gap: str | None = None,
) -> Task:
    """Tokenize everything and repeat it for every candidate."""
    texts = sources if sources is not None else prompt
    count = len(texts) if texts is not None else (num_samples or 1)
    encode, config = model.tokenizer.encode, model.config
    shown = [text if gap is None else text.replace(gap, STAND_IN) for text in prompt or []]
    prompts = encode(shown) if prompt is not None else [[]] * count
    pairs = zip(shown, model.tokenizer.decode(prompts), strict=True) if shown else ()
    if changed := [text for text, kept in pairs if kept != text]:
        warnings.warn(f"the model's tokenizer does not keep {changed[0][:60]!r} as it is", stacklevel=3)
    if gap is not None:
        prompts = model.tokenizer.encode_gaps(prompt, gap)
    read = model.source_ids(sources) if sources is not None else None
    hidden = [0] * count
    if config.conditioning == "prefix":
        heads = [[*ids, model.tokenizer.sep_id] for ids in read]
        hidden, read = [len(ids) for ids in heads], None
        prompts = [head + tail for head, tail in zip(heads, prompts, strict=True)]
    rows = [i for i in range(count) for _ in range(candidates)]
    return Task(read, [prompts[i] for i in rows], [hidden[i] for i in rows], candidates)


def batches(task: Task, batch_size: int, most: int, progress: bool) -> Sequence[list[int]]:
    """Row numbers of every batch, of similar source lengths; fewer of sources longer than `most`."""
    lengths = [max(count - 1, 0) for count in task.hidden]  # sources in the text end in <sep>
    if task.sources is not None:
        lengths = [len(task.sources[row // task.candidates]) for row in range(len(task))]
    parts = portions(lengths, batch_size, most)
    if not progress:
        return parts
    from tqdm import tqdm

    return tqdm(parts, desc="generate", unit="batch")


def make_request(
    model: TextModel,
    task: Task,
    rows: list[int],
    *,
    seed: int,
    first: int,
    length: int | None,
    **settings: Any,
) -> Request:
    """The rows of one batch as tensors on the model's device; `settings` are those of `Request`."""
    index = [first + row for row in rows]
    source = source_mask = reads = None
    if task.sources is not None:
        own = [row // task.candidates for row in rows]
        place = {one: n for n, one in enumerate(dict.fromkeys(own))}
        ids = [task.sources[one] for one in place]
        source, source_mask = pad(ids, model.tokenizer.pad_id, model.device)
        if len(place) < len(rows):
            reads = torch.tensor([place[one] for one in own], device=model.device)
    return Request(
        seed=seed,
        index=index,
        source=source,
        source_mask=source_mask,
        reads=reads,
        prompt=[task.prompts[i] for i in rows],
        hidden=torch.tensor([task.hidden[i] for i in rows]),
        quantile=quantiles(model, task, index, seed, settings["options"].get("length_quantile", 0.5)),
        length=length,
        **settings,
    )


def write_all(
    model: TextModel, request: Callable[[list[int]], Request], parts: Sequence[list[int]], count: int
) -> tuple[list[list[int]], list[list[str]], int]:
    """Ids and frames of all `count` rows, batch by batch, and the most evaluations of one of them."""
    rows: list[list[int]] = [[]] * count
    watched: list[list[str]] = [[]] * count
    nfe = 0
    for some in parts:
        written = model.write(request(some))
        nfe = max(nfe, written.evaluations)
        frames = [model.tokenizer.decode(ids) for ids in written.trajectory]
        for place, row in enumerate(some):
            rows[row] = written.ids[place]
            watched[row] = [frame[place] for frame in frames]
    longest = max(map(len, watched), default=0)  # a batch of short texts can end in fewer steps
    return rows, [frames + frames[-1:] * (longest - len(frames)) for frames in watched], nfe


def quantiles(model: TextModel, task: Task, index: list[int], seed: int, median: float) -> Tensor:
    """Place in the length distribution: stratified with a source, drawn without one."""
    if model.config.conditioning == "none":
        place = Noise(seed, index, step=2**32).uniform((len(index),))
    else:
        place = (torch.tensor(index) % task.candidates + 0.5) / task.candidates
    return place ** (math.log(median) / math.log(0.5))
