"""Hospitals on Flower's own SuperLink and SuperNodes meet the same policy, ledger, gate and log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from client.inbox import Inbox
from client.ledger import Ledger
from conf.load import to_json
from server.app import store_path
from server.store import Store
from tests.heart_hospitals import settings
from tests.hospital_home import AUTOMATIC, Coordinator, founded, write_policy
from tests.ports import free_port
from tests.question_asked import question
from trust.audit import AuditLog

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Stock:
    """A SuperLink, a SuperNode for each hospital, and the environment in which `flwr` finds them."""

    environment: dict[str, str]
    automatic: Coordinator
    waiting: Coordinator
    directory: Path

    def run(self, name: str, *, signed: bool, question: str = "") -> Path:
        """Runs the apps of this repository over the nodes; the coordinator's folder."""
        there = self.directory / name
        config = settings(self.directory / "alpha" / "data", rounds=1)
        key = self.directory / "signing.key" if signed else ""
        words = f"config='{to_json(config)}' directory='{there}' signing_key='{key}' question='{question}'"
        done = subprocess.run(
            ["flwr", "run", str(ROOT), "test", "--stream", "--run-config", words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        # `flwr run --stream` may exit with 0 after a failed run: judge by what is on disk.
        assert there.exists(), done.stdout[-3000:] + done.stderr[-1000:]
        return there


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    root = tmp_path_factory.mktemp("stock")
    (root / "flower").mkdir()
    port = free_port()
    (root / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(root / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    with ExitStack() as stack:
        automatic = stack.enter_context(founded(root / "alpha", AUTOMATIC))
        waiting = stack.enter_context(founded(root / "beta", site="beta"))
        waiting.home.save_coordinator_keys({automatic.signer.key_id: automatic.signer.public_hex})
        automatic.signer.save(root / "signing.key")
        link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
        link += ["--host", "127.0.0.1", "--port", str(port)]
        process = _started(stack, link, environment, root / "superlink.log")
        _wait_until_healthy(process, port, root / "superlink.log")
        for coordinator in (automatic, waiting):
            node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            node += ["--node-config", f'home="{coordinator.home.directory}"', "--port", str(free_port())]
            _started(stack, node, environment, root / f"{coordinator.home.settings().site}.log")
        _wait_for_nodes(root / "superlink.log", 2)
        yield Stock(environment=environment, automatic=automatic, waiting=waiting, directory=root)


def _started(
    stack: ExitStack, command: list[str], environment: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    file = stack.enter_context(log.open("w"))
    process = subprocess.Popen(
        command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    )
    stack.callback(process.wait, timeout=120)
    stack.callback(os.killpg, process.pid, signal.SIGTERM)
    return process


@pytest.mark.slow
def test_hospitals_on_stock_nodes_answer_as_they_do_on_ours(stock: Stock) -> None:
    unsigned = stock.run("unsigned", signed=False)
    with Store(store_path(unsigned)) as store:
        assert store.plan() is None
        assert {code for _, _, code in store.refusals()} == {"plan_unsigned"}
    with Inbox(stock.automatic.home.inbox) as inbox:
        assert inbox.all() == ()

    signed = stock.run("signed", signed=True)
    with Store(store_path(signed)) as store:
        plan = store.plan()
        assert store.fact("final") is not None
        assert {code for _, _, code in store.refusals()} == {"awaiting_approval"}
    assert plan is not None
    assert plan.sites == ("alpha",)
    with Ledger(stock.automatic.home.ledger, ceiling_epsilon=None, delta=1e-4) as ledger:
        assert [(entry.plan_hash, entry.rounds_complete) for entry in ledger.plans()] == [(plan.hash, 1)]
    with AuditLog(stock.automatic.home.audit) as log:
        kinds = [record.kind for record in log.records()]
    assert kinds == [
        *("policy_changed", "refused", "offered", "approved", "declared", "accepted", "released"),
    ]
    with Inbox(stock.waiting.home.inbox) as inbox:
        assert [offer.state for offer in inbox.all()] == ["waiting"]
    with Ledger(stock.waiting.home.ledger, ceiling_epsilon=None, delta=1e-4) as ledger:
        assert ledger.plans() == ()


@pytest.mark.slow
def test_hospitals_on_stock_nodes_answer_questions_as_they_do_on_ours(stock: Stock) -> None:
    policy = replace(AUTOMATIC, questions=True, automatic_questions=True, smallest_count=1)
    write_policy(stock.automatic.home, policy)
    what = question(noise_multiplier=6.0)
    there = stock.run("asked", signed=True, question=what.to_json())
    found = json.loads((there / f"question-{what.hash[:12]}.json").read_text())
    assert {site: said["code"] for site, said in found["sites"].items()} == {
        "alpha": "",
        "beta": "awaiting_approval",
    }
    with Ledger(stock.automatic.home.ledger, ceiling_epsilon=None, delta=1e-4) as ledger:
        (entry,) = [entry for entry in ledger.plans() if entry.plan_hash == what.hash]
    assert entry.rounds_complete == 1
    with AuditLog(stock.automatic.home.audit) as log:
        assert [record.kind for record in log.records()][-2:] == ["accepted", "answered"]


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1.0).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    pytest.fail(f"the SuperLink did not start: {log.read_text()[-2000:]}")


def _wait_for_nodes(log: Path, nodes: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if log.read_text().count("fleet/activate-node") >= nodes:
            return
        time.sleep(0.3)
    pytest.fail(f"the SuperNodes did not come: {log.read_text()[-2000:]}")
