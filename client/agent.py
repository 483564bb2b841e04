"""The process at a hospital: keeps the connection up, answers requests, renews, fetches models.

Outbound only. Requests are answered one at a time by the ClientApp, in the link's one thread. Beside
that a quiet loop renews the certificate before it ends, fetches models that were promoted, writes how
things stand to status.json, and stops when it is told to.

If the coordinator's audit log contradicts what this site saw of it, or the coordinator shows that this
site's own log is an old copy, the process stops: people have to look (docs/audit.md).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from link import TLS13_ONLY  # before grpc: see link/__init__.py

from flwr.app import Context, Message, RecordDict  # isort: skip  (link must come first)

import client.app
from client.calling import credentials_of
from client.data import read_data
from client.errors import ClientError
from client.home import SiteHome
from client.hospital import close_hospitals, hospital
from client.inbox import Inbox
from client.joining import renew, renewal_due
from client.policy import policy_bytes
from client.records import note_policy, recorded_policy
from client.shelf import Shelf
from conf.errors import TwinwardError
from link.errors import LinkError
from link.flower import RUN_ID, identify_coordinator
from link.hospital import HospitalLink, HospitalSettings
from trust.audit import AuditLog
from trust.card import FETCH, fetch_request
from trust.digest import sha256
from trust.errors import TrustError
from trust.keys import write_file
from trust.plan import RELEASE
from trust.signing import Signer
from trust.witness import Witness

COORDINATOR = "coordinator"
"""Under which the site's audit log knows the coordinator's."""

logger = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often the quiet loop looks, seconds."""

    tick_s: float = 0.5
    status_s: float = 5.0
    renew_s: float = 3600.0
    fetch_s: float = 60.0
    call_s: float = 60.0


class Agent:
    """The process of one site; `run` returns when `stop` was called."""

    def __init__(self, home: SiteHome, *, pace: Pace | None = None) -> None:
        self.home = home
        self.settings = home.settings()
        self._pace = pace or Pace()
        self._stop = threading.Event()
        self._broken = ""
        self._answered = 0
        self._due: dict[str, float] = {}
        self._policy_sha256 = ""
        self._link: HospitalLink | None = None

    def stop(self) -> None:
        """Ends `run` soon; a request that is being answered is finished first. Not for signal handlers."""
        self._stop.set()
        if self._link is not None:
            self._link.end_calls()  # to a coordinator that is gone, a chore would wait a minute for each

    def run(self, *, locked: bool = False) -> None:
        """Works until `stop`.

        Args:
            locked: this process holds the home's lock already (client/up.py).

        Raises:
            ClientError: another process runs this site; a file of the site cannot be used; the logs
                contradict each other.
            LinkError: TLS 1.2 could be spoken.
        """
        if not TLS13_ONLY:
            raise LinkError("gRPC was imported before link, so TLS 1.2 could be spoken.")
        with ExitStack() as stack:
            if not locked:
                stack.enter_context(self.home.lock())
            log = AuditLog(self.home.audit, signer=Signer.load(self.home.audit_key))
            stack.callback(log.close)
            self._check()
            log.append("started", who=self.settings.site, version=RELEASE)
            link = self._link = self._linked(log)
            link.start()
            stack.callback(log.append, "stopped", who=self.settings.site, version=RELEASE)
            stack.callback(link.stop)
            while not self._stop.wait(self._pace.tick_s) and not self._broken:
                self._tick(link, log)
            self._write_status(link)
        if self._broken:
            raise ClientError("audit_failed", self._broken)

    def _check(self) -> None:
        """Finds at the start what would else fail at the first request."""
        recorded_policy(self.home)
        credentials_of(self.home)
        if self.settings.role == "site":
            hospital(str(self.home.directory))
            close_hospitals()
            read_data(self.home)

    def _linked(self, log: AuditLog) -> HospitalLink:
        witness = Witness(log, keys=set(self.home.coordinator_keys().values()))

        begun = log.size

        def hear(data: bytes) -> None:
            try:
                witness.hear(COORDINATOR, data)
            except TrustError as error:
                logger.warning("the coordinator's word on the audit logs: %s", error)
                refused = log.last("peer_log_refused", "own_log_refused")
                if refused is not None and refused.number >= begun:
                    self._broken = str(error)

        settings = HospitalSettings(
            address=self.settings.address,
            credentials=lambda: credentials_of(self.home),
            transfers=self.home.transfers,
            proxy=self.settings.proxy or "",
        )
        return HospitalLink(settings, self._handle, head=lambda: witness.say(COORDINATOR), heard=hear)

    def _handle(self, message: Message) -> Message:
        """One request, in the link's thread."""
        identify_coordinator()
        context = Context(
            run_id=RUN_ID,
            node_id=message.metadata.dst_node_id,
            node_config={"home": str(self.home.directory)},
            state=RecordDict(),
            run_config={},
        )
        reply = client.app.app(message, context)
        self._answered += 1
        return reply

    def _tick(self, link: HospitalLink, log: AuditLog) -> None:
        self._try("record a change of the policy", partial(self._note_policy, log))
        if self._is_due("status", self._pace.status_s):
            self._try("write status.json", partial(self._write_status, link))
        if not link.state.connected:
            return
        if self._is_due("renew", self._pace.renew_s):
            self._try("renew the certificate", partial(self._renew, link, log))
        if self._is_due("fetch", self._pace.fetch_s):
            self._try("fetch models", partial(self._fetch_all, link, log))

    def _note_policy(self, log: AuditLog) -> None:
        """A change of the policy stands in the log also where nobody asks for anything."""
        digest = sha256(policy_bytes(self.home.policy))
        if digest != self._policy_sha256:
            note_policy(log, digest, who=self.settings.site)
            self._policy_sha256 = digest

    def _renew(self, link: HospitalLink, log: AuditLog) -> None:
        if renewal_due(self.home, datetime.now(UTC)):
            renew(self.home, lambda kind, payload: link.call(kind, payload, self._pace.call_s))
            log.append("certificate_renewed", who=self.settings.site, name=self.settings.site)

    def _fetch_all(self, link: HospitalLink, log: AuditLog) -> None:
        for task in recorded_policy(self.home).tasks:
            self._try(f"fetch the model of {task}", partial(self._fetch, link, log, task))

    def _fetch(self, link: HospitalLink, log: AuditLog, task: str) -> None:
        shelf = Shelf(self.home)
        held = shelf.held(task)
        request = fetch_request(task, "" if held is None else held[0].sha256)
        package = link.call(FETCH, request, self._pace.call_s, answer_bytes=None)
        if package:
            card = shelf.take(package)
            log.append(
                "model_fetched",
                who=self.settings.site,
                number=card.number,
                model=card.sha256,
                name=self.settings.site,
            )
            logger.info("model %d of task %s was taken", card.number, card.task)

    def _try(self, what: str, work: Callable[[], None]) -> None:
        """Does it; what fails is said and tried again when it is due."""
        try:
            work()
        except TwinwardError as error:
            logger.warning("could not %s: %s", what, error)
        except Exception as error:  # noqa: BLE001  a full disk or what a peer sent must not end the process
            logger.error("could not %s: %s", what, type(error).__name__)  # its text may hold anything

    def _is_due(self, name: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + every_s
        return True

    def _write_status(self, link: HospitalLink) -> None:
        """How things stand, for `twinward site status` and whoever watches the process."""
        state = link.state
        with Inbox(self.home.inbox) as inbox:
            states = [offer.state for offer in inbox.all()]
        status = {
            "site": self.settings.site,
            "federation": self.settings.federation,
            "connected": state.connected,
            "since_s": state.since_s,
            "ended": state.ended,
            "attempts": state.attempts,
            "clock_ahead_s": round(state.clock_ahead_s, 3),
            "answered": self._answered,
            "waiting": states.count("waiting"),
            "running": states.count("running"),
            "written_s": time.time(),
        }
        write_file(self.home.status_path, (json.dumps(status) + "\n").encode(), replace=True)


def read_status(home: SiteHome) -> dict[str, object]:
    """What the running process wrote last; empty if none ever did."""
    try:
        status = json.loads(home.status_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
