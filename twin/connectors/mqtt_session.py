"""A session with an MQTT broker: it stays when the connection breaks, and nothing is told to be safe that
was not committed.

The network has a thread of its own (paho's). A message is acknowledged on the connection that brought it,
or not at all: after a break its identifier may stand for another message, and the broker sends it again.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import ssl
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from twin.errors import DataError

VERSIONS: Final = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}
LARGEST_PACKET: Final = 16 * 1024 * 1024
LONGEST_WAIT_S: Final = 30
_TURN_S: Final = 0.5
_CLOSE_S: Final = 5.0
_PASSING: Final = ("Server unavailable", "Server busy", "Quota exceeded", "Connection rate exceeded")
_NOT_RETAINED_AGAIN: Final = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB

_log = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A message; `connection` is the number of the one that brought it."""

    topic: bytes
    payload: bytes
    mid: int
    qos: int
    dup: bool
    retained: bool
    at_s: float
    connection: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a broker is reached, see `twin.connectors.mqtt.Mqtt`."""

    name: str
    host: str
    port: int
    client_id: str
    version: str
    subscriptions: Sequence[str]
    user: str
    password: str | None
    tls: ssl.SSLContext | None
    in_flight: int
    session_expiry_s: int
    keepalive_s: int
    attempts: int


class Session:
    """Connects while its context lasts; closing it leaves unacknowledged what was not acknowledged."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._inbox: queue.Queue[Arrived] = queue.Queue(max(settings.in_flight, 100))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connection, self._failures, self._fault = 0, 0, ""
        self._was_connected = self._warned = False
        self._client = self._made()

    def __enter__(self) -> Self:
        settings, properties = self._settings, None
        clean: dict[str, Any] = {}
        if self._is_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho gives no types here
            properties.SessionExpiryInterval = settings.session_expiry_s
            properties.ReceiveMaximum = settings.in_flight
            properties.MaximumPacketSize = LARGEST_PACKET
            clean = {"clean_start": False, "properties": properties}
        self._client.connect_async(settings.host, settings.port, keepalive=settings.keepalive_s, **clean)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
        closer = threading.Thread(target=self._client.loop_stop, name="mqtt-close", daemon=True)
        closer.start()
        closer.join(_CLOSE_S)  # a connection that is being made may take longer; it ends by itself

    def gather(self, most: int, span_s: float) -> list[Arrived]:
        """What arrives: waits a little for the first message, then so long for more, at most so many.

        Raises:
            DataError: the broker refuses, cannot be reached, or is not whom it should be.
        """
        self._check()
        found: list[Arrived] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._inbox.get(timeout=_TURN_S))
            end_s = time.monotonic() + span_s
            while len(found) < most:
                left_s = end_s - time.monotonic()
                found.append(self._inbox.get(timeout=left_s) if left_s > 0 else self._inbox.get_nowait())
        return found

    def acknowledge(self, arrived: Iterable[Arrived]) -> None:
        """Tells the broker that it may forget these."""
        with self._lock:
            for one in arrived:
                if one.qos and one.connection == self._connection:
                    self._client.ack(one.mid, one.qos)

    @property
    def _is_5(self) -> bool:
        return self._settings.version == "5"

    def _made(self) -> paho.Client:
        settings = self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=None if self._is_5 else False,
            protocol=VERSIONS[settings.version],
            manual_ack=True,
        )
        if settings.user or settings.password:
            client.username_pw_set(settings.user, settings.password)
        if settings.tls is not None:
            client.tls_set_context(settings.tls)
        client.reconnect_delay_set(1, LONGEST_WAIT_S)
        client.on_connect, client.on_connect_fail = self._on_connect, self._on_connect_fail
        client.on_disconnect, client.on_subscribe = self._on_disconnect, self._on_subscribe
        client.on_message = self._on_message
        return client

    def _check(self) -> None:
        thread = self._client._thread  # paho has no public word for it
        if not self._fault and (thread is None or not thread.is_alive()):
            self._fault = "sent what is no MQTT"
        if self._fault:
            settings = self._settings
            raise DataError(
                f"feed {settings.name!r}: the broker {settings.host}:{settings.port} {self._fault}."
            )

    def _next_connection(self) -> None:
        with self._lock:
            self._connection += 1

    def _on_connect(self, client: paho.Client, _: Any, flags: Any, reason: Any, __: Any) -> None:
        self._next_connection()
        if reason.is_failure:
            self._refused(str(reason))
            return
        self._failures = 0
        if self._was_connected and not flags.session_present:
            _log.warning("feed %s: the broker forgot the session; what it held is lost", self._settings.name)
        self._was_connected = True
        options = SubscribeOptions(qos=1, retainHandling=_NOT_RETAINED_AGAIN)
        asked: list[Any] = [(topic, options if self._is_5 else 1) for topic in self._settings.subscriptions]
        client.subscribe(asked)

    def _on_connect_fail(self, *_: object) -> None:
        error = sys.exception()
        if isinstance(error, ssl.SSLCertVerificationError):
            self._fault = f"has a certificate that ca_file does not vouch for ({error.verify_message})"
        elif isinstance(error, ssl.SSLError):
            self._fault = f"does not agree on TLS ({error.reason or 'unknown reason'})"
        else:
            self._failed(f"cannot be reached ({type(error).__name__})")

    def _on_disconnect(self, _: Any, __: Any, flags: Any, reason: Any, ___: Any) -> None:
        self._next_connection()
        if self._closing.is_set() or self._fault:
            return
        said = str(reason)
        if flags.is_disconnect_packet_from_server and said == "Session taken over":
            self._fault = "has another client with the same client_id: each needs its own"
        elif not self._was_connected:
            self._failed("ended the connection: a certificate (cert_file) that it does not accept, perhaps")
        else:
            _log.warning("feed %s: connection lost (%s); trying again", self._settings.name, said)

    def _on_subscribe(self, _: Any, __: Any, ___: Any, reasons: Sequence[Any], ____: Any) -> None:
        refused = [reason for reason in reasons if reason.value != 1]
        if refused:
            self._fault = (
                f"grants {len(refused)} of {len(reasons)} topics not, or not at QoS 1 ({refused[0]}): "
                "see its access list"
            )

    def _on_message(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        if not message.qos and not self._warned:
            self._warned = True
            _log.warning("feed %s: messages come at QoS 0: a break loses them", self._settings.name)
        arrived = Arrived(
            topic=message._topic,  # `topic` raises where it is no UTF-8
            payload=bytes(message.payload),
            mid=message.mid,
            qos=message.qos,
            dup=message.dup,
            retained=message.retain,
            at_s=time.time(),
            connection=self._connection,
        )
        while not self._closing.is_set():
            try:
                self._inbox.put(arrived, timeout=_TURN_S)
            except queue.Full:
                continue  # nothing more is read from the network meanwhile
            return

    def _refused(self, reason: str) -> None:
        if reason in _PASSING:
            self._failed(f"refuses the connection ({reason})")
        elif reason in ("Bad user name or password", "Not authorized"):
            self._fault = f"refuses user and password_file or cert_file ({reason})"
        else:
            self._fault = f"refuses the connection ({reason})"

    def _failed(self, what: str) -> None:
        self._failures += 1
        _log.warning("feed %s: the broker %s; trying again", self._settings.name, what)
        if not self._was_connected or self._failures >= self._settings.attempts:
            self._fault = what
