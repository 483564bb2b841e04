"""An invitation: one line of text by which a hospital finds the right coordinator, and is let in once.

It carries where to enrol, the fingerprint of the authority that must stand behind that address,
for whom it is, and a secret of 32 bytes that works once. The coordinator keeps only the secret's
hash. Whoever has the line can join under the name in it until it expires: send it as you would a
password. The checksum finds a slip of the clipboard, not an attacker; he gets no further by
editing it, since the coordinator takes the name and the role from its own records.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from trust.digest import sha256
from trust.errors import TrustError
from trust.identity import Role, check_name, check_role

_PREFIX: Final = "twinward1"
_CHECK_DIGITS: Final = 8
_SECRET_BYTES: Final = 32
_LONGEST: Final = 2000
_KINDS: Final = (str, str, str, str, str, int)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What an invitation says.

    Attributes:
        address: host:port of the enrolment listener; an IPv6 address in brackets.
        fingerprint: SHA-256 of the authority's certificate (DER), 64 hexadecimal digits.
        site: the name under which the holder joins.
        role: site or receiver.
        secret: 43 letters of base64url, 32 random bytes; not shown in a text of this object.
        expires: seconds since 1970 UTC, by the coordinator's clock.
    """

    address: str
    fingerprint: str
    site: str
    role: Role
    secret: str = field(repr=False)
    expires: int

    def __post_init__(self) -> None:
        split_address(self.address)
        check_name(self.site, "site")
        if not re.fullmatch("[0-9a-f]{64}", self.fingerprint):
            raise TrustError("Expected a fingerprint of 64 hexadecimal digits in the invitation.")
        if check_role(self.role) not in ("site", "receiver"):
            raise TrustError(f"Expected an invitation for a site or a receiver, not for a {self.role}.")
        if not re.fullmatch("[A-Za-z0-9_-]{43}", self.secret):
            raise TrustError("Expected a secret of 32 bytes in base64url in the invitation.")

    @property
    def token(self) -> str:
        """The line of text."""
        parts = [self.address, self.fingerprint, self.site, self.role, self.secret, self.expires]
        body = base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).rstrip(b"=")
        return f"{_PREFIX}.{body.decode()}.{_check(body.decode())}"

    @classmethod
    def parse(cls, token: str) -> Invitation:
        """The invitation in a line of text; spaces and line breaks of a mail program are ignored.

        Raises:
            TrustError: it is no invitation, of another version, or was not copied whole.
        """
        parts = "".join(token[: 2 * _LONGEST].split()).split(".")
        if not parts[0].startswith("twinward"):
            raise TrustError(
                "Expected an invitation, a line that begins with `twinward1.`; another text came."
            )
        if parts[0] != _PREFIX:
            raise TrustError(
                f"Expected an invitation of version {_PREFIX!r}; this one is {parts[0][:20]!r}. Install the"
                " version of Twinward that the coordinator runs."
            )
        if len(parts) != 3 or len(token) > _LONGEST or parts[2] != _check(parts[1]):
            raise TrustError(
                "The invitation is not complete, or a letter of it was changed: its checksum does not fit."
                " Copy the whole line again."
            )
        return cls._of(_decoded(parts[1]))

    @classmethod
    def _of(cls, parts: list[object]) -> Invitation:
        if len(parts) != len(_KINDS) or any(
            type(part) is not kind for part, kind in zip(parts, _KINDS, strict=True)
        ):
            raise TrustError(f"Expected {len(_KINDS)} fields of known kinds in the invitation.")
        address, fingerprint, site, role, secret, expires = parts
        return cls(
            address=str(address),
            fingerprint=str(fingerprint),
            site=str(site),
            role=check_role(str(role)),
            secret=str(secret),
            expires=int(str(expires)),
        )


def new_secret() -> str:
    """A secret of an invitation, from the system's generator."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def secret_hash(secret: str) -> str:
    """What a coordinator keeps of a secret. One round is enough: 256 random bits cannot be guessed."""
    return sha256(b"twinward invitation\0" + secret.encode())


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of `host:port`.

    Raises:
        TrustError: it is not of that form.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})", address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise TrustError(f"Expected an address host:port ([address]:port for IPv6); {address[:80]!r} came.")
    return match[1].strip("[]"), int(match[2])


def _decoded(body: str) -> list[object]:
    try:
        parts = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        parts = None
    if not isinstance(parts, list):
        raise TrustError("Expected a list of fields in the invitation; it does not parse.")
    return parts


def _check(body: str) -> str:
    return sha256(body.encode())[:_CHECK_DIGITS]
