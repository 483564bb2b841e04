"""MQTT as wearables and bedside gateways speak it: QoS 1, acknowledged when a message is committed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from twin.connectors.feed import Batch
from twin.connectors.guarded import check_transport, password_in, tls_context
from twin.connectors.mqtt_session import VERSIONS, Arrived, Session, Settings
from twin.connectors.payloads import Payloads, Told
from twin.connectors.rows import Rows
from twin.connectors.topics import Pattern
from twin.errors import DataError

KIND: Final = "mqtt"
WEEK_S: Final = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Mqtt:
    """Subscribes at QoS 1 in a session that the broker keeps; never ends.

    A message is acknowledged (PUBACK) once its batch is committed. What the broker delivers again, because
    the acknowledgement was lost or never sent, has the device's own time and is recognised by the store;
    where the time is that of arrival, it is recognised by its packet identifier and content, which the
    position remembers. Retained messages are old values: counted, not taken.

    Attributes:
        name: of the feed.
        host, port: of the broker; port 0 is 8883 with TLS, 1883 without.
        topics: patterns, see `twin.connectors.topics`.
        client_id: by which the broker knows the session; "" is twinward-<name>. No two clients may share it.
        version: of the protocol, "5" or "3.1.1".
        tls: whether the broker speaks it; without, the broker must be on this machine or `insecure_lan` set.
        ca_file: PEM of the authorities of the broker's certificate; none is those of this machine.
        cert_file, key_file: PEM of a client certificate.
        user, password_file: of the broker's account; the password is the file's first line.
        form, system, units, keys, columns, epoch, identifier, most_rows: see
            `twin.connectors.payloads.Payloads`.
        server_time: whether a payload without a time holds at its arrival. A device's own time is better.
        most_bytes: of a payload; a larger one is counted, one above 16 MiB the broker does not send.
        batch_ms, most_messages: a batch is what arrives in so long after its first message, or so many.
        in_flight: messages that the broker may have sent and not been acknowledged (MQTT 5).
        session_expiry_s: how long the broker keeps what it has for us when we are away (MQTT 5).
        keepalive_s: between signs of life.
        attempts: to reconnect, up to 30 s apart, before the feed is reported as broken.
    """

    name: str
    host: str
    topics: tuple[str, ...]
    port: int = 0
    client_id: str = ""
    version: str = "5"
    tls: bool = True
    insecure_lan: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str = ""
    password_file: Path | None = None
    form: str = "json"
    system: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ("time", "value", "unit")
    epoch: str = ""
    identifier: str = ""
    most_rows: int = 10_000
    server_time: bool = False
    most_bytes: int = 256 * 1024
    batch_ms: int = 250
    most_messages: int = 1000
    in_flight: int = 2000
    session_expiry_s: int = WEEK_S
    keepalive_s: int = 30
    attempts: int = 8

    def __post_init__(self) -> None:
        check_transport(
            self.name, [self.host], tls=self.tls, insecure_lan=self.insecure_lan, files=self._files()
        )
        wrong = {
            "topics is empty": not self.topics,
            f"version must be one of {', '.join(VERSIONS)}": self.version not in VERSIONS,
            "form number has no time of its own and needs server_time = true": (
                self.form == "number" and not self.server_time
            ),
            "in_flight must be 1 to 65535": not 0 < self.in_flight < 65536,
            "port must be 0 to 65535": not 0 <= self.port < 65536,
            "a password needs a user": self.password_file is not None and not self.user,
        }
        faults = [fault for fault, there in wrong.items() if there]
        if faults:
            raise DataError(f"feed {self.name!r}: {'; '.join(faults)}.")
        self._reading()

    def batches(self, position: str) -> Generator[Batch, None, None]:
        """Everything that arrives from now on, see `twin.connectors.feed.Connector`."""
        reading = self._reading(Delivered.of(position, most=2 * self.in_flight))
        with Session(self._settings()) as session:
            while True:
                arrived = session.gather(self.most_messages, self.batch_ms / 1000)
                rows = Rows()
                for one in arrived:
                    reading.take(one, rows)
                yield rows.batch(str(reading.delivered)) if arrived else Batch()
                session.acknowledge(arrived)

    def _reading(self, delivered: Delivered | None = None) -> _Reading:
        return _Reading(
            patterns=tuple(Pattern.of(topic) for topic in self.topics),
            payloads=Payloads(
                kind=KIND,
                form=self.form,
                system=self.system,
                units=self.units,
                keys=self.keys,
                columns=self.columns,
                epoch=self.epoch,
                most_rows=self.most_rows,
                identifier=self.identifier,
            ),
            server_time=self.server_time,
            most_bytes=self.most_bytes,
            delivered=delivered or Delivered(),
        )

    def _files(self) -> dict[str, Path | None]:
        return {"ca_file": self.ca_file, "cert_file": self.cert_file, "key_file": self.key_file}

    def _settings(self) -> Settings:
        return Settings(
            name=self.name,
            host=self.host,
            port=self.port or (8883 if self.tls else 1883),
            client_id=self.client_id or f"twinward-{self.name}",
            version=self.version,
            subscriptions=[Pattern.of(topic).subscription for topic in self.topics],
            user=self.user,
            password=password_in(self.name, self.password_file),
            tls=tls_context(self.name, self._files()) if self.tls else None,
            in_flight=self.in_flight,
            session_expiry_s=self.session_expiry_s,
            keepalive_s=self.keepalive_s,
            attempts=self.attempts,
        )


@dataclass(slots=True, kw_only=True)
class Delivered:
    """The last messages that were taken and whose time is that of arrival; `str` of it is a position.

    A broker that delivers a message again says so (DUP) and gives it the packet identifier of before.
    """

    marks: dict[str, None] = field(default_factory=dict)
    most: int = 4000

    @classmethod
    def of(cls, position: str, *, most: int) -> Delivered:
        """What `str` of it says.

        Raises:
            DataError: it says nothing such.
        """
        try:
            found = json.loads(position or "{}").get("delivered", [])
            return cls(marks=dict.fromkeys(map(str, found)), most=most)
        except (ValueError, AttributeError, TypeError):
            raise DataError("The position of an MQTT feed is damaged; start the feed anew.") from None

    def __str__(self) -> str:
        return json.dumps({"delivered": list(self.marks)})

    def is_again(self, one: Arrived) -> bool:
        """Whether a message was taken before; else it is noted as taken."""
        digest = hashlib.sha256(one.topic + b"\0" + one.payload).hexdigest()[:12]
        mark = f"{one.mid} {digest}"
        again = one.dup and mark in self.marks
        self.marks.pop(mark, None)
        self.marks[mark] = None
        if len(self.marks) > self.most:
            del self.marks[next(iter(self.marks))]
        return again


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """Messages into rows."""

    patterns: tuple[Pattern, ...]
    payloads: Payloads
    server_time: bool
    most_bytes: int
    delivered: Delivered

    def take(self, one: Arrived, rows: Rows) -> None:
        """Adds a message's rows, or why there are none."""
        if one.retained:
            rows.rejected["retained message"] += 1
        elif len(one.payload) > self.most_bytes:
            rows.rejected["message too large"] += 1
        elif (told := self._told(one)) is None:
            rows.rejected["topic of another form"] += 1
        elif self.server_time and one.qos and self.delivered.is_again(one):
            rows.rejected["message delivered again"] += 1
        else:
            self.payloads.take(one.payload, told, rows)

    def _told(self, one: Arrived) -> Told | None:
        try:
            topic = one.topic.decode()
        except UnicodeDecodeError:
            return None
        told = next((found for pattern in self.patterns if (found := pattern.told(topic))), None)
        if told is None or not self.server_time:
            return told
        time = datetime.fromtimestamp(one.at_s, UTC).isoformat()
        return Told(patient=told.patient, device=told.device, code=told.code, time=time)
