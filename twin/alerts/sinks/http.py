"""One HTTPS request with a deadline: no redirect is followed, and of an answer only its status is read."""

from __future__ import annotations

import http.client
import ssl
from urllib.parse import urlsplit

from twin.errors import DataError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def checked_url(url: str) -> str:
    """The URL if it is HTTPS, or plain HTTP to this machine; raises DataError."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise DataError("A URL must hold no password; use the keys that are made for it")
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return url
    raise DataError("expected an https:// URL (http:// only to this machine)")


def send(
    method: str, url: str, body: bytes, headers: dict[str, str], *, timeout_s: float, ca_file: str = ""
) -> int:
    """Status of the answer, 200 … 299.

    Args:
        method: POST or PUT.
        ca_file: certificates of the authority to trust; empty is what the machine trusts.

    Raises:
        DataError: another status. OSError: nobody answers, or without a valid certificate.
    """
    parts = urlsplit(checked_url(url))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _connection(parts.scheme, str(parts.hostname), parts.port, timeout_s, ca_file)
    try:
        connection.request(method, target, body=body, headers=headers)
        status = connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(f"no answer in HTTP ({type(error).__name__})") from None
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise DataError(f"The server answered {status}.")
    return status


def _connection(
    scheme: str, host: str, port: int | None, timeout_s: float, ca_file: str
) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
