"""Pretrained masked language models as the denoiser's network, on small local directories."""

import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import run_training, write_rows
from test_train import EXACT, checkpoint, differences, interrupt
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from textdiff.api import load
from textdiff.config import Config
from textdiff.denoiser import Past
from textdiff.diffusion import TextDiffusion
from textdiff.generation import generate_texts
from textdiff.noise import Noise
from textdiff.pretrained import open_network
from textdiff.process import PROCESSES
from textdiff.tokenizer import Tokenizer

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
SHAPE["initializer_range"] = 0.5  # so that what is read matters
FAMILIES = {
    "roberta": {"max_position_embeddings": 42, "pad_token_id": 1},
    "bert": {"max_position_embeddings": 40, "pad_token_id": 0},
    # every third layer sees all, the others four tokens to each side
    "modernbert": {"max_position_embeddings": 40, "pad_token_id": 0, "local_attention": 8},
}
NAMES = {
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
}
NAMES["modernbert"] = NAMES["bert"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "▁"]


def write_tokenizer(folder: Path, names: list[str]) -> int:
    """A tokenizer of single letters; the number of its tokens."""
    tokens = [*names, *LETTERS]
    backend = Backend(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[1]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split("", "isolated")]
    )
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(names)
    backend.save(str(folder / "tokenizer.json"))
    return len(tokens)


def write_network(folder: Path, family: str, auto: type = AutoModelForMaskedLM, **options: int) -> Path:
    """A directory as `transformers` writes it, with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder, NAMES.get(family, NAMES["bert"]))
    torch.manual_seed(0)
    shape = SHAPE | FAMILIES.get(family, {}) | {"vocab_size": vocabulary} | options
    auto.from_config(AutoConfig.for_model(family, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    return {family: write_network(root / family, family) for family in FAMILIES}


def build(
    source: Path, process: str = "embedding", conditioning: str = "none", **options
) -> TextDiffusion:
    """A new model on a pretrained network; its own weights are moved away from zero if `stir`."""
    stir = options.pop("stir", False)
    options = {"max_length": 24, "block_rate": 1.0, "block_length": 6} | options
    schedule = {"name": "cosine", "gamma_min": -12.0, "gamma_max": 5.0}
    config = Config(
        process=process, schedule=schedule, backbone=str(source), conditioning=conditioning, **options
    )
    torch.manual_seed(0)
    model = TextDiffusion(config, Tokenizer.load(source))
    if stir:
        network = {id(p) for p in model.denoiser.network.parameters()}
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p) * (id(p) not in network))
    return model.eval()


def original(source: Path, ids: Tensor) -> Tensor:
    """The network's own logits of clean text."""
    network = AutoModelForMaskedLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        return network(input_ids=ids).logits


def some_ids(model: TextDiffusion, *size: int) -> Tensor:
    low = 5
    return low + torch.arange(size[0] * size[1]).view(size) * 7 % (len(model.tokenizer) - low)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("given", [True, False])
@torch.no_grad()
def test_a_new_denoiser_reads_clean_text_as_the_network_does(networks, family, process, given):
    """As given words, and as states without noise, by every process."""
    model = build(networks[family], process)
    ids = some_ids(model, 2, 9)
    x_0, t = model.process.encode(ids), torch.zeros(ids.shape)
    mask, valid = torch.full(ids.shape, not given), torch.ones(ids.shape, dtype=torch.bool)
    found = model.denoiser(x_0, t, mask=mask, valid=valid)
    found = found - model.denoiser.bar - model.process.log_posterior(x_0, t)
    # the logits are found beside log posteriors of 1e5
    assert torch.allclose(found, original(networks[family], ids), atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padding_and_neighbours_do_not_matter(networks, family):
    """Whole texts, and blocks after texts of several lengths, equal one by one."""
    model = build(networks[family], stir=True)
    ids, before = some_ids(model, 3, 6), some_ids(model, 3, 12)
    sizes, known = torch.tensor([6, 3, 5]), torch.tensor([12, 4, 0])
    valid = torch.arange(6) < sizes[:, None]
    shown = torch.arange(12) < known[:, None]
    noise = Noise(0, [0, 1, 2], valid)
    t = torch.full(ids.shape, 0.4)
    x_t = model.process.corrupt(model.process.encode(ids), t, noise)
    for past in (None, model.denoiser.remember(before, shown)):
        together = model.denoiser(x_t, t, mask=valid, valid=valid, past=past)
        for i, (size, count) in enumerate(zip(sizes, known, strict=True)):
            row = slice(i, i + 1), slice(0, size)
            alone = None
            if past is not None:
                alone = model.denoiser.remember(before[i : i + 1, :count], shown[i : i + 1, :count])
            found = model.denoiser(x_t[row], t[row], mask=valid[row], valid=valid[row], past=alone)
            assert torch.allclose(found, together[row], atol=1e-3)


@torch.no_grad()
def test_a_block_is_read_with_the_text_before_it(networks):
    """One sequence to the network: places go on, padding between is not there."""
    model = build(networks["roberta"])
    ids = some_ids(model, 1, 10)
    valid = torch.ones(1, 4, dtype=torch.bool)
    padded = torch.cat([ids[:, :6], ids[:, :3]], 1)
    past = model.denoiser.remember(padded, torch.arange(9)[None] < 6)
    assert isinstance(past, Past)
    x_0, t = model.process.encode(ids[:, 6:]), torch.zeros(1, 4)
    found = model.denoiser(x_0, t, mask=~valid, valid=valid, past=past)
    found = found - model.denoiser.bar - model.process.log_posterior(x_0, t)
    assert torch.allclose(found, original(networks["roberta"], ids)[:, 6:], atol=0.05)


@torch.no_grad()
def test_time_previous_and_length_are_read(networks):
    """Once trained; at the start none of them changes what the network says."""
    for stir in (False, True):
        model = build(networks["bert"], stir=stir)
        ids = some_ids(model, 1, 6)
        valid = torch.ones(1, 6, dtype=torch.bool)
        x_t = model.process.corrupt(model.process.encode(ids), torch.tensor(0.5), Noise(0, [0], valid))

        def logits(told=0.5, previous=None, left=0, model=model, x_t=x_t, valid=valid):
            """With the time told beside what is read, and as if `left` tokens more followed."""
            t, ending = torch.full((1, 6), 0.5), model.denoiser.ending
            read = model.process.see(x_t, t).features
            h = model.denoiser.embed(x_t, torch.full((1, 6), told), valid, read, previous)
            longer = ending(torch.ones(1, 6 + left, dtype=torch.bool), None)[:, :6]
            return model.denoiser.run(h + longer, valid)

        guess = model.process.table()[ids]
        changes = [{"previous": guess}, {"told": 0.9}, {"left": 3}]
        for change in changes:
            assert (not torch.allclose(logits(), logits(**change), atol=1e-3)) == stir, change
        nothing = torch.zeros_like(guess)
        assert torch.allclose(logits(), logits(previous=nothing))
        past = model.denoiser.remember(ids, valid)
        assert torch.equal(past.states[0][0], model.denoiser.words(ids)) != stir, "told: an open block"


@pytest.mark.parametrize("family", ["roberta", "bert"])
@torch.no_grad()
def test_all_positions_can_be_used(networks, family):
    """A long text before a short block beside a short one before a long one: together they do not fit."""
    model = build(networks[family], max_length=40)
    before, ids = some_ids(model, 2, 38), some_ids(model, 2, 6)
    shown, valid = (
        torch.arange(n) < torch.tensor(sizes)[:, None]
        for n, sizes in ((38, [[38], [3]]), (6, [[2], [6]]))
    )
    x_0, t = model.process.encode(ids), torch.zeros(2, 6)
    past = model.denoiser.remember(before, shown[:, 0])
    found = model.denoiser(x_0, t, mask=valid[:, 0], valid=valid[:, 0], past=past)
    assert found.isfinite().all() and found.shape == (2, 6, len(model.tokenizer))


def test_building_on_a_device_reads_weights_all_the_same(networks):
    """Lightning builds models in the context of a device; "meta" stands for a GPU."""
    tokenizer = Tokenizer.load(networks["bert"])
    config = Config(backbone=str(networks["bert"]), conditioning="none", max_length=24)
    with torch.device("meta"):
        network, _ = open_network(config, tokenizer)
    assert {p.device.type for p in network.parameters()} == {"cpu"}


def test_tokens_that_are_never_written_are_not_learned(networks):
    """An unknown character among the targets would cost 10,000 nats."""
    model = build(networks["bert"], block_rate=0.0)
    ids = some_ids(model, 2, 8)
    ids[0, 3] = model.tokenizer.backend.token_to_id("[UNK]")
    whole = torch.ones_like(ids, dtype=torch.bool)
    losses = model.loss({"ids": ids, "valid": whole, "mask": whole, "index": torch.arange(2)}, 0)
    assert not losses.mask[0, 3]
    assert losses.nll[losses.mask].max() < 200


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("process", ["embedding", "simplex"])
def test_ragged_prompts_are_continued_as_one_by_one(networks, family, process):
    model = build(networks[family], process, stir=True)
    prompts = ["abc def", "g", ""]
    options = {"length": 30, "block_length": 6, "steps": 3, "seed": 1}
    together = generate_texts(model, prompt=prompts, **options)
    for i, prompt in enumerate(prompts):
        noise_of = {"num_samples": 1} if not prompt else {"prompt": [prompt]}
        if i == 0:  # randomness is named by the number of the text
            assert generate_texts(model, **noise_of, **options).texts == together.texts[:1]
    sizes = [generate_texts(model, prompt=prompts, batch_size=n, **options).texts for n in (1, 2)]
    assert sizes == [together.texts] * 2


@pytest.mark.parametrize("process", ["embedding", "masked"])
def test_what_is_seen_of_open_tokens_is_kept(networks, process, monkeypatch):
    """By `confidence`: the same texts as where every step looks at all of them anew."""
    model = build(networks[next(iter(FAMILIES))], process, stir=True)
    options = {"num_samples": 4, "length": 12, "steps": 4, "decoder": "sample", "seed": 3}
    kept, denoise = generate_texts(model, **options), model.denoiser.forward
    seen = []

    def anew(x_t: Tensor, t: Tensor, **inputs) -> Tensor:
        seen.append(inputs.pop("seen"))
        return denoise(x_t, t, **inputs)

    monkeypatch.setattr(model.denoiser, "forward", anew)
    assert generate_texts(model, **options).ids == kept.ids
    assert len(seen) == 4 and all(seen)


def test_a_saved_model_needs_nothing_else(networks, tmp_path):
    """Weights and shape of the network, its tokenizer, and its ties are in the directory."""
    source = shutil.copytree(networks["roberta"], tmp_path / "source")
    model = build(source, stir=True)
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(source)
    found = load(tmp_path / "model", "cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    network = found.denoiser.network
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert found.process.embedding.weight is network.get_input_embeddings().weight
    options = {"num_samples": 2, "length": 8, "steps": 2}
    assert generate_texts(found, **options).ids == generate_texts(model, **options).ids


@pytest.fixture
def pairs(tmp_path) -> dict[str, str]:
    rows = [{"source": f"{a} is {b}", "target": f"{b} {a}"} for a in "abcdefgh" for b in ("one", "two")]
    files = {
        f"data__{s}_file": write_rows(tmp_path / f"{s}.jsonl", rows) for s in ("train", "validation")
    }
    sizes = {"data__max_source_length": 12, "data__max_target_length": 8, "data__batch_size": 8}
    return files | sizes | {"data__conditioning": "prefix", "trainer__max_steps": 4}


class Modes(L.Callback):
    """Whether the parts of the network are in training mode, that is with dropout."""

    def on_train_batch_end(self, trainer, module, *_):
        self.training = {part.training for part in module.model.denoiser.network.modules()}


def test_training_starts_from_it_and_resumes_exactly(networks, tmp_path, pairs):
    """Its dropout included; the tokenizer is its own unless told."""
    source = networks["roberta"]
    options = pairs | {"model__network__backbone": str(source), "model__optimizer": "muon"}
    seen = Modes()
    run_training(tmp_path / "whole", callbacks=[seen], **options)
    assert seen.training == {True}
    stopped = interrupt(tmp_path / "part", 2, **options)
    run_training(tmp_path / "part", "--ckpt_path", str(stopped), **options)
    whole, again = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "part")
    assert not [x for key in EXACT for x in differences(whole[key], again[key], key)]
    weights, name = (
        whole["state_dict"],
        "model.denoiser.network.roberta.embeddings.word_embeddings.weight",
    )
    table = AutoModelForMaskedLM.from_pretrained(source).get_input_embeddings().weight
    assert 0 < (weights[name] - table).abs().max() < 0.05, "0.5 is usual among these weights"
    assert weights["model.denoiser.network.lm_head.decoder.weight"].equal(weights[name])
    assert Tokenizer.load(tmp_path / "whole" / "model").backend.get_vocab()["<mask>"] == 4


def test_fine_tuning_goes_on_from_a_saved_model(networks, tmp_path, pairs):
    start = {"model__network__backbone": str(networks["bert"])}
    run_training(tmp_path / "first", **pairs, **start)
    run_training(tmp_path / "second", **pairs, model__init_from=str(tmp_path / "first" / "model"))
    assert load(tmp_path / "second" / "model", "cpu").config.backbone["config"]["model_type"] == "bert"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__conditioning": "cross"}, "add --data.conditioning prefix"),
        ({"data__max_source_length": 40}, "its 40 positions are fewer than the 49 of the text with its"),
        ({"data__vocab_size": 300, "data__tokenizer": "other"}, "leave out --data.tokenizer"),
        ({"model__network__system": "autoregressive", "data__conditioning": "cross"}, "is for diffusion"),
        ({"model__network__backbone": "nowhere/at-all"}, "nowhere/at-all"),
        ({"model__network__backbone": "{tied: false}"}, "give the directory or hub id"),
    ],
)
def test_mistakes_end_in_one_line(networks, tmp_path, pairs, change, message):
    if "data__tokenizer" in change:
        Tokenizer.train(["a few words"], 300).save(tmp_path / "other")
        change = {"data__tokenizer": str(tmp_path / "other")}
    flags = pairs | {"model__network__backbone": str(networks["roberta"])} | change
    with pytest.raises(SystemExit, match=message) as found:
        run_training(tmp_path / "run", **flags)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("family", "auto", "message"),
    [
        ("gpt2", AutoModelForCausalLM, "no masked language model"),
        ("bert", AutoModel, "was not trained to fill in words"),
        ("bart", AutoModelForMaskedLM, "does not read embeddings"),
    ],
)
def test_other_networks_are_refused(tmp_path, family, auto, message):
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16} if family == "gpt2" else {}
    if family == "bart":
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    source = write_network(tmp_path / family, family, auto, **sizes)
    with pytest.raises(ValueError, match=message):
        build(source)


def test_older_tokenizer_files_are_read(tmp_path):
    """RoBERTa's vocab.json and merges.txt, as SSD-LM's directory has them."""
    names = NAMES["roberta"]
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=names, initial_alphabet=backend.pre_tokenizer.alphabet(), vocab_size=280
    )
    backend.train_from_iterator(["a few words"] * 3, trainer)
    backend.model.save(str(tmp_path))
    shape = SHAPE | FAMILIES["roberta"] | {"vocab_size": backend.get_vocab_size()}
    AutoConfig.for_model("roberta", **shape).save_pretrained(tmp_path)
    found = Tokenizer.load(tmp_path)
    assert (found.pad, found.eos) == ("<pad>", "</s>")
    assert found.encode(["a few words"]) == [backend.encode("a few words").ids]
    assert found.decode(found.encode(["a few words"])) == ["a few words"]
