"""One hospital's data in canonical form: the contract between connectors and everything above."""

from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What a connector and the cleaning did to the rows that they read.

    `dropped`, `fixed` and `quarantined` count rows by reason, for instance
    {"duplicate": 7283, "outside limits: glucose": 3}; rows_read = rows_kept + all dropped and
    quarantined rows.
    """

    rows_read: int = 0
    rows_kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    fixed: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One hospital: every patient's observations and what is known of the patients themselves.

    Attributes:
        name: of the site, as its folder is called.
        observations: columns patient_id (str), signal (str, of `twin.signals`), time (UTC,
            datetime64[us, UTC]), value (float64, canonical unit), source (str), quality (str);
            sorted by patient_id, signal, time; no null, no duplicate (patient_id, signal, time).
        patients: index patient_id (str, sorted, one row each, every patient of `observations` is
            there); static columns as the site has them (float64, NaN is missing, or str).
        step_min: typical minutes between two observations of each signal, by signal.
        quality: what was dropped and why.
    """

    name: str
    observations: pd.DataFrame
    patients: pd.DataFrame
    step_min: dict[str, float] = field(default_factory=dict)
    quality: Quality = field(default_factory=Quality)
