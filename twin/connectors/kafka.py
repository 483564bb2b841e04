"""Kafka: a member of a consumer group whose offsets are committed only after the store is."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from twin.connectors.feed import Batch
from twin.connectors.guarded import check_transport, password_in, tls_context
from twin.connectors.payloads import Payloads, Told
from twin.connectors.rows import Rows
from twin.errors import DataError

KIND: Final = "kafka"
MECHANISMS: Final = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")
OURS: Final = (
    *("bootstrap.servers", "group.id", "client.id", "partition.assignment.", "enable.", "auto."),
    *("security.", "sasl.", "ssl."),
)
"""Settings of librdkafka, or how they begin, that options of the feed say."""
_TURN_S: Final = 0.5
_HEADER: Final = "patient"
_FATAL: Final = {
    KafkaError._AUTHENTICATION: "refuses user and password_file",
    KafkaError.SASL_AUTHENTICATION_FAILED: "refuses user and password_file",
    KafkaError._SSL: "and this feed do not agree on TLS: see ca_file, cert_file and key_file",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "does not let this account read a topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "does not let this account use the group",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "has no topic of these",
}

_log = logging.getLogger(f"twinward.{__name__}")

Place = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """Reads topics as a member of a group; never ends.

    Where it goes on is the store's word: the position has the offset of each partition that this feed
    holds, and at the start these go before the group's. The group's offsets are committed after the store,
    for its other members and for who watches lag. A partition that is taken away meanwhile takes its rows
    that are not committed with it; when it comes back, the group's offset holds, which another member may
    have moved.

    Attributes:
        name: of the feed.
        brokers: host:port of some.
        topics: names.
        group: of consumers.
        key: what a message's key is: "patient" or "device"; "" is neither.
        begin: where a partition begins that neither the store nor the group knows: earliest or latest.
        tls: whether brokers speak it; without, they must be on this machine or `insecure_lan` set.
        ca_file: PEM of the authorities of the brokers' certificates; none is those of this machine.
        cert_file, key_file: PEM of a client certificate.
        user, password_file, mechanism: of SASL; the password is the file's first line.
        form, system, units, keys, columns, epoch, identifier, most_rows: see
            `twin.connectors.payloads.Payloads`.
        message_time: whether a payload without a time holds at the message's timestamp.
        most_bytes: of a payload; a larger one is counted.
        batch_ms, most_messages: a batch is what arrives in so long after its first message, or so many.
        settings: more of librdkafka's, by name.
    """

    name: str
    brokers: tuple[str, ...]
    topics: tuple[str, ...]
    group: str = "twinward"
    key: str = "patient"
    begin: str = "earliest"
    tls: bool = True
    insecure_lan: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str = ""
    password_file: Path | None = None
    mechanism: str = MECHANISMS[0]
    form: str = "json"
    system: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ("time", "value", "unit")
    epoch: str = ""
    identifier: str = ""
    most_rows: int = 10_000
    message_time: bool = False
    most_bytes: int = 1024 * 1024
    batch_ms: int = 250
    most_messages: int = 2000
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hosts = [broker.rpartition(":")[0] for broker in self.brokers]
        check_transport(self.name, hosts, tls=self.tls, insecure_lan=self.insecure_lan, files=self._files())
        wrong = {
            "brokers is empty, or one is not host:port": not self.brokers or not all(hosts),
            "topics is empty, or one is a pattern": not self.topics
            or any(topic.startswith("^") for topic in self.topics),
            "key must be patient, device or empty": self.key not in ("patient", "device", ""),
            "begin must be earliest or latest": self.begin not in ("earliest", "latest"),
            f"mechanism must be one of {', '.join(MECHANISMS)}": self.mechanism not in MECHANISMS,
            "user and password_file belong together": bool(self.user) != (self.password_file is not None),
            "form number has no time of its own and needs message_time = true": (
                self.form == "number" and not self.message_time
            ),
            f"settings may not say what begins with {', '.join(OURS)}": any(
                name.startswith(OURS) for name in self.settings
            ),
        }
        faults = [fault for fault, there in wrong.items() if there]
        if faults:
            raise DataError(f"feed {self.name!r}: {'; '.join(faults)}.")
        self._payloads()

    def batches(self, position: str) -> Generator[Batch, None, None]:
        """Everything after `position`, see `twin.connectors.feed.Connector`."""
        payloads = self._payloads()
        member = Member(
            name=self.name, topics=self.topics, settings=self._settings(), offsets=_offsets(position)
        )
        try:
            while True:
                messages = member.gather(self.most_messages, self.batch_ms / 1000)
                rows = Rows()
                for message in messages:
                    self._take(message, payloads, rows)
                after = member.after(messages)
                yield rows.batch(_position(after)) if messages else Batch()
                member.commit(messages)
        finally:
            member.close()

    def _take(self, message: Any, payloads: Payloads, rows: Rows) -> None:
        payload = message.value()
        if payload is None:
            rows.rejected["message without a payload"] += 1
        elif len(payload) > self.most_bytes:
            rows.rejected["message too large"] += 1
        else:
            try:
                named = (message.key() or b"").decode() if self.key else ""
            except UnicodeDecodeError:
                rows.rejected["key is no text"] += 1
                return
            time_ms = message.timestamp()[1] if self.message_time else 0
            time = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat() if time_ms > 0 else ""
            told = Told(
                patient=named if self.key == "patient" else "",
                device=named if self.key == "device" else "",
                time=time,
            )
            payloads.take(payload, told, rows)

    def _payloads(self) -> Payloads:
        return Payloads(
            kind=KIND,
            form=self.form,
            system=self.system,
            units=self.units,
            keys=self.keys,
            columns=self.columns,
            epoch=self.epoch,
            most_rows=self.most_rows,
            identifier=self.identifier,
        )

    def _files(self) -> dict[str, Path | None]:
        return {"ca_file": self.ca_file, "cert_file": self.cert_file, "key_file": self.key_file}

    def _settings(self) -> dict[str, str | int | bool]:
        """What librdkafka is told."""
        if self.tls:
            tls_context(self.name, self._files())  # its errors say which file; librdkafka's do not
        names = {"ca_file": "ssl.ca.location", "cert_file": "ssl.certificate.location"}
        names |= {"key_file": "ssl.key.location"}
        said: dict[str, str | int | bool] = {
            "bootstrap.servers": ",".join(self.brokers),
            "group.id": self.group,
            "client.id": f"twinward-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": self.begin,
            "allow.auto.create.topics": False,
            "security.protocol": ("SASL_" if self.user else "") + ("SSL" if self.tls else "PLAINTEXT"),
        }
        said |= {names[name]: str(path) for name, path in self._files().items() if path is not None}
        if self.user:
            password = password_in(self.name, self.password_file) or ""
            said |= {"sasl.mechanism": self.mechanism, "sasl.username": self.user, "sasl.password": password}
        return said | dict(self.settings)


class Member:
    """A member of a group: what it holds, has read and may commit."""

    def __init__(
        self,
        *,
        name: str,
        topics: Sequence[str],
        settings: Mapping[str, str | int | bool],
        offsets: Mapping[Place, int],
    ) -> None:
        self._name, self._fault, self._was_assigned = name, "", False
        self._known, self._held = dict(offsets), dict[Place, int | None]()
        try:
            self._consumer = Consumer(
                {**settings, "error_cb": self._on_error, "on_commit": self._on_commit}, logger=_log
            )
        except KafkaException as error:
            raise DataError(f"feed {name!r}: its settings are refused: {error.args[0].str()}.") from None
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def gather(self, most: int, span_s: float) -> list[Any]:
        """Messages of the partitions that are held at the end of it.

        Raises:
            DataError: the brokers refuse.
        """
        found = self._consume(most, _TURN_S)
        end_s = time.monotonic() + span_s
        while found and len(found) < most and (left_s := end_s - time.monotonic()) > 0:
            found += self._consume(most - len(found), left_s)
        if self._fault:
            raise DataError(f"feed {self._name!r}: the broker {self._fault}.")
        return [message for message in found if _place(message) in self._held]

    def after(self, messages: Sequence[Any]) -> dict[Place, int]:
        """The offset of each partition that is held, once these are committed."""
        known = {place: offset for place, offset in self._held.items() if offset is not None}
        return known | {_place(message): message.offset() + 1 for message in messages}

    def commit(self, messages: Sequence[Any]) -> None:
        """Tells the group that these are in the store."""
        moved = {_place(message): message.offset() + 1 for message in messages}
        self._held.update(moved)
        if moved:
            offsets = [TopicPartition(topic, part, offset) for (topic, part), offset in moved.items()]
            try:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                self._on_commit(error.args[0], [])

    def close(self) -> None:
        """Leaves the group."""
        self._consumer.close()

    def _consume(self, most: int, timeout_s: float) -> list[Any]:
        try:
            messages = self._consumer.consume(most, timeout_s)
        except KafkaException as error:
            self._on_error(error.args[0])
            return []
        for message in messages:
            if message.error() is not None:
                self._on_error(message.error())
        return [message for message in messages if message.error() is None]

    def _on_assign(self, consumer: Any, partitions: Sequence[Any]) -> None:
        for part in partitions:
            offset = self._known.get((part.topic, part.partition))
            if offset is not None:
                part.offset = offset
            self._held[part.topic, part.partition] = offset
        if partitions:
            self._known.clear()  # who held the others since knows better
            self._was_assigned = True
        consumer.assign(list(partitions))

    def _on_revoke(self, _: Any, partitions: Sequence[Any]) -> None:
        for part in partitions:
            self._held.pop((part.topic, part.partition), None)

    def _on_commit(self, error: Any, _: Sequence[Any]) -> None:
        if error is not None:
            _log.info("feed %s: the group's offsets were not committed: %s", self._name, error.name())

    def _on_error(self, error: Any) -> None:
        if error.fatal() or error.code() in _FATAL:
            self._fault = _FATAL.get(error.code(), f"gave up ({error.name()})")
        elif error.code() == KafkaError._ALL_BROKERS_DOWN and not self._was_assigned:
            self._fault = "cannot be reached"
        else:
            _log.warning("feed %s: %s; trying again", self._name, error.name())


def _place(message: Any) -> Place:
    return message.topic(), message.partition()


def _position(offsets: Mapping[Place, int]) -> str:
    found: dict[str, dict[str, int]] = {}
    for (topic, part), offset in sorted(offsets.items()):
        found.setdefault(topic, {})[str(part)] = offset
    return json.dumps({"offsets": found})


def _offsets(position: str) -> dict[Place, int]:
    try:
        found = json.loads(position or "{}").get("offsets", {})
        return {(t, int(p)): int(offset) for t, parts in found.items() for p, offset in parts.items()}
    except (ValueError, AttributeError, TypeError):
        raise DataError("The position of a Kafka feed is damaged; start the feed anew.") from None
