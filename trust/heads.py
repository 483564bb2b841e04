"""The head of an audit log: its size and root, signed by the log's owner and held by others."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Final

from trust.errors import TrustError
from trust.merkle import HASH_BYTES
from trust.signing import Signer, Verifier

_LARGEST: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a log was at one moment.

    Attributes:
        size: number of records.
        root: of the tree over them, as 64 hexadecimal digits.
        time: when this was said, seconds since 1970 by its owner's clock; orders nothing.

    Raises:
        TrustError: a field is not of that form.
    """

    size: int
    root: str
    time: float

    def __post_init__(self) -> None:
        fits = type(self.size) is int and 0 <= self.size < _LARGEST and type(self.time) is float
        if not fits or not isinstance(self.root, str) or not _is_hash(self.root):
            raise TrustError("Expected a log's head: size, root of 64 hexadecimal digits, and time.")

    @property
    def root_bytes(self) -> bytes:
        """The root as bytes."""
        return bytes.fromhex(self.root)

    def signed(self, signer: Signer) -> SignedHead:
        """This head with its owner's signature."""
        return SignedHead(head=self, key=signer.public_hex, signature=signer.sign("head", _bytes(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """A head, the public key of its owner as 64 hexadecimal digits, and the signature."""

    head: Head
    key: str
    signature: str

    def check(self, keys: Collection[str] | None = None) -> None:
        """Returns if the signature holds and its key is among `keys`, where some are given.

        Raises:
            TrustError: it does not.
        """
        if keys is not None and self.key not in keys:
            raise TrustError("Expected the head of a log signed by a key that is known; it is of another.")
        Verifier(self.key).verify("head", _bytes(self.head), self.signature)
        if not _is_hash(self.key) or not _is_plain(self.signature):
            raise TrustError("Expected key and signature of a head in their one form.")

    def to_dict(self) -> dict[str, str | int | float]:
        """Plain values, for JSON."""
        return {**asdict(self.head), "key": self.key, "signature": self.signature}

    @classmethod
    def from_dict(cls, data: object) -> SignedHead:
        """The head in the values of `to_dict`; its signature is not checked.

        Raises:
            TrustError: they are something else.
        """
        if not isinstance(data, dict) or set(data) != {"size", "root", "time", "key", "signature"}:
            raise TrustError("Expected size, root, time, key and signature of a log's head.")
        if not isinstance(data["key"], str) or not isinstance(data["signature"], str):
            raise TrustError("Expected texts as key and signature of a log's head.")
        head = Head(size=data["size"], root=data["root"], time=data["time"])
        return cls(head=head, key=data["key"], signature=data["signature"])


def _bytes(head: Head) -> bytes:
    return json.dumps(asdict(head), sort_keys=True, separators=(",", ":")).encode()


def _is_plain(signature: str) -> bool:
    """Whether the base64 of a signature that holds is the usual one: its last bits may be anything."""
    text = signature.partition(":")[2]
    return base64.b64encode(base64.b64decode(text)).decode() == text


def _is_hash(text: str) -> bool:
    return len(text) == 2 * HASH_BYTES and set(text) <= set("0123456789abcdef")
