"""A federation that was launched and has not begun, copied for each test, and what must hold after it.

All copies have the same plan and the same secrets, so an undisturbed copy says to which model a
disturbed one must come, bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from cli.coordinator import ENDS, coordinator_of
from cli.demo_federation import DemoFederation, Ports
from client.home import SiteHome
from client.ledger import Ledger
from client.policy import read_policy
from server.app import store_path
from server.errors import ServerError
from server.home import CoordinatorHome
from server.store import Store
from tests.heart_hospitals import SITES, write_folder
from tests.ports import free_ports
from trust.audit import AuditLog
from trust.digest import arrays_to_bytes, sha256
from trust.verification import verify

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
COORDINATOR = "coordinator"
RUN = "run-0001"
LONG = os.environ.get("TWINWARD_FAULTS") == "long"
"""Whether the long form of the suite runs: `make faults`."""


class Zygote:
    """Starts commands with faults."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def start(self, words: Sequence[str], log: Path, fault: Mapping[str, Any]) -> int:
        return int(self._ask(do="start", words=list(words), log=str(log), fault=dict(fault)))

    def poll(self, process: int) -> int | None:
        found: int | None = self._ask(do="poll", process=process)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def prepare(
    directory: Path,
    zygote: Zygote,
    *,
    rounds: int,
    quorum: int,
    round_deadline: str,
    settings: Sequence[str] = (),
) -> Path:
    """A founded federation of three hospitals with a plan that was offered; nothing runs."""
    data = write_folder(directory / "data")
    with DemoFederation(directory / "net", ports=Ports.of(free_ports(4))) as there:
        there.found("storm")
        with Storm(directory / "net", zygote) as storm:
            storm.start(COORDINATOR)
            for site in SITES:
                there.join(site, data / site)
                there.admit_automatically(site)
            words = ["task=heart", f"rounds={rounds}", "privacy.epsilon=3", *settings, f"--quorum={quorum}"]
            assert there.launch([*words, f"--round-deadline={round_deadline}"]) == RUN
            storm.wait_for(lambda: bool(storm.status()["progress"]))
    return directory / "net"


@dataclass
class Storm:
    """One copy of a federation, and the processes that run on it."""

    directory: Path
    zygote: Zygote
    processes: dict[str, int] = field(default_factory=dict)
    _logged: dict[str, int] = field(default_factory=dict)

    @classmethod
    def on(cls, prepared: Path, directory: Path, zygote: Zygote) -> Self:
        """On a copy of what `prepare` made."""
        shutil.copytree(prepared, directory)
        return cls(directory, zygote)

    @property
    def home(self) -> CoordinatorHome:
        return CoordinatorHome(self.directory / COORDINATOR)

    def site(self, name: str) -> SiteHome:
        return SiteHome(self.directory / "hospitals" / name / "home")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.kill(name)

    # Processes.

    def start(self, name: str, **fault: Any) -> None:
        """Starts the coordinator, and waits until it answers or the fault has ended it, or a hospital."""
        if name != COORDINATOR:
            self._run(name, ["site", "run", f"--home={self.site(name).directory}"], fault)
            return
        self._run(name, ["coordinator", "serve", f"--home={self.home.directory}"], fault)
        self.wait_for(lambda: self.ended(name) is not None or self._answers())
        assert fault or name in self.processes, f"it ended by itself: {self.log(name)}"

    def start_sites(self, *but: str) -> None:
        """Starts all hospitals but these."""
        for site in SITES:
            if site not in but:
                self.start(site)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Ends a process; gives how it ended."""
        self.tell(name, number)
        return self.wait_for_end(name)

    def tell(self, name: str, number: int) -> None:
        """Sends a signal to a process that has not ended."""
        process = self.processes[name]
        if self.zygote.poll(process) is None:
            os.kill(process, number)

    def ended(self, name: str) -> int | None:
        """How a process ended by itself; None while it runs."""
        code = self.zygote.poll(self.processes[name])
        if code is not None:
            del self.processes[name]
        return code

    def wait_for_end(self, name: str) -> int:
        code: list[int] = []

        def over() -> bool:
            found = self.ended(name)
            code.extend([] if found is None else [found])
            return found is not None

        self.wait_for(over)
        return code[0]

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def last_words(self) -> str:
        """The ends of all logs, for whoever reads of a failure where the files are gone."""
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(f"--- {path.stem}\n{self.log(path.stem)[-2000:]}" for path in logs)

    # What is asked of the coordinator, or read from its files while it is away.

    def status(self) -> dict[str, Any]:
        with coordinator_of(self.home.operators / "founder") as at:
            return at.call("status", run=RUN)

    def committed(self) -> int:
        with Store(store_path(self.home.run_directory(RUN))) as store:
            return sum(row.state == "committed" for row in store.rounds())

    def is_over(self) -> bool:
        """Whether the run has ended, whoever runs at the moment."""
        try:
            return self.status()["run"]["state"] in ENDS
        except ServerError:
            return False

    def wait_for(self, there: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        ends_s = time.monotonic() + patience_s
        while not there():
            assert time.monotonic() < ends_s, f"it took longer than {patience_s:g} s\n{self.last_words()}"
            time.sleep(0.02)

    def finish(self) -> str:
        """Waits until the run is done, ends all processes in order; the final model's SHA-256."""
        self.wait_for(self.is_over)
        found = self.status()
        assert found["run"]["state"] == "done", f"{found['run']['reason']}\n{self.last_words()}"
        for name in sorted(self.processes, reverse=True):
            self.wait_for(lambda name=name: self._has_begun(name))  # type: ignore[misc]  # bound now
            code = self.kill(name, signal.SIGTERM)
            assert code == 0, f"{name} ended with {code}: {self.log(name)}"
        return str(found["progress"]["model"])

    def resume_if_failed(self) -> None:
        """What an operator does with a run that an error has ended."""
        with coordinator_of(self.home.operators / "founder") as at:
            if at.call("status", run=RUN)["run"]["state"] == "failed":
                at.call("resume", run=RUN, why="there is room again")

    def dial(self, name: str, port: int) -> None:
        """Lets a hospital reach the coordinator by another port, behind which a line has faults."""
        home = self.site(name)
        home.save(replace(home.settings(), address=f"127.0.0.1:{port}"))

    # What must hold.

    def check(self, *, honest: Collection[str] = SITES) -> None:
        """The invariants of the suite, over the files of both sides.

        Args:
            honest: sites whose own files are to be believed.
        """
        with Store(store_path(self.home.run_directory(RUN))) as store:
            plan, rows = store.plan(), store.rounds()
            replies = _replies(store)
            models = [store.arrays(str(row.model)) for row in rows]  # each is what its hash says
        assert plan is not None
        # One model per round, each made from the one before, none lost.
        assert [row.number for row in rows] == list(range(1, plan.rounds + 1))
        assert all(row.state == "committed" for row in rows)
        assert [row.base for row in rows] == [plan.base_sha256, *(str(row.model) for row in rows[:-1])]
        assert len(models) == plan.rounds
        for name in honest:
            self._check_site(name, plan.hash, {row.number: row.base for row in rows}, replies)
        self._check_logs(honest)
        with AuditLog(self.home.audit) as log:
            told = [record.facts["round"] for record in log.records(kinds=["round_committed"])]
        assert set(told) == set(range(1, plan.rounds + 1))

    def _check_site(
        self, name: str, plan: str, bases: Mapping[int, str], replies: Mapping[int, Mapping[str, str]]
    ) -> None:
        home = self.site(name)
        policy = read_policy(home.policy)
        with Ledger(home.ledger, ceiling_epsilon=policy.ceiling, delta=policy.delta) as ledger:
            entries = [entry for entry in ledger.plans() if entry.plan_hash == plan]
            cached = {number: ledger.cached(plan, number, base) for number, base in bases.items()}
        # At most one charge per plan and round, and at least one for each release that arrived.
        assert len(entries) <= 1
        arrived = {number: sites[name] for number, sites in replies.items() if name in sites}
        assert len(arrived) <= sum(entry.rounds_complete for entry in entries)
        # What was averaged is, byte for byte, what the ledger holds for that round and base.
        assert {number: sha256(cached[number] or b"") for number in arrived} == arrived
        with AuditLog(home.audit) as log:
            released = {(r.facts["round"], r.facts["base"]) for r in log.records(kinds=["released"])}
        assert {(number, bases[number]) for number in arrived} <= released

    def _check_logs(self, honest: Collection[str]) -> None:
        """Each log is whole, and agrees with the heads of it that the other side holds."""
        with AuditLog(self.home.audit) as log:
            held = [(peer, signed) for whose, peer, signed in log.all_held() if whose == "peer"]
        assert verify(self.home.audit) == []
        for name in honest:
            heads = [signed for peer, signed in held if peer == name]
            assert verify(self.site(name).audit, heads=heads) == []
            with AuditLog(self.site(name).audit) as log:
                theirs = [signed for whose, _, signed in log.all_held() if whose == "peer"]
            assert verify(self.home.audit, heads=theirs) == []

    def _has_begun(self, name: str) -> bool:
        """Whether a process knows what a signal to end means: a run may be over before a site is up again."""
        return len(self.log(name)) > self._logged[name]

    def _run(self, name: str, words: list[str], fault: Mapping[str, Any]) -> None:
        path = self.directory / f"{name}.log"
        self._logged[name] = len(self.log(name)) if path.exists() else 0
        self.processes[name] = self.zygote.start(words, self.directory / f"{name}.log", fault)

    def _answers(self) -> bool:
        try:
            with coordinator_of(self.home.operators / "founder") as at:
                at.call("runs")
        except ServerError:
            return False
        return True


def _replies(store: Store) -> dict[int, dict[str, str]]:
    """SHA-256 of each update that was averaged, by the round from whose base it was made, and site."""
    found: dict[int, dict[str, str]] = {row.number: {} for row in store.rounds()}
    for row in store.rounds():
        tasks = store.tasks.counted(row.number)
        for site, update in store.updates(row.number).items():
            asked = tasks[site].number if site in tasks else row.number
            assert site not in found[asked], "an update was applied twice"
            found[asked][site] = sha256(arrays_to_bytes(update))
    return found
