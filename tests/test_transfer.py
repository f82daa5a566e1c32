"""A model of one system that starts from one of the other."""

import pytest
import torch
from conftest import run_training
from safetensors.torch import load_file

from textdiff import cli, load
from textdiff.config import Config
from textdiff.diffusion import TextDiffusion
from textdiff.process import PROCESSES
from textdiff.systems import SYSTEMS
from textdiff.tokenizer import Tokenizer
from textdiff.transfer import shaped, transfer
from textdiff.twin import Twin

TEXTS = ["The score was 51 to 44.", "Rain is expected."]
SHAPE = {"width": 32, "depth": 2, "heads": 2, "encoder_depth": 1, "embedding_width": 16}
SHAPE |= {"max_length": 12, "max_source_length": 16, "pointer": True}
# what one of them needs and the other has no use for
OWN = {
    "diffusion": ("process.", "read.weight", "gamma.", "remaining.", "given", "previous.", "length."),
    "autoregressive": ("read.weight",),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 20, 280)


def make(system: str, tokenizer: Tokenizer, seed: int, **told) -> TextDiffusion | Twin:
    """A random model; also what begins the same in all, or is counted."""
    torch.manual_seed(seed)
    model = SYSTEMS[system](Config(system=system, **SHAPE | told), tokenizer).eval()
    for name, value in model.state_dict().items():
        if name in dict(model.named_parameters()) or name.endswith("log_prior"):
            value.data += torch.randn_like(value)
    return model


def tensors(context) -> list[torch.Tensor]:
    return [*sum(context.keys_values, ()), context.mask, context.pooled, *context.copied]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_what_both_have_goes_over(system, process, tokenizer):
    """Every weight but those that only one of them has; so the source is read as it was."""
    told = {"diffusion": {"process": process}, "autoregressive": {}}
    here, there = (make(name, tokenizer, i, **told[name]) for i, name in enumerate(SYSTEMS))
    old, new = (here, there) if system == "diffusion" else (there, here)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    bars = {name for name in before if name.endswith("bar")}
    transfer(old, new)
    stayed = {name for name, value in new.state_dict().items() if torch.equal(value, before[name])}
    stayed = {name.removeprefix("denoiser.") for name in stayed - bars}
    assert all(name.startswith(OWN[new.system]) for name in stayed), stayed
    assert not any(name.startswith("process.embedding") for name in stayed)
    source = torch.tensor([tokenizer.encode(["Rain was expected."])[0]])
    mask = torch.ones_like(source, dtype=torch.bool)
    read = [(model.read if model.system == "diffusion" else model.encode_source) for model in (old, new)]
    pairs = zip(*(tensors(one(source, mask)) for one in read), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_shapes_are_those_of_the_other_model():
    network = Config(width=64, process="masked", given_rate=0.9, dropout=0.3)
    found = shaped(network, Config(system="autoregressive", **SHAPE, source_window=8, dropout=0.1))
    wanted = SHAPE | {"process": "masked", "given_rate": 0.9, "dropout": 0.3, "source_window": 8}
    assert found == Config(system="diffusion", **wanted)


@pytest.mark.parametrize("system", SYSTEMS)
def test_training_starts_from_the_other_system(system, tmp_path, files, monkeypatch, capsys):
    """With a learning rate of 0 what both have comes out as it went in; flags of shapes are named."""
    said, other = [], next(name for name in SYSTEMS if name != system)
    monkeypatch.setattr(cli, "rank_zero_info", said.append)
    monkeypatch.setattr("textdiff.train.rank_zero_info", said.append)
    first, second = tmp_path / other, tmp_path / system
    run_training(first, **files, model__network__system=other)
    start = first / "model"
    flags = {"model__network__system": system, "model__network__dropout": 0.2}
    flags |= {"model__network__width": 64, "model__init_from": start, "data__max_train_examples": 20}
    once = {"model__learning_rate": 0, "trainer__max_steps": 1}
    run_training(second, **files, **flags, **once)
    old, new = (
        {key.removeprefix("denoiser.").removeprefix("process."): value for key, value in found.items()}
        for found in (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    )
    common = ("embedding.", "log_prior", "encoder.", "transformer.", "out.", "bias", "position.")
    shared = [name for name in old if name.startswith(common)]
    assert len(shared) > 20 and all(torch.equal(old[name], new[name]) for name in shared)
    if system == "diffusion":
        assert new["length.log_histogram"].exp().max() > 0.1  # counted, where all began the same
    config = load(second / "model", "cpu").config
    assert (config.system, config.dropout, config.width) == (system, 0.2, 32)
    assert said == [
        f"model.init_from: the shapes are those of {start}; ignored: width 64 (it has 32)",
        f"model.init_from: {start} is of the system {other}; what both have goes on from there, the rest "
        f"is new (to fine-tune it as it is: --model.network.system {other})",
    ]
    last = str(second / "checkpoints" / "last.ckpt")
    run_training(tmp_path, "validate", "--ckpt_path", last, **files, **flags)
    assert "val_loss" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"of the system {other}, not {system}; give .*system {other}"):
        run_training(tmp_path, "validate", **files, **flags)


def test_a_pretrained_network_starts_from_no_other_system():
    message = "autoregressive and diffusion models have nothing in common"
    for one, other in [({"backbone": "roberta-base"}, {}), ({}, {"backbone": "roberta-base"})]:
        with pytest.raises(ValueError, match=message):
            shaped(Config(**one), Config(system="autoregressive", **other))
