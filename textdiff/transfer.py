"""From a model of one system to one of the other: what both have goes on as it was learned.

Diffusion and its autoregressive twin share embeddings, source encoder, transformer, pointer and output.
Attention that looked back then looks both ways, at once, where DiffuGPT and DiffuLLaMA lift the mask step
by step (Gong et al. 2025, arXiv:2410.17891); their shift of the output is not needed, since the twin
reads the tokens before a place at that place.
"""

from dataclasses import replace

import torch
from torch import Tensor

from textdiff.config import Config
from textdiff.model import TextModel

# what shapes the weights that both have
SHARED = ("width", "depth", "heads", "embedding_width", "encoder_depth", "pointer")
SHARED += ("max_length", "max_source_length", "source_window")


def shaped(network: Config, other: Config) -> Config:
    """`network` with the shapes of a model of the other system.

    Raises:
        ValueError: a pretrained network, which has no parts in common with other ones.
    """
    if network.backbone is not None or other.backbone is not None:
        raise ValueError(
            f"init_from: {other.system} and {network.system} models have nothing in common "
            "where one of them is a pretrained backbone: leave out --model.init_from"
        )
    return replace(network, **{name: getattr(other, name) for name in SHARED})


@torch.no_grad()
def transfer(other: TextModel, model: TextModel) -> None:
    """Give `model` the weights that `other` has as well, by name and shape; the rest stays new."""
    theirs = parts(other)
    for name, own in parts(model).items():
        if name in theirs and theirs[name].shape == own.shape:
            own.copy_(theirs[name])


def parts(model: TextModel) -> dict[str, Tensor]:
    """Weights by their names inside the network: those of a denoiser stand deeper."""
    state = model.state_dict().items()
    return {name.removeprefix("denoiser.").removeprefix("process."): value for name, value in state}
