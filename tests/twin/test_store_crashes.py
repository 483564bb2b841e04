"""What survives: kills at any instant, damage, a full rewrite; and what nobody finds on the disk."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.stored import KEY, batch, minutes, numbered
from twin.store import Store, StoreError, engine, erasure, rewriting
from twin.store.making import beside

ROOT = Path(__file__).parents[2]
SECRETS = (
    b"secret-patient",
    b"secret-fact",
    b"secret-model",
    b"glucose",
    b"secret-code",
    b"secret-reason",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    with Store.create(folder / "store.duckdb", KEY):
        pass
    return folder / "store.duckdb"


def rows(number: int) -> int:
    """Rows that the first batches leave."""
    return 10 * number


def planted() -> tuple[tuple[str, ...], tuple[str, str, str]]:
    aside = ("secret-patient-0", "2024", "vendor", "secret-code", "5", "mg", "", "secret-reason")
    return aside, ("secret-patient-0", "sex", "secret-fact")


def assert_nothing_is_readable(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert any(file.stat().st_size > 4096 for file in files)
    for file in files:
        data = file.read_bytes()
        for secret in (*SECRETS, KEY, np.float64(123.4567).tobytes()):
            assert secret not in data, file.name
            assert secret.hex().encode() not in data, file.name


def test_a_killed_store_has_every_acknowledged_batch_once_and_nothing_is_readable(path: Path) -> None:
    random.seed(3)
    said, aside = 0, planted()
    with Store.open(path, KEY) as store:
        store.commit(batch(quarantine=[aside[0]], facts=[aside[1]], feed="ehr"))
        store.keep_model("secret-patient-0", "glucose", b"secret-model" * 100)
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.stored", str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            acknowledged = [int(process.stdout.readline()) for _ in range(random.randrange(2, 8))]
            assert_nothing_is_readable(path.parent)
            time.sleep(random.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        said = max([said, *acknowledged])
        assert_nothing_is_readable(path.parent)
        with Store.open(path, KEY) as store:
            position = int(store.position("cgm") or 0)
            assert position in (said, said + 1)
            found = store.site("s", purpose="care").observations
            assert len(found) == rows(position)
            assert store.counts().query("fate == 'dropped'")["rows"].sum() == position
        said = position
    assert said > 3


@pytest.mark.parametrize("what", ["rotate", "erase", "backup"])
def test_a_rewrite_that_is_killed_at_any_step_leaves_the_old_file_or_the_new_one(
    path: Path, what: str
) -> None:
    """The process dies at each step of writing and renaming in turn, as SIGKILL would have it."""
    with Store.open(path, KEY) as store:
        store.commit(numbered(1))
        store.commit(numbered(2))
    whole, other = path.read_bytes(), bytes(reversed(KEY))
    anchor = beside(path, "commits").read_bytes()
    seen = set()
    for step in range(30):
        for file in path.parent.iterdir():
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        path.write_bytes(whole)
        beside(path, "commits").write_bytes(anchor)
        child = os.fork()
        if not child:
            _die_at(step, what, path, other)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            store = Store.open(path, KEY)
            seen.add("old")
        except StoreError:
            store = Store.open(path, other)
            seen.add("new")
        with store:
            left = store.site("s", purpose="care").observations
            erased = beside(path, "erased").exists()
            assert len(left) == (rows(2) if not erased else (left["patient_id"] != "secret-patient-1").sum())
            assert not erased or "secret-patient-1" not in set(store.patients().index)
        assert not beside(path, "new").exists()
        if ended == 0:
            break
    assert ended == 0, "the last step was never reached"
    assert step > 3
    assert seen == ({"old", "new"} if what == "rotate" else {"old"})


def _die_at(step: int, what: str, path: Path, other: bytes) -> None:
    """Does it in this process, which ends without a word at the step-th system call that changes a file."""
    left = step

    def dying(function: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)  # type: ignore[operator]

        return call

    with Store.open(path, KEY) as store:
        os.fsync, os.open = dying(os.fsync), dying(os.open)  # type: ignore[assignment]
        Path.replace = dying(Path.replace)  # type: ignore[method-assign, assignment]
        rewriting._fill, rewriting.attach = dying(rewriting._fill), dying(rewriting.attach)  # type: ignore[assignment]
        erasure.apply = dying(erasure.apply)  # type: ignore[assignment]
        if what == "rotate":
            store.rotate(other)
        elif what == "erase":
            store.erase("secret-patient-1")
        else:
            store.backup(path.with_name("copy.duckdb"))
    os._exit(0)


def test_what_a_large_sort_spills_is_encrypted(path: Path) -> None:
    folder = path.parent / "spill"
    connection = engine.connect(folder, memory="30MB")
    engine.attach(connection, path, KEY, "store")
    connection.execute(
        "CREATE TABLE store.large AS SELECT 'secret-patient-' || (i * 7919 % 600000) AS a, i"
        " FROM range(600000) t(i)"
    )
    order = connection.execute("SELECT a, i, sum(i) OVER (ORDER BY a) FROM store.large ORDER BY a DESC, i")
    order.fetchmany(10)
    assert sum(file.stat().st_size for file in folder.iterdir()) > 1_000_000, "nothing was spilt"
    assert_nothing_is_readable(path.parent)
    connection.close()


def test_another_key_is_said_to_be_one_and_no_error_shows_a_key(path: Path) -> None:
    for key in (bytes(32), KEY[:-1] + b"x", KEY[:31]):
        with pytest.raises(StoreError, match="data key") as raised:
            Store.open(path, key)
        text = f"{raised.value!r} {raised.value.__context__}"
        assert key.hex() not in text
        assert not re.search(r"[A-Za-z0-9+/]{40,}=", text)


def test_a_damaged_file_is_an_error_and_never_other_data(path: Path) -> None:
    with Store.open(path, KEY) as store:
        for number in range(1, 8):
            store.commit(numbered(number))
        right = store.site("s", purpose="care").observations
    whole, random_ = path.read_bytes(), random.Random(5)
    refused = 0
    damages = [random_.randrange(len(whole)) for _ in range(10)] + [0, 9, 4100, 8200]
    for place in damages:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random_.randrange(8)
        refused += _refused_or_right(path, bytes(flipped), right)
    for length in (0, 4096, len(whole) // 2, len(whole) - 1):
        assert _refused_or_right(path, whole[:length], right)
    assert refused > len(damages) // 2  # the others hit free space


def _refused_or_right(path: Path, data: bytes, right: pd.DataFrame) -> bool:
    path.write_bytes(data)
    try:
        with Store.open(path, KEY) as store:
            pd.testing.assert_frame_equal(store.site("s", purpose="care").observations, right)
    except StoreError:
        return True
    return False


def test_a_log_that_was_cut_altered_or_lost_is_an_error(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.stored", str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "5\n":
            assert line, "it ended by itself"
        process.kill()
    log = rewriting.log_of(path)
    whole, written, anchor = path.read_bytes(), log.read_bytes(), beside(path, "commits").read_bytes()
    random_ = random.Random(7)
    for number in range(6):
        path.write_bytes(whole)
        beside(path, "commits").write_bytes(anchor)
        place = random_.randrange(len(written) // 2)
        flipped = bytearray(written)
        flipped[place] ^= 1 << random_.randrange(8)
        log.write_bytes(written[:place] if number % 2 else bytes(flipped))
        with pytest.raises(StoreError, match=r"damaged|commits|cut"):
            Store.open(path, KEY)
    path.write_bytes(whole)
    log.unlink(missing_ok=True)
    beside(path, "commits").write_bytes(anchor)
    with pytest.raises(StoreError, match="commits"):
        Store.open(path, KEY)
    with Store.open(path, KEY, accept_loss=True) as store:
        assert store.position("cgm") == ""
    with Store.open(path, KEY) as store:
        assert len(store.commit(numbered(1)).observations) == 10


def test_a_store_has_one_owner(path: Path) -> None:
    with Store.open(path, KEY):
        with pytest.raises(StoreError, match="nobody else"):
            Store.open(path, KEY)
        done = subprocess.run(
            [sys.executable, "-m", "tests.stored", str(path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode
        assert "StoreError: Expected nobody else" in done.stderr
    with pytest.raises(StoreError, match="not overwritten"):
        Store.create(path, KEY)


def test_a_store_of_a_later_version_or_of_none_is_refused(path: Path) -> None:
    connection = engine.connect(path.parent / "t", memory="100MB")
    engine.attach(connection, path, KEY, "store")
    connection.execute("UPDATE store.settings SET value = '99' WHERE name = 'version'")
    connection.execute("DETACH store")
    with pytest.raises(StoreError, match="version 99"):
        Store.open(path, KEY)
    plain = path.with_name("plain.duckdb")
    connection.execute(f"ATTACH '{plain}' AS plain")
    connection.execute("CREATE TABLE plain.settings (name VARCHAR, value VARCHAR)")
    connection.execute("DETACH plain")
    connection.close()
    with pytest.raises(StoreError):
        Store.open(plain, KEY)
    with pytest.raises(StoreError, match="there is none"):
        Store.open(path.with_name("absent"), KEY)


def test_an_erased_patient_is_nowhere_and_stays_away(path: Path) -> None:
    aside, fact = planted()
    with Store.open(path, KEY) as store:
        for number in range(1, 7):
            store.commit(numbered(number))
        store.commit(batch(quarantine=[aside], facts=[fact], feed="ehr"))
        store.keep_model("secret-patient-0", "glucose", b"secret-model")
        store.keep_model("", "glucose", b"of all")
        store.keep_model("", "state/ward", b"of others")
        store.consent("secret-patient-0", True, minutes(0))
        store.backup(path.with_name("early.duckdb"))
        gone = store.erase("secret-patient-0")
        assert gone["observations"] > 10
        assert all(gone.values())
        assert store.model("", "glucose") is None and store.model("", "state/ward") == b"of others"
        _is_away(store)
        again = store.commit(numbered(3))
        assert len(again.observations) == 0
        ours = store.counts().query("reason == 'patient erased'")
        assert list(ours["patient_id"]) == [""]
        assert ours["rows"].sum() == 10
        _is_away(store)
        with pytest.raises(StoreError, match="pseudonym"):
            store.erase("secret-patient-0")
        with pytest.raises(StoreError, match="pseudonym"):
            store.keep_model("secret-patient-0", "glucose", b"late")
    connection = engine.connect(path.parent / "t", memory="100MB")
    engine.attach(connection, path, KEY, "store")
    free = connection.execute("SELECT free_blocks FROM pragma_database_size() WHERE database_name='store'")
    assert free.fetchone() in ((0,), (1,))
    connection.close()
    path.unlink()
    with Store.restore(path.with_name("early.duckdb"), path, KEY) as store:
        _is_away(store)
        assert len(store.patients()) == 2
        store.readmit("secret-patient-0")
        assert len(store.commit(numbered(3)).observations) == 10
    with Store.open(path, KEY) as store:
        assert len(store.patients()) == 3


def _is_away(store: Store) -> None:
    assert "secret-patient-0" not in store.patients().index
    assert "secret-patient-0" not in set(
        store.site("s", purpose="care", marked=True).observations["patient_id"]
    )
    assert "secret-patient-0" not in set(store.counts()["patient_id"])
    assert len(store.consents()) == 0
    assert len(store.quarantine()) == 0
    assert store.model("secret-patient-0", "glucose") is None
    assert store.model("", "glucose") is None


def test_readers_see_whole_commits_while_the_file_is_written_anew(path: Path) -> None:
    seen: list[int] = []
    stop = threading.Event()

    def read(store: Store) -> None:
        while not stop.is_set():
            seen.append(len(store.site("s", purpose="care").observations))

    with Store.open(path, KEY) as store:
        thread = threading.Thread(target=read, args=(store,))
        thread.start()
        try:
            for number in range(1, 9):
                store.commit(numbered(number))
                if number % 4 == 0:
                    store.compact()
        finally:
            stop.set()
            thread.join()
        seen.append(len(store.site("s", purpose="care").observations))
    assert set(seen) <= {rows(number) for number in range(9)}
    assert seen == sorted(seen)
    assert seen[-1] == rows(8)


def test_a_rotated_store_opens_with_the_new_key_alone(path: Path) -> None:
    other = bytes(reversed(KEY))
    with Store.open(path, KEY) as store:
        store.commit(numbered(1))
        store.rotate(other)
        store.commit(numbered(2))
    with pytest.raises(StoreError, match="data key"):
        Store.open(path, KEY)
    with Store.open(path, other) as store:
        assert len(store.site("s", purpose="care").observations) == rows(2)


def test_a_backup_does_not_bring_back_a_consent_that_was_withdrawn_since(path: Path) -> None:
    early = path.with_name("early.duckdb")
    with Store.open(path, KEY) as store:
        for number in range(1, 4):
            store.commit(numbered(number))
        ids = sorted(store.patients().index)[:3]
        for patient in ids:
            store.consent(patient, True, minutes(0))
        store.backup(early)
        store.consent(ids[0], False, minutes(1))
        store.consent(ids[1], False, minutes(1))
        store.consent(ids[1], True, minutes(2))
    for beside_it in path.parent.glob(f"{path.name}.withdrawn"):
        assert not any(patient.encode() in beside_it.read_bytes() for patient in ids)
    path.unlink()
    with Store.restore(early, path, KEY) as store:
        assert sorted(store.site("s", purpose="research").patients.index) == ids[1:]
        assert not store.consents().set_index("patient_id")["research"][ids[0]]
    with Store.open(path, KEY) as store:
        assert sorted(store.site("s", purpose="research").patients.index) == ids[1:]
        store.consent(ids[0], True, minutes(3))
    with Store.open(path, KEY) as store:
        assert sorted(store.site("s", purpose="research").patients.index) == ids
