"""What the machine is good at: its allocator, its attention and its fast precision."""

import ctypes
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def steady_attention(device: torch.device) -> AbstractContextManager:
    """Attention kernels that take any shape as it comes: not cuDNN's.

    It plans anew for every shape, 9 ms each on an H100, where no two batches of texts are equally long:
    a training step of the e2e model took 400 ms.
    """
    return sdpa_kernel(KERNELS) if device.type == "cuda" else nullcontext()


def tune_allocator() -> None:
    """Let glibc keep large freed blocks: a third less time for a training step on a CPU.

    A step frees and asks again for the same tens of megabytes, which otherwise go back to the system
    and come as fresh, zeroed pages every time.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # not Linux, or not glibc: nothing to tune
        return
    for option, value in {-4: 0, -1: 2**31 - 1, -2: 64 << 20}.items():  # mmap max, trim, top pad
        libc.mallopt(option, value)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device is clearly faster in it than in float32, else float32.

    A processor with bfloat16 arithmetic gains a factor of 2 to 4; one without loses a factor of 100.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _bfloat16_wins()
    return torch.bfloat16 if native else torch.float32


def precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The network's own precision; all arithmetic around it stays in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@cache
def _bfloat16_wins() -> bool:
    # the best of rounds that take turns, of matrices so large that the waiting of threads matters little:
    # arithmetic of its own gains 4 and more there, so that noise does not decide
    rounds = [(_seconds(torch.bfloat16), _seconds(torch.float32)) for _ in range(4)]
    fast, usual = map(min, zip(*rounds, strict=True))
    return 1.4 * fast < usual


def _seconds(dtype: torch.dtype, size: int = 512) -> float:
    """The time of a product of two square matrices on the CPU."""
    matrix = torch.ones(size, size, dtype=dtype)
    start = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - start
