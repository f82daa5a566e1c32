"""Checkpoints of SSD-LM and TESS give the logits of their own computation, written out here."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_pretrained import FAMILIES, SHAPE, write_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM

import textdiff
from textdiff.api import load
from textdiff.config import build
from textdiff.decoder import DECODERS
from textdiff.generation import generate_texts
from textdiff.noise import Noise

SCRIPT = Path(__file__).parent.parent / "scripts" / "import_checkpoint.py"
HALF_WIDTH = 5.0
WIDTH = SHAPE["hidden_size"]


def make_network(folder: Path, **options) -> nn.Module:
    """A small RoBERTa and its tokenizer; the directory gets the config alone."""
    folder.mkdir()
    vocabulary = write_tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    shape = SHAPE | FAMILIES["roberta"] | {"vocab_size": vocabulary} | options
    config = AutoConfig.for_model("roberta", **shape)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(config).eval()


def run(*args: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["import_checkpoint.py", *map(str, args)])
        runpy.run_path(str(SCRIPT), run_name="__main__")


def ask(model, ids: Tensor, x_t: Tensor, t: Tensor, given: int, previous: Tensor | None = None) -> Tensor:
    """Our logits where there is noise, after `given` clean tokens of the same text."""
    mask = torch.arange(ids.shape[1]).expand(ids.shape) >= given
    state = torch.where(mask[..., None], x_t, model.process.encode(ids))
    if previous is not None:
        previous = model.process.reread(previous.softmax(-1))
    valid = torch.ones_like(mask)
    with torch.no_grad():
        times = t[:, None] * mask
        return model.denoiser(state, times, mask=mask, valid=valid, previous=previous)[:, given:]


def make_input(vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, a noisy simplex in our units (divided by K), times."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, vocabulary, (2, 9), generator=generator)
    x_t = torch.randn(2, 9, vocabulary, generator=generator)
    return ids, x_t, torch.tensor([0.3, 0.9])


def write_ssd_lm(folder: Path, loud: bool = False) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A checkpoint in SSD-LM's layout, its names as distributed training writes them, and its parts.

    Its words matter little to a new network, in a `loud` one much.
    """
    network = make_network(folder, max_position_embeddings=202, initializer_range=0.3 if loud else 0.02)
    project = nn.Linear(network.config.vocab_size, WIDTH, bias=False)
    if loud:
        nn.init.normal_(project.weight, std=3.0)
    time = nn.Linear(1, WIDTH)
    files = {"pytorch_model.bin": network, "embed_sum_layer.pt": project, "timestep_layer.pt": time}
    for name, part in files.items():
        torch.save({f"module.{key}": value for key, value in part.state_dict().items()}, folder / name)
    return network, project, time


@pytest.mark.parametrize("context", [0, 4])
def test_ssd_lm(tmp_path, context):
    network, project, time = write_ssd_lm(tmp_path / "ssdlm")
    vocabulary = network.config.vocab_size
    run("--format", "ssd-lm", "--max_length", 30, "--length", 6, tmp_path / "ssdlm", tmp_path / "model")
    model = load(tmp_path / "model", "cpu")

    ids, x_t, t = make_input(vocabulary)
    with torch.no_grad():
        h = project((HALF_WIDTH * x_t[:, context:]).softmax(-1)) + time(t[:, None])[:, None]
        h = torch.cat([network.get_input_embeddings()(ids[:, :context]), h], 1)
        expected = network(inputs_embeds=h).logits[:, context:]
    assert torch.allclose(ask(model, ids, x_t, t, context), expected, atol=1e-4)
    past = model.denoiser.remember(ids[:, :context], torch.ones(2, context, dtype=torch.bool))
    mask = torch.ones(2, 9 - context, dtype=torch.bool)
    with torch.no_grad():
        times = t[:, None].expand(mask.shape)
        found = model.denoiser(x_t[:, context:], times, mask=mask, valid=mask, past=past)
    assert torch.allclose(found, expected, atol=1e-4)
    decoder = build(DECODERS, model.config.generation["decoder"])
    drawn = decoder(torch.randn(2, 3, vocabulary), Noise(0, [0, 1]))
    assert torch.equal(drawn.amax(-1), torch.ones(2, 3)), "their sampling projection"
    assert textdiff.infill(model, ["ab ___ c"], steps=2), "gaps need no blocks"
    texts = generate_texts(model, prompt=["abc", "d"], length=14, steps=2)
    assert [len(one) <= 14 for one in texts.ids] == [True, True]


def test_texts_of_the_multi_hot_projection_are_those_of_their_loop(tmp_path):
    """SSD-LM's own: nucleus to K, all else to -K, fresh noise; the text is the last argmax."""
    network, project, time = write_ssd_lm(tmp_path / "ssdlm", loud=True)
    shape = ("--max_length", 30, "--length", 6, "--multi_hot", 0.7)
    run("--format", "ssd-lm", *shape, tmp_path / "ssdlm", tmp_path / "model")
    model, steps = load(tmp_path / "model", "cpu"), 5
    (before,) = model.tokenizer.encode(["ab c"])
    table = network.get_input_embeddings()(torch.tensor([before]))
    draws, x = Noise(3, [0]), None
    x = HALF_WIDTH * draws.normal((1, 6, network.config.vocab_size))
    for i in range(steps):
        t = torch.tensor([[1 - i / steps]])
        with torch.no_grad():
            h = torch.cat([table, project(x.softmax(-1)) + time(t)[:, None]], 1)
            logits = network(inputs_embeds=h).logits[:, len(before) :]
        top, index = logits.softmax(-1).sort(descending=True)
        kept = (top.cumsum(-1) - top < 0.7).scatter(-1, index, top.cumsum(-1) - top < 0.7)
        signal = torch.cos(torch.pi / 2 * (t - 1 / steps))
        noise = (1 - signal**2).sqrt() * draws.normal(x.shape)
        x, draws = HALF_WIDTH * (signal * (2.0 * kept - 1) + noise), draws.at(i + 1)
    assert 1 < kept.sum(-1).float().mean() < 20, "the projection is of several tokens"

    def write() -> list[int]:
        options = {"prompt": ["ab c"], "length": len(before) + 6, "steps": steps, "seed": 3}
        return generate_texts(model, **options).ids[0][len(before) :]

    found = write()
    assert found == logits.argmax(-1)[0, : len(found)].tolist() and len(found) > 3
    model.process.multi_hot = None
    assert write() != found


MIXED = {"self_condition_mix_before_weights": True}
WAYS = {
    "none": {"self_condition": None},
    "mean": {"self_condition": "logits_mean", **MIXED},
    "mean, zeros at first": {
        "self_condition": "logits_mean",
        "self_condition_zeros_after_softmax": True,
    },
    "addition": {"self_condition": "logits_addition"},
    "projection": {"self_condition": "logits"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("again", [False, True])
def test_tess(tmp_path, way, again):
    """At the first step, and with a last prediction."""
    options = WAYS[way]
    network = make_network(tmp_path / "tess", **options)
    vocabulary, how = network.config.vocab_size, options["self_condition"]
    project, time = nn.Linear(vocabulary, WIDTH, bias=False), nn.Linear(1, WIDTH)
    join = nn.Linear(2 * WIDTH, WIDTH, bias=False)
    state = {name: value for name, value in network.state_dict().items() if "decoder" not in name}
    state |= {"vocab_to_hidden_dim_embed.weight": project.weight.data}
    state |= {"timestep_embed.weight": time.weight.data, "timestep_embed.bias": time.bias.data}
    state |= {"project_to_hidden_size.weight": join.weight.data} if how == "logits" else {}
    save_file(state, tmp_path / "tess" / "model.safetensors")
    shape = ("--max_length", 40, "--length", 8)
    run("--format", "tess", "--conditioning", "prefix", *shape, tmp_path / "tess", tmp_path / "model")
    model = load(tmp_path / "model", "cpu")

    ids, x_t, t = make_input(vocabulary)
    last = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(4)) if again else None
    with torch.no_grad():
        h = project((HALF_WIDTH * x_t).softmax(-1))
        before = project(torch.zeros_like(x_t).softmax(-1) if last is None else last.softmax(-1))
        if last is None and options.get("self_condition_zeros_after_softmax"):
            before = torch.zeros_like(before)
        mixed = {None: h, "logits_mean": (h + before) / 2, "logits_addition": h + before}
        mixed["logits"] = join(torch.cat([h, before], -1))
        h = mixed[how] + time(t[:, None])[:, None]
        span = torch.arange(9) >= 4
        h = torch.where(span[:, None], h, network.get_input_embeddings()(ids))
        expected = network(inputs_embeds=h).logits[:, 4:]
    assert torch.allclose(ask(model, ids, x_t, t, 4, last), expected, atol=1e-4)
    if not again:
        made = generate_texts(model, ["a source", "b"], steps=2)
        assert [len(one) for one in made.ids] == [8, 8]


def test_the_schedule_is_theirs(tmp_path):
    """alpha_bar(t) = cos^2((t + s) / (1 + s) pi / 2) with s = 1e-4, scaled to 1 at t = 0."""
    test_ssd_lm(tmp_path, 0)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    curve = torch.cos((t + 1e-4) / (1 + 1e-4) * torch.pi / 2) ** 2
    alpha, _ = load(tmp_path / "model", "cpu").process.schedule(t.float())
    assert torch.allclose(alpha.double() ** 2, curve / curve[0], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no weights", "neither model.safetensors nor pytorch_model.bin"),
        ("code", "more than plain weights"),
        ("other format", "has no vocab_to_hidden_dim_embed.weight"),
        ("maximum", "'logits_max' with these options is not linear"),
        ("tokenizer", "the tokenizer has 32 tokens, the network 40"),
        ("no config", "has no config.json"),
        ("shape", "has no hidden_size: is it of a RoBERTa"),
        ("length", "--length 120 must be at least 1 and below --max_length 100"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, change, message):
    folder = tmp_path / "tess"
    how = {"self_condition": "logits_max"} if change == "maximum" else {}
    network = make_network(folder, **how)
    if change == "code":
        torch.save(network, folder / "pytorch_model.bin")
    elif change != "no weights":
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
    if change == "tokenizer":
        shape = json.loads((folder / "config.json").read_text()) | {"vocab_size": 40}
        (folder / "config.json").write_text(json.dumps(shape))
    if change == "shape":
        (folder / "config.json").write_text('{"model_type": "roberta", "vocab_size": 32}')
    if change == "length":
        state = network.state_dict()
        state |= {"vocab_to_hidden_dim_embed.weight": torch.zeros(WIDTH, 32)}
        state |= {
            "timestep_embed.weight": torch.zeros(WIDTH, 1),
            "timestep_embed.bias": torch.zeros(WIDTH),
        }
        torch.save(state, folder / "pytorch_model.bin")
    if change == "no config":
        (folder / "config.json").unlink()
    with pytest.raises(SystemExit, match=message) as found:
        more = ["--max_length", 100] if change == "length" else []
        run("--format", "tess", *more, folder, tmp_path / "model")
    assert len(str(found.value).splitlines()) == 1
    assert not (tmp_path / "model").exists()
