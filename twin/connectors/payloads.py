"""Payloads of messages into rows: JSON, FHIR in JSON, lines of CSV, plain numbers.

What a payload lacks is taken from what is told of its message (topic, key, time of the broker). A payload
that names another patient than its topic or key is refused: who may write to a topic is what the broker
guards. Whatever comes in, the outcome is rows and counts, never an exception.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from twin.connectors.feed import CATALOGUE
from twin.connectors.fhir_models import Refused, read_bundle, read_resource
from twin.connectors.fhir_rows import Reader
from twin.connectors.rows import Rows
from twin.errors import DataError
from twin.signals import SIGNALS

FORMS: Final = ("json", "csv", "number")
KEYS: Final = ("patient", "device", "system", "code", "signal", "time", "value", "unit")
SERIES: Final = ("samples", "values", "data", "period_ms")
EPOCHS: Final = {"s": 1_000_000, "ms": 1000, "us": 1}
OTHER_PATIENT: Final = "another patient than that of the topic or key"
_LONGEST: Final = 200
_LARGEST: Final = 10**30
_TOPIC: Final = "urn:twinward:topic"
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_UNFIT: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is known of a message without its payload; "" where nothing is."""

    patient: str = ""
    device: str = ""
    code: str = ""
    time: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payloads:
    """Reads payloads of one feed.

    Attributes:
        kind: of the feed: the system of codes that are none of ours.
        form: one of `FORMS`.
        system: of codes whose payload names none; "" is ours for names of `twin.signals`, else `kind`.
        units: unit by code, for payloads without one.
        keys: our name of a field (`KEYS`, `SERIES`) → the payload's.
        columns: of CSV, in order; "" is a column that is not read.
        epoch: what a time that is a number counts since 1970: "s", "ms" or "us"; "" refuses it.
        most_rows: that one message may hold.
        identifier: see `twin.connectors.fhir_rows.Reader`.
    """

    kind: str
    form: str = "json"
    system: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ("time", "value", "unit")
    epoch: str = ""
    most_rows: int = 10_000
    identifier: str = ""
    _names: dict[str, str] = field(init=False)
    _readers: tuple[Reader, Reader] = field(init=False)

    def __post_init__(self) -> None:
        wrong = {
            f"form must be one of {', '.join(FORMS)}": self.form not in FORMS,
            f"keys may rename {', '.join((*KEYS, *SERIES))}": bool(set(self.keys) - {*KEYS, *SERIES}),
            f"columns must be of {', '.join(KEYS)}, with value, each once": not _are_columns(self.columns),
            "epoch must be s, ms, us or empty": self.epoch not in ("", *EPOCHS),
        }
        faults = [fault for fault, there in wrong.items() if there]
        if faults:
            raise DataError(f"a feed of kind {self.kind}: {'; '.join(faults)}.")
        names = {self.keys.get(name, name): name for name in (*KEYS, *SERIES)}
        object.__setattr__(self, "_names", names)
        readers = Reader(identifier=self.identifier), Reader(identifier=_TOPIC)
        object.__setattr__(self, "_readers", readers)

    def take(self, payload: bytes, told: Told, rows: Rows) -> None:
        """Adds a payload's rows, or why there are none."""
        try:
            if self.form == "json":
                self._json(payload, told, rows)
            elif self.form == "csv":
                self._csv(payload, told, rows)
            else:
                self._row({"value": payload.decode("ascii")}, told, rows)
        except Refused as refused:
            rows.rejected[str(refused)] += 1
        except UnicodeDecodeError:
            rows.rejected["payload is no text"] += 1

    def _json(self, payload: bytes, told: Told, rows: Rows) -> None:
        found = _decoded(payload)
        entries = found if isinstance(found, list) else [found]
        if len(entries) > self.most_rows:
            raise Refused("message with too many rows")
        for entry in entries:
            try:
                if not isinstance(entry, dict):
                    raise Refused("payload is no object")
                if "resourceType" in entry:
                    self._fhir(entry, told, rows)
                    continue
                for one in self._spread({self._names.get(key, ""): value for key, value in entry.items()}):
                    self._row_or_why(one, told, rows)
            except Refused as refused:
                rows.rejected[str(refused)] += 1

    def _spread(self, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """An object for each row of an object."""
        if "samples" in entry:
            yield from self._samples(entry)
        elif "values" in entry:
            values = entry["values"]
            if not isinstance(values, dict) or len(values) > self.most_rows:
                raise Refused("values are no object, or too many")
            units = entry.get("unit", "")
            for code, value in values.items():
                unit = units.get(code, "") if isinstance(units, dict) else units
                yield {**entry, "code": code, "signal": "", "value": value, "unit": unit}
        elif "data" in entry:
            values = entry["data"]
            if not isinstance(values, list) or len(values) > self.most_rows:
                raise Refused("data are no list, or too many")
            times = _times(self._time(entry, ""), entry.get("period_ms"), len(values))
            for time, value in zip(times, values, strict=True):
                yield {**entry, "time": time, "value": value}
        else:
            yield entry

    def _samples(self, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        samples = entry.pop("samples")
        if not isinstance(samples, list) or len(samples) > self.most_rows:
            raise Refused("samples are no list, or too many")
        for sample in samples:
            if isinstance(sample, dict):
                yield {**entry, **{self._names.get(key, ""): value for key, value in sample.items()}}
            elif isinstance(sample, list) and len(sample) == 2:
                yield {**entry, "time": sample[0], "value": sample[1]}
            else:
                yield {**entry, "value": None}

    def _csv(self, payload: bytes, told: Told, rows: Rows) -> None:
        lines = [line for line in payload.decode("utf-8-sig").replace("\r", "\n").split("\n") if line.strip()]
        if len(lines) > self.most_rows:
            raise Refused("message with too many rows")
        for line in lines:
            try:
                fields = next(csv.reader([line]))
            except (csv.Error, StopIteration):
                rows.rejected["line is no CSV"] += 1
                continue
            if tuple(fields) == self.columns:
                continue
            if len(fields) != len(self.columns):
                rows.rejected["line with other columns"] += 1
                continue
            self._row_or_why(dict(zip(self.columns, fields, strict=True)), told, rows)

    def _row_or_why(self, entry: Mapping[str, Any], told: Told, rows: Rows) -> None:
        try:
            self._row(entry, told, rows)
        except Refused as refused:
            rows.rejected[str(refused)] += 1

    def _row(self, entry: Mapping[str, Any], told: Told, rows: Rows) -> None:
        patient = _text(entry, "patient")
        if patient and told.patient and patient != told.patient:
            raise Refused(OTHER_PATIENT)
        code = _text(entry, "code") or _text(entry, "signal") or told.code
        system = _text(entry, "system") or self.system or (CATALOGUE if code in SIGNALS else self.kind)
        unit = _text(entry, "unit") or self.units.get(code, "")
        device = _text(entry, "device") or told.device
        time, value = self._time(entry, told.time), _value(entry.get("value"))
        rows.observed.append((patient or told.patient, time, system, code, value, unit, device))

    def _time(self, entry: Mapping[str, Any], otherwise: str) -> str:
        time = entry.get("time")
        if isinstance(time, str):
            time = time.strip()
            if self.epoch and len(time) <= _LONGEST and _NUMBER.fullmatch(time):
                return self._since_1970(float(time))
            return _text({"time": time}, "time") or otherwise
        if time is None:
            return otherwise
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise Refused("time is no time")
        if not self.epoch:
            raise Refused("time is a number, and the option epoch does not say since when")
        return self._since_1970(time)

    def _since_1970(self, count: float) -> str:
        try:
            return (_START + timedelta(microseconds=round(count * EPOCHS[self.epoch]))).isoformat()
        except (OverflowError, ValueError):
            raise Refused("time is no time") from None

    def _fhir(self, entry: dict[str, Any], told: Told, rows: Rows) -> None:
        """Adds the rows of a resource or bundle whole, or none of them."""
        reader, into = self._readers[0], Rows(rejected=rows.rejected)
        if told.patient and "subject" not in entry and entry["resourceType"] != "Bundle":
            reader = self._readers[1]
            entry = {**entry, "subject": {"identifier": {"system": _TOPIC, "value": told.patient}}}
        try:
            text = msgspec.json.encode(entry)
        except (ValueError, OverflowError, RecursionError):
            raise Refused("payload is no JSON") from None
        if entry["resourceType"] == "Bundle":
            reader.take_bundle(read_bundle(text), into)
        else:
            reader.take(read_resource(text), into)
        named = {row[0] for row in (*into.observed, *into.facts, *[row for _, row in into.taken_back])}
        if told.patient and named - {told.patient}:
            raise Refused(OTHER_PATIENT)
        if len(into) > self.most_rows:
            raise Refused("message with too many rows")
        before = len(rows.observed)
        rows.observed.extend(into.observed)
        rows.facts.extend(into.facts)
        rows.taken_back.extend((before + number, row) for number, row in into.taken_back)


def _decoded(payload: bytes) -> Any:
    """What a text of JSON says, also where a gateway writes NaN or Infinity, which JSON has not."""
    try:
        return msgspec.json.decode(payload)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise Refused("payload is no JSON") from None


def _are_columns(columns: Sequence[str]) -> bool:
    named = [name for name in columns if name]
    return "value" in named and set(named) <= set(KEYS) and len(set(named)) == len(named)


def _text(entry: Mapping[str, Any], name: str) -> str:
    found = entry.get(name)
    if found is None or found == "":
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise Refused(f"{name} is no text")
    if isinstance(found, int):
        found = f"{found:d}" if abs(found) < _LARGEST else " " * _LONGEST * 2
    if len(found) > _LONGEST:
        raise Refused(f"{name} is too long")
    found = found.strip()
    if _UNFIT.search(found):
        raise Refused(f"{name} has characters that are none")
    return found


def _value(found: object) -> float:
    if found is None or found == "":
        raise Refused("no value")
    if isinstance(found, str) and len(found) <= _LONGEST and _NUMBER.fullmatch(found.strip()):
        found = float(found)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise Refused("value is no number")
    try:
        value = float(found)
    except OverflowError:
        raise Refused("value is no number") from None
    if not math.isfinite(value):
        raise Refused("value is no number")
    return value


def _times(start: str, period_ms: object, count: int) -> list[str]:
    """ISO text of each sample's time."""
    if isinstance(period_ms, bool) or not isinstance(period_ms, int | float) or not period_ms > 0:
        raise Refused("data without a period_ms")
    try:
        moment = datetime.fromisoformat(start)
        return [(moment + timedelta(milliseconds=k * period_ms)).isoformat() for k in range(count)]
    except (ValueError, OverflowError):
        raise Refused("data without a time") from None
