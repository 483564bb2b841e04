"""The ledger under several processes at once, and under SIGKILL at any instant. Real processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from client.errors import ClientError
from client.ledger import Ledger
from privacy.accounting import GaussianRelease, epsilon
from privacy.noise import NoiseStream, site_secret_from_seed

ROUNDS = 12
RELEASE = GaussianRelease(noise_multiplier=6.0, sampling_rate=1.0, steps=ROUNDS)
NUMBERS = 500


def answer_rounds(
    path: Path, answers: Path, plan: str, ceiling: float, kill_after: str, *, goes_on: bool = True
) -> None:
    """What a site does: opens a plan and answers its rounds; runs in a process of its own."""
    ledger = Ledger(path, ceiling_epsilon=ceiling, delta=1e-4)
    try:
        ledger.open_plan(plan, RELEASE)
    except ClientError as error:
        (answers / f"refused.{os.getpid()}").write_text(error.code)
        return
    for number in range(ROUNDS):
        if number == ROUNDS - 1 and not goes_on:
            time.sleep(600)  # until it is killed
        base = f"base {number}"
        release = ledger.reserve(plan, number, base, 1)
        kill_self(kill_after == f"reserve {number}")
        if release is None:
            stream = NoiseStream(site_secret_from_seed(0, "north"), f"{plan}/{number}/{base}".encode())
            release = stream.normal(NUMBERS).tobytes()
            time.sleep(0.002)
            ledger.complete(plan, number, base, release)
        kill_self(kill_after == f"complete {number}")
        (answers / f"{number}.{os.getpid()}").write_bytes(release)


def use_in_a_fork(ledger: Ledger, path: Path, answers: Path) -> None:
    """What a forked child must not do with the ledger of its parent; writes the refusals down."""
    try:
        ledger.plans()
    except ClientError as error:
        (answers / "refused.0").write_text(error.code)
    try:
        Ledger(path, ceiling_epsilon=None, delta=1e-4)
    except ClientError as error:
        (answers / "refused.1").write_text(error.code)


def kill_self(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


def site(
    path: Path,
    answers: Path,
    plan: str = "p",
    ceiling: float = 100.0,
    kill_after: str = "",
    *,
    goes_on: bool = True,
) -> ForkProcess:
    process = multiprocessing.get_context("fork").Process(
        target=answer_rounds, args=(path, answers, plan, ceiling, kill_after), kwargs={"goes_on": goes_on}
    )
    process.start()
    return process


def ended(process: ForkProcess) -> int | None:
    process.join(120)
    return process.exitcode


def releases(path: Path) -> list[tuple[int, str, str]]:
    with closing(sqlite3.connect(path)) as sql:
        rows = sql.execute("SELECT round, base_sha256, payload FROM rounds ORDER BY round").fetchall()
    return [(number, base, hashlib.sha256(payload).hexdigest()) for number, base, payload in rows]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    folder = tmp_path / "answers"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(site(folder / "ledger.sqlite", folder)) == 0
    return releases(folder / "ledger.sqlite")


def check_answers(answers: Path, expected: list[tuple[int, str, str]]) -> None:
    digests = {number: digest for number, _, digest in expected}
    for file in answers.iterdir():
        content = file.read_bytes()
        if (
            len(content) == 8 * NUMBERS
        ):  # A kill may cut the test's own file short; the ledger is judged, not it.
            assert hashlib.sha256(content).hexdigest() == digests[int(file.name.split(".")[0])]


@pytest.mark.parametrize("instant", ["reserve 0", "reserve 7", "complete 7", "complete 11"])
def test_killed_between_reserve_and_complete_or_answer_the_same_release_is_charged_once(
    tmp_path: Path, answers: Path, undisturbed: list[tuple[int, str, str]], instant: str
) -> None:
    path = tmp_path / "ledger.sqlite"
    assert ended(site(path, answers, kill_after=instant)) == -signal.SIGKILL
    with Ledger(path, ceiling_epsilon=None, delta=1e-4) as ledger:
        (entry,) = ledger.plans()
        assert entry.rounds_reserved - entry.rounds_complete == instant.startswith("reserve")
        spent = ledger.spent()
    assert ended(site(path, answers)) == 0
    assert releases(path) == undisturbed
    check_answers(answers, undisturbed)
    with Ledger(path, ceiling_epsilon=None, delta=1e-4) as ledger:
        assert ledger.spent() == spent == epsilon([entry.release], 1e-4)


def test_killed_at_random_instants_nothing_is_lost_or_charged_twice(
    tmp_path: Path, answers: Path, undisturbed: list[tuple[int, str, str]]
) -> None:
    path, draw = tmp_path / "ledger.sqlite", random.Random(5)
    for _ in range(4):
        process = site(path, answers, goes_on=False)
        goal = min(len(releases_so_far(path)) + draw.randint(1, 4), ROUNDS - 1)
        while process.exitcode is None and len(releases_so_far(path)) < goal:
            time.sleep(draw.uniform(0.0, 0.004))
        process.kill()
        assert ended(process) == -signal.SIGKILL
    assert ended(site(path, answers)) == 0
    assert releases(path) == undisturbed
    check_answers(answers, undisturbed)


def releases_so_far(path: Path) -> list[tuple[int]]:
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(path, timeout=10)) as sql:
            return sql.execute("SELECT round FROM rounds").fetchall()
    except sqlite3.OperationalError:  # The site has not made its tables yet.
        return []


def test_processes_that_work_on_the_same_plan_agree_on_every_release(
    tmp_path: Path, answers: Path, undisturbed: list[tuple[int, str, str]]
) -> None:
    path = tmp_path / "ledger.sqlite"
    processes = [site(path, answers) for _ in range(3)]
    assert [ended(process) for process in processes] == [0, 0, 0]
    assert releases(path) == undisturbed
    check_answers(answers, undisturbed)
    assert len(list(answers.iterdir())) == 3 * ROUNDS


def test_processes_that_race_for_the_last_of_the_budget_never_overspend_it(
    tmp_path: Path, answers: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, ceiling_epsilon=None, delta=1e-4) as ledger:
        assert ledger.plans() == ()
    processes = [site(path, answers, plan=f"plan {number}", ceiling=3.0) for number in range(4)]
    assert [ended(process) for process in processes] == [0] * 4
    refusals = [file.read_text() for file in answers.glob("refused.*")]
    with Ledger(path, ceiling_epsilon=3.0, delta=1e-4) as ledger:
        assert 0 < ledger.spent() <= 3.0
        opened = len(ledger.plans())
    assert 0 < opened < 4
    assert refusals == ["budget_exhausted"] * (4 - opened)


def test_a_ledger_that_is_open_while_a_process_is_forked_is_refused_in_the_child(
    tmp_path: Path, answers: Path
) -> None:
    with Ledger(tmp_path / "ledger.sqlite", ceiling_epsilon=None, delta=1e-4) as ledger:
        ledger.open_plan("p", RELEASE)
        arguments = (ledger, tmp_path / "ledger.sqlite", answers)
        child = multiprocessing.get_context("fork").Process(target=use_in_a_fork, args=arguments)
        child.start()
        assert ended(child) == 0
        assert [file.read_text() for file in answers.iterdir()] == ["ledger_unreadable"] * 2
        assert ledger.reserve("p", 1, "base", 1) is None
