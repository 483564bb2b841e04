"""Small matrices are multiplied by one thread, whatever was set before, and then that holds again."""

from __future__ import annotations

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
