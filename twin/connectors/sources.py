"""Files of the other feeds as readers, for a drop folder: FHIR, HL7 v2, variants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from twin.connectors.exports import Refused
from twin.connectors.feed import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """FHIR R4 (JSON, XML, NDJSON) or HL7 v2, read by the feed of that kind."""

    kind: str
    identifier: str = ""
    grows: bool = False

    def fits(self, head: str) -> bool:
        """Whether it begins as such a file does."""
        if self.kind == "HL7 v2":
            return head.lstrip().startswith(("MSH|", "FHS|", "BHS|", "\x0bMSH|"))
        begins = head.lstrip()
        return begins.startswith(("{", "<")) and (
            '"resourceType"' in head or "http://hl7.org/fhir" in head[:2000]
        )

    def parts(self, path: Path, patient: str, start: int, rows_per_batch: int) -> Iterator[tuple[int, Batch]]:
        """See `twin.connectors.exports.Reader`; a record is a batch, and rows name their patients."""
        del patient
        try:
            if self.kind == "HL7 v2":
                made: Any = import_module("twin.connectors.hl7v2_files").Hl7v2Files(
                    name="drop", path=path, rows_per_batch=rows_per_batch
                )
            else:
                if not path.name.lower().removesuffix(".gz").endswith((".json", ".ndjson", ".xml")):
                    raise Refused("a file of FHIR must end in .json, .ndjson or .xml (or these with .gz)")
                made = import_module("twin.connectors.fhir_files").FhirFiles(
                    name="drop", path=path, identifier=self.identifier, rows_per_batch=rows_per_batch
                )
        except ModuleNotFoundError as missing:
            raise Refused(f"it needs the package {missing.name!r}: pip install 'twinward[feeds]'") from None
        for number, batch in enumerate(made.batches(""), start=1):
            if number > start:
                yield number, replace(batch, position="")


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelFile:
    """Variants (VCF, BCF), read by `twin.connectors.vcf`."""

    build: str = ""
    kind: str = "VCF"
    grows: bool = False

    @staticmethod
    def is_binary(path: Path) -> bool:
        """Whether it is a BCF."""
        return path.name.lower().endswith(".bcf")

    def fits(self, head: str) -> bool:
        """Whether it begins as a VCF does."""
        return head.startswith("##fileformat=VCF")

    def parts(self, path: Path, patient: str, start: int, rows_per_batch: int) -> Iterator[tuple[int, Batch]]:
        """See `twin.connectors.exports.Reader`; samples are patients, and a file is a batch."""
        del patient, start, rows_per_batch
        try:
            from twin.connectors.vcf import read_panel
        except ModuleNotFoundError as missing:
            raise Refused(f"it needs the package {missing.name!r}: pip install 'twinward[feeds]'") from None

        yield 1, read_panel(path, self.build)
