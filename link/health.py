"""Health and metrics of a process on a loopback port: for the machine's own watchers, not for peers.

GET /health   200 or 503, JSON: each part and whether it works
GET /metrics  Prometheus' text format
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from link.errors import LinkError

LOOPBACK: Final = "127.0.0.1"

Health = Callable[[], Mapping[str, bool]]
Figures = Callable[[], "list[Figure]"]

logger = logging.getLogger(f"twinward.{__name__}")


class Figure:
    """One metric in Prometheus' text format, with its values by labels."""

    __slots__ = ("doc", "kind", "name", "values")

    def __init__(self, name: str, kind: str, doc: str, values: Mapping[str, float]) -> None:
        """Args:
        name: without the prefix `twinward_`.
        kind: gauge or counter.
        values: by label text such as `state="running"`; an empty text is no label.
        """
        self.name, self.kind, self.doc, self.values = name, kind, doc, values

    def __str__(self) -> str:
        name = f"twinward_{self.name}"
        lines = [f"# HELP {name} {self.doc}", f"# TYPE {name} {self.kind}"]
        for label, value in self.values.items():
            shown = f"{{{label}}}" if label else ""
            lines.append(f"{name}{shown} {value:.17g}")
        return "\n".join(lines)


class HealthListener:
    """Answers on loopback until `stop`."""

    def __init__(self, port: int, health: Health, figures: Figures) -> None:
        """Args:
            port: on 127.0.0.1; 0 takes a free one.
            health: each part of the process and whether it works.
            figures: what /metrics shows.

        Raises:
            LinkError: the port is taken.
        """

        class Handler(BaseHTTPRequestHandler):
            timeout = 10.0

            def do_GET(self) -> None:
                try:
                    self._answer()
                except Exception:
                    logger.exception("a question about health could not be answered")
                    self.send_error(500)

            def _answer(self) -> None:
                if self.path == "/health":
                    parts = dict(health())
                    self._send(200 if all(parts.values()) else 503, "application/json", json.dumps(parts))
                elif self.path == "/metrics":
                    text = "\n".join(map(str, figures())) + "\n"
                    self._send(200, "text/plain; version=0.0.4", text)
                else:
                    self.send_error(404)

            def _send(self, status: int, kind: str, text: str) -> None:
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing: a scraper calls every few seconds."""

        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), Handler)
        except OSError:
            raise LinkError(f"Expected port {port} on {LOOPBACK} for health; it is taken.") from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        """Ends the listener."""
        self._server.shutdown()
        self._server.server_close()
