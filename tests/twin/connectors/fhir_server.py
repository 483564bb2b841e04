"""A FHIR server of the tests' own: TLS, OAuth 2.0, searches by _lastUpdated, pages, and faults on demand."""

from __future__ import annotations

import json
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

DATE = "Fri, 01 Mar 2024 12:00:00 GMT"


@dataclass
class FhirServer:
    """What it holds and how it behaves.

    Attributes:
        resources: what can be searched.
        faults: statuses of the next answers, "cut" for one that breaks off, by the number of the request.
        tokens: tokens that were given out; only the last is good.
        token_requests: form and Authorization of each request for one.
        foreign: where every next link leads instead.
        is_sorted: whether _sort is heeded.
        searches: paths and queries that were asked for.
    """

    page: int = 3
    resources: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[int, int | str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    token_requests: list[tuple[dict[str, str], str]] = field(default_factory=list)
    foreign: str = ""
    is_sorted: bool = True
    is_open: bool = False
    searches: list[str] = field(default_factory=list)
    answered: Counter[int] = field(default_factory=Counter)
    port: int = 0

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @contextmanager
    def running(self, folder: Path) -> Iterator[FhirServer]:
        """Listens with server.pem and server.key of a folder."""
        handler = type("Handler", (_Handler,), {"fhir": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def search(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        kind = path.rsplit("/", maxsplit=1)[-1]
        found = [one for one in self.resources if one["resourceType"] == kind]
        for bound in query.get("_lastUpdated", []):
            since = datetime.fromisoformat(bound.removeprefix("ge"))
            found = [one for one in found if datetime.fromisoformat(one["meta"]["lastUpdated"]) >= since]
        for ids in query.get("_id", []):
            found = [one for one in found if one["id"] in ids.split(",")]
        if self.is_sorted:
            found.sort(key=lambda one: datetime.fromisoformat(one["meta"]["lastUpdated"]))
        start = int(query.get("page", ["0"])[0])
        bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset"}
        bundle["entry"] = [{"resource": one} for one in found[start : start + self.page]]
        if start + self.page < len(found):
            kept = "&".join(f"{name}={value}" for name in query if name != "page" for value in query[name])
            kept = kept.replace("+", "%2B")
            url = f"{self.foreign or self.url}/fhir/{kind}?{kept}&page={start + self.page}"
            bundle["link"] = [{"relation": "self", "url": "x"}, {"relation": "next", "url": url}]
        return bundle


class _Handler(BaseHTTPRequestHandler):
    fhir: FhirServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        form = {name: values[0] for name, values in parse_qs(self.rfile.read(length).decode()).items()}
        self.fhir.token_requests.append((form, self.headers.get("Authorization", "")))
        self.fhir.tokens.append(f"token-{len(self.fhir.tokens)}")
        self._answer(200, {"access_token": self.fhir.tokens[-1], "token_type": "bearer", "expires_in": 300})

    def do_GET(self) -> None:
        fhir, parts = self.fhir, urlsplit(self.path)
        fault = fhir.faults.pop(len(fhir.searches), None)
        fhir.searches.append(self.path)
        if fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"resourceType": "Bundle", "en')
            self.close_connection = True
        elif isinstance(fault, int):
            self._answer(fault, {"resourceType": "OperationOutcome"})
        elif not fhir.is_open and self.headers.get("Authorization") != f"Bearer {(fhir.tokens or [''])[-1]}":
            self._answer(401, {})
        else:
            self._answer(200, fhir.search(parts.path, parse_qs(parts.query)))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.fhir.answered[status] += 1
        text = json.dumps(body).encode()
        self.send_response_only(status)
        self.send_header("Date", DATE)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Nothing is printed."""
