"""The coordinator's desk: lets hospitals in, renews their certificates, and lets them go.

Decisions only; `server/enrolment_listener.py` carries joining over the network, and the hospitals'
stream carries the other two, from members who have shown their certificate there.

Attacks on joining, and what stops each:
- a guessed or edited invitation: its secret has 256 bits, and name and role are the coordinator's;
- an invitation used twice, late, or after it was withdrawn: one transaction decides;
- a signing request that asks for another name or for the right to sign: only its key is taken;
- a signing request for somebody else's key: it must be signed by that key;
- a hospital's own authority that certifies a neighbour: it is trusted for one name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from server.errors import ServerError
from server.members import Members
from server.record import Record
from server.throttle import Throttle
from trust.authority import Authority, issued_by, request_key
from trust.digest import sha256
from trust.enrolment import EnrolmentRefused, EnrolRequest, Refusal, Welcome
from trust.errors import TrustError
from trust.identity import Identity, Role, identity_of, load_certificate
from trust.keys import public_bytes

MEMBER_DAYS: Final = 90
_OF_STRANGERS: Final = ("token_unknown", "request_invalid")
_STRANGERS_MIN: Final = 10
RENEW: Final = "renew"
LEAVE: Final = "leave"
"""Kinds of request on a hospital's stream; payloads: a signing request in PEM, a reason in UTF-8."""


class EnrolmentDesk:
    """Decides on requests of hospitals; threads may share it.

    Args:
        address: host:port of the hospitals' listener, told to whoever joins.
        signing_keys: of the coordinator, id → 64 hexadecimal digits.
        days: how long a member's certificate is good; hospitals renew when a third is left.
        clock: the time in UTC.
    """

    def __init__(
        self,
        *,
        members: Members,
        authority: Authority,
        address: str,
        signing_keys: Mapping[str, str],
        record: Record,
        days: float = MEMBER_DAYS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._members = members
        self._authority = authority
        self._address = address
        self._signing_keys = dict(signing_keys)
        self._record = record
        self._days = days
        self._clock = clock
        self._strangers = Throttle(per_peer=_STRANGERS_MIN, in_all=_STRANGERS_MIN)

    def enrol(self, request: EnrolRequest) -> Welcome:
        """What the new member takes away.

        Asked again with the same key, because the answer was lost, it answers the same.

        Raises:
            EnrolmentRefused: with a code of trust.enrolment.CODES; the refusal is recorded, of those
                who show no secret of ours the first ten in a minute.
        """
        try:
            return self._enrol(request)
        except EnrolmentRefused as refused:
            if refused.code not in _OF_STRANGERS or self._strangers.allow("", self._clock().timestamp()):
                self._record("join_refused", who=_shown(request.site), why=refused.code)
            raise

    def renew(self, identity: Identity, csr_pem: bytes) -> Welcome:
        """A new certificate for a member who has shown the one before.

        Raises:
            EnrolmentRefused: no_member, request_invalid.
        """
        member = self._members.member(identity.name)
        if member is None or member.state != "active" or member.role != identity.role:
            raise EnrolmentRefused("no_member", f"{identity.name!r} is no active member of this federation.")
        pem = self._certificate(csr_pem, identity)
        self._record("certificate_renewed", who=identity.name)
        self._members.certify(identity.name, pem)
        return self._welcome(identity, pem)

    def leave(self, identity: Identity, why: str) -> None:
        """Ends a membership at the member's own wish.

        Raises:
            EnrolmentRefused: no_member.
        """
        try:
            self._members.end(identity.name, "left", why, self._clock())
        except ServerError:
            raise EnrolmentRefused("no_member", f"{identity.name!r} is no active member.") from None
        self._record("site_left", who=identity.name, why=why)

    def serve(self, kind: str, site: str, payload: bytes) -> bytes:
        """The answer to a request on a member's stream; a refusal is an answer too.

        Args:
            kind: RENEW or LEAVE.
            site: the name in the certificate that the member has shown, with the role that it has.

        Raises:
            ServerError: another kind.
        """
        if kind not in (RENEW, LEAVE):
            raise ServerError(f"Expected a request of kind {RENEW} or {LEAVE}; {kind[:40]!r} came.")
        try:
            identity = self._member(site)
            if kind == RENEW:
                return self.renew(identity, payload).to_bytes()
            self.leave(identity, payload[:1000].decode(errors="replace"))
        except EnrolmentRefused as refused:
            return Refusal(code=refused.code, text=refused.text).to_bytes()
        return b""

    def _member(self, name: str) -> Identity:
        member = self._members.member(name)
        if member is None:
            raise EnrolmentRefused("no_member", f"{name!r} is no member of this federation.")
        return Identity(federation=self._authority.federation, role=member.role, name=name)

    def _enrol(self, request: EnrolRequest) -> Welcome:
        now, csr = self._clock(), request.csr_pem.encode()
        key_sha256 = sha256(public_bytes(_request_key(csr)))
        own = request.certificate_pem.encode()

        def issue(role: Role) -> bytes:
            identity = Identity(federation=self._authority.federation, role=role, name=request.site)
            if own:
                self._check_own(own, identity, key_sha256)
            pem = own or self._certificate(csr, identity)
            # Before the member is there: a crash in between leaves a record too many, never one too few.
            self._record("site_joined", who=identity.name, role=role, own_authority=bool(own))
            return pem

        role, pem = self._members.enrol(request.secret, request.site, key_sha256, now, issue, ours=not own)
        return self._welcome(
            Identity(federation=self._authority.federation, role=role, name=request.site), pem
        )

    def _check_own(self, own: bytes, identity: Identity, key_sha256: str) -> None:
        try:
            certificate, named = load_certificate(own), identity_of(own)
            same_key = sha256(_public(own)) == key_sha256
        except TrustError as error:
            raise EnrolmentRefused("request_invalid", str(error)) from None
        if named != identity:
            raise EnrolmentRefused(
                "request_invalid", f"Expected a certificate for {identity.uri}; it is for {named.uri}."
            )
        if not any(issued_by(certificate, trusted) for trusted in self._members.pki(identity.name)):
            raise EnrolmentRefused(
                "other_authority",
                "The certificate is not of an authority that the coordinator takes for this site. Send it"
                f" the authority's certificate, for `twinward coordinator trust-pki {identity.name}`.",
            )
        if not same_key:
            raise EnrolmentRefused(
                "request_invalid", "The certificate and the signing request differ in key."
            )

    def _certificate(self, csr: bytes, identity: Identity) -> bytes:
        try:
            return self._authority.issue(csr, identity, self._days, now=self._clock())
        except TrustError as error:
            raise EnrolmentRefused("request_invalid", str(error)) from None

    def _welcome(self, identity: Identity, pem: bytes) -> Welcome:
        return Welcome(
            federation=identity.federation,
            role=identity.role,
            name=identity.name,
            certificate_pem=pem.decode(),
            authority_pem=self._authority.certificate_pem.decode(),
            signing_keys=self._signing_keys,
            address=self._address,
            time=int(self._clock().timestamp()),
        )


def _request_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return request_key(csr)
    except TrustError as error:
        raise EnrolmentRefused("request_invalid", str(error)) from None


def _public(pem: bytes) -> bytes:
    key = load_certificate(pem).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TrustError("Expected a certificate for an EC P-256 key; it is for a key of another kind.")
    return public_bytes(key)


def _shown(name: str) -> str:
    """A name that a stranger gave, as it may stand in a log."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name[:63]) or "_"
