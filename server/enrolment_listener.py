"""The listener on which hospitals join: TLS 1.3 without client certificates, one method, nothing else.

Whoever reaches it is a stranger. Hence a message is capped before it is read into memory, a connection
lives half a minute, few calls run at once, and attempts are counted per address and in all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from link.tls import Credentials, check_ready

import grpc  # isort: skip  (link must come first)
from server.enrolment import EnrolmentDesk
from server.errors import ServerError
from server.throttle import Throttle
from trust.enrolment import MAX_BYTES, METHOD, EnrolmentRefused, EnrolRequest, Refusal

_log = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a stranger may use.

    Attributes:
        message_bytes, metadata_bytes: longest request, and its headers.
        calls: at once; more are refused.
        connection_s: after which a connection is closed.
        handshake_s: for TLS to be set up.
        per_peer_min, in_all_min: attempts a minute.
    """

    message_bytes: int = MAX_BYTES
    metadata_bytes: int = 4096
    calls: int = 16
    connection_s: float = 30.0
    handshake_s: float = 10.0
    per_peer_min: int = 10
    in_all_min: int = 120

    def options(self) -> list[tuple[str, int]]:
        """For gRPC."""
        milliseconds = int(1000 * self.connection_s)
        return [
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", MAX_BYTES),
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", 2 * self.metadata_bytes),
            ("grpc.max_concurrent_streams", 4),
            ("grpc.max_connection_age_ms", milliseconds),
            ("grpc.max_connection_age_grace_ms", milliseconds),
            ("grpc.server_handshake_timeout_ms", int(1000 * self.handshake_s)),
            ("grpc.so_reuseport", 0),  # a second listener on the port must fail, not share
        ]


class EnrolmentListener:
    """Serves `trust.enrolment.METHOD` from threads of its own; `stop` ends it.

    Args:
        address: host:port to listen on; port 0 takes a free one.
        current: what the coordinator shows, asked at every handshake so that it can be renewed. The
            authority is shown too: by it a hospital finds the fingerprint of its invitation.

    Raises:
        ServerError: the address cannot be listened on.
        LinkError: TLS 1.2 could be spoken.
    """

    def __init__(
        self,
        desk: EnrolmentDesk,
        *,
        address: str,
        current: Callable[[], Credentials],
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self._desk = desk
        self._throttle = Throttle(per_peer=limits.per_peer_min, in_all=limits.in_all_min)
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=4, thread_name_prefix="enrolment"),
            options=limits.options(),
            maximum_concurrent_rpcs=limits.calls,
        )
        service, method = METHOD.strip("/").split("/")
        handler = grpc.unary_unary_rpc_method_handler(self._enrol)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {method: handler})]
        )
        try:
            self.port = self._server.add_secure_port(address, _credentials(current))
        except RuntimeError:
            raise ServerError(
                f"Expected to listen on {address} for enrolment; it is taken or not ours."
            ) from None
        self._server.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """Lets running calls end, takes no new ones."""
        self._server.stop(grace_s).wait()

    def _enrol(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            if not self._throttle.allow(_host(context.peer()), time.monotonic()):
                raise EnrolmentRefused("too_many_attempts", "Too many attempts; wait a minute and try again.")
            return self._desk.enrol(EnrolRequest.from_bytes(data)).to_bytes()
        except EnrolmentRefused as refused:
            return Refusal(code=refused.code, text=refused.text).to_bytes()
        except Exception:  # noqa: BLE001  a stranger gets a code, never the text of an exception
            _log.exception("A request to join could not be handled.")
            text = "The coordinator could not handle the request; its log says why."
            return Refusal(code="internal_error", text=text).to_bytes()


def _credentials(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    shown = current()
    check_ready(shown)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        fresh = current()
        if fresh == shown:
            return None
        shown = fresh
        return _configuration(fresh)

    return grpc.dynamic_ssl_server_credentials(_configuration(shown), fetch)


def _configuration(shown: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(shown.key, shown.certificate + shown.authorities)])


def _host(peer: str) -> str:
    """The address in gRPC's name of a peer, `ipv4:127.0.0.1:5000`, without the port."""
    return peer.rpartition(":")[0] or peer
