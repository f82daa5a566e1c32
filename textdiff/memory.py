"""The allocator of the machine."""

import ctypes


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
