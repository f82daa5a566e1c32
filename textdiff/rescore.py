"""Of several candidates the one that an autoregressive model finds likeliest: noisy parallel decoding.

    y* = argmax_y  log p(y | source) / |y|

Gu et al. 2018 (arXiv:1711.02281, section 4.2), who rescore by the teacher of a distilled student. All
tokens of a text are scored in one evaluation, in parallel, where writing them one after another takes
one each. Tokens that were settled together may come from different answers; a model that reads each
after those before it hears that. Likelihoods are a token, the end of the text among them, as summed ones
favour the shortest. No reference is seen.
"""

import warnings
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from textdiff.batches import pad, portions, to_device
from textdiff.fixed import fixed_weights
from textdiff.hardware import precision
from textdiff.model import TextModel


def check_rescorer(rescorer: TextModel, conditioning: str) -> None:
    """Refuse models that cannot judge texts of a model with this `conditioning`."""
    if not isinstance(rescorer, TextModel):
        raise ValueError(f"rescorer: give a loaded model, not {rescorer!r}")
    if rescorer.system != "autoregressive":
        raise ValueError(
            "rescorer: diffusion models know but a bound of a likelihood; give an autoregressive one "
            "(trained with --model.network.system autoregressive)"
        )
    reads, needs = (name != "none" for name in (rescorer.config.conditioning, conditioning))
    if reads != needs:
        raise ValueError(
            f"rescorer: it was trained {'with' if reads else 'without'} sources, "
            f"the model that writes {'with' if needs else 'without'} them"
        )


@torch.no_grad()
def log_probs(
    model: TextModel,
    sources: Sequence[str] | None,
    groups: Sequence[Sequence[str]],
    prompt: Sequence[str] | None = None,
    *,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, float]]:
    """Mean log p of a token for the different texts of every group; -inf where one is too long.

    Args:
        model: an autoregressive model.
        sources: one for every group; None without.
        prompt: the given first words of every group, which are not judged; None without.
        batch_size: texts read at once, or those of one group; fewer of very long sources.
        dtype: precision inside the network.
    """
    scores: list[dict[str, float]] = [{} for _ in groups]
    texts = [list(dict.fromkeys(group)) for group in groups]  # equal candidates are read once
    read = [[]] * len(groups) if sources is None else model.source_ids(sources)
    given = [[]] * len(groups) if prompt is None else model.tokenizer.encode(prompt)
    size = batch_size / max(map(len, texts), default=1)
    with fixed_weights(model.device), precision(model.device, dtype):
        for some in portions([len(ids) for ids in read], size, model.config.max_source_length):
            pairs = [(n, text) for n, i in enumerate(some) for text in texts[i]]
            rows = model.tokenizer.encode([text for _, text in pairs])
            rows = [[*ids, model.tokenizer.eos_id] for ids in rows]
            ids, valid = pad([row[: model.config.max_length] for row in rows], model.tokenizer.pad_id)
            skip = [alike(row, given[some[n]]) for (n, _), row in zip(pairs, rows, strict=True)]
            batch = {
                "ids": ids,
                "mask": valid & (torch.arange(ids.shape[1]) >= torch.tensor(skip)[:, None]),
            }
            if sources is not None:
                own = pad([read[i] for i in some], model.tokenizer.pad_id)
                reads = torch.tensor([n for n, _ in pairs])
                batch |= {"source": own[0], "source_mask": own[1], "reads": reads}
            found = model.nats(to_device(batch, model.device), seed=0)
            means = -(sum(found.parts.values()) / found.tokens)
            for (n, text), row, mean in zip(pairs, rows, means.tolist(), strict=True):
                fits = len(row) <= model.config.max_length
                scores[some[n]][text] = mean if fits else -torch.inf
    return scores


def alike(ids: list[int], given: list[int]) -> int:
    """How many first tokens of a text are those given; its end is never."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids[:-1], given, strict=False)))


def rescore(
    model: TextModel,
    sources: Sequence[str] | None,
    groups: Sequence[Sequence[str]],
    prompt: Sequence[str] | None = None,
    **options: Any,
) -> list[str]:
    """The likeliest text of every group, of equals the first; arguments are those of `log_probs`."""
    scores = log_probs(model, sources, groups, prompt, **options)
    if lost := sum(max(known.values()) == -torch.inf for known in scores):
        warnings.warn(
            f"{lost} of {len(groups)} texts: all candidates are longer than the rescorer's "
            f"{model.config.max_length} tokens; the first one is given",
            stacklevel=3,
        )
    return [max(group, key=known.__getitem__) for group, known in zip(groups, scores, strict=True)]
