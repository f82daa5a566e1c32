"""Of several candidates the one that an autoregressive model finds likeliest: noisy parallel decoding.

    y* = argmax_y  log p(y | source) / |y|

Gu et al. 2018 (arXiv:1711.02281, section 4.2), who rescore by the teacher of a distilled student. All
tokens of a text are scored in one evaluation, in parallel, where writing them one after another takes
one each. Tokens that were settled together may come from different answers; a model that reads each
after those before it hears that. Likelihoods are a token, the end of the text among them, as summed ones
favour the shortest. No reference is seen.
"""

from collections.abc import Sequence

import torch

from textdiff.batches import pad
from textdiff.fixed import fixed_weights
from textdiff.model import TextModel
from textdiff.sampler import precision


def check_rescorer(rescorer: TextModel, conditioning: str) -> None:
    """Refuse models that cannot judge texts of a model with this `conditioning`."""
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
    *,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, float]]:
    """Mean log p of a token for the different texts of every group; -inf where one is too long.

    Args:
        model: an autoregressive model.
        sources: one for every group; None without.
        batch_size: texts read at once, or those of one group.
        dtype: precision inside the network.
    """
    scores: list[dict[str, float]] = [{} for _ in groups]
    texts = [list(dict.fromkeys(group)) for group in groups]  # equal candidates are read once
    read = None if sources is None else model.source_ids(sources)
    blank = model.tokenizer.pad_id
    order = sorted(range(len(groups)), key=lambda i: len(read[i]) if read else 0)
    with fixed_weights(model.device), precision(model.device, dtype):
        size = max(1, batch_size // max(map(len, texts), default=1))
        for first in range(0, len(order), size):
            some = order[first : first + size]
            pairs = [(i, text) for i in some for text in texts[i]]
            rows = model.tokenizer.encode([text for _, text in pairs])
            rows = [[*ids, model.tokenizer.eos_id] for ids in rows]
            fits = [len(ids) <= model.config.max_length for ids in rows]
            ids, mask = pad([row[: model.config.max_length] for row in rows], blank)
            batch = {"ids": ids, "mask": mask}
            if read is not None:
                batch["source"], batch["source_mask"] = pad([read[i] for i in some], blank)
                batch["reads"] = torch.tensor([n for n, i in enumerate(some) for _ in texts[i]])
            found = model.nats({key: one.to(model.device) for key, one in batch.items()}, seed=0)
            means = -(sum(found.parts.values()) / found.tokens)
            for (i, text), mean, fit in zip(pairs, means.tolist(), fits, strict=True):
                scores[i][text] = mean if fit else -torch.inf
    return scores


def rescore(
    model: TextModel, sources: Sequence[str] | None, groups: Sequence[Sequence[str]], **options: int
) -> list[str]:
    """The likeliest text of every group, of equals the first; `options` are those of `log_probs`."""
    scores = log_probs(model, sources, groups, **options)
    return [max(group, key=known.__getitem__) for group, known in zip(groups, scores, strict=True)]
