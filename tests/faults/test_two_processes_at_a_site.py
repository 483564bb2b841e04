"""Requests that reach one site in two processes at once, as stock SuperNodes may bring them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import client.app
from client.hospital import close_hospitals
from client.ledger import Ledger
from client.policy import read_policy
from tests.hospital_home import AUTOMATIC, founded


def test_of_two_plans_of_one_offer_that_come_at_once_one_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, check_share = threading.Barrier(2), client.app.check_share
    monkeypatch.setattr(client.app, "check_share", lambda *args: (both.wait(30), check_share(*args)))
    codes: list[str] = []
    with founded(tmp_path, AUTOMATIC) as at:
        assert at.declare().error == ""
        close_hospitals()
        plans = [at.plan, at.offer.with_participants({"alpha": 10, "gamma": 10})]

        def accept(number: int) -> None:
            codes.append(at.accept(plans[number]).error)
            close_hospitals()

        threads = [threading.Thread(target=accept, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        monkeypatch.undo()
        assert sorted(codes) == ["", "plan_differs"]
        policy = read_policy(at.home.policy)
        with Ledger(at.home.ledger, ceiling_epsilon=policy.ceiling, delta=policy.delta) as ledger:
            (entry,) = ledger.plans()
        assert at.accept(next(plan for plan in plans if plan.hash == entry.plan_hash)).error == ""
