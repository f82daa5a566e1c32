"""Random streams: keyed by example and step, blind to the batch."""

import pytest
import torch

import textdiff.noise as noise_module
from textdiff.noise import Noise, clocks, low_discrepancy, race


def valid(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_draws_do_not_depend_on_the_batch(kind):
    together = Noise(3, [4, 9, 2], valid([3, 7, 5], 7), step=2)
    alone = Noise(3, [2], valid([5], 11), step=2)
    for shape in ((4,), (1,), (6, 2), ()):
        many = getattr(together, kind)((3, 7, *shape))
        one = getattr(alone, kind)((1, 11, *shape))
        assert torch.equal(many[2, :5], one[0, :5])
        assert (many[2, 5:] == 0).all() and (one[0, 5:] == 0).all()
    assert torch.equal(getattr(together, kind)((3,))[2:], getattr(alone, kind)((1,)))


def test_no_valid_means_full_length():
    full = Noise(3, [2], torch.ones(1, 6, dtype=torch.bool)).normal((1, 6, 4))
    assert torch.equal(Noise(3, [2]).normal((1, 6, 4)), full)


def test_same_key_same_draws_again():
    assert torch.equal(Noise(3, [4], step=1).normal((1, 6)), Noise(3, [4], step=1).normal((1, 6)))


def test_every_key_has_its_own_stream():
    shape = (1, 2000)
    draws = [
        noise.normal(shape)[0]
        for noise in (Noise(0, [0]), Noise(1, [0]), Noise(0, [1]), Noise(0, [0], step=1))
    ]
    draws.append(Noise(0, [0]).at(2).normal(shape)[0])
    again = Noise(0, [0])
    again.normal(shape)
    draws.append(again.normal(shape)[0])
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.1


def test_at_moves_to_a_step_and_keeps_the_rest():
    mask = valid([3, 5], 5)
    start = Noise(8, [6, 7], mask)
    first = start.normal((2, 5, 3))
    moved = start.at(4)
    assert torch.equal(moved.normal((2, 5, 3)), Noise(8, [6, 7], mask, step=4).normal((2, 5, 3)))
    assert not torch.equal(start.normal((2, 5, 3)), first)  # it goes on where it was
    assert torch.equal(start.at(0).normal((2, 5, 3)), first)


@pytest.mark.parametrize("shape", [(7, 90, 200), (7, 90)])
def test_threads_change_no_draw(monkeypatch, shape):
    mask = valid([90, 3, 41, 90, 1, 60, 7], 90)
    monkeypatch.setattr(noise_module, "MANY", 100)
    draws = []
    for threads in (1, 3, 20):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        noise = Noise(5, range(7), mask)
        draws += [torch.stack([noise.normal(shape), noise.uniform(shape), noise.normal(shape)])]
    assert all(torch.equal(one, draws[0]) for one in draws[1:])
    assert len(draws[0].unique(dim=0)) == 3 and (draws[0][:, 1, 3:] == 0).all()


def test_distributions():
    noise = Noise(0, range(50))
    normal, uniform = noise.normal((50, 400)), noise.uniform((50, 400))
    assert normal.dtype == uniform.dtype == torch.float32
    assert normal.mean().item() == pytest.approx(0, abs=0.03)
    assert normal.var().item() == pytest.approx(1, abs=0.04)
    assert (normal.abs() < 1).float().mean().item() == pytest.approx(0.683, abs=0.015)
    assert 0 <= uniform.min() and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.003)


@pytest.mark.parametrize("vocabulary", [2, 7, 30, 100])
def test_a_race_is_won_as_often_as_probabilities_say(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    probs = torch.rand(vocabulary, generator=generator).square()
    probs[0] = 0.0
    u = torch.rand(100_000, clocks(vocabulary), generator=generator)
    won = torch.bincount(race(probs.expand(len(u), -1), u), minlength=vocabulary) / len(u)
    assert won[0] == 0
    assert (won - probs / probs.sum()).abs().max() < 0.006


def test_rounding_hardly_changes_a_draw_from_a_large_vocabulary():
    """What other texts of a batch do to logits; an inverse distribution function loses one in 2,000."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, generator=generator).expand(10_000, -1)
    other = logits + 2e-6 * torch.randn(logits.shape, generator=generator)
    u = torch.rand(len(logits), clocks(4000), generator=generator)
    changed = race(torch.softmax(logits, -1), u) != race(torch.softmax(other, -1), u)
    assert changed.sum() <= 1


@pytest.mark.parametrize("start", [0, 17, 10**6])
@pytest.mark.parametrize("count", [8, 64, 500])
def test_times_are_even_over_any_run_of_examples(start, count):
    t = low_discrepancy(5, torch.arange(start, start + count)).sort().values
    assert t.dtype == torch.float32 and 0 <= t[0] and t[-1] < 1
    gaps = torch.diff(t, append=t[:1] + 1)
    assert gaps.max() < 2.7 / count, "a random draw would leave gaps of log(count) / count"
    assert gaps.min() > 0.35 / count


def test_times_differ_between_seeds():
    index = torch.arange(4)
    assert not torch.equal(low_discrepancy(1, index), low_discrepancy(2, index))
    assert torch.equal(low_discrepancy(1, index)[2:], low_discrepancy(1, index[2:]))
