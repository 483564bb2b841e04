"""What deploy/ holds agrees with the code: commands, ports, users without rights."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
import yaml

from cli.main import COMMANDS
from server.home import ENROLMENT_PORT, HEALTH_PORT, HOSPITALS_PORT, OPERATORS_PORT

DEPLOY = Path(__file__).parents[2] / "deploy"


def unit(name: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]  # names of directives keep their case
    found.read_string((DEPLOY / name).read_text())
    return found


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("twinward-coordinator.service", "coordinator serve"),
        ("twinward-site.service", "site run"),
        ("twinward-site-up.service", "site up"),
    ],
)
def test_a_unit_runs_a_command_that_exists_as_a_user_without_rights(name: str, command: str) -> None:
    service = unit(name)["Service"]
    words = service["ExecStart"].split()
    assert words[0].endswith("/bin/twinward")
    assert " ".join(words[1:3]) == command
    assert command in COMMANDS
    assert service["User"] not in ("", "root")
    assert service["CapabilityBoundingSet"] == ""
    for directive in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictSUIDSGID"):
        assert service[directive] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert words[4].startswith(f"/var/lib/{service['StateDirectory']}/")


@pytest.mark.parametrize(
    ("name", "command"), [("coordinator", "coordinator serve"), ("site", "site run"), ("site-up", "site up")]
)
def test_a_container_runs_a_command_that_exists_without_rights(name: str, command: str) -> None:
    service = yaml.safe_load((DEPLOY / f"compose.{name}.yaml").read_text())["services"][
        name.removesuffix("-up")
    ]
    assert " ".join(service["command"][:2]) == command
    assert command in COMMANDS
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert any(volume.endswith(":/var/lib/twinward") for volume in service["volumes"])
    text = (DEPLOY / "Containerfile").read_text()
    assert "USER 10001:10001" in text


def test_the_coordinator_opens_its_three_ports_and_a_site_none() -> None:
    coordinator = yaml.safe_load((DEPLOY / "compose.coordinator.yaml").read_text())["services"]["coordinator"]
    ports = {int(port.split(":")[0]) for port in coordinator["ports"]}
    assert ports == {HOSPITALS_PORT, ENROLMENT_PORT, OPERATORS_PORT}
    assert f":{HEALTH_PORT}/health" in str(coordinator["healthcheck"]["test"])
    site = yaml.safe_load((DEPLOY / "compose.site.yaml").read_text())["services"]["site"]
    assert "ports" not in site
