"""A federation on this machine: coordinator and hospitals in processes of their own, real certificates.

Everything is done with the commands that people type, so what works here works between machines.
"""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Final, Self

from cli import coordinator, joining, membership
from cli.processes import Processes
from link.ports import HOST, free_ports

START_S: Final = 120.0
COORDINATOR: Final = "coordinator"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Of the four listeners of a coordinator."""

    hospitals: int
    enrolment: int
    operators: int
    health: int

    @classmethod
    def free(cls) -> Self:
        """Ports that nobody listens on at this moment."""
        return cls.of(free_ports(4))

    @classmethod
    def of(cls, found: Sequence[int]) -> Self:
        """Four ports, in the order of the names."""
        hospitals, enrolment, operators, health = found
        return cls(hospitals=hospitals, enrolment=enrolment, operators=operators, health=health)


class DemoFederation:
    """A federation in one folder: coordinator/, and a folder per hospital under hospitals/."""

    def __init__(self, directory: Path, *, ports: Ports | None = None, tell: Tell = lambda _: None) -> None:
        """Args:
        directory: must be empty or absent; made here.
        tell: hears each command before it is done.
        """
        self.directory = directory.absolute()
        self.home = self.directory / COORDINATOR
        self.operator = self.home / "operators" / "founder"
        logs = self.directory / "logs"
        logs.mkdir(mode=0o700, parents=True)
        self.processes = Processes(logs)
        self.ports = ports or Ports.free()
        self._tell = tell

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.processes.stop_all()

    def found(self, federation: str) -> None:
        """Makes authority, keys and settings of the coordinator."""
        ports = self.ports
        words = [f"--federation={federation}", f"--host={HOST}", f"--bind={HOST}", f"--home={self.home}"]
        words += [f"--hospitals-port={ports.hospitals}", f"--enrolment-port={ports.enrolment}"]
        words += [f"--operators-port={ports.operators}", f"--health-port={ports.health}"]
        self._do(membership.run, "coordinator init", words)

    def serve(self, **environment: str) -> None:
        """Starts the coordinator, and waits until its last listener answers.

        Raises:
            ProcessError: it ended.
        """
        words = ["coordinator", "serve", f"--home={self.home}", "--verbose"]
        self._tell(" ".join(words))
        self.processes.start(COORDINATOR, words, **environment)
        self.processes.wait_for(
            "the coordinator to listen", lambda: _listens(self.ports.operators, self.ports.health), START_S
        )

    def join(self, site: str, data: Path) -> Path:
        """Invites a hospital and lets it join; gives its folder. The coordinator must be serving."""
        invited = self._do(membership.run, "coordinator invite", [site, f"--home={self.home}", "--json"])
        token, home = json.loads(invited)["token"], self.site_home(site)
        words = [token, f"--home={home}", f"--data={data}"]
        self._do(joining.run, "site join", words, hidden=token)
        return home

    def admit_automatically(self, site: str) -> None:
        """Writes a policy that lets each plan run which the default policy would show to a person."""
        from client.home import SiteHome
        from client.policy import policy_to_toml, read_policy

        home = SiteHome(self.site_home(site))
        policy = read_policy(home.policy)
        automatic = changed(
            policy,
            automatic=True,
            automatic_tasks=policy.tasks,
            automatic_epsilon_per_plan=policy.epsilon_per_plan,
        )
        home.policy.write_text(policy_to_toml(automatic), encoding="utf-8")

    def run_site(self, site: str, **environment: str) -> None:
        """Starts a hospital's process."""
        words = ["site", "run", f"--home={self.site_home(site)}"]
        self._tell(" ".join(words))
        self.processes.start(site, words, **environment)

    def launch(self, words: Sequence[str]) -> str:
        """Offers a plan; gives the id of its run."""
        said = self._do(
            coordinator.run, "coordinator launch", [*words, f"--operator={self.operator}", "--json"]
        )
        return str(json.loads(said)["id"])

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The coordinator's answer to an operator's command."""
        with coordinator.coordinator_of(self.operator) as at:
            return at.call(command, **arguments)

    def site_home(self, site: str) -> Path:
        """The folder of a hospital."""
        return self.directory / "hospitals" / site / "home"

    def _do(
        self, run: Callable[[str, list[str]], int], name: str, words: Sequence[str], *, hidden: str = ""
    ) -> str:
        """Runs a command in this process; gives what it printed."""
        shown = " ".join("TOKEN" if word == hidden else word for word in words)
        self._tell(f"{name} {shown}")
        with redirect_stdout(io.StringIO()) as printed:
            run(name, list(words))
        return printed.getvalue()


def _listens(*ports: int) -> bool:
    for port in ports:
        with socket.socket() as one:
            one.settimeout(1.0)
            if one.connect_ex((HOST, port)):
                return False
    return True
