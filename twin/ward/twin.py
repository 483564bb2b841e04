"""One patient's twin at a moment: for a person to read, as JSON, and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from twin.alerts.alert import Alert
from twin.signals import SIGNALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is known of one signal.

    Attributes:
        signal, unit: of the catalogue.
        value, time: of the last reading; age_min: minutes since.
        estimate, estimate_sd: of the level now, None for doses and counts.
        rate_per_h: how it moves.
        usual, usual_sd, usual_h: the patient's own norm at this time of the day, and the hours behind it;
            None before there is one.
        unusual: distance of the estimate at the last reading from the norm, standard deviations.
    """

    signal: str
    unit: str
    value: float
    time: datetime
    age_min: float
    estimate: float | None = None
    estimate_sd: float | None = None
    rate_per_h: float | None = None
    usual: float | None = None
    usual_sd: float | None = None
    usual_h: float | None = None
    unusual: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """How the sensor of one signal does.

    Attributes:
        flat_min: minutes for which its value has been the same.
        gap_min: minutes since its last reading beyond the usual step.
        missing_percent: of the last day. noise: ratio of its noise now to its own past, 1 is as ever.
        age_days: since the sensor's session began.
        drift: mean difference to blood samples over its standard error, None without enough of them.
        late, suspect: readings that changed no estimate, since the ward began.
    """

    signal: str
    flat_min: float
    gap_min: float
    missing_percent: float
    noise: float
    age_days: float
    drift: float | None
    late: int
    suspect: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What a task forecasts for the patient.

    Attributes:
        task: its name. model: which model made it: global, site or personal, and its version.
        made: time of the reading that it starts from.
        horizon_min: minutes from there. middle: the forecast; low_80 … high_90 its calibrated bands.
        probability: of a yes-or-no task, percent aside: in [0, 1]; the others are None then.
    """

    task: str
    model: str
    made: datetime
    horizon_min: int
    middle: float | None = None
    low_80: float | None = None
    high_80: float | None = None
    low_90: float | None = None
    high_90: float | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A patient's twin. Not a medical device: it decides nothing, and no dose may be drawn from it.

    Attributes:
        patient_id: the site's pseudonym.
        now: the moment that it speaks of, UTC.
        readings, devices: by signal, only those that were ever read.
        forecasts: the last ones made; empty without a model or fresh data.
        models: version of the model by task.
        alerts: those that are active.
    """

    patient_id: str
    now: datetime
    readings: tuple[Reading, ...] = ()
    devices: tuple[Device, ...] = ()
    forecasts: tuple[Ahead, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    alerts: tuple[Alert, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times in ISO 8601: ready for JSON."""
        plain: dict[str, Any] = _plain(
            {
                "patient_id": self.patient_id,
                "now": self.now,
                "readings": [asdict(reading) for reading in self.readings],
                "devices": [asdict(device) for device in self.devices],
                "forecasts": [asdict(forecast) for forecast in self.forecasts],
                "models": dict(self.models),
                "alerts": [alert.to_dict() for alert in self.alerts],
            }
        )
        return plain

    def __str__(self) -> str:
        lines = [f"Twin of {self.patient_id} at {_clock(self.now)}"]
        lines += [_reading_line(reading) for reading in self.readings] or ["  nothing was read yet"]
        lines += [_ahead_line(forecast) for forecast in self.forecasts]
        lines += [line for device in self.devices for line in _device_lines(device)]
        lines += [f"  ALERT {alert}" for alert in self.alerts] or ["  no active alert"]
        return "\n".join([*lines, "  Not a medical device; not for treatment decisions."])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _clock(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _age(minutes: float) -> str:
    if minutes < 90:
        return f"{minutes:.0f} min ago"
    return f"{minutes / 60:.0f} h ago" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days ago"


def _reading_line(reading: Reading) -> str:
    text = f"  {reading.signal:<20} {reading.value:>8.4g} {reading.unit:<6} {_age(reading.age_min)}"
    if reading.estimate is not None and reading.estimate_sd is not None:
        text += f"; now about {reading.estimate:.4g} ± {reading.estimate_sd:.2g}"
    if reading.usual is not None and reading.usual_sd is not None:
        text += f"; usual {reading.usual:.4g} ± {reading.usual_sd:.2g}"
    return text


def _ahead_line(ahead: Ahead) -> str:
    if ahead.probability is not None:
        return f"  next {ahead.horizon_min} min: {ahead.task} {100 * ahead.probability:.0f} % ({ahead.model})"
    unit = SIGNALS[ahead.task].unit if ahead.task in SIGNALS else ""
    return (
        f"  in {ahead.horizon_min} min: {ahead.task} {ahead.middle:.0f} {unit}, 80 % within "
        f"{ahead.low_80:.0f} to {ahead.high_80:.0f}, 90 % within {ahead.low_90:.0f} to {ahead.high_90:.0f}"
        f" ({ahead.model})"
    )


def _device_lines(device: Device) -> list[str]:
    told = []
    if device.flat_min >= 60:
        told.append(f"the same value for {device.flat_min:.0f} min")
    if device.noise >= 2:
        told.append(f"noise {device.noise:.1f} times its own")
    if device.missing_percent >= 30:
        told.append(f"{device.missing_percent:.0f} % of the last day missing")
    return [f"  sensor of {device.signal}: {', '.join(told)}"] if told else []
