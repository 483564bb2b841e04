"""HL7 v2 as hospitals send it: a TCP server that speaks MLLP and answers when a message is committed."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import queue
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from twin.connectors.feed import Batch
from twin.connectors.hl7v2 import OWN, TAKEN, Answer, Reading, answer_to
from twin.connectors.mllp_server import Arrived, Server, Tls
from twin.connectors.rows import Rows
from twin.errors import DataError

MOST_AT_ONCE: Final = 500
REMEMBERED: Final = 1000
_TURN_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Hl7v2Mllp:
    """Listens for ORU^R01 over MLLP; never ends.

    A message is acknowledged once its batch is committed: AA if it was taken, AE or AR with an ERR segment
    if it has no patient or is none that is taken here. A message that comes again, byte by byte with its
    control id (MSH-10), because its sender did not hear the answer, is answered and not read again.

    Attributes:
        name: of the feed.
        port: to listen on; MLLP has 2575.
        host: address to listen on. Beyond this machine it needs `allow` or TLS with `client_ca_file`.
        allow: networks (10.1.0.0/16) that may connect; empty is every one.
        cert_file, key_file: PEM of this server's certificate chain and key, for TLS.
        client_ca_file: PEM of the authorities whose client certificates are asked for.
        authority, default_system: see `twin.connectors.hl7v2.Reading`.
        most_bytes: a larger message closes its connection.
        most_connections: at the same time; more are closed at once.
    """

    name: str
    port: int = 2575
    host: str = "127.0.0.1"
    allow: tuple[str, ...] = ()
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    authority: str = ""
    default_system: str = OWN
    most_bytes: int = 4 * 1024 * 1024
    most_connections: int = 32

    def batches(self, position: str) -> Iterator[Batch]:
        """Everything that is sent from now on, see `twin.connectors.feed.Connector`."""
        recent = _recent(position)
        reading = Reading(authority=self.authority, default_system=self.default_system)
        with self._server() as server:
            while True:
                arrived = _gather(server.inbox)
                rows = Rows(rejected=server.faults())
                answers: list[tuple[Arrived, Answer]] = []
                for one in arrived:
                    mark = hashlib.sha256(one.message).hexdigest()[:20]
                    known = mark in recent
                    answer = TAKEN if known else reading.take(one.message, rows)
                    answers.append((one, answer))
                    if answer is TAKEN:
                        recent[mark] = recent.pop(mark, None)
                for mark in list(recent)[:-REMEMBERED]:
                    del recent[mark]
                moved = bool(arrived or rows.rejected)
                yield rows.batch(json.dumps({"recent": list(recent)})) if moved else Batch()
                for one, answer in answers:
                    now = datetime.now(UTC).strftime("%Y%m%d%H%M%S+0000")
                    one.answer.put(answer_to(one.message, answer, now=now, control_id=secrets.token_hex(10)))

    def _server(self) -> Server:
        networks = _networks(self.allow)
        if not (_is_here(self.host) or networks or self.client_ca_file):
            raise DataError(
                f"feed {self.name!r} listens on {self.host} for everybody; set allow to the networks that "
                "may connect, or client_ca_file to ask for certificates."
            )
        if (self.cert_file is None) != (self.key_file is None) or (
            self.client_ca_file and not self.cert_file
        ):
            raise DataError(f"feed {self.name!r}: TLS needs cert_file and key_file together.")
        tls = None
        if self.cert_file is not None and self.key_file is not None:
            tls = Tls(cert_file=self.cert_file, key_file=self.key_file, client_ca_file=self.client_ca_file)
        return Server(
            address=(self.host, self.port),
            networks=networks,
            tls=tls,
            most_bytes=self.most_bytes,
            most_connections=self.most_connections,
        )


def _recent(position: str) -> dict[str, None]:
    try:
        found = json.loads(position or "{}")
        return dict.fromkeys(map(str, found.get("recent", [])))
    except (ValueError, AttributeError, TypeError):
        raise DataError("The position of an MLLP feed is damaged; start the feed anew.") from None


def _gather(inbox: queue.Queue[Arrived]) -> list[Arrived]:
    """What has arrived; waits a little for the first message."""
    found: list[Arrived] = []
    with contextlib.suppress(queue.Empty):
        found.append(inbox.get(timeout=_TURN_S))
        while len(found) < MOST_AT_ONCE:
            found.append(inbox.get_nowait())
    return found


def _networks(allow: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(one) for one in allow)
    except ValueError:
        raise DataError("allow must list networks such as 10.1.0.0/16 or 192.0.2.7/32.") from None


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
