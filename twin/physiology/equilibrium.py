"""The steady state: how much insulin holds a fasting glucose, and what the body holds then.

With insulin constant, every state but insulin itself follows from glucose (docs/physiology.md), so
one monotone equation in one unknown remains; it is solved by bisection, all people at once.
Letters: S states, P people.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.physiology import hovorka
from twin.physiology.hovorka import STATES, Array, Subjects

HIGHEST_INSULIN_MU_L = 500.0
BISECTIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Equilibrium:
    """The steady state of P people at their fasting glucose.

    Attributes:
        insulin_mu_l_P: plasma insulin.
        supply_P: insulin that keeps it up (mU/kg/min), infused or secreted.
        states_SP: all states, for `supply_P` infused under the skin if the person secretes none.
        exists_P: False where no insulin between 0 and 500 mU/L holds the fasting glucose.
    """

    insulin_mu_l_P: Array
    supply_P: Array
    states_SP: Array
    exists_P: NDArray[np.bool_]


def equilibrium(subjects: Subjects) -> Equilibrium:
    """The steady state at `subjects.fasting_mmol_l`, all factors of the inputs at 1."""
    low_P = np.zeros(len(subjects))
    high_P = np.full(len(subjects), HIGHEST_INSULIN_MU_L)
    exists_P = (_surplus(low_P, subjects) >= 0.0) & (_surplus(high_P, subjects) <= 0.0)
    for _ in range(BISECTIONS):
        middle_P = 0.5 * (low_P + high_P)
        too_little_P = _surplus(middle_P, subjects) > 0.0
        low_P = np.where(too_little_P, middle_P, low_P)
        high_P = np.where(too_little_P, high_P, middle_P)
    insulin_P = 0.5 * (low_P + high_P)
    supply_P = insulin_P * subjects.ke_per_min * subjects.vi_l_per_kg
    infused_P = np.where(subjects.secretion_static > 0.0, 0.0, supply_P)
    return Equilibrium(
        insulin_mu_l_P=insulin_P,
        supply_P=supply_P,
        states_SP=_states(insulin_P, infused_P, subjects),
        exists_P=exists_P,
    )


def _states(insulin_P: Array, infused_P: Array, p: Subjects) -> Array:
    states_SP = np.zeros((len(STATES), len(p)))
    q1_P = p.fasting_mmol_l * p.vg_l_per_kg
    states_SP[hovorka.S1] = states_SP[hovorka.S2] = infused_P / p.ka_per_min
    states_SP[hovorka.INSULIN] = insulin_P
    states_SP[hovorka.X1] = p.sit * insulin_P
    states_SP[hovorka.X2] = p.sid * insulin_P
    states_SP[hovorka.X3] = p.sie * insulin_P
    states_SP[hovorka.Q1] = q1_P
    states_SP[hovorka.Q2] = p.sit * insulin_P * q1_P / (p.k12_per_min + p.sid * insulin_P)
    states_SP[hovorka.C] = p.fasting_mmol_l
    return states_SP


def _surplus(insulin_P: Array, p: Subjects) -> Array:
    """Glucose gained minus lost (mmol/kg/min) at fasting glucose; falls as insulin rises."""
    q1_P = p.fasting_mmol_l * p.vg_l_per_kg
    x1_P, x2_P = p.sit * insulin_P, p.sid * insulin_P
    disposal_P = x1_P * q1_P * x2_P / (p.k12_per_min + x2_P)
    return np.asarray(
        p.egp0 * np.maximum(1.0 - p.sie * insulin_P, 0.0)
        - disposal_P
        - hovorka.insulin_independent_uptake(p.fasting_mmol_l, p)
        - hovorka.renal_excretion(p.fasting_mmol_l, p)
    )
