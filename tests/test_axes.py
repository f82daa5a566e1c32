"""The axes of the survey of Li et al. 2023 (arXiv:2303.06574): every value is one word of a config.

Each of them is built, trained for a step and written with. A pretrained network, its last axis, is in
`test_pretrained.py`; classifiers and words in `test_control.py`.
"""

import pytest
import torch

from textdiff.config import Config
from textdiff.decoder import DECODERS
from textdiff.diffusion import TextDiffusion
from textdiff.generation import generate_texts
from textdiff.objective import OBJECTIVES
from textdiff.process import PROCESSES
from textdiff.sampler import SAMPLERS
from textdiff.schedule import SCHEDULES
from textdiff.times import TIMES
from textdiff.tokenizer import Tokenizer

SHAPE = {"width": 16, "depth": 1, "heads": 2, "encoder_depth": 1, "embedding_width": 8, "max_length": 12}
AXES = {  # how a model is made
    "space": [{"process": name} for name in PROCESSES],
    "schedule": [{"schedule": name} for name in SCHEDULES],
    "objective": [{"objective": name} for name in OBJECTIVES],
    "times": [{"times": name} for name in TIMES],
    "network": [{"width": 24, "depth": 2, "heads": 3}, {"encoder_depth": 0, "conditioning": "none"}],
    "conditioning": [{"conditioning": name} for name in ("none", "cross", "prefix")],
    "self-conditioning": [{"self_conditioning": rate} for rate in (0.0, 1.0)],
    "noise of its own for every token": [{"token_noise": rate} for rate in (0.0, 1.0)],
    "partial noising": [{"prefix_rate": 1.0, "given_rate": 0.0}, {"given_rate": 0.9}],
    "semi-autoregressive blocks": [{"block_rate": 1.0, "block_length": 3}],
    "guidance": [{"source_dropout": 0.5}],
    "copying": [{"pointer": True}],
    "sources in parts": [{"source_window": 3}],
    "objective of every space": [{"process": name, "objective": "variational"} for name in PROCESSES],
}
WAYS = {  # how it writes
    "sampler": [{"sampler": name} for name in SAMPLERS if name != "ode"],
    "clamping and other decoders": [{"decoder": name} for name in DECODERS],
    "importance of the source": [{"guidance_scale": 2.0}],
    "candidates": [{"candidates": 3}],
}


def make_batch(model: TextDiffusion) -> dict[str, torch.Tensor]:
    prefix = model.config.conditioning == "prefix"
    ids = torch.arange(24).view(3, 8) + 20
    valid = torch.arange(8) < torch.tensor([[8], [6], [4]])
    ids[valid.sum(1, keepdim=True) - 1 == torch.arange(8)] = model.tokenizer.eos_id
    mask = valid & (torch.arange(8) > 2 * prefix)
    batch = {"ids": ids, "valid": valid, "mask": mask, "index": torch.arange(3)}
    return batch | {"source": ids + 40, "source_mask": valid}


def make(**options) -> TextDiffusion:
    torch.manual_seed(0)
    return TextDiffusion(Config(**SHAPE | options), Tokenizer.train(["a few words"], 260))


@pytest.mark.parametrize("options", [one for values in AXES.values() for one in values], ids=str)
def test_a_model_is_made_trained_and_writes(options):
    model = make(**options)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, batch = torch.optim.Adam(weights, 1e-2), make_batch(model)
    costs = []
    for _ in range(6):
        losses = model.loss(batch, 0)
        costs.append((losses.cost * losses.mask).sum() / losses.mask.sum())
        optimizer.zero_grad()
        costs[-1].backward()
        optimizer.step()
    assert torch.isfinite(torch.stack(costs)).all() and costs[-1] < costs[0]
    assert all(weight.grad is None or torch.isfinite(weight.grad).all() for weight in weights)
    given = {"sources": ["ab", "c"]} if model.config.conditioning != "none" else {"num_samples": 2}
    blocks = {"block_length": 3, "length": 6} if "block_rate" in options else {}
    assert len(generate_texts(model.eval(), **given, **blocks, steps=2).texts) == 2


@pytest.mark.parametrize("options", [one for values in WAYS.values() for one in values], ids=str)
def test_a_way_of_writing(options):
    made = generate_texts(make().eval(), ["ab", "c"], steps=3, **options)
    assert len(made.texts) == 2 and made.nfe >= 1


def test_writing_the_surest_first_is_learned_by_cross_entropy_whatever_the_objective():
    """Examples with any tokens given and pure noise elsewhere: an ELBO has hardly any weight there."""
    model = make(objective="variational", given_rate=1.0, prefix_rate=0.0)
    losses = model.loss(make_batch(model), 0)
    assert torch.equal(losses.objective, losses.nll)


def test_objectives_that_a_process_has_not():
    with pytest.raises(ValueError, match="unknown objective 'best'"):
        make(objective="best")
    with pytest.raises(ValueError, match="distance of states, which Masked has not"):
        make(process="masked", objective="anchor")
