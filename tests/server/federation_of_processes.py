"""A coordinator and hospitals as real processes on loopback, with real certificates, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from client.home import SiteHome
from client.joining import join
from client.policy import Policy, policy_to_toml
from server.founding import found
from server.home import CoordinatorHome, Settings
from server.members import Members
from server.operator import Coordinator
from tests.ports import free_ports
from trust.authority import Authority
from trust.invitation import Invitation

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
COORDINATOR = (
    "import sys; from cli.main import main; sys.exit(main(['coordinator', 'serve', '--home', sys.argv[1]]))"
)
HOSPITAL = """
import sys
from client.agent import Agent, Pace
from client.home import SiteHome
Agent(SiteHome(sys.argv[1]), pace=Pace(fetch_s=0.5)).run()
"""
AUTOMATIC = Policy(
    tasks=("heart",),
    models=("linear",),
    strategies=("fedavg", "fedadam"),
    epsilon_per_plan=8.0,
    epsilon_over_life=30.0,
    automatic=True,
    automatic_tasks=("heart",),
    automatic_epsilon_per_plan=8.0,
    plugins={},
)


@dataclass
class Federation:
    """Homes, and the processes that run on them."""

    home: CoordinatorHome
    sites: dict[str, SiteHome] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def serve(self) -> None:
        """Starts the coordinator, or starts it again, and waits until it answers."""
        self._run("coordinator", COORDINATOR, self.home.directory)
        self.until(self._answers)

    def hospital(self, site: str) -> None:
        """Starts a hospital's process."""
        self._run(site, HOSPITAL, self.sites[site].directory)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Ends a process; gives its exit code."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(timeout=PATIENCE_S)

    def operator(self, folder: Path | None = None) -> Coordinator:
        """A connection as the founder, or as whoever holds the folder."""
        from cli.coordinator import _operator

        return Coordinator(*_operator(folder or self.home.operators / "founder"))

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command of the founder."""
        with self.operator() as at:
            return at.call(command, **arguments)

    def launch(self, config: str, *, quorum: int = 2, request: str = "one", **more: Any) -> str:
        """The id of a new run."""
        terms = {"round_s": 600.0, "approval_s": 600.0, "sites": []} | more
        run = self.call("launch", config=config, request=request, quorum=quorum, **terms)["run"]
        return str(run["id"])

    def state(self, run: str) -> str:
        """The state of a run."""
        return str(self.call("status", run=run)["run"]["state"])

    def progress(self, run: str) -> dict[str, Any]:
        """How far a run is."""
        found: dict[str, Any] = self.call("status", run=run)["progress"]
        return found

    def wait_for(self, run: str, state: str) -> None:
        """Waits until a run is in a state; fails at once if it failed."""

        def there() -> bool:
            self._check()
            found = self.call("status", run=run)["run"]
            assert found["state"] in (state, "queued", "asking", "ready", "running"), found["reason"]
            return bool(found["state"] == state)

        self.until(there)

    def until(self, there: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Waits until it is so; what does not come true shows the ends of all logs."""
        wait_until(there, patience_s, self._last_words)

    def _last_words(self) -> str:
        logs = sorted(self.home.directory.parent.glob("*.log"))
        return "\n".join(f"--- {path.stem}\n{path.read_text(errors='replace')[-2000:]}" for path in logs)

    def _check(self) -> None:
        gone = [name for name, process in self.processes.items() if process.poll() is not None]
        assert not gone, f"{gone} ended\n{self._last_words()}"

    def _answers(self) -> bool:
        self._check()
        try:
            url = f"http://127.0.0.1:{self.home.settings().health_port}/health"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(json.loads(answer.read())["worker"])
        except OSError:
            return False

    def _run(self, name: str, program: str, home: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        log = (self.home.directory.parent / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", program, str(home)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )


@contextmanager
def federation(
    directory: Path, data: Path, sites: tuple[str, ...], policy: Policy = AUTOMATIC
) -> Iterator[Federation]:
    """A founded federation whose coordinator runs and whose sites have joined; their processes do not run."""
    ports = free_ports(4)
    settings = Settings(
        federation="net",
        host="127.0.0.1",
        bind="127.0.0.1",
        hospitals_port=ports[0],
        enrolment_port=ports[1],
        operators_port=ports[2],
        health_port=ports[3],
    )
    there = Federation(found(directory / "coordinator", settings, operator="founder", now=datetime.now(UTC)))
    try:
        there.serve()
        for site in sites:
            token = invite(there.home, site)
            there.sites[site] = join(token, directory / site, data_path=str(data / site)).home
            there.sites[site].policy.write_text(policy_to_toml(policy), encoding="utf-8")
        yield there
    finally:
        for name in list(there.processes):
            there.kill(name)


def invite(home: CoordinatorHome, site: str) -> str:
    """A token for a site."""
    expires = datetime.now(UTC) + timedelta(days=1)
    with Members(home.members) as members:
        secret = members.invite(site, "site", expires=expires)
    return Invitation(
        address=home.settings().enrolment,
        fingerprint=Authority.open(home.authority).fingerprint,
        site=site,
        role="site",
        secret=secret,
        expires=int(expires.timestamp()),
    ).token


def wait_until(
    there: Callable[[], bool], patience_s: float = PATIENCE_S, said: Callable[[], str] = str
) -> None:
    """Waits until it is so; else fails with what `said` gives."""
    ends_s = time.monotonic() + patience_s
    while not there():
        assert time.monotonic() < ends_s, f"it took longer than {patience_s:g} s\n{said()}"
        time.sleep(0.1)
