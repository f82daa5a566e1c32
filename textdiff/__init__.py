"""Text diffusion language models: non-autoregressive generation and summarization."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textdiff.api import TextDiffusion, denoise, generate, infill, load, pipeline

__version__ = "0.1.0"
__all__ = ["TextDiffusion", "denoise", "generate", "infill", "load", "pipeline"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used (PEP 562): torch is not loaded before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from textdiff import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
