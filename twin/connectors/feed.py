"""What a feed is: rows as their source has them, in batches that are committed one after the other.

A connector turns one protocol into batches and knows nothing of stores, pseudonyms or units. Whoever
drives it commits a batch together with its position, and only then asks for the next one; so asking is the
word that the batch before is safe, and the place where a connector acknowledges it to its source (PUBACK,
an offset, an MLLP answer). A generator that is closed instead was not committed: the source must deliver
again. What is delivered twice is recognised by the store, so a row counts once.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import pandas as pd

OBSERVATIONS: Final = ("patient", "time", "system", "code", "value", "unit", "device")
FACTS: Final = ("patient", "name", "value")
WITHDRAWN: Final = ("patient", "time", "system", "code", "device")
CATALOGUE: Final = "twinward"
"""The system of codes that are names of `twin.signals`."""


def _no_rows(columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype="str") for name in columns})


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a connector read in one step; nothing in it is cleaned.

    Attributes:
        observations: columns `OBSERVATIONS`, in the order of the source: patient (str, the source's own
            identifier), time (str in ISO 8601 or datetime64, with or without zone), system (str: twinward,
            loinc, mdc (IEEE 11073-10101), snomed, rxnorm, or the feed's kind for codes of its own), code
            (str), value (str or float64), unit (str, as the source writes it), device (str, "" if the
            source names none).
        facts: columns `FACTS`, all str: what is known of a patient without a time, by name (birth_date, sex,
            a gene's phenotype); the last of a patient and name holds.
        withdrawn: columns `WITHDRAWN`: rows that the source took back (entered in error, corrected); they
            go before the observations of the same batch come.
        rejected: rows that the connector could not read, by reason.
        fixed: rows whose value the connector had to replace, by reason ("Low" of a sensor, for instance).
        position: where to go on once this batch is committed, as JSON; opaque to everyone else. "" in an
            empty batch: nothing has moved.
    """

    observations: pd.DataFrame = field(default_factory=lambda: _no_rows(OBSERVATIONS))
    facts: pd.DataFrame = field(default_factory=lambda: _no_rows(FACTS))
    withdrawn: pd.DataFrame = field(default_factory=lambda: _no_rows(WITHDRAWN))
    rejected: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)
    position: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit but the position."""
        return not (len(self.observations) or len(self.facts) or len(self.withdrawn) or self.rejected)


class Connector(Protocol):
    """One feed of a site: a frozen dataclass whose fields are the options of its entry in feeds.toml."""

    @property
    def name(self) -> str:
        """Of the feed; unique at a site."""
        ...

    def batches(self, position: str) -> Generator[Batch, None, None]:
        """Everything after `position` (empty: from the beginning), one batch at a time.

        A feed of files ends when they are read. A live feed never ends, and yields at least once a second,
        if need be an empty batch, so that whoever drives it can stop.

        Raises:
            DataError: the source cannot be used; what was expected, and where to mend it. Rows that cannot
                be read do not raise: they are counted in `Batch.rejected`.
        """
        ...
