"""A model as it is handed to sites: its bytes, a card with its lineage, and the coordinator's signature.

    package = length of the head (4 bytes, big-endian) || head || bytes of the model (safetensors)
    head    = JSON {"card": text, "signature": text}

The signature is over the card's text as it came, and the card holds the SHA-256 of the bytes. A site
takes a package only if all of that holds, and only if its serial is not below that of the model it
has: who keeps an old package cannot hand it out as the current one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from trust.digest import Arrays, arrays_from_bytes, sha256
from trust.errors import TrustError

VERSION = 1
FETCH = "model"
"""Kind of call with which a member fetches the current model of a task; see `fetch_request`."""

HEAD_LIMIT_BYTES = 1_000_000

Sign = Callable[[bytes], str]
Verify = Callable[[bytes, str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a model is and where it comes from.

    Attributes:
        federation: whose model it is.
        task: name of the task; one model is current for each.
        serial: counts the promotions of a coordinator; the greater one is the later one.
        number: of the model in the coordinator's registry.
        sha256, size_bytes: of the model's canonical bytes.
        run, plan_sha256, base_sha256: what trained it, and the model from which that started.
        plan: canonical JSON of the plan, from which task and network are built.
        rounds: how many were committed.
        epsilons: what it cost each site's patients at `delta`, an upper bound; None without privacy.
        metrics: figures by name, made of what was released.
        promoted_s: when it became current, in seconds since 1970.
    """

    version: int = VERSION
    federation: str
    task: str
    serial: int
    number: int
    sha256: str
    size_bytes: int
    run: str
    plan_sha256: str
    base_sha256: str
    plan: str
    rounds: int
    epsilons: dict[str, float | None]
    delta: float
    metrics: dict[str, float]
    promoted_s: float

    def to_json(self) -> str:
        """The canonical form: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)


def card_from_json(text: str) -> Card:
    """The card that `Card.to_json` wrote.

    Raises:
        TrustError: not JSON, another version, unknown or missing keys, or values of another type.
    """
    data = _object(text, "a model's card")
    kinds = {field.name: str(field.type) for field in fields(Card)}
    if set(data) != set(kinds):
        raise TrustError(f"Expected the keys {sorted(kinds)} in a model's card; {sorted(data)} came.")
    wrong = [name for name, kind in kinds.items() if not _fits(kind, data[name])]
    if wrong or data["version"] != VERSION:
        raise TrustError(f"Expected a model's card of version {VERSION}; {wrong or ['version']} do not fit.")
    return Card(**data)


def pack(card: Card, model: bytes, sign: Sign) -> bytes:
    """The package of a model; `sign` gives the coordinator's signature over the card's bytes."""
    text = card.to_json()
    return join(text, sign(text.encode()), model)


def join(card: str, signature: str, model: bytes) -> bytes:
    """The package of a card that is signed already."""
    head = json.dumps({"card": card, "signature": signature}).encode()
    return len(head).to_bytes(4, "big") + head + model


def unpack(package: bytes, verify: Verify) -> tuple[Card, Arrays]:
    """The card and the arrays of a package.

    Args:
        verify: raises unless the signature (second) over the bytes (first) is one that this site
            takes for its coordinator's.

    Raises:
        TrustError: the package is malformed, not signed by the coordinator, or its bytes are others.
    """
    size = int.from_bytes(package[:4], "big")
    if not 4 + size <= len(package) or size > HEAD_LIMIT_BYTES:
        raise TrustError("Expected the package of a model; its head does not end where it should.")
    try:
        head = _object(package[4 : 4 + size].decode(), "the head of a package")
    except UnicodeDecodeError:
        raise TrustError("Expected UTF-8 in the head of a package; it is something else.") from None
    text, signature = head.get("card"), head.get("signature")
    if not isinstance(text, str) or not isinstance(signature, str):
        raise TrustError("Expected card and signature in the head of a package.")
    verify(text.encode(), signature)  # before anything in the card is believed
    card, model = card_from_json(text), package[4 + size :]
    if len(model) != card.size_bytes or sha256(model) != card.sha256:
        raise TrustError("Expected the model that its card names; the bytes have another SHA-256.")
    return card, arrays_from_bytes(model)


def fetch_request(task: str, held_sha256: str = "") -> bytes:
    """The payload of a call of kind FETCH; the answer is a package, empty if there is nothing new.

    Args:
        held_sha256: of the model that the member has; empty if it has none.
    """
    return json.dumps({"task": task, "held": held_sha256}).encode()


def read_fetch_request(payload: bytes) -> tuple[str, str]:
    """Task and SHA-256 in a request of `fetch_request`.

    Raises:
        TrustError: it is of another form.
    """
    text = payload[:1000].decode(errors="replace")
    data = _object(text, "a request for a model")
    if set(data) != {"task", "held"} or not all(isinstance(value, str) for value in data.values()):
        raise TrustError("Expected the texts task and held in a request for a model.")
    return data["task"], data["held"]


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        raise TrustError(f"Expected JSON in {what}; it does not parse.") from None
    if not isinstance(data, dict):
        raise TrustError(f"Expected an object in {what}; {type(data).__name__} came.")
    return data


def _fits(kind: str, value: object) -> bool:
    if kind.startswith("dict"):
        figures = value.values() if isinstance(value, dict) else [""]
        return all(_fits("float", figure) or (figure is None and "None" in kind) for figure in figures)
    if kind == "str":
        return isinstance(value, str)
    if kind == "int":
        return type(value) is int
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]  # it is a number
