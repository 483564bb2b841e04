"""UCI heart disease: four hospitals, 13 static features and a diagnosis (0 none, 1 to 4 disease).

rows=complete gives the rows and features of FLamby's Fed-Heart-Disease (303, 261, 46, 130 patients): it
leaves out slope, ca and thal, which are mostly missing outside Cleveland, and then every patient with any
other feature missing. Cholesterol 0 and blood pressure 0 count as values there and are written as they
stand, so that figures compare with the published ones. rows=all gives every patient (303, 294, 123, 200)
and feature; there these zeros are written as missing, because that is what they mean.

Source: `flamby/datasets/fed_heart_disease/dataset.py` of owkin/FLamby (which rows and columns it keeps).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from twin.connectors.published import Converted
from twin.errors import DataError
from twin.site import Quality

ROWS = ("complete", "all")
FEATURES = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
)
LEFT_OUT = ("slope", "ca", "thal")
LABEL = "diagnosis"

LICENCE = """\
Source: Janosi A, Steinbrunn W, Pfisterer M, Detrano R. Heart Disease. UCI Machine Learning Repository,
1989. https://doi.org/10.24432/C52P4X - collected at the Cleveland Clinic Foundation; the Hungarian Institute
of Cardiology, Budapest; University Hospitals Zurich and Basel; the V.A. Medical Center, Long Beach.
Licence: Creative Commons Attribution 4.0 International (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/
Changed: named columns, row numbers as pseudonyms, `?` left empty; {rows}.
"""

_FILES = {
    "cleveland": "processed.cleveland.data",
    "hungary": "processed.hungarian.data",
    "switzerland": "processed.switzerland.data",
    "va": "processed.va.data",
}
_ZERO_IS_MISSING = ("chol", "trestbps")


def convert(source: Path, rows: str = "complete") -> tuple[Converted, ...]:
    """Four sites, `cleveland`, `hungary`, `switzerland`, `va`, of the folder with the processed files.

    Args:
        source: the folder.
        rows: one of `ROWS`.

    Raises:
        DataError: a file is missing or is not what UCI publishes, or `rows` is neither.
    """
    if rows not in ROWS:
        raise DataError(f"rows={rows} is unknown; allowed for uci_heart: rows=complete, rows=all.")
    missing = [file for file in _FILES.values() if not (source / file).is_file()]
    if missing:
        raise DataError(
            f"{source}: expected the folder with {', '.join(_FILES.values())}; missing: {', '.join(missing)}."
        )
    return tuple(_site(site, source / file, rows) for site, file in _FILES.items())


def _site(site: str, path: Path, rows: str) -> Converted:
    whole = _read(path)
    if rows == "all":
        patients, notes = _all(whole)
    else:
        patients, notes = _complete(whole)
    dropped = len(whole) - len(patients)
    quality = Quality(
        rows_read=len(whole),
        rows_kept=len(patients),
        dropped={"a feature is missing": dropped} if dropped else {},
    )
    changed = (
        "every row"
        if rows == "all"
        else "rows with a missing feature and the columns slope, ca, thal left out"
    )
    return Converted(
        site=site, patients=patients, quality=quality, notes=notes, licence=LICENCE.format(rows=changed)
    )


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, header=None, na_values=["?"], skipinitialspace=True)
        table = table.astype("float64")
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as the processed UCI file ({type(error).__name__})."
        ) from None
    if table.shape[1] != len(FEATURES) + 1:
        raise DataError(
            f"{path}: has {table.shape[1]} columns, expected {len(FEATURES)} features and the diagnosis."
        )
    if not table[len(FEATURES)].isin(range(5)).all():
        raise DataError(f"{path}: the last column must be a diagnosis from 0 to 4.")
    names = pd.Index([f"{number:03d}" for number in range(1, len(table) + 1)], dtype="str", name="patient_id")
    return table.set_axis([*FEATURES, LABEL], axis=1).set_axis(names, axis=0)


def _complete(whole: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    patients = whole.drop(columns=list(LEFT_OUT)).dropna()
    zeros = int(patients["chol"].eq(0).sum())
    notes = [f"Columns left out as in FLamby: {', '.join(LEFT_OUT)}."]
    if zeros:
        notes.append(
            f"{zeros} patients have cholesterol 0, which means missing; kept as a value, as FLamby does."
        )
    return patients, tuple(notes)


def _all(whole: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    zero = {name: int(whole[name].eq(0).sum()) for name in _ZERO_IS_MISSING}
    patients = whole.assign(**{name: whole[name].mask(whole[name].eq(0)) for name in _ZERO_IS_MISSING})
    told = ", ".join(f"{name} ({count})" for name, count in zero.items() if count)
    return patients, (f"0 is written as missing in: {told}.",) if told else ()
