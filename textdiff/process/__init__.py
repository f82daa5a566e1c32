"""Diffusion processes by name: a new one is one file and one line here; the laws test it."""

from textdiff.process.discrete import Discrete, MaskAndReplace, Masked, Spindle, Uniform
from textdiff.process.embedding import Embedding
from textdiff.process.gaussian import Gaussian
from textdiff.process.hierarchical import Hierarchical
from textdiff.process.process import Process, Seen, column, keep
from textdiff.process.simplex import LinearSimplex, Simplex

PROCESSES: dict[str, type[Process]] = {
    "embedding": Embedding,
    "simplex": Simplex,
    "linear_simplex": LinearSimplex,
    "masked": Masked,
    "uniform": Uniform,
    "mask_and_replace": MaskAndReplace,
    "spindle": Spindle,
    "hierarchical": Hierarchical,
}

__all__ = [
    "PROCESSES",
    "Discrete",
    "Embedding",
    "Gaussian",
    "Hierarchical",
    "LinearSimplex",
    "MaskAndReplace",
    "Masked",
    "Process",
    "Seen",
    "Simplex",
    "Spindle",
    "Uniform",
    "column",
    "keep",
]
