"""The doctor finds what is broken, says how to mend it, and changes nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli import examination
from cli.doctor import run
from cli.examination import certificate
from client.home import SiteHome, SiteSettings
from server.founding import found
from server.home import CoordinatorHome, Settings
from tests.heart_hospitals import write_folder
from tests.ports import free_ports
from trust.audit import AuditLog

Rows = dict[str, dict[str, str]]


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorHome:
    ports = free_ports(4)
    settings = Settings(
        federation="net",
        host="127.0.0.1",
        hospitals_port=ports[0],
        enrolment_port=ports[1],
        operators_port=ports[2],
        health_port=ports[3],
    )
    home = found(tmp_path / "coordinator", settings, operator="founder", now=datetime.now(UTC))
    AuditLog(home.audit).close()
    return home


@pytest.fixture
def site(tmp_path: Path) -> SiteHome:
    data = write_folder(tmp_path / "data")
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    settings = SiteSettings(federation="net", site="alpha", address=address, data_path=str(data))
    home = SiteHome.create(tmp_path / "site", settings)
    AuditLog(home.audit).close()
    return home


def examine(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Rows]:
    code = run("doctor", [f"--home={home}", "--json", *words])
    return code, {row["what"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_coordinator_that_is_well_is_told_so(
    coordinator: CoordinatorHome, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = examine(coordinator.directory, capsys, "--offline")
    assert code == 0, [row for row in rows.values() if row["state"] != "ok"]
    assert not any(row["mend"] for row in rows.values() if row["state"] == "ok")
    assert rows["listeners' certificate"]["found"] in ("364 days left", "365 days left")


def test_what_does_not_listen_is_broken(
    coordinator: CoordinatorHome, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = examine(coordinator.directory, capsys)
    assert code == 1
    broken = {what for what, row in rows.items() if row["state"] == "broken"}
    assert broken == {"port for hospitals", "port for enrolment", "port for operators", "health"}
    assert "coordinator serve" in rows["port for hospitals"]["mend"]


def test_a_key_that_others_can_read_is_broken(
    coordinator: CoordinatorHome, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator.signing_key.chmod(0o644)
    code, rows = examine(coordinator.directory, capsys, "--offline")
    assert code == 1
    assert rows["permissions of signing.key"]["state"] == "broken"
    assert f"chmod 600 {coordinator.signing_key}" in rows["permissions of signing.key"]["mend"]


def test_a_path_in_what_mends_is_never_cut(
    site: SiteHome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    run("doctor", ["--home", str(site.directory), "--offline"])
    assert "…" not in capsys.readouterr().out


def test_a_site_that_never_joined_says_how_to(site: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = examine(site.directory, capsys)
    assert code == 1
    assert rows["certificate"]["state"] == rows["permissions of key.pem"]["state"] == "broken"
    assert "site join" in rows["certificate"]["mend"]
    assert rows["way to the coordinator"]["state"] == "broken"
    assert rows["data"]["state"] == rows["policy"]["state"] == "ok"


def test_a_policy_a_folder_and_a_log_that_are_broken_are_found(
    site: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    site.policy.write_text("nothing = 1\n")
    next(Path(str(site.settings().data_path)).rglob("alpha/patients.csv")).write_text("age\n1\n")
    site.audit.write_bytes(b"no log")
    _, rows = examine(site.directory, capsys, "--offline")
    assert {rows[what]["state"] for what in ("policy", "data", "audit log")} == {"broken"}


def test_no_number_of_patients_is_shown(site: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    _, rows = examine(site.directory, capsys, "--offline")
    assert rows["data"]["found"] == "can be read"


@pytest.mark.parametrize(
    ("days", "state"), [(-2.0, "broken"), (0.0, "ok"), (300.0, "ok"), (355.0, "warning"), (366.0, "broken")]
)
def test_a_certificate_is_judged_by_its_dates(coordinator: CoordinatorHome, days: float, state: str) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    finding = certificate("c", coordinator.server_certificate.read_bytes(), mend="anew", now=now)
    assert finding.state == state
    assert bool(finding.mend) == (state != "ok")


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(0.0, "ok"), (-299.0, "ok"), (301.0, "warning"), (3e8, "warning")]
)
def test_a_clock_is_judged_by_the_other_side_s(ahead_s: float, state: str) -> None:
    assert examination.clock(ahead_s).state == state


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    from conf.errors import ConfigError

    with pytest.raises(ConfigError, match="neither"):
        run("doctor", [f"--home={tmp_path}"])
