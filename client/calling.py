"""One call to the coordinator over a connection of its own, for a command that then ends."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Final, NoReturn

from link import tls  # before grpc, which flwr imports: see link/__init__.py

from flwr.app import Message  # isort: skip
from client.errors import ClientError
from client.home import SiteHome
from link.errors import LinkError
from link.hospital import HospitalLink, HospitalSettings, State
from link.listener import NOT_ADMITTED, REVOKED
from trust.keys import read_private

CONNECT_S: Final = 20.0
ANSWER_S: Final = 30.0


def credentials_of(home: SiteHome) -> tls.Credentials:
    """What a site shows, and whom it believes, as its files say now.

    Raises:
        TrustError: the key is absent or readable by others.
        ClientError: the site has no certificate.
    """
    try:
        certificate, authorities = home.certificate.read_bytes(), home.authority.read_bytes()
    except FileNotFoundError:
        raise ClientError(
            "home_unreadable", f"{home.directory} is no member's folder: use `twinward site join`."
        ) from None
    return tls.Credentials(key=read_private(home.key), certificate=certificate, authorities=authorities)


def call_once(home: SiteHome, kind: str, payload: bytes) -> bytes:
    """The coordinator's answer.

    Raises:
        LinkError: it cannot be reached, or does not answer.
        CallRefused: it said no.
        ClientError: the coordinator takes this site for no member (any more).
    """
    settings = home.settings()
    out, changed = threading.Event(), threading.Event()

    def on_state(state: State) -> None:
        if state.ended in (NOT_ADMITTED, REVOKED):
            out.set()
        if state.connected or out.is_set():
            changed.set()

    line = HospitalLink(
        HospitalSettings(
            address=settings.address,
            credentials=lambda: credentials_of(home),
            transfers=home.transfers,
            proxy=settings.proxy or "",
        ),
        _busy,
        on_state=on_state,
    )
    line.start()
    try:
        changed.wait(CONNECT_S)
        if not changed.is_set():
            raise LinkError(
                f"Expected the coordinator at {settings.address}; it cannot be reached ({line.state.ended})."
            )
        return _called(line, kind, payload, out, home)
    finally:
        line.stop(wait=False)


def _called(line: HospitalLink, kind: str, payload: bytes, out: threading.Event, home: SiteHome) -> bytes:
    """Does not wait for an answer that cannot come any more."""
    answer: Future[bytes] = Future()

    def ask() -> None:
        try:
            answer.set_result(line.call(kind, payload, ANSWER_S))
        except LinkError as error:
            answer.set_exception(error)

    if not out.is_set():
        threading.Thread(target=ask, name="call", daemon=True).start()
        while not answer.done() and not out.wait(0.02):
            pass
    if not answer.done():
        raise _no_member(home)
    return answer.result()


def _busy(_: Message) -> NoReturn:
    raise ClientError("site_absent", "A command is running; the site answers when it runs again.")


def _no_member(home: SiteHome) -> ClientError:
    return ClientError("site_absent", f"The coordinator takes {home.settings().site!r} for no member.")
