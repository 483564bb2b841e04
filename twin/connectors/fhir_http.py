"""Requests to one FHIR server: its origin only, verified TLS, tokens, patience, a limit to every answer."""

from __future__ import annotations

import email.utils
import logging
import secrets
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx

from twin.connectors.fhir_auth import Client, lifetime_s
from twin.errors import DataError

_log = logging.getLogger(f"twinward.{__name__}")
AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT_S: Final = 600.0
PATIENCE: Final = 10.0
"""So many times the timeout of one wait may a whole answer take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Of a request that succeeded: its body, and the server's clock in seconds since 1970 if it said so."""

    body: bytes
    date_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Server:
    """One FHIR server; used by one thread at a time.

    Attributes:
        base: its address, without a query.
        client: who asks for tokens; None asks for none.
        ca_file: PEM of the authorities that are trusted instead of the system's.
        proxy: address of a proxy, without a password; "" takes the environment's.
        timeout_s: for a connection, and for each wait on it.
        attempts: before a server that fails is given up.
        first_wait_s: after the first failure; doubles with each.
        most_bytes: of an answer.
        closing: ends waits early.
    """

    base: str
    client: Client | None = None
    ca_file: Path | None = None
    proxy: str = ""
    timeout_s: float = 60.0
    attempts: int = 8
    first_wait_s: float = 1.0
    most_bytes: int = 64 * 1024 * 1024
    closing: threading.Event = field(default_factory=threading.Event)
    _http: httpx.Client | None = None
    _token: str = ""
    _token_until_s: float = 0.0

    def open(self) -> None:
        """Checks everything that can be checked without a request.

        Raises:
            DataError: an address is not https, or a file or the proxy cannot be used.
        """
        for library in ("httpx", "httpcore"):  # they log addresses with ids in them, and headers
            logging.getLogger(library).setLevel(logging.WARNING)
        for url in (self.base, self.client.token_url if self.client else self.base):
            check_address(url)
        if self.client is not None:
            self.client.request(now_s=0.0, jti="")
        if "@" in self.proxy:
            raise DataError(
                "proxy of a FHIR feed must not hold a password; use the environment's HTTPS_PROXY."
            )
        try:
            trusted = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        except OSError as error:
            raise DataError(f"ca_file of a FHIR feed cannot be used: {type(error).__name__}.") from None
        try:
            self._http = httpx.Client(
                verify=trusted, proxy=self.proxy or None, timeout=self.timeout_s, follow_redirects=False
            )
        except (ValueError, httpx.HTTPError):
            raise DataError("proxy of a FHIR feed is no address such as http://proxy:3128.") from None

    def close(self) -> None:
        """Ends what goes on."""
        self.closing.set()
        if self._http is not None:
            self._http.close()

    def next_url(self, here: str, link: str) -> str:
        """Where a link of a page leads.

        Raises:
            DataError: not to this server. The token would go there, and so would the search.
        """
        url = urljoin(here, link)
        if origin_of(url) != origin_of(self.base):
            raise DataError(
                "The FHIR server's link to the next page leads to another server. If both are one behind a "
                "proxy, let it write the address that stands in the feed's option url."
            )
        return url

    def get(self, url: str) -> Answer:
        """The answer to a search; asks again while the server is busy, failing or out of reach.

        Raises:
            DataError: it refuses, or failed `attempts` times; says the status and never the query.
        """
        renewed = False
        failures = 0
        while True:
            status, answer, wait_s = self._try(url)
            if answer is not None:
                return answer
            if status == 401 and self.client is not None and not renewed:
                self._token, renewed = "", True
                continue
            failures += 1
            if status not in AGAIN and status != 0:
                raise DataError(_refusal(status))
            if failures >= self.attempts or self.closing.is_set():
                what = f"answers {status}" if status else "cannot be reached"
                raise DataError(
                    f"The FHIR server {what}, {failures} times in a row; it is tried again later."
                )
            pause_s = wait_s if wait_s is not None else self.first_wait_s * 2 ** (failures - 1)
            _log.info("the FHIR server is asked again in %.0f s: status %d", pause_s, status)
            self.closing.wait(min(pause_s, LONGEST_WAIT_S))

    def _try(self, url: str) -> tuple[int, Answer | None, float | None]:
        """(status, answer, what the server asks to wait); status 0 is no answer at all."""
        try:
            token = self._bearer()
            headers = {"Accept": "application/fhir+json"} | (
                {"Authorization": f"Bearer {token}"} if token else {}
            )
            status, body, head = self._send("GET", url, headers=headers)
        except _Again as again:
            return again.status, None, again.wait_s
        except httpx.HTTPError:
            return 0, None, None
        if status == 200:
            return status, Answer(body=body, date_s=_date_s(head.get("date", ""))), None
        return status, None, _wait_s(head)

    def _bearer(self) -> str:
        if self.client is None:
            return ""
        if self._token and time.monotonic() < self._token_until_s:
            return self._token
        form, headers = self.client.request(now_s=time.time(), jti=secrets.token_urlsafe(24))
        status, body, head = self._send(
            "POST", self.client.token_url, data=form, headers={"Accept": "application/json"} | headers
        )
        if status in AGAIN:
            raise _Again(status, _wait_s(head))
        if status != 200:
            raise DataError(
                f"The authorization server refuses a token: {status}; check client_id and its key."
            )
        self._token, self._token_until_s = _token_of(body)
        return self._token

    def _send(self, method: str, url: str, **more: Any) -> tuple[int, bytes, httpx.Headers]:
        if self._http is None:
            raise DataError("The FHIR server is not open.")
        with self._http.stream(method, url, **more) as response:
            body, until_s = bytearray(), time.monotonic() + PATIENCE * self.timeout_s
            for part in response.iter_bytes():
                body += part
                if time.monotonic() > until_s or self.closing.is_set():  # a byte now and then is no answer
                    raise httpx.ReadTimeout("the answer takes too long")
                if len(body) > self.most_bytes:
                    raise DataError(
                        f"The FHIR server's answer is beyond {self.most_bytes} bytes; set count lower."
                    )
            return response.status_code, bytes(body), response.headers


class _Again(Exception):
    def __init__(self, status: int, wait_s: float | None) -> None:
        super().__init__(status)
        self.status, self.wait_s = status, wait_s


def check_address(url: str) -> None:
    """Nothing.

    Raises:
        DataError: it is no https address, nor http of this machine; or it holds a password or a query.
    """
    parts = urlsplit(url)
    here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and here):
        raise DataError("url and token_url of a FHIR feed must begin with https://")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise DataError("url and token_url of a FHIR feed must hold no user, password or query.")


def origin_of(url: str) -> tuple[str, str, int]:
    """(scheme, host, port); ("", "", 0) if it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        return "", "", 0
    return parts.scheme, (parts.hostname or "").lower(), port


def _token_of(body: bytes) -> tuple[str, float]:
    """(token, until when on the monotonic clock)."""
    import msgspec

    try:
        answer = msgspec.json.decode(body)
        token = answer["access_token"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        token = None
    if not isinstance(token, str) or not token:
        raise DataError("The authorization server's answer holds no access_token; check token_url.")
    return token, time.monotonic() + lifetime_s(answer)


def _refusal(status: int) -> str:
    hints = {
        400: "it does not know the search; check the option search",
        401: "check client_id, its secret or key, and scope",
        403: "the client may not read this; check scope",
        404: "check url and resources",
    }
    return f"The FHIR server answers {status}: {hints.get(status, 'check url')}."


def _wait_s(headers: httpx.Headers) -> float | None:
    """What Retry-After says, in seconds or as a date; None if it says nothing that can be read."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until_s = _date_s(text)
    if until_s is None:
        return None
    now_s = _date_s(headers.get("date", ""))
    return max(0.0, until_s - (now_s if now_s is not None else time.time()))


def _date_s(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
