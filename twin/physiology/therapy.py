"""What doses suit a person: basal rate, carbohydrate ratio, correction factor, found by trial.

A clinic titrates; here a test meal and a test bolus are simulated with a ladder of doses, all
people and all doses in one batch. Letters: P people, L doses of the ladder, S states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from twin.physiology.equilibrium import equilibrium
from twin.physiology.hovorka import (
    D1,
    MMOL_PER_G_GLUCOSE,
    MU_PER_U,
    Q1,
    S1,
    Array,
    Inputs,
    Subjects,
    derivatives,
)
from twin.physiology.solver import advance
from twin.signals import MG_DL_PER_MMOL_L

TEST_MEAL_G = 50.0
AFTER_MEAL_MIN = 300.0
AFTER_BOLUS_MIN = 240.0
TEST_BOLUS_U_PER_KG = 0.02
LADDER_G_PER_U = (2.5, 4.0, 6.0, 8.0, 11.0, 15.0, 20.0, 30.0)
STEP_MIN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Therapy:
    """What suits P people, without error of judgement.

    Attributes:
        basal_u_h: infusion that holds the fasting glucose.
        ratio_g_u: grams of carbohydrate that one unit covers.
        correction_mg_dl_u: fall of glucose four hours after one unit.
    """

    basal_u_h: Array
    ratio_g_u: Array
    correction_mg_dl_u: Array


def titrate(subjects: Subjects) -> Therapy:
    """The therapy that returns P people with type 1 diabetes to their fasting glucose."""
    steady = equilibrium(subjects)
    basal_u_h = steady.supply_P * subjects.weight_kg * 60.0 / MU_PER_U
    return Therapy(basal_u_h=basal_u_h, ratio_g_u=_ratio(subjects), correction_mg_dl_u=_correction(subjects))


def _ratio(subjects: Subjects) -> Array:
    count, ladder = len(subjects), np.array(LADDER_G_PER_U)
    doses_LP = np.repeat((TEST_MEAL_G / ladder)[:, None], count, axis=1)
    rise_LP = _outcome(subjects, TEST_MEAL_G, doses_LP, AFTER_MEAL_MIN)
    # rise_LP falls with the dose; its root in the dose, linear between two rungs, ends held.
    balance = np.clip(_root(doses_LP[::-1], rise_LP[::-1]), doses_LP[-1], doses_LP[0])
    return np.asarray(TEST_MEAL_G / balance)


def _correction(subjects: Subjects) -> Array:
    dose_P = TEST_BOLUS_U_PER_KG * subjects.weight_kg
    return np.asarray(-_outcome(subjects, 0.0, dose_P[None, :], AFTER_BOLUS_MIN)[0] / dose_P)


def _outcome(subjects: Subjects, meal_g: float, doses_LP: Array, after_min: float) -> Array:
    """Change of glucose from fasting (mg/dL), shape (L, P), `after_min` after meal and bolus."""
    rungs, count = doses_LP.shape
    people = subjects.at(np.tile(np.arange(count), rungs))
    steady = equilibrium(people)
    ones = np.ones(len(people))
    inputs = Inputs(insulin_P=steady.supply_P, sensitivity_P=ones, production_P=ones)
    states = steady.states_SP.copy()
    states[D1] += people.ag * meal_g * MMOL_PER_G_GLUCOSE / people.weight_kg
    states[S1] += doses_LP.ravel() * MU_PER_U / people.weight_kg
    states = advance(partial(derivatives, subjects=people, inputs=inputs), states, after_min, STEP_MIN)
    change = states[Q1] / people.vg_l_per_kg - people.fasting_mmol_l
    return np.asarray(change * MG_DL_PER_MMOL_L).reshape(rungs, count)


def _root(doses_LP: Array, rise_LP: Array) -> Array:
    """The dose at which the rise crosses zero, doses ascending; extrapolated beyond the ladder."""
    rung_P = np.clip((rise_LP > 0.0).sum(axis=0), 1, len(doses_LP) - 1)
    person_P = np.arange(doses_LP.shape[1])
    x0, x1 = doses_LP[rung_P - 1, person_P], doses_LP[rung_P, person_P]
    y0, y1 = rise_LP[rung_P - 1, person_P], rise_LP[rung_P, person_P]
    return np.asarray(x0 - y0 * (x1 - x0) / np.where(y1 == y0, 1e-9, y1 - y0))
