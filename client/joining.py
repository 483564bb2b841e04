"""A hospital joins a federation, renews its certificate, and leaves.

The key is made here and never leaves. It is on disk before anything is asked for: if the answer is
lost, the same command with the same invitation asks again with the same key, and is answered the same.
What a leaving site keeps is its ledger, its secret and its audit log, because what was released
stays released.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from link import TLS13_ONLY  # before grpc: see link/__init__.py

import grpc  # isort: skip  (link must come first)
from client.errors import ClientError
from client.home import SiteHome, SiteSettings
from client.pinning import TIMEOUT_S, authority_behind, proxy_for
from link.errors import LinkError
from trust.authority import check_certificate, serial_of
from trust.enrolment import MAX_BYTES, METHOD, EnrolmentRefused, EnrolRequest, Welcome, read_answer
from trust.errors import TrustError
from trust.identity import Identity, check_role, identity_of, load_certificate
from trust.invitation import Invitation
from trust.keys import key_from_pem, key_to_pem, new_key, read_private, signing_request, write_file

RENEW: Final = "renew"
LEAVE: Final = "leave"
"""Kinds of request on the stream to the coordinator."""

_PENDING: Final = "key.pending.pem"
_MOST_SKEW_S: Final = 300

Ask = Callable[[str, bytes], bytes]
"""Sends a request of a kind over the stream to the coordinator and gives the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCertificate:
    """Key and certificate of the hospital's own authority, both PEM (key: EC P-256, no passphrase)."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return "OwnCertificate(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What came of joining.

    Attributes:
        skew_s: how far this machine's clock is ahead of the coordinator's, seconds.
    """

    home: SiteHome
    identity: Identity
    not_after: datetime
    skew_s: int

    @property
    def clock_is_off(self) -> bool:
        """Whether the clocks differ by more than five minutes."""
        return abs(self.skew_s) > _MOST_SKEW_S


def join(
    token: str,
    directory: str | Path,
    *,
    data_path: str | None = None,
    timezone: str | None = None,
    proxy: str | None = None,
    own: OwnCertificate | None = None,
    replace: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Joined:
    """Makes a site's folder a member's.

    Args:
        token: the line that the coordinator sent.
        directory: the site's folder; made if it is absent.
        data_path, timezone: of the site's data; see SiteSettings.
        proxy: http://host:port; by default what the environment names.
        own: take these instead of a new key and a certificate of the federation.
        replace: the folder may hold a certificate, which the new one replaces.

    Raises:
        TrustError: the invitation is none, another authority stands behind the address, or what came
            back does not fit; EnrolmentRefused if the coordinator refuses.
        LinkError: the coordinator cannot be reached.
        ClientError: the folder is a member's already, or of another site.
    """
    invitation = Invitation.parse(token)
    home = SiteHome(directory)
    _refuse_other_home(home, invitation, replace=replace)
    proxy = proxy or proxy_for(invitation.address)
    federation, authority = authority_behind(
        invitation.address, invitation.fingerprint, proxy=proxy, now=now()
    )
    _refuse_other_federation(home, federation)
    identity = Identity(federation=federation, role=invitation.role, name=invitation.site)
    key = own.key if own else _pending_key(home)
    request = _request(invitation, key, own)
    answer = _call(invitation.address, authority, request, proxy)
    answered = now()
    welcome = read_answer(answer)
    _check(welcome, identity, key, authority, own)
    _settle(home, welcome, key, own, _settings(home, welcome, proxy, data_path, timezone))
    certificate = load_certificate(home.certificate.read_bytes())
    return Joined(
        home=home,
        identity=identity,
        not_after=certificate.not_valid_after_utc,
        skew_s=round(answered.timestamp()) - welcome.time,
    )


def renewal_due(home: SiteHome, now: datetime) -> bool:
    """Whether less than a third of the certificate's life is left.

    False for a certificate of the hospital's own authority, which its own people renew.
    """
    certificate = load_certificate(home.certificate.read_bytes())
    authority = load_certificate(home.authority.read_bytes())
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    ours = certificate.issuer == authority.subject
    return ours and now > certificate.not_valid_after_utc - life / 3


def renew(home: SiteHome, ask: Ask) -> datetime:
    """Gets a new certificate for the site's key over its stream; gives the day it ends.

    Raises:
        TrustError: what came back does not fit; EnrolmentRefused if the coordinator refuses.
    """
    key, authority = read_private(home.key), home.authority.read_bytes()
    identity = identity_of(home.certificate.read_bytes())
    welcome = read_answer(ask(RENEW, signing_request(key_from_pem(key), identity.name)))
    _check(welcome, identity, key, authority, None)
    write_file(home.certificate, welcome.certificate_pem.encode(), replace=True)
    return load_certificate(welcome.certificate_pem.encode()).not_valid_after_utc


def leave(home: SiteHome, ask: Ask | None, why: str = "") -> bool:
    """Tells the coordinator, then destroys key and certificate; whether the coordinator knows.

    Args:
        ask: None does not tell: the coordinator should then revoke the site.

    Raises:
        LinkError: the coordinator cannot be reached; key and certificate are still there.
    """
    told = False
    if ask is not None:
        told = _told(ask, why)
    for path in (home.certificate, home.key, home.directory / _PENDING):
        with suppress(FileNotFoundError):
            path.unlink()
    return told


def _told(ask: Ask, why: str) -> bool:
    """True: either the coordinator answers, or it cuts the connection of one who is a member no more."""
    try:
        answer = ask(LEAVE, why.encode())
        if answer:
            read_answer(answer)
    except EnrolmentRefused as refused:
        if refused.code != "no_member":
            raise
    except ClientError as error:
        if error.code != "site_absent":
            raise
    return True


def certificate_of(home: SiteHome) -> tuple[Identity, str, datetime]:
    """Identity, serial and last day of a site's certificate.

    Raises:
        ClientError: the site has none.
    """
    try:
        pem = home.certificate.read_bytes()
    except FileNotFoundError:
        raise ClientError(
            "home_unreadable", f"{home.directory} is no member's folder: use `twinward site join`."
        ) from None
    certificate = load_certificate(pem)
    return identity_of(pem), serial_of(certificate), certificate.not_valid_after_utc


def _refuse_other_home(home: SiteHome, invitation: Invitation, *, replace: bool) -> None:
    if home.certificate.exists() and not replace:
        raise ClientError(
            "home_unreadable",
            f"{home.directory} is a member's folder already. If the coordinator invited it anew to replace"
            " its certificate, say --replace; for another membership choose another folder (--home).",
        )
    if home.settings_path.exists() and home.settings().site != invitation.site:
        # One ledger, one site: under a second name its patients would be charged apart.
        raise ClientError(
            "home_unreadable", f"The folder is site {home.settings().site!r}'s, the invitation another's."
        )


def _refuse_other_federation(home: SiteHome, federation: str) -> None:
    # A site that began with its store alone is of no federation yet.
    if home.settings_path.exists() and home.settings().federation not in ("", federation):
        raise ClientError(
            "home_unreadable", f"The folder belongs to federation {home.settings().federation!r}."
        )


def _pending_key(home: SiteHome) -> bytes:
    """A key that is on disk; the one of an earlier attempt if that one never got its answer."""
    pending = home.directory / _PENDING
    if pending.exists():
        return read_private(pending)
    if home.key.exists() and not home.certificate.exists():
        return read_private(home.key)
    home.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(pending, key_to_pem(new_key()))
    return read_private(pending)


def _request(invitation: Invitation, key: bytes, own: OwnCertificate | None) -> EnrolRequest:
    return EnrolRequest(
        site=invitation.site,
        secret=invitation.secret,
        csr_pem=signing_request(key_from_pem(key), invitation.site).decode(),
        certificate_pem=own.certificate.decode() if own else "",
    )


def _call(address: str, authority: bytes, request: EnrolRequest, proxy: str | None) -> bytes:
    if not TLS13_ONLY:
        raise LinkError("Expected TLS 1.3 only; gRPC was imported before link.")
    options: list[tuple[str, str | int]] = [("grpc.max_receive_message_length", MAX_BYTES)]
    options.append(("grpc.http_proxy", proxy) if proxy else ("grpc.enable_http_proxy", 0))
    credentials = grpc.ssl_channel_credentials(root_certificates=authority)
    with grpc.secure_channel(address, credentials, options=options) as channel:
        try:
            answer: bytes = channel.unary_unary(METHOD)(request.to_bytes(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise LinkError(
                f"The coordinator at {address} did not answer ({error.code().name}: {error.details()})."
                " Run the command again with the same invitation."
            ) from None
    return answer


def _check(
    welcome: Welcome, identity: Identity, key: bytes, authority: bytes, own: OwnCertificate | None
) -> None:
    said = Identity(federation=welcome.federation, role=check_role(welcome.role), name=welcome.name)
    if said != identity or welcome.authority_pem.encode() != authority:
        raise TrustError(
            f"Expected a welcome for {identity.uri}; it is for {said.uri}, or of another authority."
        )
    if own is None:
        check_certificate(welcome.certificate_pem.encode(), key, identity, authority)


def _settings(
    home: SiteHome, welcome: Welcome, proxy: str | None, data_path: str | None, timezone: str | None
) -> SiteSettings:
    known = home.settings() if home.settings_path.exists() else None
    return SiteSettings(
        federation=welcome.federation,
        site=welcome.name,
        address=welcome.address,
        role=welcome.role,
        proxy=proxy,
        data_path=data_path or (known.data_path if known else None),
        timezone=timezone or (known.timezone if known else None),
        device=known.device if known else "auto",
    )


def _settle(
    home: SiteHome, welcome: Welcome, key: bytes, own: OwnCertificate | None, settings: SiteSettings
) -> None:
    """Writes what came; the certificate last, since with it the folder is a member's."""
    if home.settings_path.exists():
        home.save(settings)
    else:
        SiteHome.create(home.directory, settings)
    home.save_coordinator_keys(dict(welcome.signing_keys))
    write_file(home.authority, welcome.authority_pem.encode(), replace=True)
    with suppress(FileNotFoundError):
        home.certificate.unlink()  # a new key beside an old certificate would not be noticed
    write_file(home.key, key, replace=True)
    write_file(home.certificate, own.certificate if own else welcome.certificate_pem.encode(), replace=True)
    with suppress(FileNotFoundError):
        (home.directory / _PENDING).unlink()
