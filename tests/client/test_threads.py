"""Small matrices are multiplied by one thread, whatever was set before, and then that holds again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from client.threads import one_thread


def _threads() -> list[int]:
    np.ones((2, 2)) @ np.ones((2, 2))  # its library is loaded
    return [
        torch.get_num_threads(),
        *(own["num_threads"] for own in threadpool_info() if own["user_api"] == "blas"),
    ]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2, user_api="blas"):
        yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_within_it_all_have_one_thread_and_afterwards_what_they_had() -> None:
    before = _threads()
    with one_thread():
        assert set(_threads()) == {1}
        with one_thread():
            assert set(_threads()) == {1}
    assert _threads() == before


@pytest.mark.usefixtures("two_threads")
def test_an_error_within_it_leaves_nothing_changed() -> None:
    before = _threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        1 / 0  # noqa: B018
    assert _threads() == before


def test_of_several_threads_one_is_within_at_a_time() -> None:
    before, within = _threads(), threading.Event()

    def other() -> None:
        with one_thread():
            within.set()

    beside = threading.Thread(target=other)
    with one_thread():
        beside.start()
        assert not within.wait(0.2)
        with one_thread():
            pass
        assert not within.wait(0.1)
    assert within.wait(30.0)
    beside.join()
    assert _threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_need_not_wait_for_a_thread_that_it_does_not_have() -> None:
    inside, over = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread():
            inside.set()
            over.wait(30.0)

    beside = threading.Thread(target=other)
    beside.start()
    assert inside.wait(30.0)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        with one_thread():
            os._exit(0)
    over.set()
    beside.join()
    assert os.waitpid(pid, 0)[1] == 0
