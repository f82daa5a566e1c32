"""Text diffusion language models: non-autoregressive generation and summarization."""

__version__ = "0.1.0"
