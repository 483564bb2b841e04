"""The data key of a hospital's store: made at random, kept wrapped, never beside what it opens in the clear.

A vault is a small JSON file with one envelope per data key. An envelope holds the key wrapped by a *lock*:
- a passphrase: AES-256-GCM under scrypt (RFC 7914) of it, with a salt of its own;
- a key file: AES-256-GCM under the 32 bytes in a file that only its owner reads (a mounted secret);
- a KMS: commands of the site, one that unwraps (wrapped bytes on stdin, the key on stdout), one that wraps.

A vault usually holds one data key. While a store is rotated it holds two, the newest first: a process that
is killed in between leaves a store that opens with the one or the other (`keys`), and `forget_old` removes
the old one once the store is under the new.

All of an envelope but the wrapped key is bound to it as associated data, so nobody can pass off one lock's
parameters as another's. The fingerprint tells a wrong key of a KMS; of 32 random bytes, it tells nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
import shlex
import subprocess
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from trust.errors import TrustError
from trust.keys import read_private, write_file

KEY_BYTES: Final = 32
_FORMAT: Final = "twinward-vault-1"
_SCRYPT: Final = {"n": 2**16, "r": 8, "p": 1}
"""64 MiB and some 0.2 s for each guess: above the n = 2^15 that RFC 7914's authors call interactive."""
_MOST_N: Final = 2**20
_SHORTEST: Final = 12
_WAIT_S: Final = 60.0


class Lock(Protocol):
    """What a data key is wrapped with."""

    @property
    def how(self) -> str:
        """Its name in an envelope."""
        ...

    def wrap(self, key: bytes, bound: bytes) -> dict[str, str | int]:
        """What an envelope needs to unwrap the key with this lock; `bound` is bound to it."""
        ...

    def unwrap(self, wrapped: Mapping[str, object], bound: bytes) -> bytes:
        """The key.

        Raises:
            TrustError: it is another lock's, or was altered.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Passphrase:
    """A passphrase that a person types or a secret store hands over; in normal form NFC."""

    text: str = field(repr=False)

    @property
    def how(self) -> str:
        """Its name in an envelope."""
        return "passphrase"

    def wrap(self, key: bytes, bound: bytes) -> dict[str, str | int]:
        """See `Lock`.

        Raises:
            TrustError: the passphrase is too short.
        """
        if len(self.text) < _SHORTEST:
            raise TrustError(
                f"Expected a passphrase of at least {_SHORTEST} characters; got {len(self.text)}."
                " Five random words are easy to keep."
            )
        salt = secrets.token_bytes(16)
        wrapping = self._derived(salt, **_SCRYPT)
        return {"salt": _text(salt), **_SCRYPT, **_sealed(wrapping, key, bound)}

    def unwrap(self, wrapped: Mapping[str, object], bound: bytes) -> bytes:
        """See `Lock`."""
        n, r, p = (wrapped.get(name) for name in ("n", "r", "p"))
        if not (isinstance(n, int) and 2 <= n <= _MOST_N and n & (n - 1) == 0 and r == 8 and p == 1):
            raise TrustError("Expected scrypt with n at most 2^20, r 8 and p 1 in the vault; it has others.")
        key = _opened(self._derived(_bytes(wrapped, "salt"), n=n, r=8, p=1), wrapped, bound)
        if key is None:
            raise TrustError(
                "The passphrase does not open the vault: it is another one, or the vault was altered."
            )
        return key

    def _derived(self, salt: bytes, *, n: int, r: int, p: int) -> bytes:
        text = unicodedata.normalize("NFC", self.text).encode()
        return Scrypt(salt=salt, length=KEY_BYTES, n=n, r=r, p=p).derive(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """A file of 32 random bytes that only its owner may read; keep it on another disk than the store."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new one; refuses to overwrite."""
        write_file(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        return cls(path=path)

    @property
    def how(self) -> str:
        """Its name in an envelope."""
        return "key-file"

    def wrap(self, key: bytes, bound: bytes) -> dict[str, str | int]:
        """See `Lock`."""
        return {**_sealed(self._key(), key, bound)}

    def unwrap(self, wrapped: Mapping[str, object], bound: bytes) -> bytes:
        """See `Lock`."""
        key = _opened(self._key(), wrapped, bound)
        if key is None:
            raise TrustError(
                f"The key file {self.path} does not open the vault: it is another one, or the vault was"
                " altered."
            )
        return key

    def _key(self) -> bytes:
        try:
            key = bytes.fromhex(read_private(self.path).decode("ascii").strip())
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise TrustError(
                f"Expected {2 * KEY_BYTES} hexadecimal digits in {self.path}; it holds something else."
            )
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class Kms:
    """Commands of the site that ask its key management; run without a shell.

    Attributes:
        unwrap_command: is given the wrapped bytes on stdin and gives the 32 bytes of the key on stdout.
        wrap_command: the other way round; needed only to make a vault, to rewrap and to rotate.
    """

    unwrap_command: str
    wrap_command: str = ""

    @property
    def how(self) -> str:
        """Its name in an envelope."""
        return "kms"

    def wrap(self, key: bytes, bound: bytes) -> dict[str, str | int]:
        """See `Lock`; nothing but the fingerprint is bound, and that when the vault is opened."""
        del bound  # a KMS authenticates what it wraps, and takes no associated data from a pipe
        if not self.wrap_command:
            raise TrustError("Expected a command that wraps a key with the KMS (wrap_command); none is set.")
        wrapped = _answer(self.wrap_command, key)
        if not wrapped or key in wrapped:
            raise TrustError(
                f"Expected {shlex.split(self.wrap_command)[0]} to give a wrapped key; it did not wrap it."
            )
        return {"wrapped": _text(wrapped)}

    def unwrap(self, wrapped: Mapping[str, object], bound: bytes) -> bytes:
        """See `Lock`."""
        del bound
        key = _answer(self.unwrap_command, _bytes(wrapped, "wrapped"))
        if len(key) != KEY_BYTES:
            raise TrustError(
                f"Expected {KEY_BYTES} bytes from {shlex.split(self.unwrap_command)[0]}; it gave {len(key)}."
            )
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class Vault:
    """The data keys of a store, unlocked.

    Attributes:
        path: of the vault's file.
        keys: newest first; the first is the one to write under.
        lock: that they are wrapped with.
    """

    path: Path
    keys: tuple[bytes, ...] = field(repr=False)
    lock: Lock = field(repr=False)

    @classmethod
    def create(cls, path: Path, lock: Lock) -> Self:
        """A new vault with a new data key, on disk.

        Raises:
            TrustError: there is a file already, or the lock does not work.
        """
        vault = cls(path=path, keys=(secrets.token_bytes(KEY_BYTES),), lock=lock)
        write_file(path, vault._bytes())
        return vault

    @classmethod
    def open(cls, path: Path, lock: Lock) -> Self:
        """The vault at `path`.

        Raises:
            TrustError: no vault there, one of a later format, one of another lock, or a wrong lock.
        """
        keys = tuple(_unsealed(envelope, lock) for envelope in _envelopes(path))
        return cls(path=path, keys=keys, lock=lock)

    @property
    def key(self) -> bytes:
        """The data key to write under."""
        return self.keys[0]

    def rewrap(self, lock: Lock) -> Vault:
        """The same keys under another lock, on disk: a passphrase that changed, a move to a KMS."""
        return self._kept(replace(self, lock=lock))

    def with_new_key(self) -> Vault:
        """The vault with one more data key, the newest, on disk: the first step of a rotation."""
        return self._kept(replace(self, keys=(secrets.token_bytes(KEY_BYTES), *self.keys)))

    def forget_old(self) -> Vault:
        """The vault with only the newest data key, on disk: what is still under an old one is lost."""
        return self._kept(replace(self, keys=self.keys[:1]))

    def _kept(self, vault: Vault) -> Vault:
        write_file(self.path, vault._bytes(), replace=True)
        return vault

    def _bytes(self) -> bytes:
        envelopes = [_envelope(key, self.lock) for key in self.keys]
        return json.dumps({"format": _FORMAT, "keys": envelopes}, indent=1).encode() + b"\n"


def how_locked(path: Path) -> str:
    """passphrase, key-file or kms: what opens the vault at `path`.

    Raises:
        TrustError: there is no vault.
    """
    return str(_envelopes(path)[0].get("how"))


def _envelopes(path: Path) -> list[dict[str, object]]:
    """Those of the file, newest first; at least one."""
    try:
        content = json.loads(read_private(path))
    except ValueError:
        content = None
    envelopes = content.get("keys") if isinstance(content, dict) else None
    if not envelopes or not isinstance(envelopes, list) or not all(isinstance(e, dict) for e in envelopes):
        raise TrustError(f"Expected a vault at {path}; the file there is none, or was altered.")
    if content["format"] != _FORMAT:
        raise TrustError(
            f"Expected a vault of the format {_FORMAT}; {path} has another. Install the Twinward that wrote"
            " it."
        )
    return envelopes


def _envelope(key: bytes, lock: Lock) -> dict[str, object]:
    head: dict[str, object] = {"version": 1, "how": lock.how, "fingerprint": _fingerprint(key)}
    return {**head, **lock.wrap(key, _bound(head))}


def _unsealed(envelope: Mapping[str, object], lock: Lock) -> bytes:
    head = {name: envelope.get(name) for name in ("version", "how", "fingerprint")}
    if head["version"] != 1:
        raise TrustError(
            "Expected an envelope of version 1 in the vault; install the Twinward that wrote it."
        )
    if head["how"] != lock.how:
        raise TrustError(f"Expected the lock of the vault ({head['how']}); got one of the kind {lock.how}.")
    key = lock.unwrap(envelope, _bound(head))
    if not secrets.compare_digest(_fingerprint(key), str(head["fingerprint"])):
        raise TrustError("Expected the data key that the vault was made with; the lock gave another one.")
    return key


def _bound(head: Mapping[str, object]) -> bytes:
    return json.dumps([_FORMAT, head["version"], head["how"], head["fingerprint"]]).encode()


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"twinward data key " + key).hexdigest()[:16]


def _sealed(wrapping: bytes, key: bytes, bound: bytes) -> dict[str, str]:
    nonce = secrets.token_bytes(12)
    return {"nonce": _text(nonce), "wrapped": _text(AESGCM(wrapping).encrypt(nonce, key, bound))}


def _opened(wrapping: bytes, wrapped: Mapping[str, object], bound: bytes) -> bytes | None:
    try:
        return AESGCM(wrapping).decrypt(_bytes(wrapped, "nonce"), _bytes(wrapped, "wrapped"), bound)
    except (InvalidTag, ValueError):
        return None


def _answer(command: str, given: bytes) -> bytes:
    """What the command writes to stdout. Neither that nor stderr is ever shown: either may hold a key."""
    words = shlex.split(command)
    if not words:
        raise TrustError("Expected a command of the key management; it is empty.")
    try:
        done = subprocess.run(words, input=given, capture_output=True, timeout=_WAIT_S, check=False)  # noqa: S603  # the site's own command
    except FileNotFoundError:
        raise TrustError(
            f"Expected the command {words[0]}, which asks the KMS; it is not installed."
        ) from None
    except subprocess.TimeoutExpired:
        raise TrustError(f"Expected an answer of {words[0]} within {_WAIT_S:g} s; none came.") from None
    if done.returncode:
        raise TrustError(
            f"Expected {words[0]} to end with 0; it ended with {done.returncode}. Run it by hand to see why."
        )
    return done.stdout


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(wrapped: Mapping[str, object], name: str) -> bytes:
    try:
        return base64.b64decode(str(wrapped.get(name)), validate=True)
    except (binascii.Error, ValueError):
        raise TrustError(f"Expected {name} of the vault in base64; it was altered.") from None
