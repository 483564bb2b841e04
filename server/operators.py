"""The operators' listener: mutual TLS 1.3 on a port of its own, one method, and nothing for anybody else.

Every call is judged anew: the certificate must be that of an operator who is active now. A hospital's
certificate opens the connection and is told no. Whoever is refused is recorded, at most some times a
minute, so that knocking does not fill the disk.

Request and answer are JSON in UTF-8:
    {"command": name, "arguments": {...}} → {"answer": {...}} or {"error": text}
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from link.tls import Credentials, server_credentials

import grpc  # isort: skip  # link must come first, see link/__init__.py

from conf.errors import TwinwardError
from server.commands import Commands
from server.door import Door
from server.errors import ServerError
from server.operator import LONGEST_ANSWER_BYTES, LONGEST_BYTES, METHOD
from server.throttle import Throttle

RECORDED_REFUSALS_MIN: Final = 5
_THREADS: Final = 16

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", LONGEST_BYTES),
    ("grpc.max_send_message_length", LONGEST_ANSWER_BYTES),
    ("grpc.max_metadata_size", 4096),
    ("grpc.absolute_max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),  # a second listener on the port must fail, not share
]

logger = logging.getLogger(f"twinward.{__name__}")


class OperatorsListener:
    """Serves `METHOD` from threads of its own; `stop` ends it."""

    def __init__(
        self, address: str, credentials: Callable[[], Credentials], door: Door, commands: Commands
    ) -> None:
        """Args:
            address: host:port to listen on; port 0 takes a free one.
            credentials: asked at every handshake; its authorities are the federation's alone.
            door: judges certificates.

        Raises:
            ServerError: the address cannot be listened on.
            LinkError: TLS 1.2 could be spoken.
        """
        self._door, self._commands = door, commands
        self._refused = Throttle(per_peer=RECORDED_REFUSALS_MIN, in_all=10 * RECORDED_REFUSALS_MIN)
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="operators"),
            options=_OPTIONS,
            maximum_concurrent_rpcs=_THREADS,
        )
        service, method = METHOD.strip("/").split("/")
        handler = grpc.unary_unary_rpc_method_handler(self._call)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {method: handler})]
        )
        try:
            self.port = self._server.add_secure_port(address, server_credentials(credentials))
        except RuntimeError:
            raise ServerError(
                f"Expected to listen on {address} for operators; it is taken or not ours."
            ) from None
        self._server.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """Lets running calls end, takes no new ones."""
        self._server.stop(grace_s).wait()

    def _call(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        operator = self._operator(context)
        if operator is None:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "operators only")
            raise RuntimeError("unreachable: abort raises")
        try:
            command, arguments = _read(data)
            answer: dict[str, Any] = {"answer": self._commands.call(operator, command, arguments)}
        except TwinwardError as error:
            answer = {"error": str(error)}
        except Exception:  # the text of an exception stays here
            logger.exception("a command of %s failed", operator)
            answer = {"error": "The coordinator could not carry out the command; its log says why."}
        return json.dumps(answer, allow_nan=False).encode()

    def _operator(self, context: grpc.ServicerContext) -> str | None:
        """The name of the operator who calls; None, and a record, for anybody else."""
        shown = context.auth_context().get("x509_pem_cert", [])
        verdict = self._door.judge(shown[0]) if len(shown) == 1 else None
        identity = None if verdict is None else verdict.identity
        if identity is not None and identity.role == "operator":
            return identity.name
        who = "unknown" if identity is None else identity.name
        code = "no_certificate" if verdict is None else verdict.code or "other_role"
        if self._refused.allow(who, time.monotonic()):
            self._commands.record("operator_refused", who=who, why=code)
        return None


def _read(data: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or set(request) != {"command", "arguments"}:
        raise ServerError("Expected a command and its arguments in JSON.")
    command, arguments = request["command"], request["arguments"]
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise ServerError("Expected a command and its arguments in JSON.")
    return command, arguments
