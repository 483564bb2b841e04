"""`twinward audit …`, `twinward site budget` and `twinward site ledger accept`, as somebody types them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cli.main import main
from client.hospital import close_hospitals
from tests.hospital_home import AUTOMATIC, founded
from trust.audit import AuditLog
from trust.signing import Signer
from trust.witness import Witness


def log(path: Path, signer: Signer, codes: str) -> Path:
    with AuditLog(path, signer=signer) as opened:
        for code in codes:
            opened.append("refused", who="north", why="[no budget]", code=code)
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_log_that_was_changed_fails_and_one_that_was_not_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = log(tmp_path / "audit.sqlite", Signer.generate(), "abcde")
    assert said(capsys, "audit", "verify", path) == (0, f"{path} agrees with its own tree.\n")
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("UPDATE records SET record = replace(record, 'north', 'south') WHERE number = 3")
        sql.commit()
    code, text = said(capsys, "audit", "verify", path)
    assert code == 1
    assert "record 3 is not what was hashed" in text
    code, text = said(capsys, "audit", "verify", path, "--json")
    assert code == 1
    assert json.loads(text)["faults"]


def test_a_log_written_anew_is_found_with_the_heads_of_the_other_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signer = Signer.generate()
    path = log(tmp_path / "audit.sqlite", signer, "abcde")
    with (
        AuditLog(path, signer=signer) as site,
        AuditLog(tmp_path / "other.sqlite", signer=Signer.generate()) as coordinator,
    ):
        Witness(coordinator).hear("north", Witness(site).say("coordinator"))
    code, heads = said(capsys, "audit", "heads", tmp_path / "other.sqlite", "--peer", "north")
    assert code == 0
    (tmp_path / "heads.json").write_text(heads)
    assert said(capsys, "audit", "verify", path, "--heads", tmp_path / "heads.json")[0] == 0
    anew = log(tmp_path / "anew.sqlite", signer, "abCde")
    assert said(capsys, "audit", "verify", anew)[0] == 0
    code, text = said(capsys, "audit", "verify", anew, "--heads", tmp_path / "heads.json")
    assert code == 1
    assert "rewritten" in text
    assert said(capsys, "audit", "accept", tmp_path / "other.sqlite", "north", "--reason", "a fire")[0] == 0
    assert said(capsys, "audit", "heads", tmp_path / "other.sqlite", "--peer", "north")[0] == 2


def test_records_are_shown_with_who_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log(tmp_path / "audit.sqlite", Signer.generate(), "abcde")
    code, text = said(capsys, "audit", "show", path, "--last", "2")
    assert code == 0
    assert "code=d  ([no budget])" in text
    assert "code=c" not in text
    code, text = said(capsys, "audit", "show", path, "--kind", "refused", "--json")
    assert [json.loads(line)["facts"]["code"] for line in text.splitlines()] == list("abcde")


def test_reading_a_log_that_is_not_there_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("verify", "show", "heads"):
        code, text = said(capsys, "audit", command, tmp_path / "audit.sqlite")
        assert code in (1, 2)
        assert "no file" in text
    assert list(tmp_path.iterdir()) == []


def test_a_site_shows_its_budget_and_goes_on_with_a_ledger_that_was_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with founded(tmp_path, AUTOMATIC) as coordinator:
        home = coordinator.home
        code, text = said(capsys, "site", "budget", "--home", home.directory)
        assert code == 0
        assert "Spent: epsilon 0 of" in text
        coordinator.declare()
        coordinator.accept()
        coordinator.train(1)
        close_hospitals()
        code, text = said(capsys, "site", "budget", "--home", home.directory, "--json")
        budget = json.loads(text)
        named = budget["plans"][0]["plan"], budget["plans"][0]["offer"]
        assert named == (coordinator.plan.hash, coordinator.plan.offer_hash)
        assert 0 < budget["epsilon_spent"] <= coordinator.plan.terms.epsilon
        accept = ("site", "ledger", "accept", "--home", home.directory, "--reason", "the disk broke")
        code, text = said(capsys, *accept)
        assert code == 2
        assert "nothing to accept" in text
        shutil.move(home.ledger, tmp_path / "lost.sqlite")
        assert coordinator.train(2)[0].error == "ledger_restored"
        close_hospitals()
        code, text = said(capsys, *accept)
        assert (code, text.splitlines()[0]) == (
            0,
            "Plans charged again: 1. Plans that end at this site: 1.",
        )
        code, text = said(capsys, "site", "budget", "--home", home.directory, "--json")
        assert json.loads(text)["epsilon_spent"] == budget["epsilon_spent"]
        code, text = said(capsys, "site", "budget", "--ledger", tmp_path / "lost.sqlite")
        assert code == 0
        assert coordinator.plan.offer_hash[:12] in text  # the name under which `site plans` lists it
