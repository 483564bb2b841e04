"""Print how fast a bulk export of FHIR Observations is read, and comes into the encrypted store.

Run it from the root: PYTHONPATH=. .venv/bin/python benchmarks/fhir_feed.py [--rows 1000000] [FOLDER]

The export is NDJSON of vital signs as US Core writes them (about 600 bytes each), one observation a minute
of 100 patients. Beside it, from the same file: `pandas.read_json` with `json_normalize`, `json.loads` with a
comprehension into a frame, and `fhir.resources`, which validates every resource (both of the slow ones on a
part of the file; their seconds are scaled up).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pandas as pd

from twin.connectors.fhir_files import FhirFiles
from twin.connectors.fhir_models import validated
from twin.ingest import Ingest
from twin.store import Store

PATIENTS = 100
PART = 20_000
START = datetime(2024, 1, 1, tzinfo=UTC)
SIGNS = (
    ("8867-4", "Heart rate", "/min", 72.0),
    ("9279-1", "Respiratory rate", "/min", 15.0),
    ("59408-5", "Oxygen saturation in Arterial blood by Pulse oximetry", "%", 96.0),
    ("8310-5", "Body temperature", "Cel", 36.8),
    ("8480-6", "Systolic blood pressure", "mm[Hg]", 121.0),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("folder", nargs="?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "Observation.ndjson"
        write(path, options.rows)
        print(f"{options.rows:,} Observations, {path.stat().st_size / 1e6:,.0f} MB of NDJSON\n")
        show("the feed alone", options.rows, options.rows, lambda: feed_alone(path))
        show("feed, ingest, encrypted store", options.rows, options.rows, lambda: into_store(path))
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB\n")
        part = min(PART, options.rows)
        show("pandas.read_json, json_normalize", options.rows, part, lambda: with_pandas(path, part))
        show("json.loads into a frame", options.rows, part, lambda: with_json(path, part))
        show("fhir.resources", options.rows, part // 10, lambda: with_library(path, part // 10))


def show(name: str, rows: int, done: int, run: Callable[[], int]) -> None:
    """One line: seconds for all rows, wall and CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if found != done:
        raise SystemExit(f"{name}: {found:,} rows instead of {done:,}")
    scale = rows / done
    print(f"{name:<34} {wall * scale:>8.1f} s wall {cpu * scale:>8.1f} s CPU {done / wall:>10,.0f} /s")


def write(path: Path, rows: int) -> None:
    """The export."""
    templates = [json.dumps(observation(*sign)) for sign in SIGNS]
    with path.open("w") as file:
        for k in range(rows):
            patient, turn = k % PATIENTS, k // PATIENTS
            moment = START + timedelta(minutes=turn // len(SIGNS))
            line = templates[turn % len(SIGNS)].replace("ID", f"o{k}").replace("WHO", f"p{patient}")
            file.write(line.replace("WHEN", moment.isoformat()).replace('"X"', f"{_value(k):.1f}") + "\n")


def _value(k: int) -> float:
    sign = SIGNS[k // PATIENTS % len(SIGNS)]
    return sign[3] + (k * 7919 % 23 - 11) / 10


def observation(code: str, display: str, unit: str, _: float) -> dict[str, object]:
    """A vital sign with places for what differs."""
    category = {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "vital-signs"}
    return {
        "resourceType": "Observation",
        "id": "ID",
        "meta": {"versionId": "1", "lastUpdated": "2024-06-01T00:00:00.000+00:00"},
        "status": "final",
        "category": [{"coding": [category], "text": "Vital Signs"}],
        "code": {
            "coding": [{"system": "http://loinc.org", "code": code, "display": display}],
            "text": display,
        },
        "subject": {"reference": "Patient/WHO"},
        "effectiveDateTime": "WHEN",
        "valueQuantity": {"value": "X", "unit": unit, "system": "http://unitsofmeasure.org", "code": unit},
    }


def feed_alone(path: Path) -> int:
    """Rows of the feed."""
    return sum(len(batch.observations) for batch in FhirFiles(name="b", path=path).batches(""))


def into_store(path: Path) -> int:
    """Rows that the store keeps."""
    ingest = Ingest(
        pseudonym=lambda patient: hashlib.sha256(patient.encode()).hexdigest()[:20], timezone=None
    )
    with Store.create(path.parent / "store.duckdb", bytes(range(32))) as store:
        for batch in FhirFiles(name="b", path=path).batches(store.position("b")):
            store.commit(ingest.take(batch, "b"))
        counts = store.counts()
    return int(counts.loc[counts["fate"].isin(["kept", "marked"]), "rows"].sum())


def with_pandas(path: Path, rows: int) -> int:
    """Rows as pandas reads them."""
    whole = pd.read_json(path, lines=True, nrows=rows)
    parts = zip(whole["code"], whole["subject"], whole["valueQuantity"], strict=True)
    named = [{"code": code, "subject": who, "valueQuantity": value} for code, who, value in parts]
    flat = pd.json_normalize(named)
    flat["code"] = [coding[0]["code"] for coding in flat["code.coding"]]
    flat["time"] = pd.to_datetime(whole["effectiveDateTime"], utc=True)
    return len(flat[["subject.reference", "time", "code", "valueQuantity.value", "valueQuantity.code"]])


def with_json(path: Path, rows: int) -> int:
    """Rows as a loop over the standard library's JSON gives them."""
    with path.open() as file:
        found = [json.loads(line) for line in islice(file, rows)]
    frame = pd.DataFrame(
        {
            "patient": [one["subject"]["reference"] for one in found],
            "time": [one["effectiveDateTime"] for one in found],
            "code": [one["code"]["coding"][0]["code"] for one in found],
            "value": [one["valueQuantity"]["value"] for one in found],
            "unit": [one["valueQuantity"]["code"] for one in found],
        }
    )
    return len(frame)


def with_library(path: Path, rows: int) -> int:
    """Resources that the models of `fhir.resources` read."""
    with path.open("rb") as file:
        return sum(bool(validated(line, "Observation")) for line in islice(file, rows))


if __name__ == "__main__":
    main()
