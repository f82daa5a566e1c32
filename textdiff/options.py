"""What a model can be asked for, and how much of it: wrong requests are refused in one line."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from textdiff.config import named
from textdiff.control import Control, WordAt
from textdiff.layout import partway
from textdiff.model import TextModel
from textdiff.rerank import UTILITIES
from textdiff.rescore import check_rescorer
from textdiff.sampler import SAMPLERS
from textdiff.systems import SYSTEMS

DRAWN = 0.3  # temperature of candidate answers that must be drawn: for MBR on e2e far better than 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": None}
COUNTS = {"steps", "length", "gap_length", "block_length", "candidates", "batch_size", "num_samples"}
NUMBERS = {"guidance_scale", "temperature", "length_quantile", "noise"}
# not None where they are given
NEEDED = {"steps", "guidance_scale", "temperature", "length_quantile", "candidates", "batch_size"}


def check_request(
    model: TextModel,
    sources: Sequence[str] | None,
    prompt: Sequence[str] | None,
    gap: str | None,
    numbers: dict[str, int | None],
    utility: str | None,
    rescorer: TextModel | None,
    seed: int,
    dtype: str,
) -> None:
    """Refuse impossible requests in one line."""
    num_samples = numbers["num_samples"]
    wrong = [text for text in (*(sources or ()), *(prompt or ())) if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"sources and prompts are texts, not {wrong[0]!r}")
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be between 0 and 2**63 - 1, not {seed!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if utility not in (None, *UTILITIES):
        raise ValueError(f"utility {utility!r} is unknown; choose one of {', '.join(UTILITIES)}")
    if utility is not None and numbers["candidates"] == 1:
        raise ValueError("utility chooses among candidates: give candidates=2 or more, or leave it out")
    if rescorer is not None:
        if numbers["candidates"] == 1:
            raise ValueError("rescorer chooses among candidates: give candidates=2 or more, or none")
        if utility is not None:
            raise ValueError("utility and rescorer both choose among candidates: leave one of them out")
        check_rescorer(rescorer, model.config.conditioning)
        if gap is not None:
            raise ValueError("rescorer is for texts that are written on; with gaps leave it out")
    if num_samples is not None and (sources is not None or prompt is not None):
        raise ValueError("num_samples is for texts from nothing; leave out sources and prompt, or it")
    if sources is not None and prompt is not None and len(sources) != len(prompt):
        raise ValueError(f"{len(sources)} sources but {len(prompt)} prompts: give one for each")
    if numbers["gap_length"] is not None and (gap is None or numbers["length"] is not None):
        raise ValueError("gap_length is for texts with gaps whose length is not given: leave it out")
    if gap is not None and prompt is None:
        raise ValueError("gap: give the texts with gaps as prompt=[...]")
    if model.config.conditioning == "none" and sources is not None:
        raise ValueError("this model was trained without sources; give prompt= or num_samples=")
    if model.config.conditioning != "none" and sources is None:
        raise ValueError("this model writes from sources; give sources=[...]")
    empty = [i for i, text in enumerate(sources or []) if not text.strip()]
    if empty:
        raise ValueError(f"source {empty[0]} is empty; remove it or give it text")


def listed(texts: Iterable[str] | None) -> list[str] | None:
    """Texts of a list, an array or a column as a list; None as it is."""
    if texts is None:
        return None
    if isinstance(texts, str):
        raise ValueError("give a list of texts, not one string: [text]")
    # of tables and mappings Python would take the names of the columns
    table = isinstance(texts, Mapping) or getattr(texts, "ndim", 1) != 1
    if table or not isinstance(texts, Iterable):
        raise ValueError(f"give a list of texts, not {type(texts).__name__}: [text]")
    return list(texts)


def check_values(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse counts that are not whole or below 1, and numbers that are none or not finite.

    Returns:
        The values, with counts as Python's integers: those of numpy overflow.
    """
    for name, value in values.items():
        if name not in COUNTS | NUMBERS or (value is None and name not in NEEDED):
            continue
        kind, article = (Integral, "a whole") if name in COUNTS else (Real, "a finite")
        # True is a number to Python; nan would leave nothing of the text
        if isinstance(value, bool) or not isinstance(value, kind) or not -math.inf < value < math.inf:
            raise ValueError(f"{name} must be {article} number, not {value!r}")
        if name in COUNTS and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    counts = {name: int(value) for name, value in values.items() if name in COUNTS and value is not None}
    return values | counts


def check_options(generation: dict[str, Any]) -> dict[str, Any]:
    """Refuse options of writing, to be kept with a model, that no system has or that are no numbers."""
    known = frozenset().union(*(system.options for system in SYSTEMS.values()))
    if unknown := set(generation) - known:
        raise ValueError(
            f"model.generation: unknown option {', '.join(sorted(unknown))}; "
            f"choose from {', '.join(sorted(known))}"
        )
    return check_values(generation)


def choose(
    model: TextModel, options: dict[str, Any], candidates: int, sized: bool, gap: str | None = None
) -> dict[str, Any]:
    """The options of writing: the given ones over those that the model was saved with; controls bound.

    Candidates whose lengths are given (`sized`), or unknown as in blocks, are drawn, as are those of the
    autoregressive model, unless a decoder is named: they could be all alike. Gaps know no blocks.
    """
    unknown = set(options) - model.options
    if unknown:
        known = ", ".join(sorted(model.options))
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}; this model takes {known}")
    options = told(options)
    own = {key: value for key, value in told(model.config.generation).items() if key in model.options}
    for name in unasked(options, gap):
        own.pop(name, None)
    drawn = 1.0 if model.config.conditioning == "none" else DRAWN
    twin = candidates > 1 and model.system == "autoregressive"
    if twin and named(own.get("decoding", "greedy")).get("name") != "sample":
        own["decoding"] = {"name": "sample", "temperature": drawn}
    fixed = [name for name in ("block_length", "noise") if (own | options).get(name) is not None]
    if "length_quantile" in options and (sized or fixed):
        raise ValueError("length_quantile is for predicted lengths, here they are given: leave it out")
    options = check_values(own | options)
    if not 0 < (place := options.get("length_quantile", 0.5)) < 1:
        raise ValueError(f"length_quantile must be above 0 and below 1, not {place}")
    if twin:
        if (found := named(options["decoding"]).get("name")) != "sample":
            raise ValueError(f"candidates: texts written by {found} are all alike; use decoding='sample'")
    elif candidates > 1 and "decoder" not in options and (sized or "block_length" in fixed):
        options = {"temperature": drawn} | options
    controls = options.get("controls", ())
    if not isinstance(controls, Sequence) or not all(isinstance(one, Control) for one in controls):
        raise ValueError("controls: give a list of textdiff.control's, such as [Contain('word')]")
    for control in controls:
        control.bind(model.tokenizer)
        if gap is not None and isinstance(control, WordAt):
            raise ValueError("control: a word at a place of a text with gaps; write it into the text")
    return options


def told(options: dict[str, Any]) -> dict[str, Any]:
    """Options without those that are None, which say nothing; of a number, None can mean none at all."""
    return {key: value for key, value in options.items() if value is not None or key in COUNTS | NUMBERS}


def unasked(options: dict[str, Any], gap: str | None) -> list[str]:
    """Saved options that a request of another kind does not mean."""
    special = partway(options)
    names = ["block_length"] if gap is not None or special else []
    name = named(options.get("sampler", "confidence")).get("name")
    if name in SAMPLERS and SAMPLERS[name].many:
        names.append("steps")
    return [*names, "sampler"] if special else names
