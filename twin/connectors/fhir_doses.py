"""What was given to a patient: MedicationAdministration and MedicationStatement as doses and rates.

A dose is a row at its time. A rate holds from the start of its period and is 0 from the end on. A statement
that describes a regimen (so often a day, over weeks) is no dose at any moment, and is refused with its count.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec

from twin.codes import signal_of
from twin.connectors.feed import CATALOGUE
from twin.connectors.fhir_codes import code_of, target_of, unit_of
from twin.connectors.fhir_models import (
    AdministeredDosage,
    Concept,
    DoseAndRate,
    MedicationAdministration,
    MedicationStatement,
    Period,
    Quantity,
    Ratio,
)
from twin.connectors.rows import Observed, Rows

GIVEN: Final = frozenset({"completed", "in-progress", "stopped", "on-hold", "active"})
TAKEN_BACK: Final = frozenset({"entered-in-error"})
_INSULIN: Final = frozenset({"insulin_bolus", "insulin_basal", "insulin_long_acting"})
_LONGEST_DOSE: Final = timedelta(days=1)

Medications = Mapping[str, Concept]


def take_doses(
    resource: MedicationAdministration | MedicationStatement,
    patient: str,
    medications: Medications,
    rows: Rows,
) -> None:
    """Adds the doses and rates of one resource to `rows`.

    Args:
        patient: whose they are.
        medications: the codes of the Medication resources that are known, by id.
    """
    if resource.status not in GIVEN | TAKEN_BACK:
        rows.rejected["medication not given"] += 1
        return
    code = code_of(_medication(resource, medications))
    if code is None:
        rows.rejected["medication without a code"] += 1
        return
    start, end = _span(resource)
    found = [
        row
        for dosage in _dosages(resource, rows)
        for row in _dosage_rows(dosage, (patient, *code), start, end, rows)
    ]
    for row in found:
        if resource.status in TAKEN_BACK:
            rows.withdraw(row)
        else:
            rows.observed.append(row)


def _medication(
    resource: MedicationAdministration | MedicationStatement, medications: Medications
) -> Concept | None:
    if resource.medicationCodeableConcept is not None:
        return resource.medicationCodeableConcept
    _, known_as = target_of(resource.medicationReference)
    if not known_as.startswith("#"):
        return medications.get(known_as)
    for contained in resource.contained:
        if contained.resourceType == "Medication" and f"#{contained.id}" == known_as:
            try:
                return msgspec.convert(contained.code, Concept)
            except msgspec.ValidationError:
                return None
    return None


def _span(resource: MedicationAdministration | MedicationStatement) -> tuple[str, str]:
    """(start, end); both the same for a moment, the end "" where the period is open."""
    if resource.effectivePeriod is not None:
        return resource.effectivePeriod.start, resource.effectivePeriod.end
    return resource.effectiveDateTime, resource.effectiveDateTime


def _dosages(
    resource: MedicationAdministration | MedicationStatement, rows: Rows
) -> list[AdministeredDosage | DoseAndRate]:
    if isinstance(resource, MedicationAdministration):
        if resource.dosage is None:
            rows.rejected["medication without a dose"] += 1
            return []
        return [resource.dosage]
    found: list[AdministeredDosage | DoseAndRate] = []
    for dosage in resource.dosage:
        if dosage.timing or (dosage.doseAndRate and _is_long(resource.effectivePeriod)):
            rows.rejected["a regimen, no dose"] += 1
        else:
            found += dosage.doseAndRate
    if not resource.dosage:
        rows.rejected["medication without a dose"] += 1
    return found


def _is_long(period: Period | None) -> bool:
    """Whether a period is open or longer than a dose takes."""
    if period is None:
        return False
    try:
        return datetime.fromisoformat(period.end) - datetime.fromisoformat(period.start) > _LONGEST_DOSE
    except (ValueError, TypeError):
        return True


def _dosage_rows(
    dosage: AdministeredDosage | DoseAndRate,
    head: tuple[str, str, str],
    start: str,
    end: str,
    rows: Rows,
) -> list[Observed]:
    patient, system, code = head
    dose = dosage.dose if isinstance(dosage, AdministeredDosage) else dosage.doseQuantity
    rate = _rate(dosage.rateQuantity, dosage.rateRatio)
    if rate is not None:
        code_of_rate = _code_of_rate(system, code)
        value, unit = rate
        ends: list[Observed] = (
            [(patient, end, *code_of_rate, 0.0, unit, "")] if end not in ("", start) else []
        )
        return [(patient, start, *code_of_rate, value, unit, ""), *ends]
    if dose is None or dose.value is None:
        rows.rejected["medication without a dose"] += 1
        return []
    if dose.comparator:
        rows.rejected["a bound, no value"] += 1
        return []
    return [(patient, start, system, code, dose.value, unit_of(dose), "")]


def _rate(quantity: Quantity | None, ratio: Ratio | None) -> tuple[float, str] | None:
    """(value, unit) of a rate: units as in U/h."""
    if quantity is not None and quantity.value is not None and not quantity.comparator:
        return quantity.value, unit_of(quantity)
    if ratio is None or ratio.numerator is None or ratio.denominator is None:
        return None
    above, below = ratio.numerator, ratio.denominator
    if above.value is None or below.value is None or below.value <= 0 or above.comparator or below.comparator:
        return None
    return above.value / below.value, f"{unit_of(above)}/{unit_of(below)}"


def _code_of_rate(system: str, code: str) -> tuple[str, str]:
    """Of insulin that runs, the catalogue's own signal: the drug's code means its injections."""
    return (CATALOGUE, "insulin_basal") if signal_of(system, code) in _INSULIN else (system, code)
