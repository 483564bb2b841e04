from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.twin import exported
from twin.connectors.convert import Job, convert
from twin.connectors.drop import Drop
from twin.connectors.feed import Batch
from twin.connectors.feeds import build
from twin.connectors.folder import read_folder
from twin.errors import DataError
from twin.ingest import Ingest
from twin.store import Store

HEADER = "patient_id,time,signal,value,unit\n"


def read(kind: str, path: Path, position: str = "", **options: object) -> list[Batch]:
    return list(build(kind, {"name": "f", "path": str(path), "settle_s": 0.0, **options}).batches(position))


def lines(first: int, last: int) -> str:
    times = pd.date_range("2024-01-01", periods=last, freq="5min").strftime("%Y-%m-%dT%H:%M:%SZ")
    return "".join(f"p{k % 7},{times[k]},glucose,{80 + k % 100},mg/dL\n" for k in range(first, last))


def observed(batches: list[Batch]) -> pd.DataFrame:
    return pd.concat([batch.observations for batch in batches], ignore_index=True)


def test_a_federation_folder_gives_its_rows_and_facts_and_goes_on_where_it_grew(tmp_path: Path) -> None:
    path = tmp_path / "observations.csv"
    path.write_text(HEADER + lines(0, 100), encoding="utf-8")
    (tmp_path / "patients.csv").write_text("patient_id,sex,age\np1,female,50\np2,,NA\n", encoding="utf-8")
    batches = read("folder", tmp_path)
    assert len(observed(batches)) == 100
    facts = pd.concat([batch.facts for batch in batches])
    assert facts.to_numpy().tolist() == [["p1", "sex", "female"], ["p1", "age", "50"]]
    path.write_text(HEADER + lines(0, 130), encoding="utf-8")
    more = read("folder", tmp_path, batches[-1].position)
    assert len(observed(more)) == 30
    assert observed(more)["time"].iloc[0] == observed(read("folder", tmp_path))["time"].iloc[100]


@pytest.mark.parametrize("form", ["quoted", "semicolons", "parquet", "gzip"])
def test_a_table_reads_the_same_whatever_its_form(tmp_path: Path, form: str) -> None:
    table = pd.DataFrame(
        [line.split(",") for line in lines(0, 40).split()], columns=HEADER.strip().split(",")
    )
    if form == "parquet":
        table.to_parquet(tmp_path / "observations.parquet")
    elif form == "gzip":
        table.to_csv(tmp_path / "observations.csv.gz", index=False)
    elif form == "quoted":
        table.to_csv(tmp_path / "observations.csv", index=False, quoting=1)
    else:
        table.to_csv(tmp_path / "observations.csv", index=False, sep=";")
    found = observed(read("folder", tmp_path))
    assert found["patient"].tolist() == table["patient_id"].tolist()
    assert found["value"].astype("str").tolist() == table["value"].tolist()


def test_a_comma_begins_the_decimals_where_semicolons_separate_and_only_there(tmp_path: Path) -> None:
    rows = ["p1;2024-03-01T00:00:00Z;glucose;5,4;mmol/L", "p1;2024-03-01T00:05:00Z;glucose;1,2,3;mmol/L"]
    (tmp_path / "observations.csv").write_text("\n".join([HEADER.strip().replace(",", ";"), *rows, ""]))
    assert observed(read("folder", tmp_path))["value"].tolist() == ["5.4", "1,2,3"]
    quoted = 'p1,2024-03-01T00:00:00Z,glucose,"5,4",mmol/L\n'
    (tmp_path / "observations.csv").write_text(HEADER + quoted)
    assert observed(read("folder", tmp_path))["value"].tolist() == ["5,4"]


@given(
    place=st.integers(1, 30),
    junk=st.sampled_from([b'"', b"a,b", b'p1,"x', b"\xff\xfe,", b",,,,,,,", b"\x00"]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_broken_line_of_a_table_is_counted_and_costs_no_other(
    tmp_path: Path, place: int, junk: bytes
) -> None:
    path = tmp_path / "observations.csv"
    good = (HEADER + lines(0, 30)).encode().split(b"\n")
    path.write_bytes(b"\n".join([*good[:place], junk, *good[place:]]))
    (batch,) = read("folder", tmp_path)
    assert len(batch.observations) == 30
    assert sum(batch.rejected.values()) == 1


def test_long_tables_come_in_bounded_batches_and_resume_at_the_row(tmp_path: Path) -> None:
    (tmp_path / "observations.csv").write_text(HEADER + lines(0, 150_000), encoding="utf-8")
    batches = read("folder", tmp_path)
    assert len(batches) > 1
    assert max(len(batch.observations) for batch in batches) < 120_000
    rest = read("folder", tmp_path, batches[0].position)
    pd.testing.assert_frame_equal(observed([batches[0], *rest]), observed(batches))
    assert len(observed(batches)) == 150_000


def test_omop_tables_become_codes_units_facts_and_counts(tmp_path: Path) -> None:
    tables = {
        "PERSON.csv": (
            "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth\n1,8532,1970,3,9\n2,8507,1980,,\n"
        ),
        "measurement.csv": (
            "measurement_id,person_id,measurement_concept_id,measurement_date,measurement_datetime,"
            "operator_concept_id,value_as_number,unit_concept_id,measurement_source_value,unit_source_value\n"
            "1,1,3027018,2024-01-01,2024-01-01 08:00:00,,72,8541,,\n"
            "2,1,3004501,2024-01-01,2024-01-01 08:00:00,4172703,5.5,8753,,\n"
            "3,1,999,2024-01-01,2024-01-01 08:00:00,,97,,59408-5,%\n"
            "4,1,777,2024-01-01,2024-01-01 08:00:00,,37.2,555,,\n"
            "5,2,3004501,2024-01-01,2024-01-01 08:00:00,4171756,40,8840,,\n"
            "6,2,888,2024-01-01,2024-01-01 08:00:00,,1,,,\n"
            "7,2,3027018,2024-01-01,2024-01-01 08:00:00,,,8541,,\n"
        ),
        "concept.csv": (
            "concept_id,concept_name,vocabulary_id,concept_code\n777,x,LOINC,8310-5\n555,x,UCUM,Cel\n51,x,RxNorm,51428\n"
        ),
        "drug_exposure.csv": (
            "person_id,drug_concept_id,drug_exposure_start_date,drug_exposure_start_datetime,quantity,dose_unit_source_value\n"
            "1,51,2024-01-01,2024-01-01 09:00:00,4,U\n1,51,2024-01-01,2024-01-01 10:00:00,4,\n"
        ),
        "visit_occurrence.csv": (
            "person_id,visit_concept_id,visit_start_date,visit_end_date\n1,9202,2024-02-01,2024-02-01\n1,9201,2024-01-01,2024-01-05\n"
        ),
        "note.csv": "person_id,note_text\n1,planted\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    batches = read("omop", tmp_path)
    ingest = Ingest(pseudonym=str, timezone="UTC")
    taken = [ingest.take(batch, "f") for batch in batches]
    rows = pd.concat([part.observations for part in taken])
    assert {(s, round(v, 1)) for s, v in zip(rows["signal"], rows["value"], strict=True)} == {
        ("heart_rate", 72.0),
        ("glucose", 99.1),
        ("spo2", 97.0),
        ("temperature", 37.2),
        ("insulin_bolus", 4.0),
    }
    assert pd.concat([part.quarantine for part in taken])["code"].tolist() == ["888"]
    facts = pd.concat([batch.facts for batch in batches])
    assert set(map(tuple, facts.to_numpy())) == {
        ("1", "birth_date", "1970-03-09"),
        ("2", "birth_date", "1980"),
        ("1", "sex", "female"),
        ("2", "sex", "male"),
        ("1", "encounter_start", "2024-02-01"),
        ("1", "encounter_end", "2024-02-01"),
        ("1", "encounter_class", "AMB"),
    }
    rejected = {reason: n for batch in batches for reason, n in batch.rejected.items()}
    assert rejected == {"a bound and no value": 1, "no number": 1, "drug without a quantity or its unit": 1}


def drop(folder: Path, **options: object) -> Drop:
    feed = build("drop", {"name": "d", "folder": str(folder), "settle_s": 0.0, **options})
    assert isinstance(feed, Drop)
    return feed


def until_idle(feed: Drop, position: str = "") -> list[Batch]:
    found: list[Batch] = []
    with closing(feed.batches(position)) as batches:
        for batch in batches:
            if batch.is_empty and not batch.position:
                return found
            found.append(batch)
    return found


SAMPLES = {
    "clarity.csv": exported.CLARITY,
    "libre.csv": exported.LIBREVIEW,
    "pump.csv": exported.CARELINK,
    "night.json": exported.NIGHTSCOUT,
    "tide.json": exported.TIDEPOOL,
}


def test_a_drop_folder_recognises_each_kind_by_content_and_moves_what_it_took(tmp_path: Path) -> None:
    for number, (name, text) in enumerate(SAMPLES.items()):
        target = tmp_path / f"MRN{number}" / ("export" + Path(name).suffix)
        target.parent.mkdir()
        target.write_text(text, encoding="utf-8")
    (tmp_path / "table.csv").write_text(HEADER + lines(0, 20), encoding="utf-8")
    (tmp_path / "poem.txt").write_text("neither this nor that\n", encoding="utf-8")
    (tmp_path / "half.csv.part").write_text(exported.CLARITY, encoding="utf-8")
    batches = until_idle(drop(tmp_path))
    rows = observed(batches)
    assert rows.groupby("patient")["system"].first().loc["MRN0":"MRN4"].tolist() == [
        "dexcom",
        "libreview",
        "carelink",
        "nightscout",
        "tidepool",
    ]
    assert (rows["system"] == "twinward").sum() == 20
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [
        "half.csv.part",
        "refused/poem.txt",
        "refused/poem.txt.reason.txt",
        *(f"taken/MRN{k}/export{Path(name).suffix}" for k, name in enumerate(SAMPLES)),
        "taken/table.csv",
    ]
    assert "it is none of" in (tmp_path / "refused/poem.txt.reason.txt").read_text(encoding="utf-8")


def test_the_same_content_dropped_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + lines(0, 20), encoding="utf-8")
    first = until_idle(drop(tmp_path))
    (tmp_path / "b.csv").write_text(HEADER + lines(0, 20), encoding="utf-8")
    assert until_idle(drop(tmp_path), first[-1].position) == []
    assert (tmp_path / "taken" / "b.csv").exists()


def test_a_drop_feed_that_dies_in_the_middle_of_a_file_goes_on_at_the_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + lines(0, 150_000), encoding="utf-8")
    with closing(drop(tmp_path).batches("")) as batches:
        first = next(batches)
    assert (tmp_path / "a.csv").exists()
    rest = until_idle(drop(tmp_path), first.position)
    assert len(observed([first, *rest])) == 150_000
    assert (tmp_path / "taken" / "a.csv").exists()


@pytest.mark.parametrize("batches_before_the_crash", [1])
def test_a_store_that_was_killed_between_batches_has_every_row_once(
    tmp_path: Path, batches_before_the_crash: int
) -> None:
    inbox, table = tmp_path / "inbox", (HEADER + lines(0, 150_000)).splitlines(keepends=True)
    inbox.mkdir()
    (inbox / "a.csv").write_text("".join(table), encoding="utf-8")
    store = Store.create(tmp_path / "store.duckdb", bytes(32))
    store.close()
    for most in (batches_before_the_crash, 100):
        with Store.open(tmp_path / "store.duckdb", bytes(32)) as opened:
            ingest = Ingest(pseudonym=str)
            with closing(drop(inbox).batches(opened.position("d"))) as batches:
                for number, batch in enumerate(batches, start=1):
                    if batch.is_empty and not batch.position:
                        break
                    opened.commit(ingest.take(batch, "d"))
                    if number == most:
                        break  # closed without being asked for more: not acknowledged
    with Store.open(tmp_path / "store.duckdb", bytes(32)) as opened:
        assert len(opened.site("s", purpose="care", marked=True).observations) == 150_000
        assert opened.counts().query("fate == 'kept'")["rows"].sum() == 150_000
    assert (inbox / "taken" / "a.csv").exists()


def test_a_file_that_is_still_being_written_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "slow.csv"
    taken: list[Batch] = []
    with closing(drop(tmp_path, settle_s=0.1).batches("")) as batches:
        with path.open("w", encoding="utf-8") as handle:
            handle.write(HEADER)
            for k in range(12):
                handle.write(lines(k, k + 1))
                handle.flush()
                assert next(batches).is_empty  # at each look there is more of it than at the one before
        for _ in range(100):
            taken.append(next(batches))
            if not path.exists():
                break
    assert len(observed(taken)) == 12


def test_a_position_that_is_damaged_is_said_to_be(tmp_path: Path) -> None:
    for feed in (drop(tmp_path), build("folder", {"name": "f", "path": str(tmp_path)})):
        with pytest.raises(DataError, match="position"):
            next(feed.batches('{"files": 7'))


def test_a_published_recording_comes_through_the_feed_as_through_the_folder(
    tmp_path: Path, recordings: Path
) -> None:
    convert([Job(name="hall", source=recordings / "hall")], tmp_path)
    (site,) = read_folder(tmp_path)
    ingest = Ingest(pseudonym=str)
    fed = pd.concat([ingest.take(batch, "f").observations for batch in read("folder", tmp_path / "hall")])
    key = ["patient_id", "signal", "time", "value"]
    pd.testing.assert_frame_equal(
        fed[key].sort_values(key[:3], ignore_index=True), site.observations[key], check_dtype=False
    )


@pytest.mark.parametrize("kind", ["folder", "clarity"])
def test_a_line_that_was_read_half_written_is_read_whole_when_the_file_grew(
    tmp_path: Path, kind: str
) -> None:
    name, text = (
        ("observations.csv", HEADER + lines(0, 5)) if kind == "folder" else ("a.csv", exported.CLARITY)
    )
    folder = tmp_path / "p1"
    folder.mkdir()
    path, root = folder / name, folder if kind == "folder" else tmp_path
    text = "\n".join(line for line in text.splitlines() if "broken" not in line) + "\n"
    path.write_text(text[:-12], encoding="utf-8")
    early = read(kind, root)
    path.write_text(text, encoding="utf-8")
    late = read(kind, root, early[-1].position)
    whole = observed(read(kind, root))
    both = observed([*early, *late])
    assert len(late[-1].observations) == 1
    assert both.iloc[-1].to_dict() == whole.iloc[-1].to_dict()


def test_a_file_that_was_put_in_the_place_of_one_being_read_is_read_too(tmp_path: Path) -> None:
    path, newer = tmp_path / "a.csv", tmp_path / "new.part"
    path.write_text(HEADER + lines(0, 100_000), encoding="utf-8")
    newer.write_text(HEADER + lines(100_000, 100_010), encoding="utf-8")
    taken: list[Batch] = []
    with closing(drop(tmp_path).batches("")) as batches:
        for batch in batches:
            if batch.is_empty and not path.exists():
                break
            taken.append(batch)
            if newer.exists():
                newer.replace(path)
    assert len(observed(taken)) == 100_010


def test_a_file_whose_name_is_as_long_as_names_can_be_stops_no_other(tmp_path: Path) -> None:
    name = f"{'ä' * 125}.csv"
    for _ in range(2):
        (tmp_path / name).write_text("a poem\n", encoding="utf-8")
        (tmp_path / "ö.csv").write_text(HEADER + lines(0, 3), encoding="utf-8")
        assert len(until_idle(drop(tmp_path))) == 2
    assert len(list((tmp_path / "refused").iterdir())) == 4


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("folder", "observations.csv", HEADER + "p,2024-01-01T00:00:00Z,glucose,99,mg/dL\n"),
        ("fhir_files", "a.ndjson", exported.FHIR_GLUCOSE),
        ("hl7v2_files", "a.hl7", exported.HL7_SPO2),
    ],
    ids=["folder", "fhir_files", "hl7v2_files"],
)
def test_a_file_that_may_not_be_read_is_read_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    more = {"settle_s": 0.0} if kind == "folder" else {}

    def start(position: str) -> list[Batch]:
        return list(build(kind, {"name": "f", "path": str(tmp_path), **more}).batches(position))

    def forbidden(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:  # root, as whom tests may run, may read every file
        patched.setattr("twin.connectors.progress._opened", forbidden)
        early = start("")
    assert not len(observed(early)) and sum(early[-1].rejected.values()) == 1
    late = start(early[-1].position)
    assert len(observed(late)) == 1
    assert not any(len(batch.observations) for batch in start(late[-1].position))
