"""On a CUDA device: `python -m pytest -m gpu`. The same texts as on a CPU; training in bfloat16."""

import pytest
import torch
from conftest import run_training

from textdiff import generate, infill, load
from textdiff.control import Contain, TextScore
from textdiff.process import PROCESSES
from textdiff.systems import SYSTEMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SOURCES = [
    f"Anna Lee won the race in {city} by {i} seconds." for i, city in enumerate(["Oslo", "Rome"] * 8)
]
KINDS = [*({"process": name} for name in PROCESSES), {"system": "autoregressive"}]
assert len(SYSTEMS) == 2


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_train_and_write_on_the_gpu(tmp_path, files, kind):
    options = {f"model__network__{key}": value for key, value in kind.items()}
    gpu = {"trainer__accelerator": "gpu", "trainer__precision": "bf16-mixed", "model__optimizer": "muon"}
    run_training(tmp_path, **files, **gpu, **options)
    model = load(tmp_path / "model")
    assert model.device.type == "cuda"
    how = {"seed": 1, "dtype": "float32"}
    texts = generate(model, SOURCES, **how)
    assert generate(model, SOURCES, batch_size=3, **how) == texts
    assert generate(load(tmp_path / "model", "cpu"), SOURCES, **how) == texts
    assert len(generate(model, SOURCES, seed=1, dtype="bfloat16")) == len(SOURCES)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_is_that_of_the_cpu(tmp_path, files, compiled):
    run_training(tmp_path / "start", **files)  # one start: each device has its own random weights
    rows, start = {}, tmp_path / "start" / "model"
    for name in ("cpu", "gpu"):
        how = {"trainer__accelerator": name, "model__compile": str(compiled and name == "gpu").lower()}
        run_training(tmp_path / name, **files, **how, model__init_from=start)
        lines = (tmp_path / name / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("loss")
        rows[name] = [float(cell) for line in lines[1:] if (cell := line.split(",")[column])]
    assert rows["gpu"] == pytest.approx(rows["cpu"], rel=2e-3)


@pytest.mark.parametrize("process", PROCESSES)
def test_control_and_gaps_on_the_gpu(tmp_path, files, process):
    run_training(
        tmp_path,
        **files,
        data__text_column="target",
        model__network__process=process,
        model__network__block_rate=0.3,
        trainer__accelerator="gpu",
    )
    model = load(tmp_path / "model")
    controls = [
        Contain("race"),
        TextScore(lambda texts: [float("a" in text) for text in texts], weight=2),
    ]
    how = {"num_samples": 8, "seed": 0, "dtype": "float32", "controls": controls}
    pairs = zip(generate(model, **how), generate(load(tmp_path / "model", "cpu"), **how), strict=True)
    # whitening (linear_simplex) magnifies what two devices round differently
    assert sum(a == b for a, b in pairs) >= (8 if process != "linear_simplex" else 4)
    assert len(generate(model, num_samples=2, seed=0, block_length=4, length=30)) == 2
    assert infill(model, ["Anna ___ the race"], seed=0)[0].startswith("Anna")
