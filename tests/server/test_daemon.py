"""A whole federation in real processes on loopback: joined, launched, killed, paused, promoted."""

from __future__ import annotations

import itertools
import json
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cli.main import main
from client.ledger import Ledger
from client.policy import policy_to_toml
from client.shelf import Shelf
from conf.load import load_plan, to_json
from server.app import store_path
from server.errors import ServerError
from server.home import CoordinatorHome
from server.members import Members
from server.store import Store
from tests.heart_hospitals import SITES, write_folder
from tests.server.federation_of_processes import AUTOMATIC, Federation, federation
from trust.audit import AuditLog

# One federation for all, and each test goes on where the one before ended: so one worker, in order.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("daemon")]


def config(*words: str) -> str:
    return to_json(load_plan(["task=heart", *words]))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    directory = tmp_path_factory.mktemp("net")
    with federation(directory, write_folder(directory / "data"), SITES) as there:
        for site in SITES:
            there.hospital(site)
        yield there


def charges(there: Federation, run: str) -> dict[str, list[tuple[int, int]]]:
    """Of each site: rounds reserved and complete of every plan of this run in its ledger."""
    with Store(store_path(there.home.run_directory(run))) as store:
        plan = store.plan()
    assert plan is not None
    found = {}
    for name, site in there.sites.items():
        with Ledger(site.ledger, ceiling_epsilon=None, delta=1e-4) as ledger:
            entries = [entry for entry in ledger.plans() if entry.plan_hash == plan.hash]
        found[name] = [(entry.rounds_reserved, entry.rounds_complete) for entry in entries]
    return found


def kinds(there: Federation) -> list[str]:
    with AuditLog(there.home.audit) as log:
        return [record.kind for record in log.records()]


def test_a_plan_runs_from_launch_to_a_model_that_sites_fetch(there: Federation) -> None:
    run = there.launch(config("rounds=3", "privacy.epsilon=3"), quorum=3, request="plain")
    there.wait_for(run, "done")
    progress = there.progress(run)
    assert progress["taking_part"] == list(SITES)
    assert (progress["committed"], progress["refusals"]) == (3, [])
    assert charges(there, run) == {site: [(3, 3)] for site in SITES}
    model = next(entry for entry in there.call("models")["models"] if entry["run"] == run)
    assert model["sha256"] == progress["model"]
    assert set(model["epsilons"]) == set(SITES)
    assert all(value <= 3.0 for value in model["epsilons"].values())
    there.call("promote", number=model["number"], why="first")

    def fetched() -> bool:
        held = Shelf(there.sites["alpha"]).held("heart")
        return held is not None and held[0].sha256 == model["sha256"]

    there.until(fetched)
    wanted = ["run_launched", "plan_offered", "plan_agreed", "round_committed", "model_added", "run_ended"]
    found = kinds(there)
    assert [found.index(kind) for kind in wanted] == sorted(found.index(kind) for kind in wanted)
    assert {"site_joined", "model_promoted"} <= set(found)


def test_a_coordinator_that_is_killed_goes_on_and_nothing_is_charged_twice(there: Federation) -> None:
    run = there.launch(config("rounds=40", "privacy.epsilon=3", "strategy=fedadam"), request="killed")
    for committed in (1, 8, 16):
        there.until(lambda committed=committed: there.progress(run).get("committed", 0) >= committed)  # type: ignore[misc]  # bound now
        assert there.kill("coordinator") == -signal.SIGKILL
        there.serve()
    there.wait_for(run, "done")
    assert there.progress(run)["committed"] == 40
    assert all(entries == [(40, 40)] for entries in charges(there, run).values())
    with Store(store_path(there.home.run_directory(run))) as store:
        rows = store.rounds()
        assert [row.number for row in rows] == list(range(1, 41))
        assert all(after.base == before.model for before, after in itertools.pairwise(rows))
        assert store.answered(20) == SITES


def test_a_site_that_is_killed_is_waited_for(there: Federation) -> None:
    run = there.launch(config("rounds=20", "privacy.epsilon=3"), quorum=3, request="site-killed")
    there.until(lambda: there.progress(run).get("committed", 0) >= 3)
    there.kill("beta")
    there.hospital("beta")
    there.wait_for(run, "done")
    assert all(entries == [(20, 20)] for entries in charges(there, run).values())


def test_the_commands_launch_and_follow_a_run_to_its_end(
    there: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = ["--operator", str(there.home.operators / "founder")]
    words = ["task=heart", "rounds=2", "privacy.epsilon=1", "--sites", "alpha,beta", "--json", *operator]
    assert main(["coordinator", "launch", *words]) == 0
    run = json.loads(capsys.readouterr().out)["id"]
    assert main(["coordinator", "watch", run, *operator]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{run} done, 2 of 2 rounds"
    for command in (["runs"], ["status", run], ["models"]):
        assert main(["coordinator", *command, *operator]) == 0
        assert "done" in capsys.readouterr().out or command == ["models"]
        assert main(["coordinator", *command, "--json", *operator]) == 0
        assert run in json.dumps(json.loads(capsys.readouterr().out))
    assert main(["coordinator", "launch", "data=folder", *operator]) == 2
    assert "bring their own data" in capsys.readouterr().err


def test_a_run_is_paused_resumed_and_stopped(there: Federation) -> None:
    run = there.launch(config("rounds=400", "privacy.epsilon=3"), request="paused")
    there.until(lambda: there.progress(run).get("committed", 0) >= 2)
    there.call("pause", run=run, why="lunch")
    assert there.state(run) == "paused"
    other = there.launch(config("rounds=1", "privacy.epsilon=1"), request="next")
    there.wait_for(other, "done")  # a paused run is in nobody's way
    halted = there.progress(run)["committed"]
    assert halted < 400
    there.call("resume", run=run, why="")
    there.until(lambda: there.progress(run)["committed"] > halted)
    there.call("stop", run=run, why="enough")
    with pytest.raises(ServerError, match="stopped"):
        there.call("resume", run=run, why="")
    assert there.call("status", run=run)["run"]["reason"] == "enough"


def test_a_question_outlives_its_coordinator_until_people_have_answered(
    there: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = ["--operator", str(there.home.operators / "founder")]
    for site, asks, automatic in (("alpha", True, True), ("beta", True, False), ("gamma", False, False)):
        policy = replace(AUTOMATIC, questions=asks, automatic_questions=automatic, smallest_count=1)
        there.sites[site].policy.write_text(policy_to_toml(policy), encoding="utf-8")
    words = ["histogram", "age", "--edges", "0,50,120", "--where", "sex >= 0", "--purpose", "a study"]
    assert main(["coordinator", "ask", *words, "--json", *operator]) == 0
    asked = json.loads(capsys.readouterr().out)

    def says() -> dict[str, str]:
        found = there.call("question", question=asked["id"])["question"]["sites"]
        return {site: said["code"] for site, said in found.items()}

    wanted = {"alpha": "", "beta": "awaiting_approval", "gamma": "question_refused"}
    there.until(lambda: says() == wanted)
    assert there.kill("coordinator") == -signal.SIGKILL
    there.serve()
    home = ["--home", str(there.sites["beta"].directory)]
    assert main(["site", "rehearse", asked["question_sha256"][:10], *home]) == 0
    assert "in truth" in capsys.readouterr().out
    assert main(["site", "approve", asked["question_sha256"][:10], *home]) == 0
    assert main(["site", "plans", *home]) == 0
    assert "histogram" in capsys.readouterr().out
    assert main(["coordinator", "questions", asked["id"], "--wait", *operator]) == 0
    text = capsys.readouterr().out
    assert "done: histogram of age where sex >= 0" in text
    assert "gamma: question_refused" in text
    assert says() == {"alpha": "", "beta": "", "gamma": "question_refused"}
    with AuditLog(there.sites["alpha"].audit) as log:
        plans = [record.facts["plan"] for record in log.records() if record.kind == "answered"]
    assert plans == [asked["question_sha256"]]  # asked once, whatever became of the coordinator
    assert main(["coordinator", "ask", *words, "--sites", "alpha", "--wait", "--json", *operator]) == 0
    again = json.loads(capsys.readouterr().out)
    first = there.call("question", question=asked["id"])["question"]
    assert again["sites"]["alpha"] == first["sites"]["alpha"]
    assert {"question_asked", "question_sent", "question_answered", "question_ended"} <= set(kinds(there))


def test_a_second_coordinator_on_the_folder_is_refused(there: Federation) -> None:
    home = CoordinatorHome(there.home.directory)
    with pytest.raises(ServerError, match="Another process"), home.lock():
        pass


def test_a_revoked_site_is_cut_off_and_not_asked_any_more(there: Federation) -> None:
    there.until(lambda: "gamma" in there.call("connected")["connected"])
    with Members(there.home.members) as members:
        members.end("gamma", "revoked", "test", datetime.now(UTC))
    there.until(lambda: "gamma" not in there.call("connected")["connected"], 30.0)
    run = there.launch(config("rounds=1", "privacy.epsilon=1"), request="without")
    there.wait_for(run, "done")
    assert there.progress(run)["taking_part"] == ["alpha", "beta"]
    unknown = there.launch(config("rounds=1"), request="asked", sites=["alpha", "gamma"])
    there.until(lambda: there.state(unknown) == "failed")
    assert "gamma" in there.call("status", run=unknown)["run"]["reason"]


def test_health_and_metrics_are_on_loopback(there: Federation) -> None:
    url = f"http://127.0.0.1:{there.home.settings().health_port}"
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert values["twinward_sites_members"] == 2.0
    assert values['twinward_runs{state="done"}'] >= 3.0
    assert values["twinward_certificate_days_left"] > 300.0


def test_it_ends_in_order_when_it_is_told_to(there: Federation) -> None:
    assert there.kill("coordinator", signal.SIGTERM) == 0
    assert kinds(there)[-1] == "stopped"
