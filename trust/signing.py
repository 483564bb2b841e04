"""Ed25519 signatures of a coordinator, each for one use only.

What is signed is `context || 0 || bytes`, so that a signature of one kind of thing never holds for
another: the head of a log is no plan, even if somebody made its bytes look like one. A signature
is written as `<key id>:<base64>`; a key's id is the start of the SHA-256 of its 32 public bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from trust.digest import sha256
from trust.errors import TrustError
from trust.keys import read_private, write_file

Context = Literal["plan", "question", "head", "model"]
_CONTEXTS: Final[dict[str, bytes]] = {
    "plan": b"twinward plan v1",
    "question": b"twinward question v1",
    "head": b"twinward audit head v1",
    "model": b"twinward model v1",
}
_ID_DIGITS: Final = 16


class Verifier:
    """A public signing key.

    Args:
        public_hex: its 32 bytes as 64 hexadecimal digits.

    Raises:
        TrustError: they are not that.
    """

    def __init__(self, public_hex: str) -> None:
        try:
            self._key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        except (ValueError, TypeError):
            raise TrustError("Expected a public signing key as 64 hexadecimal digits.") from None
        self.public_hex = self._key.public_bytes_raw().hex()
        self.key_id = key_id(self.public_hex)

    def verify(self, context: Context, data: bytes, signature: str) -> None:
        """Returns if the signature holds.

        Raises:
            TrustError: it is of another key, for another use, of other bytes, or malformed.
        """
        signer, raw = _parse(signature)
        if signer != self.key_id:
            raise TrustError(f"Expected a signature of key {self.key_id}; it is of {signer!r}.")
        try:
            self._key.verify(raw, _framed(context, data))
        except InvalidSignature:
            raise TrustError(
                f"The signature of this {context} does not hold: the {context} was changed, or the signature"
                " is of something else."
            ) from None


class Signer:
    """A private signing key; it never shows in a text of this object."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_hex = key.public_key().public_bytes_raw().hex()
        self.key_id = key_id(self.public_hex)

    @classmethod
    def generate(cls) -> Signer:
        """A new key from the system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Signer:
        """The key in a file of `save`.

        Raises:
            TrustError: absent, readable by others, or not 32 bytes.
        """
        raw = read_private(path)
        if len(raw) != 32:
            raise TrustError(f"Expected 32 bytes of a signing key in {path}; {len(raw)} are there.")
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def save(self, path: Path) -> None:
        """Writes the key, readable by its owner only; raises TrustError if there is a file."""
        write_file(path, self._key.private_bytes_raw())

    def sign(self, context: Context, data: bytes) -> str:
        """The signature of some bytes for one use."""
        raw = self._key.sign(_framed(context, data))
        return f"{self.key_id}:{base64.b64encode(raw).decode()}"


def key_id(public_hex: str) -> str:
    """Sixteen hexadecimal digits that name a public key."""
    return sha256(bytes.fromhex(public_hex))[:_ID_DIGITS]


def sign_plan(plan_json: str, signer: Signer) -> str:
    """The signature of a plan's canonical text."""
    return signer.sign("plan", plan_json.encode())


def verify_plan(plan_json: str, signature: str, public_keys: Mapping[str, str]) -> str:
    """The id of the key that signed a plan.

    Args:
        public_keys: the keys that are trusted, id → 64 hexadecimal digits.

    Raises:
        TrustError: no signature, a key that is not trusted, or a signature that does not hold.
    """
    return verify("plan", plan_json.encode(), signature, public_keys)


def verify(context: Context, data: bytes, signature: str, public_keys: Mapping[str, str]) -> str:
    """The id of the trusted key that signed these bytes for this use; raises as `verify_plan`."""
    signer = _parse(signature)[0]
    public_hex = public_keys.get(signer)
    if public_hex is None:
        raise TrustError(
            f"Expected a {context} signed by one of the trusted keys {sorted(public_keys)}; it is signed by"
            f" {signer!r}. Trusted keys stand in coordinator_keys.json."
        )
    verifier = Verifier(public_hex)
    verifier.verify(context, data, signature)
    return verifier.key_id


def _framed(context: Context, data: bytes) -> bytes:
    return _CONTEXTS[context] + b"\0" + data


def _parse(signature: str) -> tuple[str, bytes]:
    signer, colon, text = signature.partition(":")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not colon or len(raw) != 64 or len(signer) != _ID_DIGITS or not set(signer) <= set("0123456789abcdef"):
        raise TrustError("Expected a signature `<key id>:<base64 of 64 bytes>`; it is missing or malformed.")
    return signer, raw
