"""Raw rows into canonical observations: units, UTC, duplicates, limits; every row is accounted for.

Nothing here reads or writes files, and nothing raises for bad data: what cannot be used is dropped or
put aside with its count, and what must stop a run is returned as a `Fault`.

The rules, in this order; a row meets its first:
1. no patient_id, no signal: dropped.
2. signal that the catalogue does not know: put aside, counted by name.
3. no value, a value that is no finite number: dropped.
4. no time, unreadable time: dropped. Naive time without a zone: put aside, and a fault.
5. unit that the catalogue does not know for the signal: put aside, and a fault.
6. value outside physiological limits, time more than 50 years from the middle of the patient's own record
   (a meal dated 2204): dropped. The distance to the patient's own record, and not to today, because
   de-identified data is often shifted by a century.
7. the same patient, signal and time again: with the same value, dropped. With another value: doses add up
   (two foods, two parts of a bolus), of rates the later row holds, of all else the median stays.

If most values of a signal lie outside its limits, or their median lies where no site's does, the unit is
wrong, and that is a fault as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from twin.signals import SIGNALS, Kind, conversion
from twin.site import Quality
from twin.tally import NOBODY, Tally
from twin.times import Times, to_utc

COLUMNS = ("patient_id", "time", "signal", "value", "unit")
CANONICAL = ("patient_id", "signal", "time", "value", "source", "quality")

_FARTHEST = pd.Timedelta(days=50 * 365.25)
_ENOUGH = 20
_MOST_NAMES = 20
_NAME = re.compile(r"[A-Za-z%/\[\]{}°µ][A-Za-z0-9%/\[\]{}°µ _.\-^*]{0,30}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What stops a run, and how to mend it. Holds no value, identifier or key of a patient."""

    what: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """Canonical observations (see `twin.site.Site`), what became of the other rows, what is wrong."""

    observations: pd.DataFrame
    quality: Quality
    faults: tuple[Fault, ...]


def clean(raw: pd.DataFrame, *, timezone: str | None = None, source: str = "") -> Cleaned:
    """Canonical observations of one site.

    Args:
        raw: columns patient_id, time, signal, value, unit; text or typed; extra columns are not used.
        timezone: IANA zone of times that carry none.
        source: what the column `source` of the result says, for instance the file's name.

    Returns:
        Observations, and a `Quality` with rows_read = rows_kept + all dropped + all quarantined.
    """
    tally = Tally(rows=len(raw))
    faults: list[Fault] = []
    frame, patients, signals = _identify(raw, tally)
    frame = readable(frame, signals, tally, faults, timezone)
    frame = _dates(frame, tally)
    faults.extend(_usual(frame, signals))
    frame = distinct(frame, signals, tally)
    return Cleaned(
        observations=_canonical(frame, patients, signals, source),
        quality=tally.quality(len(frame)),
        faults=tuple(faults),
    )


def readable(
    frame: pd.DataFrame,
    signals: Sequence[str],
    tally: Tally,
    faults: list[Fault],
    timezone: str | None,
    convert: Callable[[str, str], tuple[float, float] | None] = conversion,
) -> pd.DataFrame:
    """The rows that rules 3 to 6 leave (without that of far dates): finite canonical values, times in UTC.

    Args:
        frame: patient and signal (numbers), time, value, unit (as their source has them); more columns stay.
        signals: names by number.
        timezone: of times that carry none.
        convert: (factor, offset) of a signal and a unit.

    Returns:
        Their columns without unit, in the same order; what is not there is in `tally` and `faults`.
    """
    frame = _values(frame, tally, faults)
    frame = _times(frame, tally, faults, timezone)
    frame = _units(frame, signals, tally, faults, convert)
    return _limits(frame, signals, tally, faults)


def step_minutes(observations: pd.DataFrame) -> dict[str, float]:
    """Typical minutes between two observations of a patient, by signal; signals seen once are left out.

    Args:
        observations: canonical, sorted.
    """
    stream = observations["patient_id"].ne(observations["patient_id"].shift()) | observations["signal"].ne(
        observations["signal"].shift()
    )
    minutes = observations["time"].diff().dt.total_seconds().div(60).mask(stream)
    median = minutes.groupby(observations["signal"], sort=True).median().dropna()
    return {str(signal): round(float(value), 2) for signal, value in median.items()}


def shown_name(name: object) -> str:
    """`name` if it looks like a signal or a unit, and not like a value, a date or an identifier."""
    text = str(name).strip()
    return text if _NAME.fullmatch(text) and sum(map(str.isdigit, text)) <= 2 else "(not shown)"


def _codes(column: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """(code of each row, sorted distinct texts); -1 where there is no text."""
    code_N, names = pd.factorize(column)
    text = pd.Index([str(name).strip() for name in names], dtype="object")
    distinct = pd.Index(sorted(set(text) - {""}), dtype="object")
    position = distinct.get_indexer(text)
    return np.where(code_N < 0, -1, position[code_N]) if len(position) else code_N, distinct


def _identify(raw: pd.DataFrame, tally: Tally) -> tuple[pd.DataFrame, pd.Index, list[str]]:
    """(rows with a patient and a known signal, both as codes; names of patients; names of signals)."""
    patient_N, patients = _codes(raw["patient_id"])
    signal_N, names = _codes(raw["signal"])
    coded = pd.DataFrame({"patient": patient_N, "signal": NOBODY})
    tally.drop("no patient_id", coded, patient_N < 0)
    tally.drop("no signal", coded, (patient_N >= 0) & (signal_N < 0))
    signals = sorted({_signal_name(name) for name in names} & set(SIGNALS))
    recode = [signals.index(_signal_name(n)) if _signal_name(n) in SIGNALS else -1 for n in names]
    known_N = np.array([*recode, -1], dtype=np.int64)[signal_N]
    unknown_N = (patient_N >= 0) & (signal_N >= 0) & (known_N < 0)
    _put_names_aside(names, signal_N[unknown_N], coded[unknown_N], tally)
    here_N = (patient_N >= 0) & (known_N >= 0)
    columns = {name: raw[name].array[here_N] for name in ("time", "value", "unit")}
    frame = pd.DataFrame({"patient": patient_N[here_N], "signal": known_N[here_N], **columns})
    return frame, patients, signals


def _put_names_aside(names: pd.Index, unknown: np.ndarray, coded: pd.DataFrame, tally: Tally) -> None:
    if len(np.unique(unknown)) > _MOST_NAMES:  # perhaps identifiers in the wrong column: not shown
        tally.put_aside("unknown signals of many names", coded, np.ones(len(coded), dtype=bool))
        return
    for name in np.unique(unknown):
        tally.put_aside(f"unknown signal: {shown_name(names[name])}", coded, unknown == name)


def _signal_name(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip()).lower()


def _keep(frame: pd.DataFrame, here_N: np.ndarray) -> pd.DataFrame:
    return frame if here_N.all() else frame.loc[here_N].reset_index(drop=True)


def _values(frame: pd.DataFrame, tally: Tally, faults: list[Fault]) -> pd.DataFrame:
    text = frame["value"]
    empty_N = text.isna().to_numpy()
    if pd.api.types.is_string_dtype(text.dtype):
        empty_N = empty_N | text.str.strip().eq("").fillna(False).to_numpy(dtype=bool)
    number = pd.to_numeric(text, errors="coerce").astype("float64")
    bad_N = ~np.isfinite(number.to_numpy()) & ~empty_N
    tally.drop("no value", frame, empty_N)
    tally.drop("unreadable value", frame, bad_N)
    if bad_N.sum() > max(_ENOUGH, 0.5 * len(frame)):
        faults.append(
            Fault(
                what=f"{bad_N.sum():,} of {len(frame):,} values are no numbers",
                fix="write the column value as plain numbers with a decimal point: 5.4, not 5,4",
            )
        )
    return _keep(frame.assign(value=number), ~(empty_N | bad_N))


def _times(frame: pd.DataFrame, tally: Tally, faults: list[Fault], timezone: str | None) -> pd.DataFrame:
    stream_N = frame["patient"].to_numpy() * len(SIGNALS) + frame["signal"].to_numpy()
    if frame["time"].dtype.kind in "iufb":
        faults.append(
            Fault(
                what="the column time holds numbers",
                fix="write times as text in ISO 8601 or as timestamps, for instance 2024-03-01T08:05:00Z",
            )
        )
        tally.put_aside("time is a number", frame, np.ones(len(frame), dtype=bool))
        return frame.iloc[:0].assign(time=pd.Series(dtype="datetime64[us, UTC]"))
    times = to_utc(frame["time"], stream_N, timezone)
    tally.drop("no time", frame, times.missing_N)
    tally.drop("unreadable time", frame, times.unreadable_N)
    tally.drop("hour that a clock change skips or repeats, true time unknown", frame, times.unclear_N)
    tally.fix("hour that the clock skips for daylight saving, moved on by it", frame, times.skipped_N)
    once = "hour that comes twice at the end of daylight saving, taken for summer time"
    tally.fix(once, frame, times.once_N)
    if timezone is None:
        tally.put_aside("time without zone", frame, times.naive_N)
    else:
        tally.fix(f"time without zone, read as {timezone}", frame, times.naive_N)
    faults.extend(_time_faults(times, timezone))
    return _keep(frame.assign(time=times.utc.array), times.utc.notna().to_numpy())


def _time_faults(times: Times, timezone: str | None) -> Iterable[Fault]:
    rows = len(times.utc)
    if timezone is None and times.naive_N.any():
        zoned = rows - int(times.naive_N.sum() + times.missing_N.sum() + times.unreadable_N.sum())
        mixed = f" ({zoned:,} others do)" if zoned else ""
        yield Fault(
            what=f"{times.naive_N.sum():,} of {rows:,} times carry no time zone{mixed}",
            fix="end each time with Z or an offset (2024-03-01T08:05:00+01:00), or name the zone of those "
            "that carry none, for instance data.timezone=Europe/London (data check: --timezone ZONE)",
        )
    if times.unreadable_N.sum() > max(_ENOUGH, 0.5 * rows):
        yield Fault(
            what=f"{times.unreadable_N.sum():,} of {rows:,} times cannot be read",
            fix="write times in ISO 8601, year first, with hours and minutes: 2024-03-01T08:05:00Z",
        )


def _units(
    frame: pd.DataFrame,
    signals: Sequence[str],
    tally: Tally,
    faults: list[Fault],
    convert: Callable[[str, str], tuple[float, float] | None],
) -> pd.DataFrame:
    unit_N, units = _codes(frame["unit"])
    signal_N = frame["signal"].to_numpy()
    factor_SU = np.full((len(signals), len(units) + 1), np.nan)
    offset_SU = np.zeros_like(factor_SU)
    for pair in np.unique(signal_N * (len(units) + 1) + unit_N % (len(units) + 1)):
        row, column = divmod(int(pair), len(units) + 1)
        found = convert(signals[row], units[column] if column < len(units) else "")
        if found:
            factor_SU[row, column], offset_SU[row, column] = found
    factor_N = factor_SU[signal_N, unit_N]
    known_N = np.isfinite(factor_N)
    _unit_faults(frame[~known_N], unit_N[~known_N], signals, units, tally, faults)
    value_N = frame["value"].to_numpy() * factor_N + offset_SU[signal_N, unit_N]
    return _keep(frame.drop(columns="unit").assign(value=value_N), known_N)


def _unit_faults(
    unknown: pd.DataFrame,
    unit_N: np.ndarray,
    signals: Sequence[str],
    units: pd.Index,
    tally: Tally,
    faults: list[Fault],
) -> None:
    signal_N = unknown["signal"].to_numpy()
    for row, column in np.unique(np.stack([signal_N, unit_N], axis=1), axis=0):
        signal, here_N = signals[row], (signal_N == row) & (unit_N == column)
        tally.put_aside(f"unknown unit: {signal}", unknown, here_N)
        came = f"the unit {shown_name(units[column])!r}" if column >= 0 else "no unit"
        faults.append(
            Fault(
                what=f"{here_N.sum():,} rows of {signal} have {came}",
                fix=f"units accepted for {signal}: {', '.join(SIGNALS[signal].shown)}",
            )
        )


def _limits(frame: pd.DataFrame, signals: Sequence[str], tally: Tally, faults: list[Fault]) -> pd.DataFrame:
    low = np.array([SIGNALS[name].low for name in signals])
    high = np.array([SIGNALS[name].high for name in signals])
    signal_N, value_N = frame["signal"].to_numpy(), frame["value"].to_numpy()
    inside_N = (
        (value_N >= low[signal_N]) & (value_N <= high[signal_N]) if len(frame) else np.ones(0, dtype=bool)
    )
    for code, name in enumerate(signals):
        entry, mine_N = SIGNALS[name], signal_N == code
        outside = int((mine_N & ~inside_N).sum())
        tally.drop(f"outside limits: {name}", frame, mine_N & ~inside_N)
        counted = int((mine_N & (inside_N | (value_N != 0))).sum())
        if counted >= _ENOUGH and (mine_N & ~inside_N & (value_N != 0)).sum() > 0.5 * counted:
            faults.append(
                Fault(
                    what=f"most values of {name} ({outside:,} of {mine_N.sum():,}) lie outside "
                    f"{entry.low:g} to {entry.high:g} {entry.unit}",
                    fix=f"check the unit, is another meant? Accepted for {name}: {', '.join(entry.shown)}",
                )
            )
    return _keep(frame, inside_N)


def _dates(frame: pd.DataFrame, tally: Tally) -> pd.DataFrame:
    if frame.empty:
        return frame
    since = frame["time"].array.as_unit("us").asi8
    middle = pd.Series(since).groupby(frame["patient"]).transform("median").to_numpy()
    near_N = np.abs(since - middle) <= _FARTHEST.value // 1000
    tally.drop("date more than 50 years from the patient's other rows", frame, ~near_N)
    return _keep(frame, near_N)


def _usual(frame: pd.DataFrame, signals: list[str]) -> Iterable[Fault]:
    for code, values in frame["value"].groupby(frame["signal"]):
        entry = SIGNALS[signals[int(str(code))]]
        if entry.usual and len(values) >= _ENOUGH and not entry.usual[0] <= values.median() <= entry.usual[1]:
            yield Fault(
                what=f"the median of {entry.name} lies outside {entry.usual[0]:g} to {entry.usual[1]:g} "
                f"{entry.unit}, where that of every hospital lies",
                fix=f"check the unit, is another meant? Accepted for {entry.name}: {', '.join(entry.shown)}",
            )


def distinct(
    frame: pd.DataFrame,
    signals: Sequence[str],
    tally: Tally,
    key: Sequence[str] = ("patient", "signal", "time"),
) -> pd.DataFrame:
    """One row for each `key`, sorted by it: rule 7. The first two of the key are patient and signal."""
    keys = list(key)
    frame = frame.sort_values(keys, kind="stable", ignore_index=True)
    again_N = frame.duplicated(keys, keep=False).to_numpy()
    if not again_N.any():
        return frame
    some = frame[again_N]
    same_N = some.duplicated([*keys, "value"], keep="last").to_numpy()
    tally.drop("duplicate", some, same_N)
    different = some[~same_N]
    earlier_N = different.duplicated(keys, keep="last").to_numpy()
    tally.drop("duplicate time, other value", different, earlier_N)
    merged = merge(different, keys, signals)
    return pd.concat([frame[~again_N], merged]).sort_values(keys, kind="stable", ignore_index=True)


def merge(different: pd.DataFrame, key: list[str], signals: Sequence[str]) -> pd.DataFrame:
    """The columns of `key` and value: doses of one key add up, the last rate holds, of all else the median.

    Args:
        different: the columns of `key`, signal (number) and value; no row twice.
    """
    kind_N = np.array([SIGNALS[name].kind for name in signals], dtype=object)[different["signal"].to_numpy()]
    rules: dict[Kind, str] = {"dose": "sum", "rate": "last", "level": "median", "count": "median"}
    parts: list[pd.DataFrame] = [
        different[kind_N == kind].groupby(key, sort=False, as_index=False)["value"].agg(rule)
        for kind, rule in rules.items()
        if (kind_N == kind).any()
    ]
    return pd.concat(parts, ignore_index=True)


def _canonical(frame: pd.DataFrame, patients: pd.Index, signals: list[str], source: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient_id": pd.Series(patients.take(frame["patient"].to_numpy()), dtype="str"),
            "signal": pd.Series(
                pd.Index(signals, dtype="object").take(frame["signal"].to_numpy()), dtype="str"
            ),
            "time": frame["time"],
            "value": frame["value"].astype("float64"),
            "source": pd.Series(source, index=frame.index, dtype="str"),
            "quality": pd.Series("", index=frame.index, dtype="str"),
        }
    )
