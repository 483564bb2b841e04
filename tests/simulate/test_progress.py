"""Progress: what is said on a terminal and in a log, and the estimate of the time left."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from simulate.progress import Progress, SilentProgress, TerminalProgress, duration, remaining_s


class Clock:
    """A clock that goes on by itself at every look."""

    def __init__(self, tick_s: float) -> None:
        self.now_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120, color_system=None), text


def work(progress: Progress) -> None:
    progress.step("rounds", 3)
    for number in range(3):
        progress.advance(f"rmse [{number}]")
    progress.step("report")
    progress.advance()
    progress.done()


def test_silent_progress_takes_every_call() -> None:
    work(SilentProgress())


def test_a_log_gets_plain_lines_with_the_count_the_time_left_and_the_note() -> None:
    out, text = console(terminal=False)
    work(TerminalProgress(out, clock=Clock(10.0)))
    lines = text.getvalue().splitlines()
    assert lines[0] == "rounds …"
    assert any(line.startswith("rounds: 1/3, ") and line.endswith("left · rmse [0]") for line in lines)
    assert any(line.startswith("report: done in ") for line in lines)
    assert "\x1b" not in text.getvalue()


def test_a_log_is_not_flooded_by_fast_work() -> None:
    out, text = console(terminal=False)
    progress = TerminalProgress(out, clock=Clock(1e-3))
    progress.step("rounds", 500)
    for _ in range(500):
        progress.advance()
    progress.done()
    assert len(text.getvalue().splitlines()) == 2


def test_a_terminal_shows_a_full_bar_at_the_end_of_each_step() -> None:
    out, text = console(terminal=True)
    work(TerminalProgress(out, clock=Clock(1.0)))
    assert "3/3" in text.getvalue()
    assert "rounds" in text.getvalue()


def fail_in_the_middle(out: Console) -> None:
    with TerminalProgress(out) as progress:
        progress.step("rounds", 3)
        raise RuntimeError


def test_a_failure_claims_no_end() -> None:
    out, text = console(terminal=False)
    with pytest.raises(RuntimeError):
        fail_in_the_middle(out)
    assert text.getvalue() == "rounds …\n"


def test_a_failure_gives_the_terminal_back() -> None:
    out, _ = console(terminal=True)
    with pytest.raises(RuntimeError):
        fail_in_the_middle(out)
    with out.status("a second live display is refused while a first one is there"):
        pass


@given(elapsed_s=st.floats(0, 1e6), parts=st.integers(0, 1000), total=st.integers(1, 1000))
def test_the_time_left_is_never_negative_and_is_none_at_the_end(
    elapsed_s: float, parts: int, total: int
) -> None:
    left_s = remaining_s(elapsed_s, parts, total)
    assert left_s >= 0
    if parts >= total:
        assert left_s == 0


def test_even_work_ends_when_it_was_said_to() -> None:
    assert remaining_s(elapsed_s=6.0, parts=3, total=10) == pytest.approx(14.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (59.4, "59 s"), (125, "2 min 05 s"), (3780, "1 h 03 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
