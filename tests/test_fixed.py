"""What is computed once while weights stay as they are: the same, seldom, and never out of date."""

from threading import Thread

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import textdiff
from textdiff.fixed import fixed_weights
from textdiff.generation import generate_texts
from textdiff.process import PROCESSES
from textdiff.schedule import SCHEDULES

CPU = torch.device("cpu")
DERIVED = ("whole_table", "codebook")


@pytest.fixture
def writer(unconditional):
    return textdiff.load(unconditional / "model")


def build(name):
    return PROCESSES[name](nn.Embedding(11, 4), SCHEDULES["gumbel"]())


def derived(process):
    return {name: getattr(process, name)() for name in DERIVED if hasattr(process, name)}


def change(module):
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_same_as_without(name):
    process, other = build(name), build(name)
    usual = derived(process), derived(other)
    with fixed_weights(CPU):
        for _ in range(2):
            for one, own in zip((process, other), usual, strict=True):
                assert all(torch.equal(value, own[key]) for key, value in derived(one).items())


@pytest.mark.parametrize("name", PROCESSES)
def test_some_tokens_are_read_as_all_are(name):
    process, ids = build(name), torch.tensor([[3, 7, 3]])
    for normalised in (True, False):
        process.normalised = normalised
        assert torch.allclose(process.table(ids), process.table()[ids])


@pytest.mark.parametrize("name", PROCESSES)
def test_forgotten_afterwards(name):
    process = build(name)
    with fixed_weights(CPU):
        before = process.table()
        with fixed_weights(CPU):
            process.table()
    change(process.embedding)
    assert not torch.allclose(process.table(), before)
    with fixed_weights(CPU):
        assert not torch.allclose(process.table(), before)
    process.table().sum().backward()
    assert process.embedding.weight.grad is not None


def test_another_thread_has_its_own():
    process, found = build("embedding"), []
    with fixed_weights(CPU):
        kept = process.table()
        thread = Thread(target=lambda: found.append(process.table()))
        thread.start()
        thread.join()
        assert process.table() is kept and found[0] is not kept


class Count(TorchDispatchMode):
    """Calls of operations on tensors of one shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.calls = shape, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.shape == self.shape:
            self.calls[function] = self.calls.get(function, 0) + 1
        return function(*args, **(kwargs or {}))


def work_on_the_table(model, steps, dtype):
    """How often the whole table is measured and cast, in writing one text."""
    with Count(model.process.embedding.weight.shape) as count:
        generate_texts(model, num_samples=1, steps=steps, sampler="ancestral", length=6, dtype=dtype)
    norm, cast = torch.ops.aten.linalg_vector_norm.default, torch.ops.aten._to_copy.default
    return count.calls.get(norm, 0), count.calls.get(cast, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_steps_scale_and_cast_the_table_no_more_often(writer, dtype):
    few = work_on_the_table(writer, 2, dtype)
    assert work_on_the_table(writer, 6, dtype) == few
    assert few == (2, 2 * (dtype == "bfloat16"))  # the table that is read, and the clean points


def test_texts_follow_the_weights(writer):
    def write():
        return generate_texts(writer, num_samples=4, steps=2, length=12).ids

    state = {name: value.clone() for name, value in writer.state_dict().items()}
    first = write()
    change(writer)
    assert write() != first
    writer.load_state_dict(state)
    assert write() == first
