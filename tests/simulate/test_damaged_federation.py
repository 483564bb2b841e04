"""Files of a federation that were damaged or removed: one clear message, or the very same result."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.site import ledger_path
from conf.schema import Config
from server.errors import ServerError
from simulate.federation import FederationResult, run_federation
from tests.heart_hospitals import settings, write_folder
from trust.digest import Arrays


class Interrupted(Exception):
    """Stands for a process that was stopped."""


def stop_after_two(number: int, _: Arrays) -> None:
    if number == 2:
        raise Interrupted


@pytest.fixture
def half(tmp_path: Path) -> tuple[Config, Path]:
    """A federation that was stopped half way."""
    config = settings(write_folder(tmp_path / "hospitals"))
    with pytest.raises(Interrupted):
        run_federation(config, directory=tmp_path / "run", on_round=stop_after_two)
    return config, tmp_path / "run"


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Config, FederationResult]:
    config = settings(write_folder(tmp_path / "hospitals"))
    return config, run_federation(config, directory=tmp_path / "run")


def remove_ledger(directory: Path, site: str) -> None:
    for file in ledger_path(directory, site).parent.iterdir():
        file.unlink()


def test_a_site_whose_ledger_is_gone_is_told_and_not_left_out_unseen(half: tuple[Config, Path]) -> None:
    config, directory = half
    remove_ledger(directory, "beta")
    with pytest.raises(ServerError, match="'beta'"):
        run_federation(config, directory=directory)


def test_an_emptied_ledger_is_told(half: tuple[Config, Path]) -> None:
    config, directory = half
    remove_ledger(directory, "beta")
    ledger_path(directory, "beta").write_bytes(b"")
    with pytest.raises(ServerError, match="'beta'"):
        run_federation(config, directory=directory)


def test_a_lost_ledger_never_reads_as_nothing_spent(whole: tuple[Config, FederationResult]) -> None:
    config, result = whole
    (result.directory / "sites.json").unlink()
    remove_ledger(result.directory, "alpha")
    with pytest.raises(ServerError, match="what was spent"):
        run_federation(config, directory=result.directory)


def test_sites_json_is_made_again_from_the_ledgers(whole: tuple[Config, FederationResult]) -> None:
    config, result = whole
    (result.directory / "sites.json").unlink()
    assert run_federation(config, directory=result.directory).sites == result.sites


@pytest.mark.parametrize("content", [b"\xff\x00 no text", b"{"])
def test_a_damaged_file_beside_the_run_gives_a_message(
    whole: tuple[Config, FederationResult], content: bytes
) -> None:
    config, result = whole
    (result.directory / "sites.json").write_bytes(content)
    with pytest.raises(ServerError, match="damaged"):
        run_federation(config, directory=result.directory)


def test_a_damaged_coordinators_file_gives_a_message(half: tuple[Config, Path]) -> None:
    config, directory = half
    for file in directory.glob("coordinator.sqlite*"):
        file.write_bytes(b"\x00garbage\xff" * 1000)
    with pytest.raises(ServerError, match="damaged"):
        run_federation(config, directory=directory)
