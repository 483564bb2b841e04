"""A ward: the living twins of all patients of a site, each updated by every observation.

    ward = Ward(forecasters=(forecaster,))
    ward.update(observations)          # canonical rows, as they come
    ward.forecasts(now)                # one batch for everybody
    notices = ward.check(now)          # what alerts began, ended, escalated
    print(ward.twin(patient_id, now))

One thread at a time may use it. It holds patients' data in memory and writes nothing; `snapshot` is what
the site's process keeps of alerts and calibration, `from_site` rebuilds the rest from the store. Not a
medical device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from twin.alerts.alert import Alert, Notice
from twin.alerts.engine import Engine
from twin.alerts.rules import DEFAULT_RULES, Rule, checked
from twin.errors import DataError
from twin.signals import SIGNALS
from twin.site import Site
from twin.tasks.windows import microseconds
from twin.ward.described import described
from twin.ward.dynamics import Public
from twin.ward.forecaster import Forecaster
from twin.ward.measures import measure
from twin.ward.pairs import BLOOD, SENSOR, Pairs
from twin.ward.paths import COLUMNS, Paths
from twin.ward.recent import Recent
from twin.ward.roster import Roster
from twin.ward.state import State
from twin.ward.twin import Twin

# Forecasts look so far back, unless a task says more (`history_min`).
# Marks of a reading that nobody doubts; virtual people have "ok".
_PLAIN, _FILLED = ("", "ok"), "filled"
_LEVEL_HOURS, _DOSE_HOURS = 3.5, 26.0


class Ward:
    """All twins of a site.

    Args:
        rules: of alerts.
        forecasters: one for each task; a later one of the same task takes its place (`use`).
        signals: of the catalogue; rows of others are left out.
    """

    def __init__(
        self,
        *,
        rules: Iterable[Rule] = DEFAULT_RULES,
        forecasters: Iterable[Forecaster] = (),
        signals: Sequence[str] = tuple(SIGNALS),
    ) -> None:
        self.signals = tuple(signals)
        self._number = {name: number for number, name in enumerate(self.signals)}
        self._roster = Roster()
        self._state = State(Public.of(self.signals))
        self._pairs = Pairs()
        self._engine = Engine(checked(rules))
        self._paths: dict[str, Paths] = {}
        self._devices: dict[str, int] = {"": 0}
        self._recent = Recent(self.signals, self._keep_hours(()))
        for forecaster in forecasters:
            self.use(forecaster)

    def __len__(self) -> int:
        return len(self._roster)

    @staticmethod
    def from_site(
        site: Site, *, rules: Iterable[Rule] = DEFAULT_RULES, forecasters: Iterable[Forecaster] = ()
    ) -> Ward:
        """The ward as if every observation of a site had come one after the other.

        Two weeks are enough: a norm remembers one.
        """
        ward = Ward(rules=rules, forecasters=forecasters)
        ward.update(site.observations)
        return ward

    def use(self, forecaster: Forecaster) -> None:
        """Forecasts a task with this model from now on; the calibration of the one before goes on."""
        name = forecaster.task.name
        paths = Paths(forecaster)
        if name in self._paths and self._paths[name].horizons_min == paths.horizons_min:
            paths.bands = self._paths[name].bands
        self._paths[name] = paths
        self._recent.keep(self._keep_hours([p.forecaster for p in self._paths.values()]))

    def patients(self) -> list[str]:
        """Everybody who was ever read, sorted."""
        return self._roster.patients()

    def update(self, observations: pd.DataFrame) -> int:
        """Takes canonical rows (`twin.site.Site.observations`), in any number; how many changed a twin.

        Rows of a patient and signal must come in the order of time, over all calls; what comes late is
        counted and moves no estimate, but is seen by forecasts. Rows whose quality is marked are counted and
        read by nobody. The result does not depend on how rows are cut into calls.
        """
        signal_N = _numbers(observations["signal"], self._number)
        if (signal_N < 0).any():
            observations = observations[signal_N >= 0]
            signal_N = signal_N[signal_N >= 0]
        if not len(observations):
            return 0
        row_N = self._roster.admit(observations["patient_id"])
        self._reserve()
        time_us_N = microseconds(observations["time"])
        value_N = observations["value"].to_numpy(np.float64)
        # What was filled in repeats what was read before: it says nothing new of a patient.
        quality_N = observations["quality"]
        suspect_N = ~quality_N.isin(_PLAIN).to_numpy(bool)
        counted_N = suspect_N & quality_N.ne(_FILLED).to_numpy(bool)
        device_N = self._device_numbers(observations["source"])
        stream_N = row_N * len(self.signals) + signal_N
        good_N = ~suspect_N
        self._compare(row_N[good_N], signal_N[good_N], time_us_N[good_N], value_N[good_N])
        kept_N = good_N | counted_N
        self._state.take(
            stream_N[kept_N], time_us_N[kept_N], value_N[kept_N], device_N[kept_N], suspect_N[kept_N]
        )
        self._recent.add(stream_N[good_N], time_us_N[good_N], value_N[good_N])
        return int(good_N.sum())

    def forecasts(self, now: pd.Timestamp, tasks: Sequence[str] | None = None) -> pd.DataFrame:
        """Forecasts of every patient with fresh data, all in one batch for each task.

        Returns:
            Columns patient_id, task, model, made, horizon_min, at, middle, probability, low_80, high_80,
            low_90, high_90; empty without a model or fresh data.
        """
        now_us = _microseconds(now)
        names = self._roster.names()
        row_of = {str(name): row for row, name in enumerate(names) if name}
        parts = []
        site = self._recent.site(names, now_us) if self._paths else None
        for name, paths in self._paths.items():
            if site is not None and (tasks is None or name in tasks):
                paths.make(site, names, row_of, now_us)
                parts.append(paths.table(names))
        parts = [part for part in parts if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)

    def check(self, now: pd.Timestamp, patients: Sequence[str] | None = None) -> list[Notice]:
        """Measures every rule for all patients, or for some; what happened to alerts."""
        now_us = _microseconds(now)
        names = self._roster.names()
        if patients is None:
            row_N = np.flatnonzero(names != "")
        else:
            row_N = np.unique([self._roster.row(patient) for patient in patients])
        notices: list[Notice] = []
        for index, rule in enumerate(self._engine.rules):
            value_N = measure(rule, self._state, self._pairs, self._paths, row_N, now_us)
            notices += self._engine.step(index, row_N, value_N, now_us, names)
        return notices

    def twin(self, patient_id: str, now: pd.Timestamp) -> Twin:
        """One patient's twin.

        Raises:
            DataError: the ward does not have this patient.
        """
        row, now_us = self._roster.row(patient_id), _microseconds(now)
        alerts = self._engine.alerts(row, patient_id, now_us)
        return described(self._state, self._pairs, self._paths, alerts, patient_id, row, now_us)

    def alerts(self, now: pd.Timestamp) -> list[Alert]:
        """Every active alert, patient after patient."""
        names, now_us = self._roster.names(), _microseconds(now)
        rows = self._engine.active_rows()
        return [alert for row in rows for alert in self._engine.alerts(int(row), str(names[row]), now_us)]

    def counts(self) -> dict[str, int]:
        """Figures without patients, for metrics: patients, recent rows, active alerts by priority."""
        active = {f"alerts_{name}": count for name, count in self._engine.counts().items()}
        return {"patients": len(self._roster), "recent_rows": len(self._recent), **active}

    def acknowledge(self, patient_id: str, alert_id: str, *, who: str, why: str, now: pd.Timestamp) -> Notice:
        """Somebody saw it; raises DataError if there is no such active alert."""
        row = self._roster.row(patient_id)
        return self._engine.acknowledge(row, alert_id, who, why, _microseconds(now), self._roster.names())

    def snooze(
        self, patient_id: str, alert_id: str, *, minutes: float, who: str, now: pd.Timestamp
    ) -> Notice:
        """Nobody is told for some minutes; raises DataError if the alert or its rule does not allow it."""
        row = self._roster.row(patient_id)
        return self._engine.snooze(row, alert_id, minutes, who, _microseconds(now), self._roster.names())

    def forget(self, patient_id: str) -> None:
        """Erases everything of a patient: state, recent rows, forecasts, calibration, own model, alerts.

        Raises:
            DataError: the ward does not have this patient.
        """
        row = self._roster.forget(patient_id)
        self._state.clear(row)
        self._recent.forget(row)
        self._pairs.clear(row)
        self._engine.clear(row)
        for paths in self._paths.values():
            paths.forget(row, patient_id)

    def snapshot(self) -> bytes:
        """Alerts and the calibration of bands, as JSON; it holds pseudonyms and belongs into the store."""
        names = self._roster.names()
        bands = {
            task: {
                str(names[row]): [paths.bands.count[row].tolist(), paths.bands.log_factor[row].tolist()]
                for row in np.flatnonzero(paths.bands.count.any(1))
                if row < len(names) and names[row]
            }
            for task, paths in self._paths.items()
        }
        return json.dumps({"alerts": json.loads(self._engine.snapshot(names)), "bands": bands}).encode()

    def restore(self, snapshot: bytes) -> None:
        """Takes over what `snapshot` gave, for the patients and rules that the ward has now.

        Raises:
            DataError: it is none.
        """
        names = self._roster.names()
        rows = {str(name): row for row, name in enumerate(names) if name}
        self._reserve()
        try:
            told = json.loads(snapshot)
            self._engine.restore(json.dumps(told["alerts"]), rows)
            for task, patients in told["bands"].items():
                self._restore_bands(task, patients, rows)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"The ward's snapshot cannot be read ({type(error).__name__}).") from None

    def _restore_bands(self, task: str, patients: dict[str, list[list[float]]], rows: dict[str, int]) -> None:
        paths = self._paths.get(task)
        if paths is None:
            return
        paths.bands.reserve(max(rows.values(), default=-1) + 1)
        for patient, (count, log_factor) in patients.items():
            if patient in rows and len(count) == len(paths.horizons_min):
                paths.bands.count[rows[patient]] = count
                paths.bands.log_factor[rows[patient]] = log_factor

    def _reserve(self) -> None:
        self._state.reserve(self._roster.rows)
        self._pairs.reserve(self._state.rows)
        self._engine.reserve(self._state.rows)

    def _compare(
        self, row_N: np.ndarray, signal_N: np.ndarray, time_us_N: np.ndarray, value_N: np.ndarray
    ) -> None:
        """Fingersticks against the sensor, before the state takes the batch over."""
        blood, sensor = self._number.get(BLOOD, -1), self._number.get(SENSOR, -1)
        blood_N = signal_N == blood
        if not blood_N.any() or sensor < 0:
            return
        rows = np.unique(row_N[blood_N])
        stream = rows * len(self.signals) + sensor
        held = self._state["count"][stream] > 0
        here = signal_N == sensor
        readings = (
            np.concatenate([rows[held], row_N[here]]),
            np.concatenate([self._state["time_us"][stream[held]], time_us_N[here]]),
            np.concatenate([self._state["value"][stream[held]], value_N[here]]),
        )
        order = np.argsort(time_us_N[blood_N], kind="stable")
        self._pairs.take(row_N[blood_N][order], time_us_N[blood_N][order], value_N[blood_N][order], readings)

    def _device_numbers(self, source_N: pd.Series) -> np.ndarray:
        codes, names = pd.factorize(source_N)
        numbers = [self._devices.setdefault(str(name), len(self._devices)) for name in names]
        return np.array(numbers, np.int64)[codes]

    def _keep_hours(self, forecasters: Iterable[Forecaster]) -> np.ndarray:
        """How long each signal is kept for forecasts: as far back as the tasks look."""
        backs = [float(getattr(f.task, "history_min", 0.0)) / 60.0 + 1.5 for f in forecasters]
        level = max([_LEVEL_HOURS, *backs])
        kinds = [SIGNALS[name].kind for name in self.signals]
        return np.array([level if kind == "level" else max(_DOSE_HOURS, level) for kind in kinds])


def _numbers(signal_N: pd.Series, number: dict[str, int]) -> np.ndarray:
    if len(signal_N) == 1:
        return np.array([number.get(str(signal_N.iat[0]), -1)], dtype=np.int64)
    code_N, names = pd.factorize(signal_N)
    known = np.array([number.get(str(name), -1) for name in names], dtype=np.int64)
    return known[code_N] if len(known) else np.zeros(0, np.int64)


def _microseconds(now: pd.Timestamp) -> int:
    moment = pd.Timestamp(now)
    if moment.tzinfo is None:
        raise DataError("The ward's clock is UTC: `now` needs a zone, for instance pd.Timestamp.now('UTC').")
    return int(moment.tz_convert("UTC").as_unit("us").asm8.astype(np.int64))
