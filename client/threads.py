"""One thread for small matrices: more would cost time, and move the last bits of floats."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


class _Turn:
    """Whose turn it is to have one thread for itself."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Nobody's."""
        self.lock = threading.RLock()


_TURN = _Turn()
if hasattr(os, "register_at_fork"):  # whoever held it in the process that forked is not in the fork
    os.register_at_fork(after_in_child=_TURN.begin)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch and the library of numpy's products have one thread each.

    The library's number is that of the whole process: whoever left while another is within would give the
    other more. So of several of Python's threads one is within at a time; the same thread may enter again.
    """
    with _TURN.lock:
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
