"""Access tokens of FHIR servers: OAuth 2.0 client credentials, with a secret or with a signed assertion.

Sources: RFC 6749 4.4 and 2.3.1 (the secret goes in the header), RFC 7523 (the assertion), SMART App Launch
2.1, "Client Authentication: Asymmetric" (RS384 or ES384, five minutes at most, a new jti each time).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from twin.errors import DataError

ASSERTION_S: Final = 240
EARLY_S: Final = 30
_JWT: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who asks for tokens, and how it proves that.

    Attributes:
        token_url: of the authorization server.
        client_id: as registered there.
        client_secret_file: a file with the secret; or
        private_key_file: PEM of an RSA or P-384 key whose public half is registered there, and
        key_id: the name it has in the registered key set.
        scope: what is asked for.
    """

    token_url: str
    client_id: str
    client_secret_file: Path | None = None
    private_key_file: Path | None = None
    key_id: str = ""
    scope: str = "system/*.read"

    def request(self, *, now_s: float, jti: str) -> tuple[dict[str, str], dict[str, str]]:
        """(form, headers) of the request for a token.

        Args:
            now_s: seconds since 1970.
            jti: a name that no other assertion has.

        Raises:
            DataError: neither or both of secret and key, or the file cannot be used.
        """
        form = {"grant_type": "client_credentials", "scope": self.scope}
        if (self.client_secret_file is None) == (self.private_key_file is None):
            raise DataError("A FHIR feed with token_url needs client_secret_file or private_key_file.")
        if self.client_secret_file is not None:
            secret = _file(self.client_secret_file).decode("utf-8", errors="replace").strip()
            pair = f"{quote_plus(self.client_id)}:{quote_plus(secret)}"
            return form, {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        claims = {"iss": self.client_id, "sub": self.client_id, "aud": self.token_url, "jti": jti}
        claims |= {"exp": str(int(now_s) + ASSERTION_S), "iat": str(int(now_s))}
        return form | {"client_assertion_type": _JWT, "client_assertion": self._signed(claims)}, {}

    def _signed(self, claims: dict[str, str]) -> str:
        numbers = {name: int(value) if name in ("exp", "iat") else value for name, value in claims.items()}
        algorithm, sign = _signer(_file(self.private_key_file) if self.private_key_file else b"")
        header = {"alg": algorithm, "typ": "JWT"} | ({"kid": self.key_id} if self.key_id else {})
        text = ".".join(
            _base64(json.dumps(part, separators=(",", ":")).encode()) for part in (header, numbers)
        )
        return f"{text}.{_base64(sign(text.encode()))}"


def lifetime_s(answer: Any) -> float:
    """How long a token that was answered may be used."""
    given = answer.get("expires_in", 300) if isinstance(answer, dict) else 300
    seconds = float(given) if isinstance(given, int | float) else 300.0
    return max(seconds - EARLY_S, seconds / 2)


def _signer(pem: bytes) -> tuple[str, Callable[[bytes], bytes]]:
    """(algorithm, function) for the key of a PEM file."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DataError("private_key_file of a FHIR feed is no PEM of a private key.") from None
    if isinstance(key, rsa.RSAPrivateKey):
        rsa_key = key
        return "RS384", lambda text: rsa_key.sign(text, padding.PKCS1v15(), hashes.SHA384())
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1":
        curve_key = key

        def sign(text: bytes) -> bytes:
            r, s = decode_dss_signature(curve_key.sign(text, ec.ECDSA(hashes.SHA384())))
            return r.to_bytes(48, "big") + s.to_bytes(48, "big")

        return "ES384", sign
    raise DataError("private_key_file of a FHIR feed must hold an RSA or a P-384 key.")


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} of a FHIR feed cannot be read: {type(error).__name__}.") from None


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
