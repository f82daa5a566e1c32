"""Tokens that are asked for alone answer as they do among all others."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from textdiff.config import Config
from textdiff.control.control import Control, Placed
from textdiff.control.steering import Shifted, Steered
from textdiff.denoiser import Continued, Denoiser, GoesOn, Guided
from textdiff.diffusion import TextDiffusion
from textdiff.noise import Noise
from textdiff.objective import OBJECTIVES
from textdiff.packing import PickedNoise, pick, places, put
from textdiff.process import PROCESSES, keep
from textdiff.schedule import Cosine
from textdiff.tokenizer import Tokenizer

V, D, B, L, S = 11, 8, 3, 6, 5
VALID = torch.arange(L) < torch.tensor([6, 4, 2])[:, None]
MASK = VALID & (torch.arange(L) != 1)
SOURCE = torch.arange(B * S).view(B, S) % V
SEEN = torch.arange(S) < torch.tensor([5, 3, 1])[:, None]


class Surer(Control):
    """Of the whole text: what is likely becomes likelier; its evidence moves with the state."""

    def per_token(self, view):
        return view.probs + view.probs.mean((1, 2), keepdim=True)

    def evidence(self, view):
        return view.probs.square().sum((1, 2))


class Third(Placed):
    """The word 4, more so the later."""

    def at(self, place, vocabulary):
        return place[..., None] * (torch.arange(vocabulary) == 4)


def make(process: str = "embedding", **options) -> Denoiser:
    torch.manual_seed(0)
    made = PROCESSES[process](nn.Embedding(V, D), Cosine())
    made.log_prior.copy_(torch.randn(V).log_softmax(0))
    sizes = {"width": 16, "depth": 1, "heads": 2, "encoder_depth": 1, "max_length": 9}
    denoiser = Denoiser(made, **sizes, max_source_length=9, barred=(0, 5), **options).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return denoiser


def continued(denoiser: Denoiser) -> Continued:
    before = torch.arange(B * 2).view(B, 2)
    return Continued(
        denoiser, denoiser.remember(before, torch.ones_like(before).bool(), context(denoiser))
    )


def context(denoiser: Denoiser):
    return denoiser.encode_source(SOURCE, SEEN)


WAYS: dict[str, tuple[dict, Callable[[Denoiser], nn.Module]]] = {
    "plain": ({}, lambda denoiser: denoiser),
    "pointer": ({"pointer": True}, lambda denoiser: denoiser),
    "guided": ({"pointer": True}, lambda denoiser: Guided(denoiser, 2.0)),
    "goes on": ({}, lambda denoiser: GoesOn(denoiser, 3)),
    "continued": ({"blocks": True}, continued),
    "steered": ({}, lambda denoiser: Steered(denoiser, [Surer()])),
    "placed": ({}, lambda denoiser: Steered(denoiser, [Third()])),
    "both": ({}, lambda denoiser: Steered(denoiser, [Third(), Surer()])),
    "shifted": ({}, lambda denoiser: Shifted(denoiser, [Surer()])),
}


def test_places_by_hand():
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert places(mask).tolist() == [0, 2, 4]
    x = torch.arange(6).view(2, 3)
    assert pick(x, places(mask)).tolist() == [[0, 2, 4]] and pick(x, None) is x
    assert put(x, places(mask), torch.tensor([[7, 8, 9]])).tolist() == [[7, 1, 8], [3, 9, 5]]
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]  # itself as it was
    assert put(x[..., None].float(), places(mask), torch.ones(1, 3, 1)).shape == (2, 3, 1)


def test_noise_is_that_of_the_whole_text():
    noise, only = Noise(5, range(B), VALID, step=3), places(MASK)
    for kind in ("uniform", "normal"):
        whole = getattr(noise.at(3), kind)((B, L, 4))
        found = getattr(PickedNoise(noise.at(3), MASK.shape, only), kind)((1, len(only), 4))
        assert torch.equal(found, whole[MASK][None])


@pytest.mark.parametrize("way", WAYS)
def test_some_tokens_answer_as_among_all(way):
    options, wrap = WAYS[way]
    denoiser = make(**options)
    told, t = context(denoiser), 0.6 * MASK
    x_0 = denoiser.process.encode(torch.arange(B * L).view(B, L) % V)
    noisy = denoiser.process.corrupt(x_0, t, Noise(0, range(B), VALID))
    x_t = torch.where(MASK[..., None], noisy, x_0)
    answer, inputs = wrap(denoiser), {"mask": MASK, "valid": VALID, "context": told}
    whole = answer(x_t, t, **inputs).detach()
    shift = answer.shift if way == "shifted" else None
    for asked in (MASK, MASK & (torch.arange(B) != 1)[:, None], torch.zeros_like(MASK)):
        found = answer(x_t, t, only=places(asked), **inputs)
        assert found.shape == (1, asked.sum(), V)
        assert torch.allclose(found[0], whole[asked], atol=1e-4)
        if shift is not None:  # of the text, whatever is asked
            assert torch.allclose(answer.shift, shift, atol=1e-5) and shift.abs().max() > 1e-4
    ids = (torch.arange(B * L).view(B, L) % V).masked_fill(MASK, 0)
    seen = denoiser.process.see_open(x_t, t, ids, places(MASK))
    assert torch.allclose(
        answer(x_t, t, seen=seen, only=places(MASK), **inputs)[0], whole[MASK], atol=1e-4
    )


def make_model(process: str = "embedding", **told) -> TextDiffusion:
    tokenizer = Tokenizer.train(["a few words of some text"], 260)
    shape = {"width": 16, "depth": 1, "heads": 2, "encoder_depth": 1, "max_length": L}
    shape |= {"process": process, "conditioning": "cross", "max_source_length": S, "pointer": True}
    torch.manual_seed(0)
    model = TextDiffusion(Config(**shape, **told), tokenizer)
    with torch.no_grad():
        model.denoiser.previous.weight.normal_()
    return model


def make_batch() -> dict[str, Tensor]:
    """Eight texts of one to six tokens."""
    valid = torch.arange(L) < torch.tensor([6, 4, 2, 6, 5, 1, 3, 6])[:, None]
    ids = torch.arange(8 * L).view(8, L) + 20
    batch = {"ids": ids, "valid": valid, "mask": valid, "index": torch.arange(8), "position": 0}
    return batch | {"source": ids[:, :S] + 5, "source_mask": torch.ones(8, S, dtype=torch.bool)}


def loss_and_slopes(model: TextDiffusion, batch: dict[str, Tensor] | None = None) -> list[Tensor]:
    model.zero_grad()
    losses = model.loss(batch or make_batch(), 7)
    cost = (losses.cost * losses.mask).sum() / losses.mask.sum()
    cost.backward()
    slopes = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [cost.detach(), (losses.nll * losses.mask).detach(), *slopes]


ANY = ("cross_entropy", "variational")
TRAINED = [("embedding", name) for name in OBJECTIVES]
TRAINED += [(name, objective) for name in PROCESSES if name != "embedding" for objective in ANY]


@pytest.mark.parametrize(("process", "objective"), TRAINED)
def test_training_learns_the_same_as_from_all_tokens(process, objective, monkeypatch):
    """Of texts without given tokens, with first ones, and with any."""
    told = {"given_rate": 0.4, "prefix_rate": 0.3, "self_conditioning": 0.0}
    model, batch = make_model(process, objective=objective, **told), make_batch()
    noise = Noise(7, batch["index"].tolist(), batch["valid"])
    mask, settled = model.draw_mask(batch["mask"], noise)
    assert settled.any() and not settled.all() and 0 < mask.sum() < 0.8 * batch["mask"].sum()
    found = loss_and_slopes(model)
    every = torch.arange(mask.numel())
    monkeypatch.setattr("textdiff.diffusion.places", lambda mask: every)
    expected = loss_and_slopes(model)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_training_step_sees_its_texts_once(process, monkeypatch):
    """For the first prediction and the loss, and every given word once; the same slopes as from all."""
    model = make_model(process, given_rate=0.8, self_conditioning=1.0)
    batch = make_batch()
    batch["ids"][::2] = batch["ids"][:1]
    see, calls = model.process.see, []
    monkeypatch.setattr(model.process, "see", lambda *state: calls.append(state) or see(*state))
    found = loss_and_slopes(model, batch)
    assert len(calls) == 1
    monkeypatch.setattr(model.process, "see_open", lambda x_t, t, ids, only: see(x_t, t, only))
    for one, other in zip(found, loss_and_slopes(model, batch), strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_objective_is_told_what_belongs_together(monkeypatch):
    model, batch, told = make_model(objective="variational", token_noise=1.0), make_batch(), {}
    forward, objective = model.denoiser.forward, model.objective

    def watched(x_t, t, **inputs):
        told["seen"] = (batch["ids"], x_t, t, inputs["mask"])
        return forward(x_t, t, **inputs)

    def asked(process, logits, *tokens):
        told["asked"] = tokens
        return objective(process, logits, *tokens)

    monkeypatch.setattr(model.denoiser, "forward", watched)
    model.objective = asked
    model.loss(batch, 7)
    *seen, mask = told["seen"]
    for one, whole in zip(told["asked"], seen, strict=True):
        assert torch.equal(one, whole[mask][None])
    assert seen[2].unique().numel() > 9  # every token has a time of its own


@torch.no_grad()
def test_a_first_prediction_is_reread_where_it_was_made():
    """Given tokens are read as themselves, open ones as the mean of what was predicted."""
    model, batch = make_model(), make_batch()
    model.eval()
    ids, valid = batch["ids"], batch["valid"]
    mask = valid & (torch.arange(L) % 2 == 0)
    chosen = torch.arange(8) != 3
    inputs = {"mask": mask, "valid": valid}
    told = model.read(batch["source"], batch["source_mask"])
    x_t, t = model.process.encode(ids) + 0.5, 0.7 * mask
    found = model.predict_first(x_t, t, ids, inputs, told, chosen)
    probs = model.denoiser(x_t, t, context=told, **inputs).softmax(-1)
    shown = torch.where(mask[..., None], model.process.reread(probs), model.process.table(ids))
    assert torch.allclose(found[chosen], shown[chosen], atol=1e-5) and (found[3] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("process", PROCESSES)
def test_given_and_open_tokens_are_seen_apart_as_together(process):
    """And the first prediction of some texts takes its own part of that."""
    model, batch = make_model(process).eval(), make_batch()
    ids, valid = batch["ids"], batch["valid"]
    ids[::2] = ids[:1]  # equal words
    mask = valid & (torch.arange(L) % 2 == 0)
    t, x_0 = 0.7 * mask, model.process.encode(ids)
    x_t = keep(mask, model.process.corrupt(x_0, t, Noise(7, range(8), valid)), x_0)
    whole = model.process.see(x_t, t)
    seen = model.process.see_open(x_t, t, ids.masked_fill(mask, 0), places(mask))
    assert torch.allclose(seen.features, whole.features, atol=1e-5)
    assert torch.allclose(seen.log_posterior[0], whole.log_posterior[mask], atol=1e-4)
    told, chosen = model.read(batch["source"], batch["source_mask"]), torch.arange(8) != 3
    first = (x_t, t, ids, {"mask": mask, "valid": valid}, told, chosen)
    assert torch.allclose(
        model.predict_first(*first, seen), model.predict_first(*first), atol=1e-4, rtol=1e-4
    )
