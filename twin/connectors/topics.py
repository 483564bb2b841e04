"""Which patient, device and signal a topic names: `ward/{patient}/{device}/{signal}`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from twin.connectors.payloads import Told
from twin.errors import DataError

FIELDS: Final = ("patient", "device", "signal")
_FIELD: Final = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A topic with fields in place of levels; made by `of`.

    Attributes:
        subscription: what the broker is asked for.
        levels: of the topic; a field is {name}, + is any level, # at the end is any number of them.
    """

    subscription: str
    levels: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """The pattern of an option.

        >>> Pattern.of("ward/{patient}/+/{signal}").subscription
        'ward/+/+/+'

        Raises:
            DataError: what is wrong with it.
        """
        levels = tuple(text.split("/"))
        names = [match[1] for level in levels if (match := _FIELD.fullmatch(level))]
        wrong = {
            "it is empty": not text,
            "it begins with $": text.startswith("$"),
            "# stands before the end": "#" in levels[:-1],
            "a field or wildcard must be a whole level": any(
                set(level) & set("{}+#") and level not in ("+", "#") and not _FIELD.fullmatch(level)
                for level in levels
            ),
            f"fields are {', '.join(FIELDS)}": bool(set(names) - set(FIELDS)),
            "a field stands twice": len(set(names)) < len(names),
        }
        faults = [fault for fault, there in wrong.items() if there]
        if faults:
            raise DataError(
                f"topic {text[:100]!r} of a feed: {'; '.join(faults)}. "
                "Expected for instance ward/{patient}/{device}/{signal}."
            )
        asked = ["+" if _FIELD.fullmatch(level) else level for level in levels]
        return cls(subscription="/".join(asked), levels=levels)

    def told(self, topic: str) -> Told | None:
        """What a topic says; None if it is of another form.

        >>> Pattern.of("ward/{patient}/{signal}").told("ward/17/spo2")
        Told(patient='17', device='', code='spo2', time='')
        """
        given = topic.split("/")
        wanted = self.levels
        if wanted[-1] == "#":
            wanted = wanted[:-1]
            given, rest = given[: len(wanted)], given[len(wanted) :]
            if not rest and len(given) < len(wanted):
                return None
        if len(given) != len(wanted):
            return None
        found: dict[str, str] = {}
        for level, name in zip(given, wanted, strict=True):
            if field := _FIELD.fullmatch(name):
                found[field[1]] = level
            elif name not in ("+", level):
                return None
        return Told(
            patient=found.get("patient", ""), device=found.get("device", ""), code=found.get("signal", "")
        )
