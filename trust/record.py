"""One record of an audit log: its fields, its one text, and what it must not hold."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from trust.errors import TrustError
from trust.kinds import KINDS

Fact = str | int | float | bool

_LONGEST_WHY: Final = 2000
_LONGEST_FACT: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a log: what (`kind`), who, why, when (UTC, ISO 8601) and its facts."""

    number: int
    kind: str
    who: str
    why: str
    time: str
    facts: dict[str, Fact]


def canonical(record: dict[str, Any]) -> str:
    """The one text of a record, over which it is hashed."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def new_body(kind: str, who: str, why: str, facts: dict[str, Fact], time_s: float) -> dict[str, Any]:
    """A record without its number.

    Raises:
        TrustError: the kind or a fact is not on the list of trust/kinds.py, or of another form.
    """
    if kind not in KINDS:
        raise TrustError(f"Expected a kind of record that trust/kinds.py lists; {kind!r} came.")
    unknown = sorted(set(facts) - KINDS[kind])
    if unknown:
        raise TrustError(
            f"A record {kind!r} may carry {sorted(KINDS[kind])}, not {unknown} (trust/kinds.py)."
        )
    wrong = sorted(name for name, value in facts.items() if not _is_fact(value))
    if wrong or not isinstance(who, str) or not 0 < len(who) <= _LONGEST_FACT:
        raise TrustError(
            f"Expected who and every fact as text of at most {_LONGEST_FACT} characters, a number or a"
            f" truth value; at fault: {wrong or ['who']}."
        )
    when = datetime.fromtimestamp(time_s, tz=UTC).isoformat(timespec="microseconds")
    cut = why if len(why) <= _LONGEST_WHY else why[: _LONGEST_WHY - 1] + "…"
    return {
        "kind": kind,
        "who": who,
        "why": cut,
        "time": when,
        "facts": {name: _plain(value) for name, value in facts.items()},
    }


def _plain(value: Fact) -> Fact:
    """The fact as JSON can hold it: an infinite epsilon becomes the text inf."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _is_fact(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_FACT
    return isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63)
