"""What follows from weights alone, computed once for as long as the weights stay as they are.

A step of generation on one text costs a few milliseconds, of which scaling a table of all tokens and
casting weights to bfloat16 would take more than half.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from torch import Tensor

KEPT: ContextVar[dict[Any, Tensor] | None] = ContextVar("kept", default=None)


@contextmanager
def fixed_weights(device: torch.device) -> Iterator[None]:
    """While this lasts, in this thread, no weight changes: `once` and autocast compute nothing twice."""
    token = KEPT.set({})
    try:
        # the outermost autocast, though it casts nothing itself, keeps the cast copies of those within
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        KEPT.reset(token)


def once(method: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """A method without arguments whose result follows from weights: kept within `fixed_weights`."""

    @wraps(method)
    def result(self: Any) -> Tensor:
        kept = KEPT.get()
        if kept is None:
            return method(self)
        key = self, method.__qualname__
        if key not in kept:
            with torch.no_grad():
                # of leaves that ask for a gradient alone does autocast keep a cast copy
                kept[key] = method(self).detach().requires_grad_()
        return kept[key]

    return result
