"""The planner against the mechanism that it speaks of, and against accounting."""

from __future__ import annotations

import json
import math

import pytest
import torch

from privacy.accounting import GaussianRelease, epsilon
from privacy.errors import PrivacyError
from privacy.noise import NoiseStream, add_noise
from privacy.planner import PlanReport, plan


def report(
    patients: tuple[int, ...] = (57, 208, 9),
    *,
    epsilon: float | None = 8.0,
    noise_multiplier: float | None = None,
    sampling_rate: float = 1.0,
    steps: int = 20,
    parameters: int = 400,
    earlier: tuple[GaussianRelease, ...] = (),
    minimum_patients: int = 1,
) -> PlanReport:
    return plan(
        patients=patients,
        epsilon=epsilon,
        delta=1e-4,
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        steps=steps,
        clip_norm=0.5,
        parameters=parameters,
        earlier=earlier,
        minimum_patients=minimum_patients,
    )


def test_the_noise_it_tells_is_the_noise_that_the_mechanism_adds() -> None:
    told = report((57,), noise_multiplier=3.0, sampling_rate=0.5, steps=16, parameters=5000).sites[0]
    total = torch.zeros(5000, dtype=torch.float64)
    for step in range(16):
        stream = NoiseStream(bytes(32), f"{step}".encode())
        total += add_noise({"w": torch.zeros(5000)}, 3.0 * 0.5, stream)["w"] / (0.5 * 57)
    assert float((total / 16).norm()) == pytest.approx(told.noise_norm, rel=0.05)


def test_the_fewest_patients_are_where_the_ratio_passes_one() -> None:
    fewest = report().minimum_patients
    below, above = report((fewest - 1, fewest)).sites
    assert (below.verdict, above.verdict) == ("below noise", "above noise")
    assert below.ratio < 1 <= above.ratio


def test_nine_patients_are_below_noise_at_epsilon_two_and_the_federation_is_not() -> None:
    told = report((57, 208, 9, 9), epsilon=2.0)
    assert [site.verdict for site in told.sites] == [
        "above noise",
        "above noise",
        "below noise",
        "below noise",
    ]
    assert told.federation is not None
    assert told.federation.verdict == "above noise"


def test_sites_add_their_noise_as_squares() -> None:
    told = report((40, 40, 40, 40))
    assert told.federation is not None
    assert told.federation.noise_norm == pytest.approx(told.sites[0].noise_norm / 2)


def test_a_site_below_the_policys_minimum_is_refused_and_left_out_of_the_federation() -> None:
    told = report((57, 3, 4), minimum_patients=5)
    assert [site.verdict for site in told.sites] == ["above noise", "refused", "refused"]
    assert told.federation is None
    assert "refused" in str(told)


def test_more_rounds_at_the_same_epsilon_change_the_ratio_hardly() -> None:
    few, many = report((57,), steps=20).sites[0], report((57,), steps=2000).sites[0]
    assert few.ratio == pytest.approx(many.ratio, rel=1e-3)


def test_plans_and_what_was_spent_earlier_add_up_as_accounting_says() -> None:
    spent = GaussianRelease(noise_multiplier=5.0, sampling_rate=1.0, steps=20)
    told = report(earlier=(spent,))
    assert told.epsilon <= 8.0
    assert told.epsilon_with_earlier == epsilon([spent, told.release], 1e-4) > told.epsilon
    assert told.epsilon_of_plans[4] == epsilon([spent, *[told.release] * 4], 1e-4)
    assert list(told.epsilon_of_plans) == [1, 2, 4, 12]


def test_the_report_reads_as_json_and_as_text() -> None:
    told = report()
    plain = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert plain["unit"] == "patient"
    assert plain["sites"][2]["patients"] == 9
    text = str(told)
    for words in (
        "delta 0.0001",
        "upper bound",
        "add or remove one patient",
        "12: 43.3",
        "signal can stand above noise",
    ):
        assert words in text


def test_without_noise_the_cost_is_unbounded_and_json_has_no_infinity() -> None:
    told = report(noise_multiplier=0.0)
    assert told.epsilon == math.inf
    assert "unbounded" in str(told)
    assert json.loads(json.dumps(told.to_dict(), allow_nan=False))["epsilon"] is None


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(PrivacyError, match=r"patients.*parameters.*steps.*sampling_rate"):
        report((0,), parameters=0, steps=0, sampling_rate=0.0)
    with pytest.raises(PrivacyError, match="both are null"):
        report(epsilon=None)
