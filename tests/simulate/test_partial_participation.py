"""Some sites in each round: those that the plan's hash draws, the same after a halt, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

import client.app
from client.site import Part, close_sites, open_ledger
from link.local import LocalGrid
from link.wire import TRAIN, read_answer
from server.app import store_path
from server.store import Store
from simulate.federation import run_config, run_federation
from strategies.flower import MODEL, ROUND, to_record
from tests.heart_hospitals import settings, write_folder
from trust.digest import Arrays
from trust.plan import Plan

SITES = ("alpha", "beta", "gamma")


class Halted(Exception):
    """Raised to end a run between two rounds."""


def _halt(number: int, model: Arrays) -> None:
    raise Halted


def _plan(directory: Path) -> Plan:
    with Store(store_path(directory)) as store:
        plan = store.plan()
    assert plan is not None
    return plan


def test_each_round_hears_the_sites_that_the_plan_draws_and_a_halt_changes_nothing(tmp_path: Path) -> None:
    config = settings(write_folder(tmp_path / "hospitals"), "strategy.sites_per_round=2", rounds=4)
    whole = run_federation(config, directory=tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Halted):
            run_federation(config, directory=tmp_path / "halted", on_round=_halt)
    halted = run_federation(config, directory=tmp_path / "halted")
    assert halted.sha256 == whole.sha256
    plan = _plan(tmp_path / "whole")
    with Store(store_path(tmp_path / "whole")) as store:
        heard = [tuple(sorted(store.reply_bytes(number))) for number in range(1, 5)]
    assert heard == [plan.asked(number) for number in range(1, 5)]
    assert len(set(heard)) > 1
    assert [entry.bytes_down for entry in whole.rounds] == [whole.rounds[0].bytes_down] * 4


def test_a_site_refuses_a_round_that_does_not_ask_it(tmp_path: Path) -> None:
    config = settings(write_folder(tmp_path / "hospitals"), "strategy.sites_per_round=1", rounds=2)
    with pytest.raises(Halted):
        run_federation(config, directory=tmp_path / "run", on_round=_halt)
    plan = _plan(tmp_path / "run")
    with Store(store_path(tmp_path / "run")) as store:
        row = store.round(1)
        base = store.arrays(str(row.model))
    request = ConfigRecord({"plan": plan.to_json(), "signature": "", "round": 2, "base": str(row.model)})
    grid = LocalGrid(client.app.app, run_config(config, tmp_path / "run", Part()), range(3))
    try:
        said = {}
        for site, node in zip(SITES, grid.get_node_ids(), strict=True):
            content = RecordDict({ROUND: request, MODEL: to_record(base)})
            (reply,) = grid.send_and_receive([Message(content, node, TRAIN)])
            said[site] = read_answer(reply.content)[0].error
    finally:
        close_sites()
    asked = plan.asked(2)
    assert said == {site: "" if site in asked else "round_unknown" for site in SITES}
    for site in set(SITES) - set(plan.asked(1)) - set(asked):
        with open_ledger(config, tmp_path / "run", site) as ledger:
            assert [entry.steps_reserved for entry in ledger.plans()] == [0]
