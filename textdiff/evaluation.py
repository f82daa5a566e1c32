"""A trained model on a file of texts: likelihood, and texts beside references."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from textdiff.batches import to_device
from textdiff.data import TextData
from textdiff.fixed import fixed_weights
from textdiff.generation import generate_texts
from textdiff.metrics import summarization_report, tokenizer_for
from textdiff.model import TextModel


def open_data(model: TextModel, file: str, **columns: str | int | None) -> TextData:
    """A file read with the tokenizer and the lengths of a model.

    Raises:
        ValueError: a file that is missing or damaged, or whose columns do not suit the model.
    """
    config = model.config
    data = TextData(
        test_file=file,
        max_source_length=config.max_source_length,
        max_target_length=config.max_length - config.prefix_length,
        source_prefix=config.source_prefix,
        conditioning="prefix" if config.prefix_length else "cross",
        **columns,
    )
    data.tokenizer = model.tokenizer
    if data.conditioning != config.conditioning:
        has, wants = ("texts alone", "texts with sources")[:: 1 if data.conditioning == "none" else -1]
        raise ValueError(
            f"{file}: it holds {has}, the model wants {wants}; name the columns by text_column "
            "(given alone: texts alone) and summary_column"
        )
    return data


def likelihood(
    model: TextModel, data: TextData, *, seed: int = 0, progress: bool = False, **options: Any
) -> dict[str, Any]:
    """Bits a token and a character of the test texts, their EOS included, and where they come from.

    Args:
        options: of the model's `nats`.

    Returns:
        `bits_per_token`, its `standard_error` over texts, `bits_per_character`, `parts` (bits a token),
        `kind` ("exact" or the bound), `tokens`, `texts`.
    """
    loader = data.test_dataloader()
    if progress:
        from tqdm import tqdm

        loader = tqdm(loader, desc="likelihood", unit="batch")
    parts: dict[str, list[Tensor]] = defaultdict(list)
    tokens, characters = [], 0
    with fixed_weights(model.device):
        for batch in loader:
            found = model.nats(to_device(batch, model.device), seed, **options)
            tokens.append(found.tokens)
            for name, nats in found.parts.items():
                parts[name].append(nats)
            rows = [ids[own].tolist() for ids, own in zip(batch["ids"], batch["mask"], strict=True)]
            characters += sum(map(len, model.tokenizer.decode(rows)))
    count = torch.cat(tokens).double()
    bits = {name: torch.cat(values) / math.log(2) for name, values in parts.items()}
    whole = torch.stack(list(bits.values())).sum(0)
    mean = float(whole.sum() / count.sum())
    # of a ratio of sums over texts
    error = (
        float((whole - mean * count).std() * len(count) ** 0.5 / count.sum()) if len(count) > 1 else 0.0
    )
    return {
        "bits_per_token": mean,
        "standard_error": error,
        "bits_per_character": float(whole.sum()) / max(characters, 1),
        "parts": {name: float(value.sum() / count.sum()) for name, value in bits.items()},
        "kind": found.kind,
        "tokens": int(count.sum()),
        "texts": len(count),
    }


def written(model: TextModel, data: TextData, **options: Any) -> dict[str, Any]:
    """ROUGE, BLEU and the like of texts written for the sources of the file, and the `nfe` of a text.

    They name the `tokenizer` of ROUGE and BLEU where it is not the default one.

    Args:
        options: of `generate_texts`.
    """
    examples = data.examples("test")
    if examples[0].source is None:
        raise ValueError("rouge compares with references: give a file with sources, or use --metric nll")
    sources = [example.source for example in examples]
    made = generate_texts(model, sources, **{"dtype": "auto"} | options)
    references = [example.references for example in examples]
    tokenizer = tokenizer_for(references)
    nfe = made.nfe * options.get("candidates", 1)
    row = {"nfe": nfe} | summarization_report(made.texts, references, sources, tokenizer)
    return row if tokenizer == "default" else row | {"tokenizer": tokenizer}
