"""What a batch of a feed has become, ready for the store to commit whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import pandas as pd

OBSERVATIONS: Final = ("patient_id", "signal", "time", "value", "source", "quality")
FACTS: Final = ("patient_id", "name", "value")
COUNTS: Final = ("patient_id", "signal", "fate", "reason", "rows")
QUARANTINE: Final = ("patient_id", "time", "system", "code", "value", "unit", "device", "reason")
WITHDRAWN: Final = ("patient_id", "signal", "time")
REMARKED: Final = ("patient_id", "signal", "time", "source", "quality")
FATES: Final = ("kept", "dropped", "fixed", "marked", "filled", "quarantined", "withdrawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """The canonical rows of one batch, with what became of the others.

    Attributes:
        feed: its name.
        position: of the feed after this batch.
        observations: columns `OBSERVATIONS` as in `twin.site.Site`: patient_id is the site's pseudonym,
            signal of the catalogue, time datetime64[us, UTC], value float64 in the canonical unit, source
            the feed (and device, after a slash), quality "" or why the value is suspect ("spike", "jump",
            "flatline", "unit", "drift"): such rows are stored, and read by nobody but who asks for them.
        facts: columns `FACTS`.
        counts: columns `COUNTS`: rows by patient, signal, fate (one of `FATES`) and reason; patient_id and
            signal are "" where a row has none.
        quarantine: columns `QUARANTINE`: rows with a code or unit that nobody knows yet, as the source had
            them (values as text), under the pseudonym; a later catalogue brings them back.
        withdrawn: columns `WITHDRAWN`: observations to remove.
        remarked: columns `REMARKED`: observations that were stored before, whose quality is now this one,
            because of what came after them.
    """

    feed: str
    position: str
    observations: pd.DataFrame
    facts: pd.DataFrame
    counts: pd.DataFrame
    quarantine: pd.DataFrame
    withdrawn: pd.DataFrame
    remarked: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(REMARKED)))
