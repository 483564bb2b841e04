"""The parts of FHIR R4 resources that become rows, and how a text of JSON becomes one of them.

Two ways, one result. The fast way reads a resource straight into the structures below and looks at nothing
else of it; so no name, note or narrative is ever held. What it refuses (a number written as text, a null, a
wrong shape) goes the careful way: the whole resource is validated by `fhir.resources`, written anew as that
library writes it, and read again. What that library refuses too is refused here, with no more said of it
than its type: its messages quote the values of patients.

Source: HL7 FHIR R4 (4.0.1), the resources' pages; `fhir.resources` 8 has R4B (4.3.0), whose definitions of
the resources below are the same for every element that is read here.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from twin.connectors.fhir_xml import resource_of


class _Part(msgspec.Struct, gc=False, rename=None):
    """An element: unknown fields are skipped."""


class Coding(_Part):
    system: str = ""
    code: str = ""


class Concept(_Part):
    coding: list[Coding] = []


class Identifier(_Part):
    system: str = ""
    value: str = ""


class Reference(_Part):
    reference: str = ""
    type: str = ""
    identifier: Identifier | None = None


class Quantity(_Part):
    value: float | None = None
    comparator: str = ""
    unit: str = ""
    system: str = ""
    code: str = ""


class Ratio(_Part):
    numerator: Quantity | None = None
    denominator: Quantity | None = None


class Period(_Part):
    start: str = ""
    end: str = ""


class Sampled(_Part):
    origin: Quantity
    period: float
    dimensions: int
    factor: float = 1.0
    data: str = ""


class Component(_Part):
    code: Concept
    valueQuantity: Quantity | None = None
    valueInteger: int | None = None
    valueSampledData: Sampled | None = None
    dataAbsentReason: Concept | None = None


class Observation(msgspec.Struct, tag_field="resourceType", tag="Observation"):
    status: str
    code: Concept
    subject: Reference | None = None
    effectiveDateTime: str = ""
    effectiveInstant: str = ""
    effectivePeriod: Period | None = None
    device: Reference | None = None
    valueQuantity: Quantity | None = None
    valueInteger: int | None = None
    valueSampledData: Sampled | None = None
    dataAbsentReason: Concept | None = None
    component: list[Component] = []


class Patient(msgspec.Struct, tag_field="resourceType", tag="Patient"):
    id: str = ""
    identifier: list[Identifier] = []
    birthDate: str = ""
    gender: str = ""


class Encounter(msgspec.Struct, tag_field="resourceType", tag="Encounter", rename={"kind": "class"}):
    status: str
    kind: Coding
    subject: Reference | None = None
    period: Period | None = None


class Condition(msgspec.Struct, tag_field="resourceType", tag="Condition"):
    subject: Reference
    code: Concept | None = None
    clinicalStatus: Concept | None = None
    verificationStatus: Concept | None = None


class Medication(msgspec.Struct, tag_field="resourceType", tag="Medication"):
    id: str = ""
    code: Concept | None = None


class AdministeredDosage(_Part):
    dose: Quantity | None = None
    rateRatio: Ratio | None = None
    rateQuantity: Quantity | None = None


class DoseAndRate(_Part):
    doseQuantity: Quantity | None = None
    rateRatio: Ratio | None = None
    rateQuantity: Quantity | None = None


class Contained(_Part):
    resourceType: str = ""
    id: str = ""
    code: Any = None


class MedicationAdministration(msgspec.Struct, tag_field="resourceType", tag="MedicationAdministration"):
    status: str
    subject: Reference
    medicationCodeableConcept: Concept | None = None
    medicationReference: Reference | None = None
    contained: list[Contained] = []
    effectiveDateTime: str = ""
    effectivePeriod: Period | None = None
    device: list[Reference] = []
    dosage: AdministeredDosage | None = None


class Dosage(_Part):
    timing: dict[str, Any] | None = None
    doseAndRate: list[DoseAndRate] = []


class MedicationStatement(msgspec.Struct, tag_field="resourceType", tag="MedicationStatement"):
    status: str
    subject: Reference
    medicationCodeableConcept: Concept | None = None
    medicationReference: Reference | None = None
    contained: list[Contained] = []
    effectiveDateTime: str = ""
    effectivePeriod: Period | None = None
    dosage: list[Dosage] = []


Resource = (
    Observation
    | Patient
    | Encounter
    | Condition
    | Medication
    | MedicationAdministration
    | MedicationStatement
)


class Link(_Part):
    relation: str = ""
    url: str = ""


class Entry(msgspec.Struct):
    fullUrl: str = ""
    resource: msgspec.Raw = msgspec.Raw()


class Bundle(msgspec.Struct, tag_field="resourceType", tag="Bundle"):
    """Its resources stay text until each is read for itself, so that a wrong one spoils no other."""

    entry: list[msgspec.Raw] = []
    link: msgspec.Raw = msgspec.Raw(b"[]")


class _Meta(_Part):
    lastUpdated: str = ""
    versionId: str = ""


class Head(_Part):
    """What every resource says of itself."""

    resourceType: str = ""
    id: str = ""
    meta: _Meta | None = None


TYPES: Final = {
    "Observation": Observation,
    "Patient": Patient,
    "Encounter": Encounter,
    "Condition": Condition,
    "Medication": Medication,
    "MedicationAdministration": MedicationAdministration,
    "MedicationStatement": MedicationStatement,
}
_resource: msgspec.json.Decoder[Resource] = msgspec.json.Decoder(Resource)
_head = msgspec.json.Decoder(Head)
_bundle = msgspec.json.Decoder(Bundle)
_entry_of_bundle = msgspec.json.Decoder(Entry)
_links = msgspec.json.Decoder(list[Link])
_TYPE_NAME = re.compile(r"[A-Z][A-Za-z]{2,40}")
_Struct = TypeVar("_Struct")


class Refused(Exception):
    """A text that is no resource of use; its text is a reason for `Batch.rejected`."""


def read_resource(text: bytes | msgspec.Raw) -> Resource:
    """The resource that a text of JSON is.

    Raises:
        Refused: it is no JSON, of a type that is not used, or no valid resource.
    """
    try:
        return _resource.decode(text)
    except msgspec.ValidationError:
        return _carefully(bytes(text))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("not JSON") from None


def read_head(text: bytes | msgspec.Raw) -> Head:
    """What the resource says of itself.

    Raises:
        Refused: it is no JSON object, or has no resource type.
    """
    head = _decoded(_head, text)
    if not _TYPE_NAME.fullmatch(head.resourceType):
        raise Refused("no FHIR resource")
    return head


def read_bundle(text: bytes | msgspec.Raw) -> Bundle:
    """The bundle that a text of JSON is.

    Raises:
        Refused: it is none.
    """
    return _decoded(_bundle, text)


def read_entry(text: bytes | msgspec.Raw) -> Entry:
    """One entry of a bundle.

    Raises:
        Refused: it is none, or has no resource.
    """
    entry = _decoded(_entry_of_bundle, text)
    if not bytes(entry.resource):
        raise Refused("entry without a resource")
    return entry


def next_link(bundle: Bundle) -> str:
    """Where the page after this one is; "" if it is the last.

    Raises:
        Refused: the bundle's links are none.
    """
    return next((link.url for link in _decoded(_links, bundle.link) if link.relation == "next"), "")


def read_xml(text: bytes) -> Bundle:
    """The resource or bundle of a text of XML, as a bundle.

    Raises:
        Refused: it is no XML of FHIR, has a document type or entities, or is nested too deep.
    """
    try:
        found = resource_of(text)
    except ValueError as error:
        raise Refused(str(error)) from None
    if found["resourceType"] != "Bundle":
        return Bundle(entry=[_entry({"resource": found})])
    entries = found.get("entry", [])
    return Bundle(entry=[_entry(entry if isinstance(entry, dict) else {}) for entry in entries])


def _entry(entry: dict[str, Any]) -> msgspec.Raw:
    resource = entry.get("resource")
    if not isinstance(resource, dict):
        return msgspec.Raw(b"{}")
    whole = {"fullUrl": str(entry.get("fullUrl", "")), "resource": _numbers_as_numbers(resource)}
    return msgspec.Raw(msgspec.json.encode(whole))


def _numbers_as_numbers(resource: dict[str, Any]) -> Any:
    """The resource with those numbers that are read here, which XML has as text, as numbers."""
    made = TYPES.get(resource["resourceType"])
    if made is None:
        return {"resourceType": resource["resourceType"]}
    try:
        return msgspec.convert(resource, made, strict=False)
    except (msgspec.ValidationError, RecursionError):
        return resource


def _decoded(decoder: msgspec.json.Decoder[_Struct], text: bytes | msgspec.Raw) -> _Struct:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise Refused("no FHIR resource") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("not JSON") from None


# Of what is not read only these are named: another word might be anything, and counts are shown to many.
_OTHERS: Final = frozenset(
    {
        "AllergyIntolerance",
        "Appointment",
        "Binary",
        "CarePlan",
        "CareTeam",
        "Claim",
        "Communication",
        "Composition",
        "Consent",
        "Coverage",
        "Device",
        "DeviceMetric",
        "DiagnosticReport",
        "DocumentReference",
        "EpisodeOfCare",
        "ExplanationOfBenefit",
        "FamilyMemberHistory",
        "Flag",
        "Goal",
        "Group",
        "ImagingStudy",
        "Immunization",
        "Location",
        "Media",
        "Medication",
        "MedicationDispense",
        "MedicationRequest",
        "NutritionOrder",
        "OperationOutcome",
        "Organization",
        "Practitioner",
        "PractitionerRole",
        "Procedure",
        "Provenance",
        "QuestionnaireResponse",
        "RelatedPerson",
        "ServiceRequest",
        "Specimen",
        "Task",
    }
)


def _carefully(text: bytes) -> Resource:
    """The resource as `fhir.resources` reads it."""
    kind = read_head(text).resourceType
    if kind not in TYPES:
        raise Refused(f"resource not used: {kind if kind in _OTHERS else 'of another type'}")
    try:
        return _resource.decode(validated(text, kind))
    except (ValueError, TypeError, ArithmeticError, RecursionError):  # pydantic's errors are ValueErrors
        raise Refused(f"invalid resource: {kind}") from None


def validated(text: bytes, kind: str) -> bytes:
    """The resource as `fhir.resources` writes it after having read it.

    Raises:
        ValueError: that library refuses it.
    """
    from fhir.resources.R4B import get_fhir_model_class

    model = get_fhir_model_class(kind).model_validate_json(text)
    return model.model_dump_json().encode()
