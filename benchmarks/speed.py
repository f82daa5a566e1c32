"""Training throughput: `python -m textdiff.train` against a plain PyTorch loop of the same network.

    python benchmarks/speed.py

Both train the quickstart's network on the same batches with its optimizer; rounds alternate, since
machines drift. The ratio of the median step times is what Lightning, logging, averaging and data
loading cost.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import common
import torch

from textdiff.config import Config
from textdiff.data import TextData
from textdiff.diffusion import TextDiffusion
from textdiff.hardware import fast_dtype, precision, tune_allocator
from textdiff.optimizer import Muon
from textdiff.train import shape

CORPUS = {"dataset_name": "textdiff/reports", "vocab_size": 1030, "max_target_length": 32}
SHAPE = {"width": 128, "depth": 3, "heads": 4, "encoder_depth": 2}


def plain(steps: int) -> float:
    """Median seconds a step of the bare loop: batch, loss, backward, clip, optimizer."""
    data = TextData(**CORPUS, max_source_length=96)
    data.setup()
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    model = TextDiffusion(shape(Config(**SHAPE), data), data.tokenizer)
    optimizer, times = Muon(model, 2e-3, 0.01), []
    for batch, _ in zip(data.train_dataloader(), range(steps), strict=False):
        start = time.perf_counter()
        with precision(cpu, fast_dtype(cpu)):
            losses = model.loss(batch, 0)
        loss = (losses.nll * losses.mask).sum() / losses.mask.sum() + 0.1 * losses.length.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[15:])


def trainer(steps: int, folder: Path) -> float:
    """Median seconds a step of the real command."""
    return common.fit(["--config", "quickstart"], steps, folder).median()


def main() -> None:
    """Alternate and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options, pairs = parser.parse_args(), []
    tune_allocator()  # as the command does, so that both have it
    result = common.header("speed", "textdiff/reports", "train")
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.rounds):
            pairs.append((plain(options.steps), trainer(options.steps, Path(folder, str(i)))))
    ratios = [bare / full for bare, full in pairs]
    spread = common.span(ratios)
    row = {"system": "embedding", "metrics": {"throughput_of_plain_loop": spread}}
    row["step_seconds"] = {"plain": [a for a, _ in pairs], "trainer": [b for _, b in pairs]}
    print(row, common.write(result | {"rows": [row]}, "speed"))


if __name__ == "__main__":
    main()
