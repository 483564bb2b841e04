"""The audit log: what is acknowledged is there, in one order, and any change to the file is found."""

from __future__ import annotations

import ast
import collections
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from trust.audit import AuditLog
from trust.errors import TrustError
from trust.heads import SignedHead
from trust.kinds import KINDS
from trust.merkle import is_consistent
from trust.signing import Signer
from trust.verification import verify
from trust.witness import Witness

ROOT = Path(__file__).parents[2]
SPAWN = multiprocessing.get_context("spawn")


def fill(path: Path, count: int, **options: Signer) -> None:
    with AuditLog(path, **options) as log:
        for number in range(count):
            log.append("released", who="north", plan="p" * 64, round=number, base="b", update="u")


def append_many(path: Path, name: str, threads: int, each: int) -> None:
    """Appends from several threads; runs in a process of its own."""
    with AuditLog(path) as log:
        numbers: list[list[int]] = [[] for _ in range(threads)]

        def work(thread: int) -> None:
            for turn in range(each):
                numbers[thread].append(log.append("refused", who=name, plan=f"{thread}/{turn}", code="x"))

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert all(mine == sorted(mine) and len(set(mine)) == each for mine in numbers)


def append_until_killed(path: Path, told: Connection) -> None:
    """Appends and tells what was acknowledged; runs in a process of its own."""
    with AuditLog(path) as log:

        def work(thread: int) -> None:
            for turn in range(10**6):
                number = log.append("refused", who="north", plan=f"{os.getpid()}/{thread}/{turn}", code="x")
                with lock:
                    told.send((number, f"{os.getpid()}/{thread}/{turn}"))

        lock = threading.Lock()
        workers = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def append_in_a_fork(log: AuditLog, answers: Path) -> None:
    """What a forked child must not do with the log of its parent; writes the refusal down."""
    try:
        log.append("started", who="north")
    except TrustError as error:
        answers.write_text(str(error))


def contents(path: Path) -> list[object]:
    with closing(sqlite3.connect(path)) as sql:
        sql.text_factory = bytes
        return [
            sql.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("records", "nodes", "head", "heads")
        ]


def change(path: Path, statement: str, values: tuple[object, ...] = ()) -> None:
    with closing(sqlite3.connect(path)) as sql:
        sql.execute(statement, values)
        sql.commit()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 13 records, which has exchanged heads with another."""
    folder = tmp_path_factory.mktemp("finished")
    with (
        AuditLog(folder / "a.sqlite", signer=Signer.generate()) as log,
        AuditLog(folder / "b.sqlite", signer=Signer.generate()) as other,
    ):
        for number in range(12):
            log.append("released", who="north", plan="p" * 64, round=number, base="b", update="u")
        here, there = Witness(log), Witness(other)
        for _ in range(3):
            there.hear("north", here.say("coordinator"))
            here.hear("coordinator", there.say("north"))
        assert log.size == 13
    return folder / "a.sqlite"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(finished, tmp_path / "copy.sqlite"))


def test_a_record_says_who_what_when_and_why_and_is_read_back(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "log.sqlite", clock=lambda: 1.5) as log:
        assert log.append("site_invited", who="Ada", why="the – study", name="north", replaces=False) == 0
        assert log.append("refused", who="north", why="x" * 9999, plan="p", code="terms_refused") == 1
        first, second = log.records()
        assert (first.who, first.kind, first.why) == ("Ada", "site_invited", "the – study")
        assert first.time == "1970-01-01T00:00:01.500000+00:00"
        assert first.facts == {"name": "north", "replaces": False}
        assert len(second.why) == 2000
        assert log.last("site_invited", "site_left") == first
        assert log.last("site_left") is None
        assert [record.number for record in log.records(kinds=["refused"])] == [1]
    assert stat.S_IMODE((tmp_path / "log.sqlite").stat().st_mode) == 0o600
    assert verify(tmp_path / "log.sqlite") == []


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("glucose", {}),
        ("refused", {"glucose": 5.5}),
        ("refused", {"plan": None}),
        ("refused", {"plan": ["p"]}),
        ("refused", {"plan": "p" * 501}),
        ("refused", {"plan": 2**63}),
    ],
)
def test_a_kind_or_fact_that_is_not_on_the_list_is_refused(
    tmp_path: Path, kind: str, facts: dict[str, object]
) -> None:
    with AuditLog(tmp_path / "log.sqlite") as log:
        with pytest.raises(TrustError, match=r"trust/kinds\.py|characters"):
            log.append(kind, who="north", **facts)  # type: ignore[arg-type]  # that is the point
        assert log.size == 0


def test_an_epsilon_without_bound_can_be_recorded(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "log.sqlite") as log:
        log.append("accepted", who="north", epsilon=float("inf"))
        assert next(log.records()).facts == {"epsilon": "inf"}
    assert verify(tmp_path / "log.sqlite") == []


def test_every_kind_that_our_code_records_is_on_the_list_with_its_facts() -> None:
    found = {kind for (_, kind), _ in recorded()}
    assert {"released", "refused", "site_invited", "peer_log_accepted"} <= found
    for (where, kind), facts in recorded():
        assert kind in KINDS, f"{where} records {kind!r}: add it to trust/kinds.py"
        assert facts <= KINDS[kind], f"{where}: {kind!r} may not carry {facts - KINDS[kind]}: trust/kinds.py"


def recorded() -> Iterator[tuple[tuple[str, str], set[str]]]:
    """Calls of our code that write records: who they are and with which facts."""
    for folder in ("cli", "client", "server", "trust"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                words = {keyword.arg for keyword in node.keywords if keyword.arg}
                kind = node.args[0]
                if not isinstance(kind, ast.Constant) or not isinstance(kind.value, str):
                    continue
                if name in ("append", "write", "record", "_record") and (
                    "who" in words or len(node.args) > 1 or kind.value in KINDS
                ):
                    yield (f"{file.name}:{node.lineno}", kind.value), words - {"who", "why"}


def test_threads_of_several_processes_append_into_one_order_and_lose_nothing(tmp_path: Path) -> None:
    path, threads, each = tmp_path / "log.sqlite", 8, 15
    workers = [SPAWN.Process(target=append_many, args=(path, name, threads, each)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 3
    with AuditLog(path) as log:
        records = list(log.records())
        assert [record.number for record in records] == list(range(3 * threads * each))
        for name in "abc":
            for thread in range(threads):
                mine = [r.facts["plan"] for r in records if r.who == name]
                turns = [str(plan) for plan in mine if str(plan).startswith(f"{thread}/")]
                assert turns == [f"{thread}/{turn}" for turn in range(each)]
    assert verify(path) == []


def test_killed_at_random_instants_no_acknowledged_record_is_lost(tmp_path: Path) -> None:
    path, draw, acknowledged = tmp_path / "log.sqlite", random.Random(3), {}
    for _ in range(25):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        worker = multiprocessing.get_context("fork").Process(target=append_until_killed, args=(path, theirs))
        worker.start()
        theirs.close()
        goal = draw.randint(1, 40)
        try:
            for _ in range(goal):
                number, plan = ours.recv()
                acknowledged[number] = plan
            time.sleep(draw.uniform(0, 0.01))
            os.kill(worker.pid or 0, signal.SIGKILL)
            while True:
                number, plan = ours.recv()
                acknowledged[number] = plan
        except (EOFError, OSError, ValueError):
            pass  # the end of what it could tell, perhaps in the middle of a message
        worker.join(60)
        assert worker.exitcode == -signal.SIGKILL
        assert verify(path) == []
    with AuditLog(path) as log:
        found = {record.number: record.facts["plan"] for record in log.records()}
    assert len(acknowledged) > 200
    assert {number: found.get(number) for number in acknowledged} == acknowledged


def test_a_log_that_cannot_be_written_refuses_and_goes_on_when_it_can(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "log.sqlite") as log:
        log.append("started", who="north")
        pages = log._db.execute("PRAGMA page_count").fetchone()[0]
        log._db.execute(f"PRAGMA max_page_count = {pages}")  # the disk is full
        with pytest.raises(TrustError, match="cannot be written"):
            collections.deque(log.append("refused", who="north", why="x" * 1000) for _ in range(100))
        size = log.size
        log._db.execute("PRAGMA max_page_count = 100000")
        assert log.append("stopped", who="north") == size
    assert verify(tmp_path / "log.sqlite") == []


def test_a_log_that_was_open_at_a_fork_is_refused_in_the_child(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "log.sqlite") as log:
        child = multiprocessing.get_context("fork").Process(
            target=append_in_a_fork, args=(log, tmp_path / "answer")
        )
        child.start()
        child.join(60)
        assert "forked" in (tmp_path / "answer").read_text()
        assert log.append("started", who="north") == 0


def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    change(path, "CREATE TABLE plans (a)")
    before = path.read_bytes()
    with pytest.raises(TrustError, match="cannot be opened"):
        AuditLog(path)
    assert path.read_bytes() == before
    assert verify(path)
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 100)
    assert verify(tmp_path / "text")
    with pytest.raises(TrustError, match="no file"):
        verify(tmp_path / "absent")


def test_verifying_does_not_write_and_works_while_others_append(finished: Path, tmp_path: Path) -> None:
    before = finished.read_bytes()
    assert verify(finished) == []
    assert finished.read_bytes() == before
    with AuditLog(tmp_path / "log.sqlite") as log:
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set():
                log.append("started", who="north")

        worker = threading.Thread(target=work)
        worker.start()
        try:
            assert [verify(tmp_path / "log.sqlite") for _ in range(10)] == [[]] * 10
        finally:
            ended.set()
            worker.join()


@pytest.mark.parametrize("table", ["records", "nodes", "head", "heads"])
def test_every_bit_of_every_value_counts(finished: Path, tmp_path: Path, table: str) -> None:
    draw, path = random.Random(table), tmp_path / "copy.sqlite"
    with closing(sqlite3.connect(finished)) as sql:
        columns = [row[1] for row in sql.execute(f"PRAGMA table_info({table})")]
        rows = sql.execute(f"SELECT rowid, * FROM {table}").fetchall()
    assert rows
    for rowid, *values in rows:
        for column, value in zip(columns, values, strict=True):
            for _ in range(3):
                shutil.copy(finished, path)
                try:
                    change(
                        path, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (flip(value, draw), rowid)
                    )
                except sqlite3.IntegrityError:
                    continue  # the table itself does not take it
                if contents(path) != contents(finished):
                    assert verify(path), f"{table}.{column} was changed unseen"


def flip(value: object, draw: random.Random) -> object:
    if isinstance(value, int):
        return value ^ 1 << draw.randrange(8)
    if isinstance(value, float):
        return value + 2.0 ** draw.randrange(-10, 10)
    data = bytearray(value.encode() if isinstance(value, str) else value)  # type: ignore[arg-type]
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(7)
    return data.decode(errors="replace") if isinstance(value, str) else bytes(data)


@pytest.mark.parametrize("table", ["records", "nodes", "head", "heads"])
def test_every_row_that_is_missing_is_missed(finished: Path, tmp_path: Path, table: str) -> None:
    path = tmp_path / "copy.sqlite"
    with closing(sqlite3.connect(finished)) as sql:
        rows = [row[0] for row in sql.execute(f"SELECT rowid FROM {table}")]
    for rowid in rows:
        shutil.copy(finished, path)
        change(path, f"DELETE FROM {table} WHERE rowid = ?", (rowid,))
        assert verify(path), f"row {rowid} of {table} was deleted unseen"


@pytest.mark.parametrize("size", range(13))
def test_a_log_that_was_cut_is_found(copy: Path, size: int) -> None:
    change(copy, "DELETE FROM records WHERE number >= ?", (size,))
    assert verify(copy)
    with pytest.raises(TrustError, match="damaged"):
        AuditLog(copy)


@pytest.mark.parametrize("pair", [(0, 1), (3, 9), (11, 12)])
def test_records_that_changed_places_are_found(copy: Path, pair: tuple[int, int]) -> None:
    with closing(sqlite3.connect(copy)) as sql:
        one, two = (
            sql.execute("SELECT record, hash FROM records WHERE number = ?", (n,)).fetchone() for n in pair
        )
    for number, row in zip(pair, (two, one), strict=True):
        change(copy, "UPDATE records SET record = ?, hash = ? WHERE number = ?", (*row, number))
    assert verify(copy)


def test_a_flip_of_any_bit_of_the_file_is_found_or_changes_no_content(finished: Path, tmp_path: Path) -> None:
    draw, path, before = random.Random(8), tmp_path / "copy.sqlite", contents(finished)
    data, seen = finished.read_bytes(), 0
    for _ in range(400):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        if verify(path):
            seen += 1
        else:
            assert contents(path) == before
    assert seen > 50


@pytest.mark.parametrize("sizes", [(0, 13), (1, 2), (5, 12), (8, 13), (13, 13)])
def test_the_proof_of_a_log_shows_its_growth(finished: Path, sizes: tuple[int, int]) -> None:
    old, new = sizes
    with AuditLog(finished) as log:
        proof = log.proof(old, new)
        old_root, new_root = (bytes.fromhex(log.root_at(size)) for size in sizes)
        assert is_consistent(old, new, old_root, new_root, proof)
        with pytest.raises(TrustError, match="from 0 to 13"):
            log.proof(3, 14)


def test_a_log_that_was_written_anew_is_found_by_a_head_that_another_holds(
    finished: Path, tmp_path: Path
) -> None:
    signer = Signer.generate()
    fill(tmp_path / "true.sqlite", 9, signer=signer)
    with AuditLog(tmp_path / "true.sqlite", signer=signer) as log:
        held = log.signed_head()
        log.append("stopped", who="north")
    fill(tmp_path / "cut.sqlite", 8, signer=signer)
    fill(tmp_path / "other.sqlite", 10, signer=signer)
    assert verify(tmp_path / "true.sqlite", heads=[held]) == []
    for name, word in (("cut", "old copy"), ("other", "rewritten")):
        assert verify(tmp_path / f"{name}.sqlite") == []
        assert word in " ".join(verify(tmp_path / f"{name}.sqlite", heads=[held]))
    forged = SignedHead.from_dict(held.to_dict() | {"size": 3})
    assert "signature" in " ".join(verify(tmp_path / "true.sqlite", heads=[forged]))


def test_heads_are_given_out_only_with_a_key(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "log.sqlite") as log, pytest.raises(TrustError, match="signing key"):
        log.signed_head()
