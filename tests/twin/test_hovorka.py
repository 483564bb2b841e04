"""The batched model against a scalar restatement of the papers, conservation laws and limits."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from twin.physiology import hovorka
from twin.physiology.equilibrium import equilibrium
from twin.physiology.hovorka import (
    D1,
    D2,
    INSULIN,
    MMOL_PER_G_GLUCOSE,
    Q1,
    S1,
    S2,
    Array,
    Inputs,
    Subjects,
    derivatives,
)
from twin.physiology.parameters import HEALTHY, TYPE_1, TYPE_2, draw_subjects
from twin.physiology.solver import advance, rk4_step
from twin.signals import MG_DL_PER_MMOL_L

KINDS = {"type 1": TYPE_1, "type 2": TYPE_2, "none": HEALTHY}


def people(kind: str, count: int, seed: int = 7) -> Subjects:
    return draw_subjects(KINDS[kind], count, np.random.default_rng(seed))


def held(subjects: Subjects, factor: float = 1.0) -> Inputs:
    """Inputs that hold the fasting glucose, or `factor` times that insulin."""
    steady = equilibrium(subjects)
    infused = np.where(subjects.secretion_static > 0.0, 0.0, steady.supply_P)
    ones = np.ones(len(subjects))
    return Inputs(insulin_P=factor * infused, sensitivity_P=ones, production_P=ones)


def after(subjects: Subjects, minutes: float, *, meal_g: float = 0.0, bolus_u: float = 0.0) -> Array:
    """States some time after a meal and a bolus taken in equilibrium."""
    states = equilibrium(subjects).states_SP.copy()
    states[D1] += subjects.ag * meal_g * MMOL_PER_G_GLUCOSE / subjects.weight_kg
    states[S1] += bolus_u * 1000.0 / subjects.weight_kg
    return advance(partial(derivatives, subjects=subjects, inputs=held(subjects)), states, minutes, 2.5)


def restated(_t: float, x: list[float], p: dict[str, float], u: float, si: float, pr: float) -> list[float]:
    """One person, written from the papers once more: concentrations in mmol/L, masses per kg."""
    s1, s2, ins, x1, x2, x3, q1, q2, g1, g2, c, y = x
    g = q1 / p["vg_l_per_kg"]
    f01c = p["f01"] / 0.85 * g / (g + 1)
    excreted = 0.0
    if g > p["renal_threshold_mmol_l"]:
        excreted = p["renal_clearance_per_min"] * (g - p["renal_threshold_mmol_l"]) * p["vg_l_per_kg"]
    egp = pr * p["egp0"] * (1 - x3) if x3 < 1 else 0.0
    ug = min(g2 / p["tmax_g_min"], p["ug_ceiling"])
    dq1 = -(f01c / g + x1 * p["vg_l_per_kg"]) * g + p["k12_per_min"] * q2 - excreted + ug + egp
    secretion = max(p["secretion_basal"] + y, 0) + p["secretion_dynamic"] * max(dq1 / p["vg_l_per_kg"], 0)
    extraction = max(0.6471 - 0.0304 * 6.0 * secretion, 0.0)
    appearing = p["ka_per_min"] * s2 + (1 - extraction) * secretion
    return [
        u - s1 * p["ka_per_min"],
        s1 * p["ka_per_min"] - s2 * p["ka_per_min"],
        appearing / p["vi_l_per_kg"] - p["ke_per_min"] * ins,
        -p["ka1_per_min"] * x1 + p["ka1_per_min"] * p["sit"] * si * ins,
        -p["ka2_per_min"] * x2 + p["ka2_per_min"] * p["sid"] * si * ins,
        -p["ka3_per_min"] * x3 + p["ka3_per_min"] * p["sie"] * si * ins,
        dq1,
        x1 * q1 - (p["k12_per_min"] + x2) * q2,
        -g1 / p["tmax_g_min"],
        g1 / p["tmax_g_min"] - ug,
        p["ka_int_per_min"] * (g - c),
        -p["secretion_per_min"] * (y - p["secretion_static"] * (g - p["fasting_mmol_l"])),
    ]


def one(subjects: Subjects, index: int) -> dict[str, float]:
    return {name: float(getattr(subjects, name)[index]) for name in Subjects.__dataclass_fields__}


@pytest.mark.parametrize("kind", ["type 1", "type 2", "none"])
def test_a_meal_and_a_bolus_follow_an_adaptive_solver_of_the_restated_equations(kind: str) -> None:
    subjects = people(kind, 4)
    bolus_u = 4.0 if kind == "type 1" else 0.0
    inputs = Inputs(
        insulin_P=held(subjects).insulin_P, sensitivity_P=np.full(4, 1.3), production_P=np.full(4, 1.1)
    )
    start = equilibrium(subjects).states_SP.copy()
    start[D1] += subjects.ag * 60.0 * MMOL_PER_G_GLUCOSE / subjects.weight_kg
    start[S1] += bolus_u * 1000.0 / subjects.weight_kg
    ours, moments = [start], np.arange(0.0, 481.0, 5.0)
    for _ in moments[1:]:
        ours.append(advance(partial(derivatives, subjects=subjects, inputs=inputs), ours[-1], 5.0, 2.5))
    for k in range(4):
        args = (one(subjects, k), float(inputs.insulin_P[k]), 1.3, 1.1)
        exact = solve_ivp(
            restated,
            (0.0, 480.0),
            start[:, k],
            "LSODA",
            moments,
            args=args,
            rtol=1e-10,
            atol=1e-12,
            max_step=5.0,
        )
        scale = MG_DL_PER_MMOL_L / subjects.vg_l_per_kg[k]
        error_mg_dl = scale * np.abs(np.array([s[Q1, k] for s in ours]) - exact.y[Q1])
        assert error_mg_dl.max() < 0.1
        np.testing.assert_allclose(ours[-1][:, k], exact.y[:, -1], rtol=5e-3, atol=1e-6)


def test_the_solver_is_of_fourth_order_on_a_smooth_problem() -> None:
    def error(dt: float) -> float:
        x = np.ones((1, 1))
        for _ in range(round(4.0 / dt)):
            x = rk4_step(lambda s: -s * np.cos(s), x, dt)
        exact = solve_ivp(lambda _t, s: -s * np.cos(s), (0.0, 4.0), [1.0], "DOP853", rtol=1e-13, atol=1e-14)
        return float(abs(x[0, 0] - exact.y[0, -1]))

    assert 3.7 < np.log2(error(0.2) / error(0.1)) < 4.3


def test_the_last_step_is_shortened_so_that_the_duration_is_met() -> None:
    x = advance(np.ones_like, np.zeros((1, 2)), 7.0, 2.5)
    np.testing.assert_allclose(x, 7.0)


@pytest.mark.parametrize("kind", ["type 1", "type 2", "none"])
def test_people_in_equilibrium_stay_there(kind: str) -> None:
    subjects = people(kind, 20)
    steady = equilibrium(subjects)
    assert steady.exists_P.all()
    rates = derivatives(steady.states_SP, subjects, held(subjects))
    np.testing.assert_allclose(rates, 0.0, atol=1e-12)
    later = after(subjects, 1440.0)
    np.testing.assert_allclose(later, steady.states_SP, rtol=1e-9, atol=1e-12)


def test_basal_insulin_is_the_root_that_a_scalar_solver_finds() -> None:
    subjects = people("type 1", 10)
    steady = equilibrium(subjects)
    for k in range(10):
        p = one(subjects, k)

        def gain(insulin: float, p: dict[str, float] = p) -> float:
            x1, x2, g = p["sit"] * insulin, p["sid"] * insulin, p["fasting_mmol_l"]
            q1 = g * p["vg_l_per_kg"]
            x = [0.0, 0.0, insulin, x1, x2, p["sie"] * insulin, q1, x1 * q1 / (p["k12_per_min"] + x2)]
            return restated(0.0, [*x, 0.0, 0.0, g, 0.0], p, 0.0, 1.0, 1.0)[Q1]

        assert brentq(gain, 0.0, 400.0, xtol=1e-12) == pytest.approx(steady.insulin_mu_l_P[k], rel=1e-9)


def test_all_insulin_that_is_given_passes_the_plasma_and_is_eliminated() -> None:
    subjects = people("type 1", 8)
    states = np.zeros_like(equilibrium(subjects).states_SP)
    states[Q1] = subjects.fasting_mmol_l * subjects.vg_l_per_kg
    dose = 5000.0 / subjects.weight_kg
    states[S1] = dose
    rates = partial(derivatives, subjects=subjects, inputs=held(subjects, factor=0.0))
    cleared_per_min = subjects.ke_per_min * subjects.vi_l_per_kg
    eliminated = np.zeros(8)
    for _ in range(1200):
        before = states[INSULIN]
        states = rk4_step(rates, states, 1.0)
        eliminated += 0.5 * cleared_per_min * (before + states[INSULIN])
    remaining = states[S1] + states[S2] + states[INSULIN] * subjects.vi_l_per_kg
    np.testing.assert_allclose(eliminated + remaining, dose, rtol=1e-4)
    assert np.all(eliminated > 0.99 * dose)


def test_all_bioavailable_carbohydrates_appear_even_at_the_guts_ceiling() -> None:
    subjects = people("type 1", 8)
    states = equilibrium(subjects).states_SP.copy()
    eaten = subjects.ag * 150.0 * MMOL_PER_G_GLUCOSE / subjects.weight_kg
    states[D1] += eaten
    appeared, at_ceiling = np.zeros(8), np.zeros(8, dtype=bool)
    rates = partial(derivatives, subjects=subjects, inputs=held(subjects))
    for _ in range(1440):
        before = hovorka.gut_appearance(states[D2], subjects)
        states = rk4_step(rates, states, 1.0)
        now = hovorka.gut_appearance(states[D2], subjects)
        at_ceiling |= now >= subjects.ug_ceiling
        appeared += 0.5 * (before + now)
    assert at_ceiling.any()
    np.testing.assert_allclose(appeared, eaten, rtol=1e-3)


def test_a_meal_raises_glucose_and_more_so_if_it_is_larger() -> None:
    subjects = people("type 1", 30)
    fasting = subjects.fasting_mmol_l
    small, large = (after(subjects, 90.0, meal_g=g)[Q1] / subjects.vg_l_per_kg for g in (30.0, 60.0))
    assert np.all(small > fasting + 0.5)
    assert np.all(large > small)


def test_a_bolus_lowers_glucose_and_more_so_if_it_is_larger() -> None:
    subjects = people("type 1", 30)
    small, large = (after(subjects, 180.0, bolus_u=u)[Q1] / subjects.vg_l_per_kg for u in (1.0, 3.0))
    assert np.all(small < subjects.fasting_mmol_l)
    assert np.all(large < small)


def test_interstitial_glucose_lags_behind_plasma() -> None:
    subjects = people("type 1", 30)
    states = after(subjects, 30.0, meal_g=60.0)
    assert np.all(states[hovorka.C] < states[Q1] / subjects.vg_l_per_kg)


def test_insulin_of_ones_own_brings_glucose_back_without_a_bolus() -> None:
    subjects = people("none", 30)
    peak = after(subjects, 60.0, meal_g=60.0)[Q1] / subjects.vg_l_per_kg
    late = after(subjects, 300.0, meal_g=60.0)[Q1] / subjects.vg_l_per_kg
    assert np.median(peak - subjects.fasting_mmol_l) > 1.0
    assert np.all(late < peak)
    assert np.median(np.abs(late - subjects.fasting_mmol_l)) < 1.0


def test_what_the_liver_lets_through_is_inverted() -> None:
    supply = np.linspace(0.0, 3.0, 50)
    np.testing.assert_allclose(hovorka.past_liver(hovorka.secretion_for(supply)), supply, atol=1e-12)


def test_a_batch_of_one_equals_the_row_of_a_batch_to_the_last_bit() -> None:
    subjects = people("type 2", 9)
    together = after(subjects, 300.0, meal_g=50.0)
    alone = after(subjects.at(np.array([4])), 300.0, meal_g=50.0)
    np.testing.assert_array_equal(together[:, [4]], alone)


def test_the_right_hand_side_does_not_change_its_input() -> None:
    subjects = people("type 1", 3)
    states = equilibrium(subjects).states_SP
    copy = states.copy()
    derivatives(states, subjects, held(subjects))
    rk4_step(partial(derivatives, subjects=subjects, inputs=held(subjects)), states, 1.0)
    np.testing.assert_array_equal(states, copy)
