"""The two kinds of text models by name, and how one is opened of whichever kind it is."""

from pathlib import Path

from textdiff.config import find
from textdiff.diffusion import TextDiffusion
from textdiff.model import TextModel
from textdiff.storage import read_config
from textdiff.twin import Twin

SYSTEMS: dict[str, type[TextModel]] = {"diffusion": TextDiffusion, "autoregressive": Twin}


def open_model(folder: Path, device: str = "cpu") -> TextModel:
    """The model of a local directory.

    Raises:
        ValueError: not a model of this package.
    """
    return find("system", read_config(folder).system, SYSTEMS).from_pretrained(folder, device)
