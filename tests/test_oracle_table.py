"""The lines of `benchmarks/oracle.py`, with fewer texts, and a new sampler checked as a user would."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from oracle import SECTIONS, density, ncsn, rows, sde

from textdiff.sampler import DDIM, Sampler
from textdiff.testing import check_sampler

SLOW = {"ncsn", "sde", "density", "learned"}  # thousands of evaluations, or a training
SMALL = {
    "ncsn": partial(ncsn, repeats=8),
    "sde": partial(sde, names=["subvp"], steps=100, grid=400),
    "density": partial(density, names=["ve"], length=2, states=8),
}


def assert_within_limits(section, count):
    lines = list(rows(section, count))
    over = [
        (line["component"], line["measured"], line["threshold"]) for line in lines if not line["passed"]
    ]
    assert lines and not over


@pytest.mark.parametrize(
    "section",
    [pytest.param(one, marks=[pytest.mark.slow] * (one.__name__ in SLOW)) for one in SECTIONS],
    ids=lambda section: section.__name__,
)
def test_lines_are_within_their_limits(section):
    assert_within_limits(section, 150)


@pytest.mark.parametrize("name", SMALL)
def test_lines_of_a_smaller_table_are_within_the_same_limits(name):
    """One equation, shorter texts, fewer steps."""
    assert_within_limits(SMALL[name], 300)


def test_a_wrong_sampler_is_told_from_a_right_one():
    class Backwards(DDIM):
        def step(self, predict, x_t, t, s, history):
            return super().step(predict, x_t, s, t, history)

    right, wrong = (
        check_sampler("embedding", sampler, count=800) for sampler in (DDIM(40), Backwards(40))
    )
    assert right.distance < 0.06 and abs(right.excess) < 0.06 and right.evaluations == 40
    assert wrong.distance > 0.1 or abs(wrong.excess) > 0.1


def test_a_sampler_of_ones_own():
    """The documented example: a new step, held to the same limits."""

    class Halfway(Sampler):
        tau, gaussian = 0.5, True

    check = check_sampler("embedding", Halfway(80), decoder="sample", count=1500)
    assert check.distance < 0.045 and abs(check.excess) < 0.05
    assert check.ids.shape == (1500, 8) and check.ids.dtype == torch.int64
