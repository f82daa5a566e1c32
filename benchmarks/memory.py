"""Peak memory of a training step and of a sampling step, by process and size of the vocabulary.

    python benchmarks/memory.py

Every pair runs in a process of its own, whose highest resident memory above that before the first step is
reported: weights and optimizer are the same for all processes, states and noise are not.
"""

import argparse
import json
import subprocess
import sys
import time

import common
import torch
from torch import Tensor, nn

from textdiff.decoder import DECODERS
from textdiff.denoiser import Denoiser
from textdiff.hardware import tune_allocator
from textdiff.noise import Noise
from textdiff.objective import cross_entropy
from textdiff.process import PROCESSES
from textdiff.sampler import SAMPLERS, Predict
from textdiff.schedule import SCHEDULES

BATCH, LENGTH, WIDTH = 32, 64, 128


def train(denoiser: Denoiser, ids: Tensor) -> None:
    """One forward and backward pass."""
    whole, noise = torch.ones_like(ids, dtype=torch.bool), Noise(0, range(BATCH))
    process, t = denoiser.process, noise.uniform(ids.shape)
    x_t = process.corrupt(process.encode(ids), t, noise)
    logits = denoiser(x_t, t, mask=whole, valid=whole)
    cross_entropy(process, logits, ids, x_t, t).mean().backward()


def sample(denoiser: Denoiser, ids: Tensor) -> None:
    """Four evaluations of the network."""
    whole = torch.ones_like(ids, dtype=torch.bool)
    noise = Noise(0, range(BATCH), whole)
    SAMPLERS["ancestral"](4)(Predict(denoiser, DECODERS["softmax"](), ids, whole, whole, None, noise))


WORK = {"training": (train, 1), "sampling": (sample, 4)}


def child(name: str, vocabulary: int, work: str) -> dict[str, float]:
    """Peak and fastest time of three tries of one kind of work."""
    tune_allocator()
    torch.manual_seed(0)
    process = PROCESSES[name](nn.Embedding(vocabulary, WIDTH), SCHEDULES["gumbel"]())
    shape = {"width": WIDTH, "depth": 4, "heads": 4, "encoder_depth": 0}
    denoiser = Denoiser(process, **shape, max_length=LENGTH, max_source_length=1)
    ids = torch.randint(vocabulary, (BATCH, LENGTH))
    do, evaluations = WORK[work]
    memory, times = common.Memory(), []
    for _ in range(3):
        begin = time.perf_counter()
        do(denoiser, ids)
        times.append((time.perf_counter() - begin) / evaluations)
    tokens = BATCH * LENGTH
    return {
        "peak_bytes": memory.peak,
        "step_seconds": min(times),
        "tokens_per_second": tokens / min(times),
    }


def main() -> None:
    """All pairs, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], int(options.child[1]), options.child[2])))
        return
    result = common.header("memory", "random tokens", "train")
    result |= {"batch_size": BATCH, "length": LENGTH, "width": WIDTH, "dtype": "float32", "rows": []}
    for vocabulary in options.vocabularies:
        for name in PROCESSES:
            for work in WORK:
                command = [sys.executable, __file__, "--child", name, str(vocabulary), work]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row = {"system": name, "vocabulary": vocabulary, "work": work}
                result["rows"].append(row | {"metrics": json.loads(done.stdout)})
                print(result["rows"][-1], flush=True)
    print(common.write(result, "memory"))


if __name__ == "__main__":
    main()
