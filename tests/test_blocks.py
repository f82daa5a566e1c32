"""Texts of any length, block by block: what a block is trained on, what it may see, what comes out."""

import math

import pytest
import torch
from test_oracle import PAIRS, OneStream, make_process
from torch import Tensor

from textdiff import blocks
from textdiff.blocks import BlockWriter, cut_blocks
from textdiff.config import Config
from textdiff.decoder import DECODERS
from textdiff.denoiser import Guided
from textdiff.diffusion import TextDiffusion
from textdiff.generation import generate_texts
from textdiff.process import PROCESSES
from textdiff.sampler import SAMPLERS
from textdiff.testing import MarkovLanguage, OracleDenoiser
from textdiff.tokenizer import Tokenizer

EOS, LONG = 1, 12
PROMPTS = ["", "a", "word up", "longer than the window"]


def make_model(
    conditioning: str = "none", process: str = "embedding", vocabulary: int = 260, **options: float
) -> TextDiffusion:
    """Small, with weights moved away from their start, so that everything matters."""
    tokenizer = Tokenizer.train(["a few words"], vocabulary)
    torch.manual_seed(0)
    shape = {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "encoder_depth": 1,
        "embedding_width": 8,
        "max_length": LONG,
    }
    rates = {"block_rate": 1.0, "block_length": 4} | options
    own = {"conditioning": conditioning, "process": process}
    model = TextDiffusion(Config(**own, **shape | rates), tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def make_batch(eos_id: int, prefix: int = 0) -> dict[str, Tensor]:
    """Lengths 9, 6, 3; the second text goes on elsewhere; `prefix` tokens are the source."""
    length = torch.tensor([[9], [6], [3]])
    valid = torch.arange(9) < length
    ids = torch.where(valid, 10 + torch.arange(27).view(3, 9), 0)
    ids[0, 8] = ids[2, 2] = eos_id
    mask = valid & (torch.arange(9) >= prefix)
    return {"ids": ids, "valid": valid, "mask": mask, "index": torch.arange(3)}


# Training


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("size", [1, 4, 20])
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_block_continues_what_is_before_it(where, size, prefix):
    batch = make_batch(EOS, prefix)
    cut = cut_blocks(batch, torch.full((3,), where), torch.full((3,), size), EOS, LONG)
    for row in range(3):
        text = batch["ids"][row][batch["valid"][row]].tolist()
        before = cut["before"][row][cut["before_valid"][row]].tolist()
        block = cut["ids"][row][cut["valid"][row]].tolist()
        assert len(before) == prefix + int(where * (len(text) - prefix))
        most = LONG if text[-1] == EOS else len(text)
        assert len(block) == min(size, most - len(before))
        assert before + block == (text + [EOS] * LONG)[: len(before) + len(block)]
    assert torch.equal(cut["mask"], cut["valid"])


def test_rates_and_sizes_of_blocks(monkeypatch):
    model, seen = make_model(block_rate=0.3, block_length=4), []
    monkeypatch.setattr(
        "textdiff.diffusion.cut_blocks", lambda *args: seen.append(args) or cut_blocks(*args)
    )
    length, count = 9, 3000
    ids = torch.full((count, length), 9)
    whole = torch.ones_like(ids, dtype=torch.bool)
    losses = model.loss({"ids": ids, "valid": whole, "mask": whole, "index": torch.arange(count)}, 0)
    ((batch, where, size, eos_id, most),) = seen
    assert len(batch["ids"]) / count == pytest.approx(0.3, abs=0.03)
    assert (eos_id, most) == (model.tokenizer.eos_id, LONG)
    assert size.bincount(minlength=5)[1:].float() / len(size) == pytest.approx(
        torch.full((4,), 0.25), abs=0.05
    )
    assert where.mean().item() == pytest.approx(0.5, abs=0.03)
    assert len(losses.length) == count - len(size), "blocks know no length"
    assert losses.nll.shape == losses.mask.shape == (count, length) and len(losses.t) == count


@pytest.mark.parametrize("conditioning", ["none", "cross"])
def test_the_loss_of_a_block_does_not_depend_on_its_batch(conditioning):
    model = make_model(conditioning)
    batch = make_batch(model.tokenizer.eos_id)
    batch["source"] = torch.arange(6).view(3, 2) + 40
    batch["source_mask"] = torch.ones(3, 2, dtype=torch.bool)
    together = model.loss(batch, 5)
    for row in range(3):
        alone = model.loss({key: value[row : row + 1] for key, value in batch.items()}, 5)
        shown = alone.mask[0]
        assert torch.allclose(alone.nll[0][shown], together.nll[row][together.mask[row]], atol=1e-4)


def test_every_parameter_takes_part_in_every_step():
    """Or distributed training waits for ever; also where all examples are blocks, or none."""
    for rate in (1e-9, 1.0):
        model = make_model("cross", block_rate=rate).train()
        batch = make_batch(model.tokenizer.eos_id)
        batch["source"], batch["source_mask"] = torch.full((3, 2), 40), torch.ones(3, 2, dtype=torch.bool)
        losses = model.loss(batch, 5)
        total = losses.nll.sum() + (0 if losses.length is None else losses.length.sum())
        total.backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing


# What a block sees


def predict(model: TextDiffusion, before: list[list[int]], rows: slice = slice(None)) -> Tensor:
    """Logits of a block of three after ragged texts, the second of two tokens only."""
    valid = torch.tensor([[True] * 3, [True, True, False], [True] * 3])[rows]
    length = torch.tensor([len(ids) for ids in before])[:, None]
    ids = torch.zeros(len(before), int(length.max()), dtype=torch.int64)
    for row, some in enumerate(before):
        ids[row, : len(some)] = torch.tensor(some, dtype=torch.int64)
    past = model.denoiser.remember(ids, torch.arange(ids.shape[1]) < length)
    torch.manual_seed(1)
    x_t = model.process.corrupt(
        model.process.encode(torch.full((3, 3), 30)), torch.tensor(0.5), OneStream(0)
    )
    t = torch.full((3, 3), 0.5)
    return model.denoiser(x_t[rows], t[rows], mask=valid, valid=valid, past=past)


def test_padding_before_a_block_changes_nothing():
    model, texts = make_model(), [[20, 21, 22, 23], [24], []]
    together = predict(model, texts)
    for row in range(3):
        alone = predict(model, texts[row : row + 1], slice(row, row + 1))
        assert torch.allclose(alone[0], together[row], atol=1e-4)


def test_positions_go_on_after_the_text_before():
    model = make_model()
    ids, known = torch.full((2, 3), 40), torch.arange(3) < torch.tensor([[3], [1]])
    place, _ = model.denoiser.places(
        torch.ones(2, 4, dtype=torch.bool), model.denoiser.remember(ids, known)
    )
    assert place.tolist() == [[3, 4, 5, 6], [1, 2, 3, 4]]


def test_all_that_is_before_a_block_matters_and_its_order():
    model = make_model()
    texts = [[20, 21, 22], [21, 20, 22], [20, 21], [20, 21, 23], []]
    logits = [predict(model, [text], slice(0, 1)) for text in texts]
    for i in range(5):
        for j in range(i):
            assert (logits[i] - logits[j]).abs().max() > 1e-3


def test_an_open_block_is_not_a_whole_text():
    """Of one token, which is the last one either way."""
    model = make_model()
    x_t, t, valid = torch.randn(1, 1, 8), torch.full((1, 1), 0.5), torch.ones(1, 1, dtype=torch.bool)
    nothing = model.denoiser.remember(torch.zeros(1, 0, dtype=torch.int64), valid[:, :0])
    whole = model.denoiser(x_t, t, mask=valid, valid=valid)
    block = model.denoiser(x_t, t, mask=valid, valid=valid, past=nothing)
    assert (whole - block).abs().max() > 1e-3


# Writing


@pytest.mark.parametrize(
    ("conditioning", "scale"), [("none", 1.0), ("cross", 1.0), ("cross", 2.0), ("prefix", 1.0)]
)
@pytest.mark.parametrize("process", PROCESSES)
def test_ragged_prompts_give_the_same_texts_as_one_by_one(process, conditioning, scale):
    model = make_model(conditioning, process)
    options = {"block_length": 3, "steps": 2, "decoder": "sample", "seed": 3, "length": 27}
    prompts, sources = PROMPTS, None
    if conditioning != "none":
        sources = ["ab", "c", "d", "ef"]
    if conditioning == "prefix":
        prompts, options["length"] = ["", "b", "x", "y"], 8
    if scale != 1:
        options["guidance_scale"] = scale
    made = [generate_texts(model, sources, prompt=prompts, batch_size=n, **options).ids for n in (4, 1)]
    assert made[0] == made[1]
    assert len({tuple(ids) for ids in made[0]}) == 4


def test_texts_grow_beyond_the_positions_of_the_model_and_end_by_themselves():
    model = make_model()
    model.denoiser.bias.data[model.tokenizer.eos_id] += 3.0
    made = generate_texts(
        model, prompt=PROMPTS * 4, length=60, block_length=4, steps=2, decoder="sample", trajectory=True
    )
    eos = model.tokenizer.eos_id
    lengths = [len(ids) for ids in made.ids]
    assert max(lengths) == 60 > 4 * LONG and min(lengths) < 60
    assert all((ids[-1] == eos) == (len(ids) < 60) or len(ids) == 60 for ids in made.ids)
    assert all(eos not in ids[:-1] for ids in made.ids)
    prompts = model.tokenizer.encode(PROMPTS * 4)
    assert all(ids[: len(prompt)] == prompt for ids, prompt in zip(made.ids, prompts, strict=True))
    assert [frames[-1] for frames in made.trajectory] == made.texts
    assert made.nfe >= 2 * 12


def test_blocks_read_as_much_of_a_long_text_as_has_positions(monkeypatch):
    """The last block is shorter than the others and reads more."""
    model, seen = make_model(), []
    read = model.process.given_features
    monkeypatch.setattr(model.process, "given_features", lambda ids: seen.append(ids) or read(ids))
    made = generate_texts(
        model, num_samples=1, length=30, block_length=4, steps=1, decoder="sample", seed=2
    )
    ids = made.ids[0]
    assert len(ids) == 30, "the text ended by itself: take another seed"
    reads = [ids[0].tolist() for ids in seen]
    starts = range(4, 30, 4)  # nothing is before the first block
    assert reads == [ids[:start][-(LONG - min(4, 30 - start)) :] for start in starts]


def test_a_source_in_the_text_is_never_cut():
    model, seen = make_model("prefix"), []
    remember = model.denoiser.remember

    def watch(ids: Tensor, valid: Tensor, context: None, window: Tensor) -> object:
        seen.append((valid.sum(1), window))
        return remember(ids, valid, context, window)

    model.denoiser.remember = watch
    generate_texts(model, ["ab", "c"], block_length=4, steps=1, decoder="sample", seed=1)
    assert len(seen) > 1 and all((before <= window).all() for before, window in seen)


EXACT = [
    (process, *pair, size)
    for process in PROCESSES
    for pair in (("ancestral", "softmax"), ("confidence", "sample"))
    for size in (1, 4, 8)
]


EXACT += [("simplex", "renoise", "sample", size) for size in (1, 4, 8)]  # SSD-LM's own way


@pytest.mark.parametrize(("process", "sampler", "decoder", "size"), EXACT)
def test_blocks_of_an_exact_denoiser_return_the_language(process, sampler, decoder, size, monkeypatch):
    """Limits of the issue: 0.04 in total variation of bigrams, 0.04 bits a token."""
    language, count = MarkovLanguage(), 1500
    monkeypatch.setattr(blocks, "Noise", lambda *_, block: OneStream(block))
    writer = BlockWriter(
        OracleDenoiser(make_process(process), language),
        SAMPLERS[sampler](PAIRS[sampler, decoder]),
        DECODERS[decoder](),
        size=size,
        max_length=2 * language.length,
        eos_id=-1,
        seed=0,
        index=list(range(count)),
    )
    texts = writer([[]] * count, [language.length] * count, torch.device("cpu"))
    ids = torch.tensor(texts.ids)
    assert language.bigram_distance(ids) <= 0.04
    assert abs(language.excess(ids)) / math.log(2) <= 0.04


# Bad input


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("block_length must be from 1 to the 4 tokens .* trained on, not 5", {"block_length": 5}),
        ("block_length must be at least 1, not 0", {"block_length": 0}),
        ("a prompt of 7 tokens fills the whole length 5", {"block_length": 2, "length": 5}),
    ],
)
def test_impossible_blocks_are_refused(message, options):
    with pytest.raises(ValueError, match=message):
        generate_texts(make_model(), prompt=["worded"], **options)


def test_a_block_leaves_room_for_something_before_it():
    with pytest.raises(ValueError, match="from 1 to the 11 tokens"):
        generate_texts(make_model(block_length=99), num_samples=1, block_length=12)


def test_a_model_without_blocks_says_how_to_train_one():
    with pytest.raises(ValueError, match="train it with --model"):
        generate_texts(make_model(block_rate=0.0), num_samples=1, block_length=2)


def test_guided_blocks_read_the_text_with_and_without_the_source():
    model = make_model("cross")
    context = model.read(torch.full((1, 2), 40), torch.ones(1, 2, dtype=torch.bool))
    ids, valid = torch.full((1, 3), 50), torch.ones(1, 3, dtype=torch.bool)
    guided, plain = Guided(model.denoiser, 3.0), model.denoiser
    inputs = {"mask": valid, "valid": valid}
    x_t, t = torch.randn(1, 3, 8), torch.full((1, 3), 0.5)
    with_, without = (
        plain(x_t, t, context=c, past=plain.remember(ids, valid, c), **inputs)
        for c in (context, context.null())
    )
    found = guided(x_t, t, context=context, past=guided.remember(ids, valid, context), **inputs)
    assert torch.allclose(found, without + 3 * (with_ - without), atol=1e-4)
