"""Both ends of the link with real certificates, hospitals in processes of their own; for the benchmarks."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.synchronize
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from link.coordinator import LinkServer, ServerSettings
from link.hospital import HospitalLink, HospitalSettings
from link.tls import Credentials

from flwr.app import Message  # isort: skip  (link must come first)
from trust.authority import Authority
from trust.identity import Identity, identity_of
from trust.keys import key_to_pem, new_key, signing_request

FEDERATION = "bench"


def credentials(authority: Authority, name: str, *, coordinator: bool = False) -> Credentials:
    """A key and certificate of a member, or of the coordinator on loopback."""
    key, now = new_key(), datetime.now(UTC)
    request = signing_request(key, name)
    if coordinator:
        identity = Identity(federation=FEDERATION, role="coordinator", name=name)
        certificate = authority.issue_server(request, identity, ["127.0.0.1"], 1, now=now)
    else:
        identity = Identity(federation=FEDERATION, role="site", name=name)
        certificate = authority.issue(request, identity, 1, now=now)
    return Credentials(key=key_to_pem(key), certificate=certificate, authorities=authority.certificate_pem)


def echo(message: Message) -> Message:
    """The trivial app: it answers with what it was sent."""
    return Message(message.content, reply_to=message)


def hospitals(
    port: int, root: Path, mine: Sequence[tuple[str, Credentials]], end: multiprocessing.synchronize.Event
) -> None:
    """Keeps links up in this process until `end`."""
    logging.disable(logging.INFO)
    links = [_link(port, root / name, shown) for name, shown in mine]
    end.wait()
    for link in links:
        link.stop(wait=False)


def _link(port: int, root: Path, shown: Credentials) -> HospitalLink:
    settings = HospitalSettings(
        address=f"127.0.0.1:{port}", credentials=lambda: shown, transfers=root, most_wait_s=5.0
    )
    link = HospitalLink(settings, echo)
    link.start()
    return link


@contextmanager
def connected(root: Path, sites: int, processes: int) -> Iterator[LinkServer]:
    """A listener to which so many hospitals are connected, in so many processes."""
    authority = Authority.create(root / "authority", FEDERATION, now=datetime.now(UTC))
    mine = credentials(authority, "main", coordinator=True)
    settings = ServerSettings(address="127.0.0.1:0", credentials=lambda: mine, transfers=root / "coordinator")
    server = LinkServer(settings, identity_of)
    port = server.start()
    shown = [(f"site-{number}", credentials(authority, f"site-{number}")) for number in range(sites)]
    spawn = multiprocessing.get_context("spawn")
    end = spawn.Event()
    workers = [
        spawn.Process(target=hospitals, args=(port, root, shown[number::processes], end), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        _wait(server, sites)
        yield server
    finally:
        end.set()
        for worker in workers:
            worker.join(20)
        server.stop(0.1)


def _wait(server: LinkServer, sites: int) -> None:
    until = time.monotonic() + 300
    while len(server.connected()) < sites:
        if time.monotonic() > until:
            raise TimeoutError(f"Expected {sites} hospitals; {len(server.connected())} are connected.")
        time.sleep(0.05)
