"""Laws of every way to choose times: the mean loss is not changed; and what importance is for."""

import csv

import pytest
import torch
from conftest import run_training
from test_axes import make, make_batch

from textdiff.config import build
from textdiff.times import TIMES, Importance

U = (torch.arange(20_000) + 0.5) / 20_000
LOSSES = {  # rates over time
    "flat": torch.ones_like,
    "one end": lambda t: 30 * t**29,
    "both": lambda t: 5 * (t - 0.5).abs() ** 4 + 0.01,
}


def trained(name, loss):
    times = build(TIMES, name).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        t, _ = times(torch.rand(32, generator=generator))
        times.observe(t, loss(t) * (0.5 + torch.rand(32, generator=generator)))
    return times


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", TIMES)
def test_the_mean_stays(name, loss):
    times = trained(name, LOSSES[loss])
    t, weight = times(U)
    weight = torch.ones_like(t) if weight is None else weight
    for other in LOSSES.values():
        assert float((weight * other(t)).mean()) == pytest.approx(float(other(U).mean()), rel=1e-2)
    assert t.min() >= 0 and t.max() <= 1 and (t.diff() >= 0).all()


@pytest.mark.parametrize("name", TIMES)
def test_evaluation_is_even(name):
    times = trained(name, LOSSES["one end"]).eval()
    t, weight = times(U)
    assert torch.equal(t, U) and weight is None


def test_importance_has_the_least_variance():
    """Near that of p(t) ~ L_t, which is zero but for the floor, the bins and the noise of the loss."""
    loss = LOSSES["one end"]
    even, (t, weight) = loss(U).var(), trained("importance", loss)(U)
    assert (weight * loss(t)).var() < 0.1 * even
    flat = trained("importance", LOSSES["flat"])(U)[1]
    assert (flat - 1).abs().max() < 0.2
    assert trained({"name": "importance", "floor": 0.5}, loss)(U)[1].max() <= 2.0001


def test_even_until_every_time_was_seen():
    times = Importance(bins=4).train()
    times.observe(torch.tensor([0.1, 0.3, 0.6] * 2), torch.tensor([1.0, 2.0, 3.0] * 2))
    assert torch.equal(times(U)[0], U)
    times.observe(torch.tensor([0.1, 0.3, 0.6, 0.8, 0.99]), torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0]))
    mass = times.cdf.diff()
    assert torch.allclose(mass, 0.9 * torch.tensor([1.0, 2, 3, 4]).double() / 10 + 0.1 / 4)


def test_losses_carry_the_weight_of_examples_with_one_time():
    model = make(process="masked", objective="variational", times="importance", token_noise=0.5).train()
    for _ in range(50):
        model.times.observe(torch.linspace(0, 0.999, 64), torch.linspace(0, 1, 64))
    batch = make_batch(model)
    many = {key: value.repeat(8, *[1] * (value.dim() - 1)) for key, value in batch.items()}
    many["index"] = torch.arange(24)
    losses = model.loss(many, 0)
    single = ~losses.t.isnan()
    assert single.any() and not single.all()
    assert torch.equal(losses.weight[~single], torch.ones(int((~single).sum())))
    known = 1 / (model.times.cdf.diff() * 32)
    assert torch.allclose(losses.weight[single].double(), known[model.times.place(losses.t[single])])
    assert make().train().loss(batch, 0).weight is None


def test_training_uses_the_weights(files, tmp_path, monkeypatch):
    """Without any weight there is no loss; what the times are told has none of it."""
    told = []
    monkeypatch.setattr(Importance, "forward", lambda _, u: (u, torch.zeros_like(u)))
    monkeypatch.setattr(Importance, "observe", lambda _, t, loss: told.append((t, loss)))
    rates = {f"model__network__{name}": 0.0 for name in ("token_noise", "given_rate", "prefix_rate")}
    shape = {"model__network__times": "importance", "model__network__objective": "variational"}
    run_training(tmp_path, **files, **rates, **shape, trainer__max_steps=2, trainer__log_every_n_steps=1)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(encoding="utf-8")))
    assert [float(row["loss"]) for row in rows if row["loss"]] == [0.0, 0.0]
    assert len(told) == 2 and all(len(t) == len(loss) and (loss > 0).all() for t, loss in told)
