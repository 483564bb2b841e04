"""Virtual hospitals and the public population: contract, plausibility, reproduction, differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from twin.connectors.virtual import public_population, virtual_sites
from twin.errors import DataError
from twin.site import Site

COLUMNS = ["patient_id", "signal", "time", "value", "source", "quality"]


@pytest.fixture(scope="module")
def hospitals() -> tuple[Site, ...]:
    return virtual_sites(sites=4, patients_per_site=12, days=7, seed=0)


@pytest.fixture(scope="module")
def public() -> Site:
    return public_population()


def glucose(site: Site) -> pd.DataFrame:
    return site.observations[site.observations["signal"] == "glucose"]


def time_share(site: Site, low: float, high: float) -> float:
    """Mean over patients of the share of readings from `low` to `high` mg/dL."""
    inside = glucose(site)["value"].between(low, high)
    return float(inside.groupby(glucose(site)["patient_id"]).mean().mean())


def test_every_site_keeps_the_contract_of_a_site(hospitals: tuple[Site, ...], public: Site) -> None:
    for site in (*hospitals, public):
        rows = site.observations
        assert list(rows.columns) == COLUMNS
        assert str(rows["time"].dtype) == "datetime64[us, UTC]"
        assert rows["value"].dtype == np.float64
        assert not rows.isna().to_numpy().any()
        keys = ["patient_id", "signal", "time"]
        assert not rows.duplicated(keys).any()
        pd.testing.assert_frame_equal(rows, rows.sort_values(keys, kind="stable", ignore_index=True))
        assert site.patients.index.is_unique
        assert site.patients.index.is_monotonic_increasing
        assert set(rows["patient_id"]) <= set(site.patients.index)
        assert set(site.step_min) == set(rows["signal"])
        dropped = sum(site.quality.dropped.values()) + sum(site.quality.quarantined.values())
        assert site.quality.rows_read == site.quality.rows_kept + dropped
        assert site.quality.rows_kept == len(rows)


def test_readings_stay_within_the_range_of_a_sensor(hospitals: tuple[Site, ...], public: Site) -> None:
    for site in (*hospitals, public):
        assert glucose(site)["value"].between(40.0, 400.0).all()


def test_doses_and_meals_are_positive_and_plausible(hospitals: tuple[Site, ...]) -> None:
    limits = {
        "carbohydrates": (0.5, 400.0),
        "insulin_bolus": (0.05, 25.0),
        "insulin_basal": (0.05, 6.0),
        "heart_rate": (38.0, 200.0),
        "steps": (0.0, 1500.0),
    }
    for site in hospitals:
        for signal, values in site.observations.groupby("signal")["value"]:
            if signal in limits:
                assert values.between(*limits[str(signal)]).all(), signal


def test_control_is_like_that_of_people_with_type_1_diabetes(hospitals: tuple[Site, ...]) -> None:
    for site in hospitals:
        per_patient = glucose(site).groupby("patient_id")["value"]
        variation = (per_patient.std() / per_patient.mean()).mean()
        assert 0.50 < time_share(site, 70.0, 180.0) < 0.82, site.name
        assert 0.28 < variation < 0.45, site.name
        assert 0.01 < time_share(site, 0.0, 69.9) < 0.09, site.name


def test_patients_differ_in_control(hospitals: tuple[Site, ...]) -> None:
    inside = glucose(hospitals[0])["value"].between(70.0, 180.0)
    shares = inside.groupby(glucose(hospitals[0])["patient_id"]).mean()
    assert shares.std() > 0.04


def test_hospitals_differ_in_step_and_in_what_they_record(hospitals: tuple[Site, ...]) -> None:
    assert {site.step_min["glucose"] for site in hospitals} == {5.0, 15.0}
    for site in hospitals:
        gaps = glucose(site).groupby("patient_id")["time"].diff().dt.total_seconds() / 60.0
        assert gaps.median() == site.step_min["glucose"]
    recorded = [frozenset(site.observations["signal"]) for site in hospitals]
    assert frozenset({"glucose"}) in recorded
    assert len(set(recorded)) == len(recorded)


def test_glucose_rises_after_written_meals_and_less_so_elsewhere(hospitals: tuple[Site, ...]) -> None:
    rows = hospitals[0].observations
    meals = rows[(rows["signal"] == "carbohydrates") & (rows["value"] >= 40.0)]
    changes = []
    for patient, eaten in meals.groupby("patient_id"):
        of_patient = glucose(hospitals[0])
        series = of_patient[of_patient["patient_id"] == patient].set_index("time")["value"]
        later = series.reindex(eaten["time"] + pd.Timedelta(minutes=60)).to_numpy()
        changes.append(later - series.reindex(eaten["time"]).to_numpy())
    assert np.nanmean(np.concatenate(changes)) > 15.0


def test_the_same_seed_gives_the_same_hospitals_and_another_seed_others() -> None:
    first, again = (virtual_sites(sites=2, patients_per_site=3, days=2, seed=5) for _ in range(2))
    other = virtual_sites(sites=2, patients_per_site=3, days=2, seed=6)
    for a, b, c in zip(first, again, other, strict=True):
        pd.testing.assert_frame_equal(a.observations, b.observations)
        pd.testing.assert_frame_equal(a.patients, b.patients)
        assert not a.observations.equals(c.observations)


def test_more_hospitals_do_not_change_the_first() -> None:
    few = virtual_sites(sites=1, patients_per_site=3, days=2, seed=5)
    many = virtual_sites(sites=6, patients_per_site=3, days=2, seed=5)
    pd.testing.assert_frame_equal(few[0].observations, many[0].observations)
    assert [site.name for site in many] == [f"hospital_{k}" for k in range(1, 7)]


def test_hospitals_of_one_kind_differ() -> None:
    sites = virtual_sites(sites=5, patients_per_site=3, days=2, seed=5)
    assert set(sites[0].observations["signal"]) == set(sites[4].observations["signal"])
    assert not np.array_equal(glucose(sites[0])["value"], glucose(sites[4])["value"])


def test_one_patient_for_one_day_is_enough() -> None:
    (site,) = virtual_sites(sites=1, patients_per_site=1, days=1, seed=0)
    assert list(site.patients.index) == ["hospital_1-001"]
    assert len(glucose(site)) > 100


def test_a_thousand_patients_keep_their_order() -> None:
    (site,) = virtual_sites(sites=1, patients_per_site=1001, days=1, seed=0)
    assert site.patients.index.is_monotonic_increasing
    assert site.observations["patient_id"].is_monotonic_increasing
    assert site.patients.index[-1] == "hospital_1-1001"


def test_the_public_population_is_always_the_same_draw(public: Site) -> None:
    pd.testing.assert_frame_equal(public.observations, public_population().observations)


def test_the_public_population_mixes_people_steps_and_records(public: Site) -> None:
    kinds = public.patients["diabetes"].value_counts()
    assert set(kinds.index) == {"type 1", "type 2", "prediabetes", "none"}
    assert len(public.patients) == 96
    gaps = glucose(public).groupby("patient_id")["time"].diff().dt.total_seconds() / 60.0
    assert set(gaps.groupby(glucose(public)["patient_id"]).median()) == {5.0, 15.0}
    with_insulin = set(
        public.observations.loc[public.observations["signal"] == "insulin_bolus", "patient_id"]
    )
    type_1 = set(public.patients.index[public.patients["diabetes"] == "type 1"])
    assert with_insulin < type_1
    assert "heart_rate" in set(public.observations["signal"])


def test_public_people_without_diabetes_are_steadier(public: Site) -> None:
    rows = glucose(public).merge(public.patients["diabetes"], left_on="patient_id", right_index=True)
    spread = rows.groupby(["diabetes", "patient_id"])["value"].std().groupby("diabetes").mean()
    mean = rows.groupby("diabetes")["value"].mean()
    assert spread["none"] < spread["prediabetes"] < spread["type 1"]
    assert 90.0 < mean["none"] < 115.0
    assert mean["none"] < mean["prediabetes"] < mean["type 2"]


def test_half_hour_changes_are_as_large_as_published_cohorts_show(public: Site) -> None:
    rows = glucose(public)
    changes = {}
    for kind, members in public.patients.groupby("diabetes"):
        of_kind = rows[rows["patient_id"].isin(members.index)]
        later = of_kind.assign(time=of_kind["time"] - pd.Timedelta(minutes=30))
        both = of_kind.merge(later, on=["patient_id", "time"], suffixes=("", "_later"))
        changes[kind] = float((both["value_later"] - both["value"]).std())
    assert 8.0 < changes["none"] < 15.0
    assert 18.0 < changes["type 1"] < 30.0


def test_the_public_population_is_not_among_the_hospitals(hospitals: tuple[Site, ...], public: Site) -> None:
    def weights(site: Site) -> set[float]:
        return set(site.patients.loc[site.patients["diabetes"] == "type 1", "weight_kg"])

    for site in hospitals:
        assert weights(site) != weights(public)
        assert len(weights(site) & weights(public)) < len(weights(site)) / 2


@pytest.mark.parametrize("wrong", [{"sites": 0}, {"patients_per_site": 0}, {"days": 0}])
def test_an_empty_population_is_refused(wrong: dict[str, int]) -> None:
    arguments = {"sites": 1, "patients_per_site": 1, "days": 1, "seed": 0, **wrong}
    with pytest.raises(DataError, match="at least 1"):
        virtual_sites(**arguments)
