"""One thread for small matrices: more would cost time, and move the last bits of floats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch and the library of numpy's products have one thread each."""
    before, blas = torch.get_num_threads(), _blas()
    if before == 1 and all(library.num_threads == 1 for library in blas.lib_controllers):
        yield
        return
    torch.set_num_threads(1)
    try:
        with blas.limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
