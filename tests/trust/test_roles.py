"""Nobody may do anything that no role of theirs allows, and a site can only take rights away."""

from __future__ import annotations

from pathlib import Path

import pytest

from trust.errors import TrustError
from trust.roles import EXAMPLE, RIGHTS, read_roles, roles

EVERY = sorted({right for rights in RIGHTS.values() for right in rights})


@pytest.mark.parametrize("role", RIGHTS)
def test_a_role_has_its_rights_and_no_other(role: str) -> None:
    given = roles({"anna": [role]}, {})
    assert [right for right in EVERY if given.may("anna", right)] == sorted(RIGHTS[role])
    assert not any(
        given.may(name, right) for right in EVERY for name in ("mallory", "", role, f"role:{role}x")
    )
    assert not given.may("anna", "anything")


def test_two_roles_add_up_and_a_denied_right_is_gone_whichever_role_gave_it() -> None:
    held = ["researcher", "data_steward"]
    assert roles({"anna": held}, {}).may("anna", "export:make")
    denied = roles({"anna": held, "piotr": ["data_steward"]}, {"researcher": ["export:make"]})
    assert not denied.may("anna", "export:make") and denied.may("anna", "erase")
    assert denied.may("piotr", "export:make")


def test_patients_are_not_shown_to_operators_researchers_and_auditors() -> None:
    for role in ("operator", "researcher", "auditor"):
        assert not {"twin:read", "observations:read", "identify"} & set(RIGHTS[role])


def test_the_example_and_an_absent_file_give_nobody_anything(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    assert not any(read_roles(path).may("root", right) for right in EVERY)
    path.write_text(EXAMPLE)
    assert read_roles(path).users == {}


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text('[users]\nanna = ["doctor"]\npiotr = "auditor"\n[deny]\nboss = ["erase"]\n[add]\n')
    with pytest.raises(TrustError) as refused:
        read_roles(path)
    for part in ("[add]", "'doctor'", "piotr", "'boss'", "docs/access.md"):
        assert part in str(refused.value)
    path.write_text("[users")
    with pytest.raises(TrustError, match="Expected TOML"):
        read_roles(path)
