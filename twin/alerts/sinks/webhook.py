"""Notices as signed JSON to a URL: HTTPS, and an HMAC over time and body that the receiver checks.

    X-Twinward-Time: seconds since 1970
    X-Twinward-Signature: sha256=<HMAC-SHA256 of "time.body" under the shared secret, in hex>

A receiver refuses a time more than minutes away, so that an old message cannot be sent again, and takes one
id of a notice once. The body holds the pseudonym and the rule, and no measured value.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from twin.alerts.alert import Notice
from twin.alerts.sinks.http import checked_url, send
from twin.errors import DataError

_LEAST_SECRET = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSink:
    """Posts each notice.

    Attributes:
        url: https://…
        secret_file: of the shared secret, at least 16 bytes; whitespace at its ends does not count.
        ca_file: of the receiver's authority, if the machine does not trust it.
    """

    url: str
    secret_file: str
    name: str = "webhook"
    timeout_s: float = 5.0
    ca_file: str = ""
    clock: Callable[[], float] = field(default=time.time, repr=False)

    def __post_init__(self) -> None:
        checked_url(self.url)
        self._secret()

    def send(self, notice: Notice) -> None:
        """Raises if the receiver did not answer with success."""
        body = json.dumps(notice.to_dict(), sort_keys=True).encode()
        now = str(int(self.clock()))
        headers = {
            "Content-Type": "application/json",
            "X-Twinward-Time": now,
            "X-Twinward-Signature": signature(self._secret(), now, body),
        }
        send("POST", self.url, body, headers, timeout_s=self.timeout_s, ca_file=self.ca_file)

    def _secret(self) -> bytes:
        # Read each time: a secret that was changed holds from the next notice on.
        try:
            secret = Path(self.secret_file).read_bytes().strip()
        except OSError:
            raise DataError("secret_file cannot be read") from None
        if len(secret) < _LEAST_SECRET:
            raise DataError(f"secret_file holds less than {_LEAST_SECRET} bytes")
        return secret


def signature(secret: bytes, time_s: str, body: bytes) -> str:
    """What the header says of a body; a receiver makes it anew and compares in constant time."""
    return "sha256=" + hmac.new(secret, time_s.encode() + b"." + body, hashlib.sha256).hexdigest()
