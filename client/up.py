"""A site at work: the one process that owns its store, reads its feeds, keeps its twins and trains.

Each feed, the ward, the sinks of alerts and the connection to the federation is a part that may crash and
begin anew alone (`client.supervisor`). People and commands ask at the door (`client.door`). It ends within
seconds of `stop`, in order: the door, the parts, the store. A SIGKILL at any instant costs what was not
committed yet, which sources deliver again.
"""

from __future__ import annotations

import grp
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from link.health import Figure, HealthListener  # isort: skip  (link must come first, see link/__init__.py)

from client import data, research
from client.access import Access
from client.agent import Agent
from client.custodian import Custodian
from client.door import Door
from client.errors import ClientError
from client.feeds import FeedPart, read_feeds
from client.fitting import Fitting
from client.forecasting import Models
from client.home import SiteHome
from client.own_models import OwnModels
from client.services import Desk, services, status
from client.sinks import read_alerts
from client.store_settings import StoreSettings, read_store_settings
from client.strongroom import open_store
from client.supervisor import Part, PartBroken, Supervisor
from client.wardroom import NOTICES, Post, WardRoom
from conf.errors import TwinwardError
from link.errors import LinkError
from trust.audit import AuditLog
from trust.plan import RELEASE
from trust.pseudonym import Pseudonyms
from trust.roles import read_roles
from trust.signing import Signer
from twin.alerts.delivery import Delivery
from twin.alerts.rules import Rule
from twin.alerts.sinks import Sink
from twin.codes import Codes
from twin.connectors.feed import Connector
from twin.store import Store, StoreError

STOP_S: Final = 8.0
WATCH_S: Final = 2.0
MOST_SILENT: Final = 3
LOST: Final = (
    "The store does not answer any more: is the disk full? What was committed is safe. Make room, and start"
    " the site again, if nothing does that by itself."
)
LIVE: Final = ("twin.connectors.mqtt", "twin.connectors.hl7v2_mllp")
"""Connectors whose rows come as they are made, so that their arrival tells of a device's clock."""

logger = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What the files of a home say, all of them read and found sound."""

    settings: StoreSettings
    feeds: tuple[Connector, ...]
    rules: tuple[Rule, ...]
    sinks: tuple[Sink, ...]


def examine(home: SiteHome) -> Ready:
    """Reads every file of a home that its process needs.

    Raises:
        ClientError: home_unreadable, with every fault of every file at once.
    """
    faults: list[str] = []

    def sound(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except TwinwardError as error:
            faults.append(str(error).removesuffix(" [home_unreadable]"))

    settings = sound(lambda: read_store_settings(home))
    feeds, alerts = sound(lambda: read_feeds(home.feeds)), sound(lambda: read_alerts(home.alerts))
    for other in (lambda: Codes.read(home.codes), lambda: read_roles(home.access), home.settings):
        sound(other)
    if faults:
        raise ClientError("home_unreadable", "\n".join(faults))
    return Ready(settings=settings, feeds=feeds, rules=alerts[0], sinks=alerts[1])


class SiteProcess:
    """The process of one site with a store; `run` returns when `stop` was called."""

    def __init__(self, home: SiteHome, *, forecast_s: float = 60.0) -> None:
        """Reads the files of the home; raises ClientError with all their faults.

        Args:
            forecast_s: between two forecasts of everybody.
        """
        self.home, self.ready, self._forecast_s = home, examine(home), forecast_s
        self._stop = threading.Event()
        self.health_port = 0

    def stop(self) -> None:
        """Ends `run` within seconds. Not for signal handlers."""
        self._stop.set()

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Works until `stop`.

        Raises:
            ClientError: another process runs this site, or the socket cannot be made.
            LinkError: the port of health is taken.
            StoreError, TrustError: the store or the audit log cannot be used, or not any more.
        """
        home, site = self.home, self.home.settings().site
        with ExitStack() as stack:
            stack.enter_context(home.lock())
            log = stack.enter_context(AuditLog(home.audit, signer=Signer.load(home.audit_key)))
            log.append("started", who=site, version=RELEASE)
            stack.callback(log.append, "stopped", who=site, version=RELEASE)
            store = stack.enter_context(open_store(home.store, home.vault, self.ready.settings.lock()))
            store.presume_consent(self.ready.settings.presume_consent)
            self._work(stack, store, log)
            on_ready()
            self._watch(store)
            logger.info("stopping")

    def _watch(self, store: Store) -> None:
        """Returns at `stop`; a process whose store is lost ends, so that its keeper starts a new one."""
        silent = 0
        while not self._stop.wait(WATCH_S):
            silent = 0 if store.works else silent + 1
            if silent >= MOST_SILENT:
                logger.error(LOST)  # closing what is left of it may fail too, with a text of its own
                raise StoreError(LOST)

    def _work(self, stack: ExitStack, store: Store, log: AuditLog) -> None:
        """Starts everything; `stack` ends it, the last first."""
        home, ready = self.home, self.ready
        custodian = self._custodian(store)
        stack.enter_context(research.owned(home, custodian, forget=data.forget))
        changed = threading.Event()
        delivery = Delivery(ready.sinks, changed=changed.set)
        waiting = store.model("", NOTICES)
        if waiting is not None:
            delivery.restore(waiting)
        own = OwnModels(store)
        room = WardRoom(
            custodian,
            delivery,
            rules=ready.rules,
            models=lambda: Models(home, own),
            every_s=self._forecast_s,
        )
        feeds = [FeedPart(connector, custodian) for connector in ready.feeds]
        parts: list[Part] = [room, Post(room, delivery, changed), *feeds]
        if home.is_member:
            parts += [Federation(home), Fitting(home, own)]
        supervisor = Supervisor(parts)
        stack.callback(supervisor.stop, STOP_S)
        access = Access(home, log)
        access.roles()
        desk = Desk(
            home=home,
            settings=ready.settings,
            custodian=custodian,
            room=room,
            supervisor=lambda: supervisor,
            access=access,
            own=own,
            feeds=tuple(connector.name for connector in ready.feeds),
        )

        def record(kind: str, user: str, right: str, about: str) -> None:
            log.append(kind, who=user, right=right, about=about)

        door = Door(
            home.door, services(desk), roles=access.roles, record=record, group=_group(ready.settings.group)
        )
        stack.callback(door.close)
        if ready.settings.health_port:
            listener = HealthListener(
                ready.settings.health_port,
                lambda: {name: s.state in ("running", "ended") for name, s in supervisor.standings().items()},
                lambda: figures(desk, delivery),
            )
            stack.callback(listener.stop)
        supervisor.start()

    def _custodian(self, store: Store) -> Custodian:
        return Custodian(
            store,
            pseudonym=Pseudonyms(self.home.secret()),
            codes=self.home.codes,
            timezone=self.home.settings().timezone,
            live=[feed.name for feed in self.ready.feeds if type(feed).__module__ in LIVE],
            changed=data.forget,
        )


@dataclass(slots=True)
class Federation:
    """The part that is the site in its federation (`client.agent`)."""

    home: SiteHome

    @property
    def name(self) -> str:
        return "federation"

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`.

        Raises:
            PartBroken: the logs contradict each other, or TLS 1.2 could be spoken.
        """
        agent, done = Agent(self.home), threading.Event()

        def watch() -> None:
            while not done.is_set():
                if stop.wait(0.2):
                    agent.stop()
                    return

        threading.Thread(target=watch, name="federation stop", daemon=True).start()
        try:
            agent.run(locked=True)
        except LinkError as error:
            raise PartBroken(str(error)) from None
        except ClientError as error:
            if error.code == "audit_failed":
                raise PartBroken(str(error)) from None
            raise
        finally:
            done.set()


def figures(desk: Desk, delivery: Delivery) -> list[Figure]:
    """What Prometheus is shown: numbers of parts, rows and alerts, nothing of a patient."""
    facts, feeds = status(desk), desk.custodian.feeds()
    parts, sinks = facts["parts"], delivery.figures()
    ward = facts["ward"]
    return [
        Figure(
            "site_part_works",
            "gauge",
            "Whether a part runs or has done its work.",
            {_label("part", name): float(p["state"] in ("running", "ended")) for name, p in parts.items()},
        ),
        Figure(
            "site_part_crashes_total",
            "counter",
            "Crashes of a part since the process began.",
            {_label("part", name): float(p["crashes"]) for name, p in parts.items()},
        ),
        Figure(
            "site_feed_rows_total",
            "counter",
            "Rows that a feed delivered since the process began.",
            {_label("feed", name): float(str(feed["rows"])) for name, feed in feeds.items()},
        ),
        Figure("site_patients", "gauge", "Patients in the ward.", {"": float(ward.get("patients", 0))}),
        Figure(
            "site_alerts",
            "gauge",
            "Active alerts by priority.",
            {_label("priority", p): float(ward.get(f"alerts_{p}", 0)) for p in ("high", "medium", "low")},
        ),
        Figure(
            "site_notices_waiting",
            "gauge",
            "Notices that wait for a sink.",
            {_label("sink", name): float(sink.waiting) for name, sink in sinks.items()},
        ),
        Figure(
            "site_notices_dead_total",
            "counter",
            "Notices that a sink refused for good.",
            {_label("sink", name): float(sink.dead) for name, sink in sinks.items()},
        ),
    ]


def _label(name: str, value: str) -> str:
    return f'{name}="{value}"'


def _group(name: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ClientError("home_unreadable", f"Expected a group of this machine; {name!r} is none.") from None
