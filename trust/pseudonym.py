"""Pseudonyms: a patient's identifier under a key, so that who lacks the key can neither make nor undo one.

HMAC-SHA-256 (RFC 2104) under a key that HKDF (RFC 5869) derives from the site's secret and the use: two uses
(the site's own store, an export for one study) give names that cannot be linked without the secret. It
is no anonymisation: who has the secret and the list of patients can name every one of them.
"""

from __future__ import annotations

import base64
import hmac
import unicodedata
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trust.errors import TrustError

STORE: Final = "store"
"""The use under which a site knows its own patients."""

_LENGTH: Final = 20  # characters of base32: 100 bits, so among 10^9 patients two meet with chance 4e-13
_SHORTEST_SECRET: Final = 32
_MOST_KEPT: Final = 1_000_000


class Pseudonyms:
    """The names of one use; call it with an identifier."""

    def __init__(self, secret: bytes, use: str = STORE) -> None:
        """Args:
            secret: of the site, at least 32 bytes; use: what the names are for.

        Raises:
            TrustError: the secret is too short, or there is no use.
        """
        if len(secret) < _SHORTEST_SECRET:
            raise TrustError(f"Expected a secret of at least {_SHORTEST_SECRET} bytes; {len(secret)} came.")
        if not use:
            raise TrustError("Expected a use for which the pseudonyms are made; it is empty.")
        self._key = HKDF(
            algorithm=SHA256(), length=32, salt=None, info=b"twinward pseudonym " + use.encode()
        ).derive(secret)
        self._known: dict[str, str] = {}

    def __call__(self, identifier: str) -> str:
        """The pseudonym: 20 characters a-z and 2-7.

        Spaces around an identifier and the Unicode form in which a source writes it do not matter; the
        case of letters does, since hospitals number with both.

        Raises:
            TrustError: the identifier is empty.
        """
        found = self._known.get(identifier)
        if found is None:
            found = self._made(identifier)
            if len(self._known) < _MOST_KEPT:
                self._known[identifier] = found
        return found

    def _made(self, identifier: str) -> str:
        text = unicodedata.normalize("NFC", identifier).strip()
        if not text:
            raise TrustError("Expected a patient's identifier; it is empty.")
        digest = hmac.digest(self._key, text.encode(), "sha256")
        return base64.b32encode(digest)[:_LENGTH].decode().lower()

    def __repr__(self) -> str:
        return "Pseudonyms()"
