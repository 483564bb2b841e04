"""What leaves for research holds no date, no old age, no place and no text that could name a patient."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from twin.deidentify import FIRST_DAY, deidentify, identifiers_in
from twin.errors import DataError
from twin.site import Site


def _site(**facts: list[object]) -> Site:
    times = pd.to_datetime(
        ["2024-03-09T23:50Z", "2024-03-10T00:10Z", "1987-07-01T08:00Z"], utc=True, format="ISO8601"
    ).as_unit("us")
    observations = pd.DataFrame(
        {
            "patient_id": pd.Series(["a", "a", "b"], dtype="str"),
            "signal": pd.Series(["glucose"] * 3, dtype="str"),
            "time": times,
            "value": [100.0, 110.0, 90.0],
            "source": pd.Series(["ward 3/pump 7"] * 3, dtype="str"),
            "quality": pd.Series([""] * 3, dtype="str"),
        }
    )
    patients = pd.DataFrame(facts, index=pd.Index(["a", "b"], dtype="str", name="patient_id"))
    return Site(name="north", observations=observations, patients=patients)


def _name(patient: str) -> str:
    return f"study-{patient}"


def test_every_record_begins_on_the_same_day_and_keeps_distances_and_the_time_of_day() -> None:
    site = _site()
    out = deidentify(site, _name).site
    assert set(out.patients.index) == {"study-a", "study-b"}
    for patient in "ab":
        before = site.observations.query(f"patient_id == '{patient}'")["time"]
        after = out.observations.query(f"patient_id == 'study-{patient}'")["time"]
        assert after.iloc[0].normalize() == FIRST_DAY
        assert (after.diff().dropna().to_numpy() == before.diff().dropna().to_numpy()).all()
        assert (after.dt.time.to_numpy() == before.dt.time.to_numpy()).all()
    assert set(out.observations["source"]) == {""}


@pytest.mark.parametrize(
    ("birth", "age"),
    [("1990-03-09", 34.0), ("1990-03-10", 33.0), ("1934-03-09", 90.0), ("1910", 90.0), ("", np.nan)],
)
def test_of_birth_only_the_age_in_whole_years_stays_and_above_89_it_is_90(birth: str, age: float) -> None:
    out = deidentify(_site(birth_date=[birth, "1950-01-01"]), _name)
    assert list(out.site.patients.columns) == ["age"]
    assert out.site.patients.loc["study-a", "age"] == pytest.approx(age, nan_ok=True)
    assert out.aggregated == (age == 90.0)


def test_facts_leave_only_if_they_are_on_the_list_and_areas_of_few_people_do_not() -> None:
    out = deidentify(
        _site(
            sex=["female", "male"],
            family_name=["Kirk", "Scott"],
            zip=["03601", "94110"],
            weight_kg=[70.0, np.nan],
            notes=["", np.nan],
        ),
        _name,
    )
    assert sorted(out.site.patients.columns) == ["postal_area", "sex", "weight_kg"]
    assert out.site.patients["postal_area"].to_dict() == {"study-a": "000", "study-b": "941"}
    assert out.held_back == {"family_name": 2, "notes": 1}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("james@enterprise.org", "e-mail"),
        ("see www.ufp.org/kirk", "web address"),
        ("10.0.0.17", "network address"),
        ("078-05-1120", "social security"),
        ("GB33BUKB20201555555555", "bank account"),
        ("+44 151 496 0321", "telephone"),
        ("22.03.1931", "date"),
        ("22 March 1931", "date"),
        ("0044711", "number of a record"),
        ("Dr. McCoy", "title"),
        ("lives with her sister at the harbour", "free text"),
        ("male Kirk", "name or identifier"),
    ],
)
def test_a_text_that_looks_like_an_identifier_stops_the_export_without_being_shown(
    text: str, kind: str
) -> None:
    assert any(found.startswith(kind) for found in identifiers_in(text, ["Kirk"]))
    with pytest.raises(DataError) as refused:
        deidentify(_site(sex=[text, "male"]), _name, known=["Kirk"])
    assert "sex" in str(refused.value) and kind in str(refused.value) and text not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["female", "type 1", "non-Hispanic white", "MDI", "closed loop", "42", "I10"]
)
def test_words_of_categories_pass(text: str) -> None:
    assert identifiers_in(text, ["Kirk"]) == ()
