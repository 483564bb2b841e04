"""FHIR R4 resources into rows, one after the other, whatever they came in.

Of a resource, what is coded or a number is taken; names, addresses, notes and narrative never are.

| resource | becomes |
|---|---|
| Observation | a row for its value and for that of each component; of SampledData a row for each sample |
| Patient | facts birth_date and sex |
| Condition | the fact condition:<system>:<code>, its value the clinical status |
| Encounter | the facts encounter_class, encounter_start, encounter_end of the one that started last |
| MedicationAdministration, MedicationStatement | rows of doses and rates, see `twin.connectors.fhir_doses` |

A resource that was entered in error or cancelled takes its rows back; one that was corrected or amended
takes them back and gives them anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from twin.connectors.fhir_codes import code_of, identifier_of, is_signal, target_of, unit_of
from twin.connectors.fhir_doses import take_doses
from twin.connectors.fhir_models import (
    Bundle,
    Component,
    Concept,
    Condition,
    Encounter,
    Medication,
    Observation,
    Patient,
    Reference,
    Refused,
    Resource,
    Sampled,
    read_entry,
    read_resource,
)
from twin.connectors.rows import Rows

GIVEN: Final = frozenset({"final", "preliminary", "amended", "corrected", "unknown"})
ANEW: Final = frozenset({"amended", "corrected"})
TAKEN_BACK: Final = frozenset({"entered-in-error", "cancelled"})
WAVEFORM_BELOW_MS: Final = 1000.0
MOST_SAMPLES: Final = 1_000_000
_ABSENT: Final = frozenset(
    (
        *("unknown", "asked-unknown", "temp-unknown", "not-asked", "asked-declined", "masked", "as-text"),
        *("not-applicable", "unsupported", "error", "not-a-number", "negative-infinity"),
        *("positive-infinity", "not-performed", "not-permitted"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads resources; remembers what one says of another.

    Attributes:
        identifier: system of the identifier that names patients here, so that feeds of other kinds mean the
            same people; "" is the id of the resource.
        waveforms: whether series faster than one sample a second are taken although the catalogue does not
            know their code; else they are refused with the count of their samples.
        people: identifier by id of the Patient resource.
        medications: codes by id of the Medication resource.
        encounters: start of the latest encounter by patient.
        codes: what `code_of` said, by the codings.
    """

    identifier: str = ""
    waveforms: bool = False
    people: dict[str, str] = field(default_factory=dict)
    medications: dict[str, Concept] = field(default_factory=dict)
    encounters: dict[str, float] = field(default_factory=dict)
    codes: dict[tuple[tuple[str, str], ...], tuple[str, str] | None] = field(default_factory=dict)

    def take_bundle(self, bundle: Bundle, rows: Rows) -> None:
        """Adds the rows of every resource of a bundle, its patients and medications first."""
        resources: list[tuple[str, Resource]] = []
        for entry in bundle.entry:
            try:
                whole = read_entry(entry)
                resources.append((whole.fullUrl, read_resource(whole.resource)))
            except Refused as refused:
                rows.rejected[str(refused)] += 1
        names = [(url, resource) for url, resource in resources if isinstance(resource, Patient | Medication)]
        rest = [resource for _, resource in resources if not isinstance(resource, Patient | Medication)]
        for url, named in names:
            _, known_as = target_of(Reference(reference=url))
            self.take(named, rows, known_as=known_as)
        for resource in rest:
            self.take(resource, rows)

    def strangers(self, bundle: Bundle) -> list[str]:
        """Ids of the patients that a bundle speaks of, whose identifier is not known and not in it."""
        if not self.identifier:
            return []
        known, named = set(self.people), set[str]()
        for entry in bundle.entry:
            try:
                resource = read_resource(read_entry(entry).resource)
            except Refused:
                continue
            if isinstance(resource, Patient):
                known.add(resource.id)
            elif not isinstance(resource, Medication):
                kind, known_as = target_of(resource.subject)
                named |= {known_as} if kind == "Patient" else set()
        return sorted(named - known)

    def take_text(self, text: bytes, rows: Rows) -> None:
        """Adds the rows of the resource of a text of JSON, or why there are none."""
        try:
            self.take(read_resource(text), rows)
        except Refused as refused:
            rows.rejected[str(refused)] += 1

    def take(self, resource: Resource, rows: Rows, *, known_as: str = "") -> None:
        """Adds the rows of a resource; `known_as` is a second name of it in its bundle."""
        if isinstance(resource, Observation):
            self._observation(resource, rows)
        elif isinstance(resource, Patient):
            self._patient(resource, known_as, rows)
        elif isinstance(resource, Medication):
            self._medication(resource, known_as, rows)
        elif isinstance(resource, Condition):
            self._condition(resource, rows)
        elif isinstance(resource, Encounter):
            self._encounter(resource, rows)
        else:
            patient = self._who(resource.subject, rows)
            if patient:
                take_doses(resource, patient, self.medications, rows)

    def _who(self, subject: Reference | None, rows: Rows) -> str:
        """The patient that a subject is; "" and a count if it is none."""
        kind, known_as = target_of(subject)
        if kind not in ("", "Patient") or (subject is not None and subject.type not in ("", "Patient")):
            rows.rejected["subject is no patient"] += 1
            return ""
        if self.identifier:
            direct = identifier_of(
                [subject.identifier] if subject and subject.identifier else [], self.identifier
            )
            patient = direct or self.people.get(known_as, "")
        else:
            patient = self.people.get(known_as, known_as) if not known_as.startswith("#") else ""
        if not patient:
            rows.rejected["no patient"] += 1
        return patient

    def _patient(self, resource: Patient, known_as: str, rows: Rows) -> None:
        own = resource.id or known_as
        patient = identifier_of(resource.identifier, self.identifier) if self.identifier else own
        if not patient:
            rows.rejected["no patient"] += 1
            return
        if self.identifier or known_as not in ("", patient):
            self.people.update({name: patient for name in (resource.id, known_as) if name})
        for name, value in (("birth_date", resource.birthDate), ("sex", resource.gender)):
            if value:
                rows.facts.append((patient, name, value))

    def _medication(self, resource: Medication, known_as: str, rows: Rows) -> None:
        if resource.code is None:
            rows.rejected["medication without a code"] += 1
            return
        self.medications.update({name: resource.code for name in (resource.id, known_as) if name})

    def _condition(self, resource: Condition, rows: Rows) -> None:
        patient = self._who(resource.subject, rows)
        if not patient:
            return
        code = self._code(resource.code)
        if code is None:
            rows.rejected["condition without a code"] += 1
            return
        verified = _first_code(resource.verificationStatus)
        status = (
            verified if verified in ("entered-in-error", "refuted") else _first_code(resource.clinicalStatus)
        )
        rows.facts.append((patient, f"condition:{code[0]}:{code[1]}", status or "present"))

    def _encounter(self, resource: Encounter, rows: Rows) -> None:
        patient = self._who(resource.subject, rows)
        if not patient:
            return
        start = resource.period.start if resource.period else ""
        if resource.status in ("cancelled", "entered-in-error", "planned") or not start:
            rows.rejected["encounter that did not begin"] += 1
            return
        moment = _seconds(start)
        if moment < self.encounters.get(patient, moment):
            return
        self.encounters[patient] = moment
        end = resource.period.end if resource.period else ""
        values = {"class": resource.kind.code, "start": start, "end": end}
        rows.facts.extend((patient, f"encounter_{name}", value) for name, value in values.items())

    def _observation(self, resource: Observation, rows: Rows) -> None:
        status = resource.status
        if status not in GIVEN and status not in TAKEN_BACK:
            rows.rejected["observation without a result yet"] += 1
            return
        patient = self._who(resource.subject, rows)
        if not patient:
            return
        into = rows if status == "final" else Rows(rejected=rows.rejected)
        _, device = target_of(resource.device)
        parts: list[Observation | Component] = [resource, *resource.component]
        for part in parts:
            self._part(part, resource, patient, device, into)
        if into is rows:
            return
        if status in TAKEN_BACK or status in ANEW:
            for row in into.observed:
                rows.withdraw(row)
        if status in GIVEN:
            rows.observed.extend(into.observed)

    def _part(
        self, part: Observation | Component, whole: Observation, patient: str, device: str, rows: Rows
    ) -> None:
        """Adds the row or rows of the value of an observation or of one of its components."""
        quantity = part.valueQuantity
        if quantity is not None and quantity.value is not None:
            value, unit = quantity.value, unit_of(quantity)
        elif part.valueInteger is not None:
            value, unit = float(part.valueInteger), ""
        elif part.valueSampledData is None:
            if part is not whole or not whole.component:
                rows.rejected[_why_absent(part)] += 1
            return
        code = self._code(part.code)
        if code is None:
            rows.rejected["observation without a code"] += 1
        elif part.valueSampledData is not None and (quantity is None or quantity.value is None):
            self._series(part.valueSampledData, whole, (patient, *code), device, rows)
        elif quantity is not None and quantity.comparator:
            rows.rejected["a bound, no value"] += 1
        else:
            rows.observed.append((patient, _time(whole), *code, value, unit, device))

    def _series(
        self, sampled: Sampled, whole: Observation, head: tuple[str, str, str], device: str, rows: Rows
    ) -> None:
        patient, system, code = head
        samples = sampled.data.split(None, MOST_SAMPLES)
        if sampled.dimensions != 1 or sampled.period <= 0 or len(samples) > MOST_SAMPLES:
            rows.rejected["series of an unknown form"] += 1
            return
        if sampled.period < WAVEFORM_BELOW_MS and not (self.waveforms or is_signal(system, code)):
            rows.rejected["sample of a waveform"] += len(samples)
            return
        start = whole.effectivePeriod.start if whole.effectivePeriod else _time(whole)
        times = _times(start, sampled.period, len(samples))
        if times is None:
            rows.rejected["series without a time"] += 1
            return
        unit, origin = unit_of(sampled.origin), sampled.origin.value or 0.0
        for time, sample in zip(times, samples, strict=True):
            try:
                value = origin + float(sample) * sampled.factor
            except ValueError:
                rows.rejected[_MARKS.get(sample, "unreadable sample")] += 1
                continue
            rows.observed.append((patient, time, system, code, value, unit, device))

    def _code(self, concept: Concept | None) -> tuple[str, str] | None:
        if concept is None:
            return None
        key = tuple([(coding.system, coding.code) for coding in concept.coding])
        try:
            return self.codes[key]
        except KeyError:
            if len(self.codes) >= 20_000:
                self.codes.clear()
            return self.codes.setdefault(key, code_of(concept))


_MARKS: Final = {
    "E": "sample in error",
    "L": "sample below the limit of detection",
    "U": "sample above the limit of detection",
}


def _time(whole: Observation) -> str:
    """When the value held or, of a period, when it was known."""
    if whole.effectiveDateTime:
        return whole.effectiveDateTime
    if whole.effectivePeriod is not None:
        return whole.effectivePeriod.end or whole.effectivePeriod.start
    return whole.effectiveInstant


def _times(start: str, period_ms: float, count: int) -> list[str] | None:
    """ISO text of each sample's time; None where the start is none."""
    try:
        moment = datetime.fromisoformat(start)
        if "T" not in start:
            return None
        return [(moment + timedelta(milliseconds=k * period_ms)).isoformat() for k in range(count)]
    except (ValueError, OverflowError):
        return None


def _seconds(time: str) -> float:
    """Since 1970, for an order of times; a naive one is read as UTC, an unreadable one comes first."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _first_code(concept: Concept | None) -> str:
    return concept.coding[0].code if concept is not None and concept.coding else ""


def _why_absent(part: Observation | Component) -> str:
    reason = _first_code(part.dataAbsentReason)
    if part.dataAbsentReason is not None:
        return f"no value: {reason if reason in _ABSENT else 'unknown'}"
    return "value is no number"
