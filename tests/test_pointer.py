"""The mixture of vocabulary and source by hand, and what it is for: words that training never saw."""

import pytest
import torch
from torch import Tensor, nn

from textdiff.config import Config
from textdiff.denoiser import Denoiser, Guided
from textdiff.diffusion import TextDiffusion
from textdiff.pointer import Pointer, first_places
from textdiff.process import PROCESSES
from textdiff.schedule import Cosine
from textdiff.tokenizer import Tokenizer
from textdiff.transformer import Context
from textdiff.twin import Twin

V, D, S = 9, 8, 5
SOURCE = torch.tensor([[3, 4, 3, 7, 8], [5, 6, 0, 0, 0]])
SEEN = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()


def make() -> tuple[Pointer, Context, Tensor]:
    """A pointer, what it copies from, and the memory, null token first."""
    torch.manual_seed(0)
    pointer, memory = Pointer(D), torch.randn(2, 1 + S, D)
    pointer.stay.data.fill_(0.5)
    mask = torch.cat([torch.ones(2, 1).bool(), SEEN], 1)
    return pointer, pointer.remember(Context([], mask, memory.mean(1)), memory, SOURCE), memory


@torch.no_grad()
def test_the_mixture_by_hand():
    pointer, context, memory = make()
    h, logits = torch.randn(2, 3, D), torch.randn(2, 3, V)
    found = pointer(h, logits, context).softmax(-1)
    for row in range(2):
        for place in range(3):
            query = pointer.query(h[row, place])
            scores = [float(query @ pointer.key(memory[row, s])) / D**0.5 for s in range(1 + S)]
            scores[0] += 0.5
            shown = [0, *(s for s in range(1, 1 + S) if SEEN[row, s - 1])]
            share = dict(zip(shown, torch.tensor([scores[s] for s in shown]).softmax(0), strict=True))
            expected = share[0] * logits[row, place].softmax(-1)
            for s in shown[1:]:
                expected[SOURCE[row, s - 1]] += share[s]
            assert torch.allclose(found[row, place], expected, atol=1e-6)


def test_without_a_source_the_vocabulary_is_left():
    """A hidden source, or none by guidance; and rows are selected with what they copy."""
    pointer, context, _ = make()
    h, logits = torch.randn(2, 3, D), torch.randn(2, 3, V)
    hidden = Context([], context.mask & (torch.arange(1 + S) == 0), context.pooled, context.copied)
    for one in (hidden, context.null()):
        assert torch.allclose(pointer(h, logits, one), logits, atol=1e-5)
    whole = pointer(h, logits, context)
    assert torch.allclose(pointer(h[1:], logits[1:], context.select(torch.tensor([1]))), whole[1:])


def make_denoiser() -> Denoiser:
    torch.manual_seed(0)
    process = PROCESSES["embedding"](nn.Embedding(V, D), Cosine())
    process.log_prior.copy_(torch.tensor([0.0] * 8 + [-20.0]).log_softmax(0))
    sizes = {"width": 16, "depth": 1, "heads": 2, "encoder_depth": 1, "max_length": 6}
    return Denoiser(process, **sizes, max_source_length=6, barred=(0, 7), pointer=True).eval()


@torch.no_grad()
def test_a_rare_word_is_copied_as_surely_as_a_common_one_but_none_that_is_barred():
    """In pure noise, where its prior alone would never write it; a clear token is still read as it is."""
    denoiser = make_denoiser()
    denoiser.pointer.stay.fill_(-50.0)
    ids, every = torch.full((2, 4), 2), torch.ones(2, 4).bool()
    context = denoiser.encode_source(SOURCE, SEEN)
    for time, expected in ((1.0, 8), (0.0, 2)):
        t = torch.full((2, 4), time)
        noise = torch.randn(2, 4, D, generator=torch.Generator().manual_seed(1))
        x_t = noise if time else denoiser.process.encode(ids)
        probs = denoiser(x_t, t, mask=every, valid=every, context=context).softmax(-1)
        assert (probs[..., [0, 7]] < 1e-6).all()
        if time:
            assert (probs[0, :, 8] > 0.05).all() and (probs[1, :, 8] < 1e-6).all()
        else:
            assert (probs.argmax(-1) == expected).all()


@torch.no_grad()
@pytest.mark.parametrize("scale", [3.0, 10.0])
def test_guidance_writes_nothing_that_is_barred(scale):
    """Not even where all of the copying points at it."""
    denoiser = make_denoiser()
    denoiser.pointer.stay.fill_(-20.0)
    every, t = torch.ones(1, 4).bool(), torch.ones(1, 4)
    source = torch.full((1, 3), 7)
    context = denoiser.encode_source(source, torch.ones_like(source).bool())
    guided = Guided(denoiser, scale)
    probs = guided(torch.randn(1, 4, D), t, mask=every, valid=every, context=context).softmax(-1)
    assert (probs[..., [0, 7]] < 1e-6).all()


def test_first_places():
    ids = torch.randint(0, 6, (20, 13), generator=torch.Generator().manual_seed(0))
    expected = [[row.index(token) for token in row] for row in ids.tolist()]
    assert first_places(ids).tolist() == expected
    assert first_places(ids[:, :0]).shape == (20, 0)


@pytest.mark.parametrize("kind", [TextDiffusion, Twin])
def test_words_that_training_never_saw_are_copied(kind):
    """Texts are their sources, backwards; in training of one half of the words, then of the other."""
    torch.manual_seed(0)
    shape = {"width": 32, "depth": 1, "heads": 2, "encoder_depth": 1, "max_length": 5}
    config = Config(**shape, max_source_length=5, conditioning="cross", pointer=True, source_dropout=0.0)
    model = kind(config, Tokenizer.train(["a few words"], 260))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    eos = model.tokenizer.eos_id

    def batch(low: int, seed: int) -> dict[str, Tensor]:
        words = torch.randint(low, low + 100, (64, 4), generator=torch.Generator().manual_seed(seed))
        ids = torch.cat([words.flip(1), torch.full((64, 1), eos)], 1)
        every = torch.ones_like(ids).bool()
        known = {"ids": ids, "valid": every, "mask": every, "index": torch.arange(64) + 64 * seed}
        return known | {"source": words, "source_mask": torch.ones_like(words).bool()}

    def cost(low: int, seed: int) -> Tensor:
        losses = model.loss(batch(low, seed), 0)
        return (losses.nll * losses.mask).sum() / losses.mask.sum()

    for step in range(160):
        optimizer.zero_grad()
        cost(20, step).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert cost(140, 1000) < 2.5 < torch.tensor(100.0).log()


def test_models_that_have_nothing_to_copy_from():
    tokenizer = Tokenizer.train(["a few words"], 260)
    for kind in (TextDiffusion, Twin):
        with pytest.raises(ValueError, match="pointer: copies from a source"):
            kind(Config(conditioning="none", pointer=True, width=16, heads=2), tokenizer)
