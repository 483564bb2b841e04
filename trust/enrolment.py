"""What a hospital and a coordinator say to each other when one joins: three small forms of JSON.

Read strictly: known keys of known types, sizes capped before parsing. A refusal has a code, which
programs act on, and a text, which a hospital's IT person understands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self

from trust.errors import TrustError

METHOD: Final = "/twinward.Enrolment/Enrol"
"""The only method of the enrolment listener. Request and answer are the bytes of the forms below."""

MAX_BYTES: Final = 16 * 1024
"""The longest request or answer; a certificate of ours is about 800 bytes."""

CODES: Final = (
    "internal_error",
    "malformed",
    "name_taken",
    "no_member",
    "other_authority",
    "request_invalid",
    "token_expired",
    "token_of_another_site",
    "token_unknown",
    "token_used",
    "token_withdrawn",
    "too_many_attempts",
)


class EnrolmentRefused(TrustError):
    """A hospital is not let in. `code` is one of CODES."""

    def __init__(self, code: str, text: str) -> None:
        if code not in CODES:
            raise ValueError(f"Unknown code {code!r}; add it to trust.enrolment.CODES.")
        super().__init__(f"{text} [{code}]")
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[type[EnrolmentRefused], tuple[str, str]]:
        return EnrolmentRefused, (self.code, self.text)


class _Form:
    """To and from bytes, for the frozen dataclasses below."""

    __slots__ = ()

    def to_bytes(self) -> bytes:
        """JSON in UTF-8 with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()  # type: ignore[call-overload]  # its subclasses are dataclasses

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The form in these bytes.

        Raises:
            EnrolmentRefused: malformed.
        """
        return cls(**_read(data, {entry.name: str(entry.type) for entry in fields(cls)}))  # type: ignore[arg-type]  # as above


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest(_Form):
    """A hospital asks to join.

    Attributes:
        site: the name in its invitation.
        secret: of the invitation; not shown in a text of this object.
        csr_pem: proves that it holds its key; nothing else in it counts.
        certificate_pem: of the hospital's own authority for the same key, empty if it wants one of ours.
    """

    site: str
    secret: str = field(repr=False)
    csr_pem: str
    certificate_pem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(_Form):
    """What a new member takes away, and what it gets again at each renewal.

    Attributes:
        certificate_pem: the member's; authority_pem: whose listeners it trusts from now on.
        signing_keys: of the coordinator, id → 64 hexadecimal digits.
        address: host:port of the hospitals' listener.
        time: of the coordinator's clock, seconds since 1970 UTC.
    """

    federation: str
    role: str
    name: str
    certificate_pem: str
    authority_pem: str
    signing_keys: Mapping[str, str]
    address: str
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(_Form):
    """Why a request is not granted."""

    code: str
    text: str


def read_answer(data: bytes) -> Welcome:
    """The welcome in an answer.

    Raises:
        EnrolmentRefused: the answer is a refusal, or malformed.
    """
    if b'"code"' not in data[:64]:
        return Welcome.from_bytes(data)
    refusal = Refusal.from_bytes(data)
    known = refusal.code in CODES
    raise EnrolmentRefused(refusal.code if known else "malformed", _printable(refusal.text))


def _read(data: bytes, kinds: Mapping[str, str]) -> dict[str, Any]:
    try:
        values = json.loads(data) if len(data) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise EnrolmentRefused(
            "malformed", f"Expected an object with {sorted(kinds)}, at most {MAX_BYTES} bytes."
        )
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            raise EnrolmentRefused(
                "malformed", f"Expected {kinds[name]} at {name}; {type(value).__name__} came."
            )
    return values


def _fits(value: object, kind: str) -> bool:
    if kind == "int":
        return type(value) is int
    if kind == "str":
        return isinstance(value, str)
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


def _printable(text: str) -> str:
    """A peer's text as it may be shown on a terminal: no control characters, not endless."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:1000])
