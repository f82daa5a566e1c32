"""What a training step draws: which tokens are given, and the time of every other one."""

import pytest
import torch
from torch import Tensor

from textdiff.config import Config
from textdiff.diffusion import TextDiffusion
from textdiff.tokenizer import Tokenizer

ROWS, LONG, SHORT = 4000, 9, 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a few words"], 260)


def drawn(tokenizer: Tokenizer, monkeypatch, **rates: float) -> tuple[Tensor, Tensor, Tensor]:
    """`valid`, `mask` and times, all `(ROWS, LONG)`, of one batch; every second text is short.

    The schedule must learn from texts with one time and without tokens given anywhere.
    """
    config = Config(conditioning="none", width=8, depth=1, heads=1, embedding_width=8, **rates)
    model, seen = TextDiffusion(config, tokenizer), []
    lengths = torch.tensor([LONG, SHORT] * (ROWS // 2))[:, None]
    valid = torch.arange(LONG) < lengths
    ids = torch.where(valid, 5, tokenizer.pad_id)

    def watch(x_t: Tensor, t: Tensor, ids: Tensor, inputs: dict[str, Tensor], *_) -> Tensor:
        seen.extend([inputs["mask"], t])
        return model.process.table()[ids] * 0

    monkeypatch.setattr(model, "predict_first", watch)
    losses = model.loss({"ids": ids, "valid": valid, "mask": valid, "index": torch.arange(ROWS)}, 3)
    assert torch.equal(losses.mask, seen[0])
    known = ~losses.t.isnan()
    times = seen[1][known].where(seen[0][known], losses.t[known, None])
    assert (times == losses.t[known, None]).all()
    expected = (1 - config.given_rate) * (1 - config.token_noise)
    assert known.float().mean().item() == pytest.approx(expected, abs=0.03)
    return valid, *seen


def share(flags: Tensor) -> float:
    return flags.float().mean().item()


def test_padding_is_never_generated_and_given_tokens_are_clean(tokenizer, monkeypatch):
    valid, mask, t = drawn(tokenizer, monkeypatch)
    assert not (mask & ~valid).any()
    assert (t[~mask] == 0).all() and (t[mask] > 0).all()
    assert mask.any(1).all(), "something is left to generate"


def test_any_tokens_given_and_all_others_pure_noise(tokenizer, monkeypatch):
    valid, mask, t = drawn(tokenizer, monkeypatch, prefix_rate=0.0, given_rate=1.0)
    assert (t[mask] == 1).all()
    for length in (LONG, SHORT):
        rows = mask[valid.sum(1) == length]
        counts = torch.bincount(length - rows.sum(1), minlength=length) / len(rows)
        assert torch.allclose(counts, torch.full((length,), 1 / length), atol=0.03)
        places = (~rows[:, :length]).float().mean(0)
        assert torch.allclose(places, places.mean(), atol=0.05), "no place is preferred"


def test_a_prefix_given(tokenizer, monkeypatch):
    valid, mask, t = drawn(tokenizer, monkeypatch, prefix_rate=1.0, given_rate=0.0, token_noise=0.0)
    given = (valid & ~mask).sum(1, keepdim=True)
    assert torch.equal(mask, valid & (torch.arange(LONG) >= given))
    assert given.min() == 0 and given.float().mean() == pytest.approx(3, abs=0.15)
    assert torch.equal(t, t.amax(1, keepdim=True) * mask), "one time for the rest"


def test_the_length_is_not_told_from_tokens_given_at_random(tokenizer, monkeypatch):
    """Of a text with many of them many are given: they would tell how long it is."""
    config = Config(conditioning="none", width=8, depth=1, heads=1, embedding_width=8, given_rate=0.5)
    model, seen = TextDiffusion(config, tokenizer), []
    monkeypatch.setattr(
        model, "pool", lambda _, ids, mask, valid: seen.append(mask) or torch.zeros(ROWS, 8)
    )
    valid = torch.ones(ROWS, LONG, dtype=torch.bool)
    batch = {"ids": 5 * valid.long(), "valid": valid, "mask": valid, "index": torch.arange(ROWS)}
    mask = model.loss(batch, 3).mask
    assert share((seen[0] != mask).any(1)) == pytest.approx(0.5 * (1 - 1 / LONG), abs=0.03)
    given = (~seen[0]).sum(1, keepdim=True)
    assert torch.equal(seen[0], torch.arange(LONG) >= given), "a prefix or nothing"


def test_shares_above_one_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"prefix_rate 0\.7 and given_rate 0\.5 .* at most 1"):
        TextDiffusion(Config(prefix_rate=0.7, given_rate=0.5), tokenizer)


def test_shares_of_all_kinds(tokenizer, monkeypatch):
    rates = {"prefix_rate": 0.2, "given_rate": 0.3, "token_noise": 0.4}
    valid, mask, t = drawn(tokenizer, monkeypatch, **rates)
    whole, long = (mask == valid).all(1), valid.sum(1) == LONG
    own = ((t != t.amax(1, keepdim=True)) & mask).any(1)
    # of n counts of given tokens one is none at all
    assert share(~whole[long]) == pytest.approx(0.5 * (1 - 1 / LONG), abs=0.03)
    assert share(own[whole]) == pytest.approx(0.5 * 0.4 / (0.5 + 0.5 / 7), abs=0.06)
    settled = ((t == 1) | ~mask).all(1)
    assert share(settled) == pytest.approx(0.3, abs=0.03)


def test_times_without_given_tokens_are_even(tokenizer, monkeypatch):
    _, _, t = drawn(tokenizer, monkeypatch, prefix_rate=0.0, given_rate=0.0, token_noise=0.0)
    first = t[:, 0].sort().values
    assert (first - torch.linspace(0, 1, ROWS)).abs().max() < 0.002
    _, mask, own = drawn(tokenizer, monkeypatch, prefix_rate=0.0, given_rate=0.0, token_noise=1.0)
    assert own[mask].mean().item() == pytest.approx(0.5, abs=0.01)
    assert own[mask].var().item() == pytest.approx(1 / 12, abs=0.005)
