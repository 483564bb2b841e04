"""Which signal a code means: one catalogue for LOINC, IEEE 11073-10101, SNOMED CT, RxNorm and exports.

Sources:
- LOINC: the codes of each entry of `twin.signals`. 2708-6 (saturation of arterial blood) stands with the
  pulse oximeter's, because FHIR's profile of vital signs asks for it there. US Core prints inhaled oxygen as
  3150-6, LOINC's check digit makes it 3150-0: both are read.
- MDC: ISO/IEEE 11073-10101 and the personal health devices' parts 10404, 10407, 10408, 10415, 10417, 10425.
  A context-free code is 65,536 times its partition (2, supervisory control and data acquisition) plus its
  term; a bare term names nothing, as partitions share them. Not mapped: 150320 (MDC_SAT_O2_QUAL) is a
  quality, skin temperatures are none of the body.
- SNOMED CT: observable entities of the international edition.
- RxNorm: ingredients. Products are many and change monthly: a site adds its own.
- twinward: names of `twin.signals`.
- every other system is a feed's kind, with the column or record names of its vendor's export.

A site adds codes in codes.toml of its home, a table for each system; its word goes before this catalogue:

    [loinc]
    "12345-5" = "heart_rate"
    [monitor]
    "HR SpO2" = "pulse_rate"
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from twin.connectors.feed import CATALOGUE
from twin.errors import DataError
from twin.signals import SIGNALS

SYSTEMS: Final[Mapping[str, str]] = {
    "http://loinc.org": "loinc",
    "urn:oid:2.16.840.1.113883.6.1": "loinc",
    "ln": "loinc",
    "urn:iso:std:iso:11073:10101": "mdc",
    "urn:oid:2.16.840.1.113883.6.24": "mdc",
    "http://snomed.info/sct": "snomed",
    "urn:oid:2.16.840.1.113883.6.96": "snomed",
    "sct": "snomed",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "rxnorm",
    "urn:oid:2.16.840.1.113883.6.88": "rxnorm",
}
"""Other names of systems, casefolded: FHIR's addresses, OIDs, HL7 v2 table 0396."""

_MDC: Final[Mapping[str, Mapping[str, int]]] = {
    "heart_rate": {"MDC_ECG_HEART_RATE": 16770},
    "pulse_rate": {
        "MDC_PULS_RATE": 18442,
        "MDC_PULS_OXIM_PULS_RATE": 18458,
        "MDC_PULS_RATE_NON_INV": 18474,
    },
    "spo2": {"MDC_PULS_OXIM_SAT_O2": 19384},
    "sao2": {"MDC_SAT_O2_ART": 19252},
    "perfusion_index": {"MDC_PULS_OXIM_PERF_REL": 19416},
    "respiratory_rate": {
        "MDC_RESP_RATE": 20490,
        "MDC_TTHOR_RESP_RATE": 20498,
        "MDC_AWAY_RESP_RATE": 20506,
        "MDC_CO2_RESP_RATE": 20522,
    },
    "systolic_bp": {
        "MDC_PRESS_BLD_NONINV_SYS": 18949,
        "MDC_PRESS_BLD_ART_SYS": 18961,
        "MDC_PRESS_BLD_ART_ABP_SYS": 18965,
    },
    "diastolic_bp": {
        "MDC_PRESS_BLD_NONINV_DIA": 18950,
        "MDC_PRESS_BLD_ART_DIA": 18962,
        "MDC_PRESS_BLD_ART_ABP_DIA": 18966,
    },
    "mean_bp": {
        "MDC_PRESS_BLD_NONINV_MEAN": 18951,
        "MDC_PRESS_BLD_ART_MEAN": 18963,
        "MDC_PRESS_BLD_ART_ABP_MEAN": 18967,
    },
    "temperature": {
        "MDC_TEMP": 19272,
        "MDC_TEMP_BODY": 19292,
        "MDC_TEMP_CORE": 19296,
        "MDC_TEMP_TYMP": 19320,
        "MDC_TEMP_RECT": 57348,
        "MDC_TEMP_ORAL": 57352,
        "MDC_TEMP_EAR": 57356,
        "MDC_TEMP_AXILLA": 57380,
    },
    "fio2": {"MDC_CONC_AWAY_O2_INSP": 21124},
    "etco2": {"MDC_AWAY_CO2_ET": 20636},
    "peep": {"MDC_VENT_PRESS_AWAY_END_EXP_POS": 20904},
    "glucose": {"MDC_CONC_GLU_ISF": 29140, "MDC_CONC_GLU_GEN": 28948},
    "blood_glucose": {
        "MDC_CONC_GLU_CAPILLARY_WHOLEBLOOD": 29112,
        "MDC_CONC_GLU_CAPILLARY_PLASMA": 29116,
        "MDC_CONC_GLU_VENOUS_WHOLEBLOOD": 29120,
        "MDC_CONC_GLU_VENOUS_PLASMA": 29124,
        "MDC_CONC_GLU_ARTERIAL_WHOLEBLOOD": 29128,
        "MDC_CONC_GLU_ARTERIAL_PLASMA": 29132,
    },
    "hba1c": {"MDC_CONC_HBA1C": 29148},
    "weight": {"MDC_MASS_BODY_ACTUAL": 57664},
    "height": {"MDC_LEN_BODY_ACTUAL": 57668},
}
_SCADA: Final = 2 << 16

_SNOMED: Final[Mapping[str, str]] = {
    "364075005": "heart_rate",
    "78564009": "pulse_rate",
    "431314004": "spo2",
    "86290005": "respiratory_rate",
    "271649006": "systolic_bp",
    "271650006": "diastolic_bp",
    "6797001": "mean_bp",
    "386725007": "temperature",
    "27113001": "weight",
    "50373000": "height",
    "250774007": "fio2",
    "250790007": "etco2",
    "250854009": "peep",
    "434912009": "blood_glucose",
}

_RXNORM: Final[Mapping[str, str]] = {
    "51428": "insulin_bolus",  # insulin aspart
    "86009": "insulin_bolus",  # insulin lispro
    "400008": "insulin_bolus",  # insulin glulisine
    "253182": "insulin_bolus",  # insulin, regular, human
    "139825": "insulin_long_acting",  # insulin detemir
    "274783": "insulin_long_acting",  # insulin glargine
    "1670007": "insulin_long_acting",  # insulin degludec
}

_EXPORTS: Final[Mapping[str, Mapping[str, str]]] = {
    "dexcom": {
        "EGV": "glucose",
        "Glucose Value": "glucose",
        "Calibration": "blood_glucose",
        "Insulin:Fast-Acting": "insulin_bolus",
        "Insulin:Long-Acting": "insulin_long_acting",
        "Carbs": "carbohydrates",
    },
    "libreview": {
        "Historic Glucose": "glucose",
        "Scan Glucose": "glucose",
        "Strip Glucose": "blood_glucose",
        "Ketone": "ketones",
        "Rapid-Acting Insulin": "insulin_bolus",
        "Meal Insulin": "insulin_bolus",
        "Correction Insulin": "insulin_bolus",
        "Long-Acting Insulin": "insulin_long_acting",
        "Carbohydrates": "carbohydrates",
    },
    "carelink": {
        "Sensor Glucose": "glucose",
        "BG Reading": "blood_glucose",
        "Sensor Calibration BG": "blood_glucose",
        "Bolus Volume Delivered": "insulin_bolus",
        "Basal Rate": "insulin_basal",
        "BWZ Carb Input": "carbohydrates",
    },
    "nightscout": {
        "sgv": "glucose",
        "mbg": "blood_glucose",
        "insulin": "insulin_bolus",
        "carbs": "carbohydrates",
        "absolute": "insulin_basal",
    },
    "tidepool": {
        "cbg": "glucose",
        "smbg": "blood_glucose",
        "bloodKetone": "ketones",
        "bolus": "insulin_bolus",
        "basal": "insulin_basal",
        "insulin": "insulin_bolus",
        "insulin:long": "insulin_long_acting",
        "food": "carbohydrates",
        "wizard": "carbohydrates",
    },
}


def signal_of(system: str, code: str) -> str | None:
    """The signal that a code of the catalogue means; None if nobody knows it.

    >>> signal_of("mdc", "150456"), signal_of("http://loinc.org", "8867-4")
    ('spo2', 'heart_rate')
    """
    return _catalogue().get((_system(system), _code(code)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """The catalogue with what a site added: (system, code) as written by `_system` and `_code`."""

    added: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def signal_of(self, system: str, code: str) -> str | None:
        """As the function of this name; what the site says goes first."""
        return self.added.get((_system(system), _code(code))) or signal_of(system, code)

    @staticmethod
    def read(path: Path) -> Codes:
        """The codes of a site's codes.toml; none if there is no such file.

        Raises:
            DataError: no TOML, or it names a signal that there is not; all faults at once.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Codes()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as text: {type(error).__name__}.") from None
        try:
            return Codes.parse(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise DataError(f"{path} is no TOML: {error}.") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    @staticmethod
    def parse(tables: Mapping[str, object]) -> Codes:
        """The codes of tables by system, each code → signal.

        Raises:
            DataError: as `read`.
        """
        added: dict[tuple[str, str], str] = {}
        faults: list[str] = []
        for system, table in tables.items():
            if not isinstance(table, Mapping):
                faults.append(f"{system!r} must be a table of codes, [{system}]")
                continue
            for code, signal in table.items():
                if signal in SIGNALS:
                    added[_system(system), _code(code)] = str(signal)
                else:
                    faults.append(f"[{system}] {code!r} names {signal!r}, which is no signal{_near(signal)}")
        if faults:
            raise DataError("; ".join(faults) + f". Signals: {', '.join(SIGNALS)}.")
        return Codes(added=added)


def _near(name: object) -> str:
    close = difflib.get_close_matches(str(name), SIGNALS, n=1)
    return f" (is {close[0]!r} meant?)" if close else ""


def _system(name: str) -> str:
    folded = name.strip().casefold()
    return SYSTEMS.get(folded, folded)


def _code(code: str) -> str:
    """Casefolded, without a unit in brackets (`Sensor Glucose (mg/dL)`) and with single spaces."""
    return " ".join(re.sub(r"\([^)]*\)\s*$", "", code).split()).casefold()


@cache
def _catalogue() -> dict[tuple[str, str], str]:
    found = {("loinc", code): name for name, entry in SIGNALS.items() for code in entry.loinc}
    found["loinc", "3150-6"] = "fio2"
    for name, terms in _MDC.items():
        for reference, term in terms.items():
            found["mdc", reference.casefold()] = found["mdc", str(_SCADA + term)] = name
    found |= {("snomed", code): name for code, name in _SNOMED.items()}
    found |= {("rxnorm", code): name for code, name in _RXNORM.items()}
    found |= {(CATALOGUE, name): name for name in SIGNALS}
    for kind, names in _EXPORTS.items():
        found |= {(kind, _code(spelling)): name for spelling, name in names.items()}
    return found
