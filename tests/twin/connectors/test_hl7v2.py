from __future__ import annotations

from pathlib import Path
from typing import Any

import hl7
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.connectors.hl7v2 import Answer, Reading, answer_to, messages_in
from twin.connectors.hl7v2_fields import Separators, iso_time, separators_of
from twin.connectors.hl7v2_files import Hl7v2Files
from twin.connectors.rows import Rows

MSH = r"MSH|^~\&|MON|ICU|TW|H|20240301100000+0100||ORU^R01^ORU_R01|42|P|2.5||||||{}"
PID = "PID|1||111^^^LAB^PI~222^^^HOSP^MR||MILLER^ANN||19700203|F"
OBR = "OBR|1|||X^Y|||20240301095500"


def obx(value: str = "72", **more: str) -> str:
    fields = {"2": "NM", "3": "8867-4^Heart rate^LN", "5": value, "6": "/min", "11": "F"}
    fields |= {name.removeprefix("f"): entry for name, entry in more.items()}
    return "OBX|" + "|".join(fields.get(str(k), "") for k in range(1, 19))


def message(*segments: str, charset: str = "", encoding: str = "utf-8") -> bytes:
    return "\r".join([MSH.format(charset), *segments]).encode(encoding) + b"\r"


def take(*segments: str, **options: Any) -> tuple[Rows, Answer]:
    rows = Rows()
    return rows, Reading(**options).take(message(*segments), rows)


def test_a_row_has_patient_time_code_value_unit_and_device() -> None:
    rows, answer = take(PID, OBR, obx(f18="PUMP-7^ACME"), obx("98", f14="20240301100001.5-0500"))
    assert answer.code == "AA" and not rows.rejected
    assert rows.observed == [
        ("222", "2024-03-01T09:55:00+01:00", "loinc", "8867-4", 72.0, "/min", "PUMP-7"),
        ("222", "2024-03-01T10:00:01.5-05:00", "loinc", "8867-4", 98.0, "/min", ""),
    ]
    assert rows.facts == [("222", "birth_date", "1970-02-03"), ("222", "sex", "female")]


def test_the_patient_is_named_by_the_authority_that_is_asked_for() -> None:
    assert take(PID, obx(), authority="LAB")[0].observed[0][0] == "111"
    rows, answer = take(PID, obx(), authority="OTHER")
    assert answer.code == "AE" and not rows.observed and rows.rejected["no patient"] == 1


def test_ihe_devices_write_mdc_codes_and_units_with_their_translation() -> None:
    unit = "264864^MDC_DIM_BEAT_PER_MIN^MDC^{beat}/min^beat/min^UCUM"
    rows, _ = take(PID, obx(f3="149530^MDC_PULS_OXIM_PULS_RATE^MDC", f6=unit, f11="R"))
    assert rows.observed[0][2:6] == ("mdc", "149530", 72.0, "{beat}/min")
    local, _ = take(PID, obx(f3="HR^pulse^99MON^8867-4^Heart rate^LN"))
    assert local.observed[0][2:4] == ("loinc", "8867-4")
    own, _ = take(PID, obx(f3="HR^pulse"))
    assert own.observed[0][2:4] == ("hl7v2", "HR")


@pytest.mark.parametrize(
    ("more", "values", "reason"),
    [
        ({"f2": "SN", "f5": "^182"}, [182.0], None),
        ({"f2": "SN", "f5": "=^182"}, [182.0], None),
        ({"f2": "SN", "f5": "<^40"}, [], "a bound, range or ratio, no value"),
        ({"f2": "SN", "f5": "^1^:^128"}, [], "a bound, range or ratio, no value"),
        ({"f5": "71~73"}, [71.0, 73.0], None),
        ({"f5": "5,4"}, [], "unreadable value"),
        ({"f5": "1e3"}, [], "unreadable value"),
        ({"f5": "nan"}, [], "unreadable value"),
        ({"f5": '""'}, [], "no value"),
        ({"f2": "TX", "f5": "72"}, [], "OBX-2 is TX, no number"),
        ({"f2": "CE", "f5": "72^x"}, [], "OBX-2 is CE, no number"),
        ({"f2": "MILLER"}, [], "OBX-2 is unknown, no number"),
        ({"f11": "X"}, [], "observation without a result"),
        ({"f3": ""}, [], "observation without a code"),
    ],
)
def test_numbers_are_taken_and_all_else_is_counted(
    more: dict[str, str], values: list[float], reason: str | None
) -> None:
    rows, answer = take(PID, OBR, obx(**more), obx("60"))
    assert [row[4] for row in rows.observed] == [*values, 60.0]
    assert answer.code == "AA" and dict(rows.rejected) == ({reason: 1} if reason else {})


def test_corrections_and_deletions_take_rows_back() -> None:
    deleted, _ = take(PID, OBR, obx("72"), obx("", f11="D"))
    corrected, _ = take(PID, OBR, obx("72"), obx("80", f11="C"))
    wrong, _ = take(PID, OBR, obx("72", f11="W"))
    for rows, values in ((deleted, []), (corrected, [80.0]), (wrong, [])):
        batch = rows.batch("")
        assert list(batch.observations["value"]) == values
        assert list(batch.withdrawn["code"]) == ["8867-4"]


def test_escapes_stand_for_what_they_mean() -> None:
    marks = Separators(field="|", component="^", repeat="~", escape="\\", sub="&")
    assert marks.text(r"a\F\b\S\c\T\d\R\e\E\f\X4A4B\\H\g\.br\\Zx\ ") == "a|b^c&d~e\\fJKg "
    rows, _ = take(PID.replace("222", r"2\T\2"), obx(f6=r"mg\E\dL"))
    assert rows.observed[0][0] == "2&2" and rows.observed[0][5] == "mg\\dL"


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [("8859/1", "latin-1"), ("UNICODE UTF-8", "utf-8"), ("", "utf-8"), ("GB 18030-2000", "gb18030")],
)
def test_identifiers_are_read_in_the_character_set_of_the_message(charset: str, encoding: str) -> None:
    rows = Rows()
    text = message(PID.replace("222", "Ü22"), obx(), charset=charset, encoding=encoding)
    assert Reading().take(text, rows).code == "AA"
    assert rows.observed[0][0] == "Ü22"


def test_an_identifier_in_an_unknown_character_set_is_not_guessed() -> None:
    rows = Rows()
    odd = PID.replace("222^^^HOSP^MR", "Ü22^^^HOSP^MR").replace("111^^^LAB^PI~", "")
    assert Reading().take(message(odd, obx(), charset="KLINGON"), rows).code == "AE"
    assert not rows.observed


def test_several_patients_of_a_message_keep_their_own_rows() -> None:
    other = PID.replace("222", "333")
    rows, _ = take(PID, OBR, obx("70"), other, obx("90"), "NTE|1||free text", "obx|broken", "OBX")
    assert [(row[0], row[1], row[4]) for row in rows.observed] == [
        ("222", "2024-03-01T09:55:00+01:00", 70.0),
        ("333", "", 90.0),
    ]
    assert rows.rejected == {"unreadable segment OBX": 1}


@pytest.mark.parametrize(
    ("change", "code", "error"),
    [
        (("ORU^R01^ORU_R01", "ADT^A01"), "AR", "200"),
        (("|P|2.5", "|T|2.5"), "AR", "202"),
        (("MSH|^~\\&", "MSH|||||"), "AR", "100"),
        (("PID|", "ZID|"), "AE", "101"),
    ],
)
def test_what_is_not_taken_is_answered_with_its_error(change: tuple[str, str], code: str, error: str) -> None:
    text = message(PID, obx()).decode().replace(*change).encode()
    rows = Rows()
    answer = Reading().take(text, rows)
    assert answer.code == code and not rows.observed and rows.rejected
    said = answer_to(text, answer, now="20240301", control_id="a1").decode().split("\r")
    assert said[1].startswith(f"MSA|{code}|")
    assert said[2].startswith(f"ERR|||{error}^") and said[2].endswith("^HL70357|E")


def test_an_answer_names_the_message_and_turns_sender_and_receiver_round() -> None:
    said = hl7.parse(answer_to(message(PID), Answer(code="AA"), now="20240301", control_id="a1").decode())
    assert [str(said[0][k]) for k in (3, 4, 5, 6, 9, 10, 11, 12)] == [
        *("TW", "H", "MON", "ICU", "ACK^R01", "a1", "P", "2.5")
    ]
    assert [str(field) for field in said[1]] == ["MSA", "AA", "42"]


def test_times_keep_their_offset_and_else_take_that_of_the_message() -> None:
    assert iso_time("202403011000", "") == "2024-03-01T10:00:00"
    assert iso_time("20240301100059.1234-0330", "+0100") == "2024-03-01T10:00:59.1234-03:30"
    assert iso_time("20240301100059", "+0100") == "2024-03-01T10:00:59+01:00"
    assert iso_time("20240301", "+0100") == "2024-03-01"
    assert iso_time("yesterday", "") == "yesterday"


def test_our_cutting_agrees_with_the_library_on_every_message_there_is(recordings: Path) -> None:
    compared = 0
    for path in sorted((recordings / "hl7v2").glob("*.hl7")):
        for text in messages_in(path.read_bytes()):
            if text is None:
                continue
            theirs = hl7.parse(text.decode("latin-1").replace("\r\n", "\r").replace("\n", "\r"))
            marks = separators_of(text)
            assert marks is not None
            lines = [line for line in text.decode("latin-1").replace("\n", "\r").split("\r") if line]
            for line, segment in zip(lines, theirs, strict=True):
                assert marks.fields(line) == [str(field) for field in segment]
                compared += 1
    assert compared > 100


def test_the_folder_of_messages_is_read_whatever_is_broken_in_it(recordings: Path) -> None:
    feed = Hl7v2Files(name="t", path=recordings / "hl7v2", default_system="loinc")
    (batch,) = feed.batches("")
    assert batch.observations.to_dict("records") == [
        {
            "patient": "555-44-4444",
            "time": "2002-02-15T07:30:00",
            "system": "loinc",
            "code": "1554-5",
            "value": 182.0,
            "unit": "mg/dl",
            "device": "",
        }
    ]
    assert batch.rejected["segments outside a message"] == 3
    assert batch.rejected["OBX-2 is FN, no number"] == 1
    assert list(feed.batches(batch.position)) == []


def test_a_file_of_many_messages_goes_on_where_it_was_left(tmp_path: Path) -> None:
    text = (
        b"FHS|x\rBHS|y\r"
        + b"".join(message(PID, OBR, obx(str(60 + k))) for k in range(9))
        + b"BTS|9\rFTS|1\r"
    )
    (tmp_path / "day.hl7").write_bytes(text)
    feed = Hl7v2Files(name="t", path=tmp_path, rows_per_batch=6)
    batches = list(feed.batches(""))
    assert [row for batch in batches for row in batch.observations["value"]] == [60.0 + k for k in range(9)]
    rest = [row for batch in feed.batches(batches[0].position) for row in batch.observations["value"]]
    assert [*batches[0].observations["value"], *rest] == [60.0 + k for k in range(9)]


GOOD = message(PID, OBR, obx("61"), obx("62"))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3)), min_size=1, max_size=5))
def test_fuzz_a_mutated_message_never_raises_nor_costs_the_next_one(changes: list[tuple[int, bytes]]) -> None:
    mutated = bytearray(GOOD)
    for place, put in changes:
        mutated[place : place + len(put)] = put
    rows = Rows()
    answer = Reading().take(bytes(mutated), rows)
    answer_to(bytes(mutated), answer, now="", control_id="")
    if answer.code != "AA":
        assert rows.rejected and not rows.observed
    found = Rows()
    for one in messages_in(bytes(mutated) + b"\r" + GOOD):
        if one is not None:
            Reading().take(one, found)
    assert [row[4] for row in found.observed][-2:] == [61.0, 62.0]
    found.batch("")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_fuzz_one_spoilt_segment_leaves_the_others(junk: bytes) -> None:
    line = junk.replace(b"\r", b"").replace(b"\n", b"")
    text = message(PID, OBR, obx("61")) + b"OBX|2|NM|" + line + b"\r" + obx("62").encode() + b"\r"
    rows = Rows()
    Reading().take(text, rows)
    values = [row[4] for row in rows.observed]
    assert values[0] == 61.0 and values[-1] == 62.0
