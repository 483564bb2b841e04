"""One call to the coordinator over a connection of its own, for a command that then ends."""

from __future__ import annotations

import threading
from typing import Final, NoReturn

from flwr.app import Message

from client.errors import ClientError
from client.home import SiteHome
from link.errors import CallRefused, LinkError
from link.hospital import HospitalLink, HospitalSettings, State
from link.listener import NOT_ADMITTED, REVOKED
from link.tls import Credentials
from trust.keys import read_private

CONNECT_S: Final = 20.0
ANSWER_S: Final = 30.0


def credentials_of(home: SiteHome) -> Credentials:
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
    return Credentials(key=read_private(home.key), certificate=certificate, authorities=authorities)


def call_once(home: SiteHome, kind: str, payload: bytes) -> bytes:
    """The coordinator's answer.

    Raises:
        LinkError: it cannot be reached, or does not answer.
        CallRefused: it said no.
        ClientError: the coordinator takes this site for no member (any more).
    """
    settings = home.settings()
    out = threading.Event()

    def on_state(state: State) -> None:
        if state.ended in (NOT_ADMITTED, REVOKED):
            out.set()

    link = HospitalLink(
        HospitalSettings(
            address=settings.address,
            credentials=lambda: credentials_of(home),
            transfers=home.transfers,
            proxy=settings.proxy or "",
        ),
        _busy,
        on_state=on_state,
    )
    link.start()
    try:
        if not link.wait_until_connected(CONNECT_S):
            if out.is_set():
                raise _no_member(home)
            raise LinkError(
                f"Expected the coordinator at {settings.address}; it cannot be reached ({link.state.ended})."
            )
        return link.call(kind, payload, ANSWER_S)
    except CallRefused:
        if out.is_set():
            raise _no_member(home) from None
        raise
    finally:
        link.stop(wait=False)


def _busy(_: Message) -> NoReturn:
    raise ClientError("site_absent", "A command is running; the site answers when it runs again.")


def _no_member(home: SiteHome) -> ClientError:
    return ClientError("site_absent", f"The coordinator takes {home.settings().site!r} for no member.")
