"""Who somebody is in a federation: a URI in the subject alternative names of a certificate.

`twinward://<federation>/<role>/<name>`, and nothing else of a certificate tells who its holder is:
not its subject, not its address. Whether the certificate is to be trusted at all is not decided
here; TLS checks the chain, and the coordinator's list of members the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from cryptography import x509

from trust.errors import TrustError

Role = Literal["coordinator", "site", "receiver", "operator"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
"""coordinator founds; site trains; receiver only takes models; operator launches plans."""

_SCHEME: Final = "twinward://"
_NAME: Final = r"[a-z0-9][a-z0-9_-]{0,62}"
_URI: Final = re.compile(rf"twinward://({_NAME})/({'|'.join(ROLES)})/({_NAME})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A member of a federation, in one role.

    Raises:
        TrustError: a name or role that is not allowed.
    """

    federation: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        check_name(self.federation, "federation")
        check_role(self.role)
        check_name(self.name, self.role)

    @property
    def uri(self) -> str:
        """The form that stands in certificates."""
        return f"{_SCHEME}{self.federation}/{self.role}/{self.name}"


def check_name(name: str, what: str = "name") -> str:
    """The name, if it may be one of a federation or of a member.

    Raises:
        TrustError: it has other letters than a-z, 0-9, `_`, `-`, begins with a sign, or is too long.
    """
    if not re.fullmatch(_NAME, name):
        raise TrustError(
            f"Expected the name of a {what}: 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit;"
            f" {name[:80]!r} came."
        )
    return name


def check_role(role: str) -> Role:
    """The role, if there is one of that name.

    Raises:
        TrustError: there is none.
    """
    for known in ROLES:
        if role == known:
            return known
    raise TrustError(f"Expected a role, one of {', '.join(ROLES)}; {role[:80]!r} came.")


def identity_of(certificate: bytes) -> Identity:
    """The identity in a certificate.

    Args:
        certificate: PEM (the first one counts) or DER.

    Raises:
        TrustError: not a certificate, or not exactly one URI of ours in its alternative names. With
            two, one reader could take the first and another the second.
    """
    found = load_certificate(certificate)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        uris = []
    ours = [uri for uri in uris if uri.lower().startswith(_SCHEME)]
    match = _URI.fullmatch(ours[0]) if len(ours) == 1 else None
    if match is None:
        raise TrustError(
            f"Expected a certificate with exactly one name of the form {_SCHEME}<federation>/<role>/<name>"
            f" among its URI alternative names; this one has {len(ours)} that begin so."
        )
    return Identity(federation=match[1], role=check_role(match[2]), name=match[3])


def load_certificate(certificate: bytes) -> x509.Certificate:
    """The certificate of PEM or DER bytes.

    Raises:
        TrustError: they are neither.
    """
    try:
        if b"-----BEGIN" in certificate:
            return x509.load_pem_x509_certificate(certificate)
        return x509.load_der_x509_certificate(certificate)
    except ValueError:
        raise TrustError("Expected an X.509 certificate, PEM or DER; the bytes do not parse.") from None
