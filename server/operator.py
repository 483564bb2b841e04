"""An operator's end: calls a coordinator's commands; see `server.operators` for the other end.

Apart from that module so that a command answers without loading what training needs.
"""

from __future__ import annotations

import json
from typing import Any, Final, Self

from link.tls import Credentials, channel_credentials

import grpc  # isort: skip  # link must come first, see link/__init__.py

from server.errors import ServerError

METHOD: Final = "/twinward.Operators/Call"
LONGEST_BYTES: Final = 1_000_000
LONGEST_ANSWER_BYTES: Final = 32_000_000


class Coordinator:
    """An operator's connection to a coordinator; closed by `close` or `with`."""

    def __init__(self, address: str, credentials: Credentials, *, timeout_s: float = 60.0) -> None:
        """Args:
        address: host:port of the operators' listener.
        timeout_s: after which a command that is not answered counts as failed.
        """
        self._address, self._timeout_s = address, timeout_s
        options = [("grpc.max_receive_message_length", LONGEST_ANSWER_BYTES), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.secure_channel(address, channel_credentials(credentials), options=options)
        self._method = self._channel.unary_unary(METHOD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The coordinator's answer to a command.

        Raises:
            ServerError: it refused, with its reason; or it was not reached.
        """
        data = json.dumps({"command": command, "arguments": arguments}).encode()
        try:
            answer = json.loads(self._method(data, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise ServerError(self._told(error)) from None
        if "answer" not in answer:
            raise ServerError(str(answer.get("error", "The coordinator gave no answer.")))
        found: dict[str, Any] = answer["answer"]
        return found

    def _told(self, error: grpc.RpcError) -> str:
        code = error.code()
        if code == grpc.StatusCode.PERMISSION_DENIED:
            return (
                "The coordinator takes this certificate for none of an active operator. Ask for another:"
                " twinward coordinator operator NAME."
            )
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return (
                f"No coordinator answers at {self._address} that this certificate and authority fit."
                " Does `twinward coordinator serve` run there?"
            )
        return f"The coordinator refused the call ({code.name})."
