"""What is used from Python: `load`, `generate`, `infill`, `denoise`, `pipeline`.

import textdiff
model = textdiff.load("runs/quickstart/model")
textdiff.generate(model, ["A long text ..."], steps=16)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from textdiff.config import find
from textdiff.diffusion import TextDiffusion
from textdiff.generation import Generation, generate_texts
from textdiff.hardware import tune_allocator
from textdiff.model import TextModel
from textdiff.storage import find_folder
from textdiff.systems import open_model

__all__ = ["Generation", "TextDiffusion", "denoise", "generate", "infill", "load", "pipeline"]

GAP = "___"
REPAIRING = "greedy"  # decoder of `denoise`


def load(source: str | Path, device: str = "auto") -> TextModel:
    """A trained model.

    Args:
        source: model directory, or id of one on the Hugging Face hub.
        device: "cpu", "cuda", ...; "auto" takes the GPU where there is one.

    Raises:
        ValueError: nothing there, or not a model of this package.
    """
    folder = find_folder(source)
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {chosen!r} is not here ({reason}); try cpu or auto") from None
    if chosen == "cpu":
        tune_allocator()
    return open_model(folder, chosen)


def opened(model: TextModel | str | Path, device: str | torch.device = "auto") -> TextModel:
    """A model, loaded if only its place is given."""
    return model if isinstance(model, TextModel) else load(model, str(device))


def with_rescorer(options: dict[str, Any], model: TextModel) -> dict[str, Any]:
    """Options of writing with their `rescorer` loaded, where there is one, beside `model`."""
    found = options.get("rescorer")
    return options if found is None else options | {"rescorer": opened(found, model.device)}


def generate(
    model: TextModel | str | Path,
    sources: Sequence[str] | None = None,
    *,
    return_dict: bool = False,
    **options: Any,
) -> list[str] | Generation:
    """Write one text for every source or prompt, or `num_samples` texts from nothing.

    Args:
        model: a loaded model, or where to load it from.
        sources: texts to summarize or rewrite.
        return_dict: give a `Generation` (texts, ids, candidates, NFE, seconds; with `trajectory=True`
            also the text after every step), not a list.
        options: all that `textdiff.generation.generate_texts` takes, where they are explained: `prompt`,
            `num_samples`, `length` (tokens), `candidates`, `utility`, `rescorer` (here also a directory),
            `seed`, `batch_size`, `dtype`, `trajectory`, `progress` (a bar; off unless asked for), `gap`,
            `gap_length` (tokens); of diffusion models `steps`, `sampler`, `decoder`, `temperature`,
            `guidance_scale`, `length_quantile`, `block_length` (tokens written at a time), `given`
            (conditional, replace, repaint), `noise` (share of wrong tokens, 0 to 1; see `denoise`),
            `controls` (a list of `textdiff.control`'s); of autoregressive ones `decoding`.

    Raises:
        ValueError: a request that makes no sense or that the model cannot serve.
    """
    loaded = opened(model)
    made = generate_texts(loaded, sources, **with_rescorer(options, loaded))
    return made if return_dict else made.texts


def infill(
    model: TextModel | str | Path,
    texts: Sequence[str],
    sources: Sequence[str] | None = None,
    *,
    gap: str = GAP,
    return_dict: bool = False,
    **options: Any,
) -> list[str] | Generation:
    """Write the missing words of texts: everything around a gap is given and stays.

    Given words are clean from the first step on, as in training, so that every gap is written with all
    that stands around it, on both sides, and with the other gaps. They stay as the tokenizer has them:
    one that is not the package's own may lose their case.

    Args:
        model: a diffusion model, or where to load it from.
        texts: whole texts with one gap or several, `"The ___ sat on the ___."`.
        sources: one for every text, for models trained with them.
        gap: what stands for missing words, between words.
        return_dict: give a `Generation`, not a list of texts.
        options: `gap_length` (tokens for every gap, else what the predicted length of the text leaves)
            or `length` (tokens of every text, EOS included), `controls` (a list of `textdiff.control`'s);
            and those of `generate` but `block_length`.

    Raises:
        ValueError: a text without a gap, one inside a word, or what `generate` refuses.
    """
    options = {"prompt": texts, "gap": gap} | options
    return generate(model, sources, return_dict=return_dict, **options)


def denoise(
    model: TextModel | str | Path,
    texts: Sequence[str],
    sources: Sequence[str] | None = None,
    *,
    noise: float = 0.15,
    return_dict: bool = False,
    **options: Any,
) -> list[str] | Generation:
    """Repair noisy texts: the way back from noise, begun where they stand (SDEdit, arXiv:2108.01073).

    A text keeps its number of tokens. Processes with random words (`uniform`, `mask_and_replace`) learn
    to tell wrong words from right ones and take the text as it is for x_t. Others hide right and wrong
    words alike under noise of their own, and can but rewrite the text.

    Args:
        model: a diffusion model, or where to load it from.
        texts: texts with mistakes. sources: one for every text, for models trained with them.
        noise: share of tokens that are wrong, 0 to 1: the more, the more is changed.
        return_dict: give a `Generation`, not a list of texts.
        options: those of `generate`, `controls` among them, but no lengths; the decoder is `greedy` here:
            with drawn tokens, `softmax` among them, right words are changed as well.

    Raises:
        ValueError: a text longer than the model, a share that is none, or what `generate` refuses.
    """
    options = {"prompt": texts, "noise": noise, "decoder": REPAIRING} | options
    return generate(model, sources, return_dict=return_dict, **options)


def pipeline(
    task: str, model: TextModel | str | Path, device: str = "auto", **defaults: Any
) -> Callable[..., list[dict[str, str]]]:
    """A callable in the manner of `transformers.pipeline`.

    Args:
        task: "summarization" (texts in, `summary_text` out) or "text-generation" (prompts in,
            `generated_text` out).
        model: a loaded model, or where to load it from.
        device: where to load it, see `load`.
        defaults: options of every call, see `generate`.
    """
    tasks = {
        "summarization": ("sources", "summary_text"),
        "text-generation": ("prompt", "generated_text"),
    }
    given, key = find("task", task, tasks)
    if isinstance(model, TextModel) and device not in ("auto", str(model.device), model.device.type):
        raise ValueError(f"device: this model is on {model.device}; move it by model.to({device!r})")
    loaded = opened(model, device)
    defaults = with_rescorer(defaults, loaded)

    def call(texts: str | Sequence[str], **options: Any) -> list[dict[str, str]]:
        inputs = {given: [texts] if isinstance(texts, str) else list(texts)}
        return [{key: text} for text in generate(loaded, **inputs, **(defaults | options))]

    return call
