"""What a peer calls a code goes into logs only if it is one."""

from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

import link.errors


@given(st.text(max_size=100))
def test_no_text_of_a_peer_can_end_a_line_of_the_log(text: str) -> None:
    code = link.errors.code_of(text, "unknown")
    assert code in (text, "unknown") and code.isascii() and len(code) <= 64
    assert len(code.split()) == 1 and code.isprintable()


def test_the_examples_are_true() -> None:
    assert doctest.testmod(link.errors).failed == 0
