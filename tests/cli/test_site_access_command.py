"""What a person sees who gives roles at a site, or asks for a patient who is not there."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from cli.main import main
from client.home import SiteHome
from tests.site_home import settle
from twin.errors import DataError
from twin.ward.roster import Roster


def test_a_role_for_a_user_whom_the_machine_does_not_know_is_given_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = SiteHome(tmp_path / "site")
    settle(home, roles=())
    for user, told in (("nobody-of-this-name", True), (getpass.getuser(), False)):
        assert main(["site", "access", "grant", user, "clinician", "--home", str(home.directory)]) == 0
        assert ("knows no user" in capsys.readouterr().err) == told


def test_who_looks_for_a_patient_that_is_not_there_is_told_the_commands_that_help() -> None:
    with pytest.raises(DataError, match="twinward site identify"):
        Roster().row("k5dq3u7x2mhw6abzot4e")
