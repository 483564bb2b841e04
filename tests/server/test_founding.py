"""Founding: a folder that is there whole or not at all, and once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.door import Door
from server.errors import ServerError
from server.founding import add_operator, found
from server.home import CoordinatorHome, Settings
from server.members import Members
from trust.authority import Authority
from trust.errors import TrustError
from trust.signing import Signer

NOW = datetime.now(UTC)
SETTINGS = Settings(federation="net", host="127.0.0.1")


def test_a_founded_folder_opens_and_its_keys_are_its_owners(tmp_path: Path) -> None:
    home = found(tmp_path / "deep/coordinator", SETTINGS, operator="ann", now=NOW)
    assert home.settings() == SETTINGS
    assert Authority.open(home.authority).federation == "net"
    assert Signer.load(home.signing_key).public_hex
    assert home.directory.stat().st_mode & 0o777 == 0o700
    keys = [path for path in home.directory.rglob("*") if path.suffix == ".key" or path.name == "key.pem"]
    assert len(keys) == 4
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


def test_of_many_who_found_in_one_folder_at_once_one_does(tmp_path: Path) -> None:
    start = threading.Barrier(6)
    came: list[CoordinatorHome | ServerError] = []

    def try_it() -> None:
        start.wait()
        try:
            came.append(found(tmp_path / "coordinator", SETTINGS, operator="ann", now=NOW))
        except ServerError as error:
            came.append(error)

    threads = [threading.Thread(target=try_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(entry, CoordinatorHome) for entry in came) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["coordinator"]
    assert Authority.open(tmp_path / "coordinator/authority").federation == "net"


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "coordinator").mkdir()
    (tmp_path / "coordinator/thesis.txt").write_text("three years")
    with pytest.raises(ServerError, match="empty or absent"):
        found(tmp_path / "coordinator", SETTINGS, operator="ann", now=NOW)
    assert (tmp_path / "coordinator/thesis.txt").read_text() == "three years"
    with pytest.raises(TrustError):
        found(tmp_path / "new", SETTINGS, operator="Ann", now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["coordinator"]


def test_an_operators_second_certificate_ends_the_first(tmp_path: Path) -> None:
    home = found(tmp_path / "coordinator", SETTINGS, operator="ann", now=NOW)
    authority = Authority.open(home.authority)
    first = (home.operators / "ann/certificate.pem").read_bytes()
    with Members(home.members) as members:
        door = Door(members, authority.certificate)
        assert door.admit(first) is not None
        folder = add_operator(home, authority, members, "ann", now=NOW + timedelta(hours=1))
        assert door.judge(first).code == "revoked"
        identity = door.admit((folder / "certificate.pem").read_bytes())
    assert identity is not None and identity.uri == "twinward://net/operator/ann"
