"""The glucose-insulin model of Hovorka et al. 2004 as right-hand side, many people at once.

Source: R. Hovorka et al., Physiol. Meas. 25:905-920 (2004), equations 1-12, in the form that
M. E. Wilinska et al., J. Diabetes Sci. Technol. 4:132-144 (2010) give it per kg of body weight
(saturating insulin-independent uptake, ceiling of gut absorption, individual renal threshold,
interstitial glucose). Residual insulin secretion is C. Dalla Man et al., IEEE Trans. Biomed. Eng.
54:1740-1749 (2007): secretion, and the share of it that the liver lets through. Deviations stand in
docs/physiology.md.

Letters: S states, P people. Time in minutes, glucose in mmol, insulin in mU, all amounts per kg.
It is not a model of glucagon, of long-acting insulin, or of exercise beyond `sensitivity_P`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STATES = ("s1", "s2", "i", "x1", "x2", "x3", "q1", "q2", "d1", "d2", "c", "y")
S1, S2, INSULIN, X1, X2, X3, Q1, Q2, D1, D2, C, Y = range(len(STATES))

MMOL_PER_G_GLUCOSE = 1000.0 / 180.16
MU_PER_U = 1000.0
PMOL_PER_MU = 6.0
UPTAKE_AT_BASAL = 0.85
EXTRACTED_AT_REST = 0.6471  # by the liver, of what the pancreas secretes: m6 of Dalla Man 2007
LESS_EXTRACTED = 0.0304 * PMOL_PER_MU  # per mU/kg/min secreted: m5 of Dalla Man 2007


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """The constants of P people, each of shape (P,); names and units follow the papers.

    Attributes:
        weight_kg: body weight.
        k12_per_min: return of glucose from the non-accessible compartment.
        ka1_per_min, ka2_per_min, ka3_per_min: rates at which insulin action on transport,
            disposal and endogenous production follows plasma insulin.
        sit, sid: sensitivities of transport and disposal (1/min per mU/L).
        sie: sensitivity of endogenous production (1 per mU/L).
        egp0, f01: endogenous production at zero insulin, insulin-independent uptake (mmol/kg/min).
        vg_l_per_kg, vi_l_per_kg: volumes in which glucose and insulin distribute.
        ke_per_min, ka_per_min: insulin's elimination, and absorption from under the skin.
        tmax_g_min: time of the greatest absorption of a meal.
        ag: fraction of eaten carbohydrates that reaches the blood.
        ug_ceiling: greatest appearance of glucose from the gut (mmol/kg/min).
        renal_threshold_mmol_l, renal_clearance_per_min: excretion by the kidney.
        ka_int_per_min: equilibration of interstitial with plasma glucose.
        fasting_mmol_l: glucose that the person's basal insulin holds.
        secretion_dynamic, secretion_static: insulin secreted per rise of glucose (mU/kg per mmol/L)
            and per height above fasting (mU/kg/min per mmol/L); 0 in type 1 diabetes.
        secretion_per_min: rate at which the static part follows glucose.
        secretion_basal: secretion at fasting glucose (mU/kg/min); 0 in type 1 diabetes.
    """

    weight_kg: Array
    k12_per_min: Array
    ka1_per_min: Array
    ka2_per_min: Array
    ka3_per_min: Array
    sit: Array
    sid: Array
    sie: Array
    egp0: Array
    f01: Array
    vg_l_per_kg: Array
    vi_l_per_kg: Array
    ke_per_min: Array
    ka_per_min: Array
    tmax_g_min: Array
    ag: Array
    ug_ceiling: Array
    renal_threshold_mmol_l: Array
    renal_clearance_per_min: Array
    ka_int_per_min: Array
    fasting_mmol_l: Array
    secretion_dynamic: Array
    secretion_static: Array
    secretion_per_min: Array
    secretion_basal: Array

    def __len__(self) -> int:
        return len(self.weight_kg)

    def at(self, index_P: NDArray[np.intp] | NDArray[np.bool_]) -> Subjects:
        """The people that `index_P` names, in its order."""
        return Subjects(**{f.name: getattr(self, f.name)[index_P] for f in fields(self)})


def concatenate(groups: list[Subjects]) -> Subjects:
    """All people of several groups, in order."""
    return Subjects(
        **{f.name: np.concatenate([getattr(g, f.name) for g in groups]) for f in fields(Subjects)}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What acts on P people and stays constant during a step.

    Attributes:
        insulin_P: infusion under the skin (mU/kg/min).
        sensitivity_P: factor on all three insulin actions (dawn, day and night, exercise); 1 is
            the person's own.
        production_P: factor on endogenous glucose production; 1 is the person's own.
    """

    insulin_P: Array
    sensitivity_P: Array
    production_P: Array


def insulin_independent_uptake(glucose_mmol_l: Array, subjects: Subjects) -> Array:
    """F01 corrected for the ambient glucose (mmol/kg/min): F01/0.85 G/(G+1), Wilinska 2010."""
    return subjects.f01 / UPTAKE_AT_BASAL * glucose_mmol_l / (glucose_mmol_l + 1.0)


def renal_excretion(glucose_mmol_l: Array, subjects: Subjects) -> Array:
    """Glucose lost through the kidney (mmol/kg/min), none below the person's threshold."""
    above_mmol_l = np.maximum(glucose_mmol_l - subjects.renal_threshold_mmol_l, 0.0)
    return subjects.renal_clearance_per_min * subjects.vg_l_per_kg * above_mmol_l


def gut_appearance(d2_P: Array, subjects: Subjects) -> Array:
    """Glucose that reaches the blood from the gut (mmol/kg/min), at most the person's ceiling."""
    return np.minimum(d2_P / subjects.tmax_g_min, subjects.ug_ceiling)


def past_liver(secreted_P: Array) -> Array:
    """Insulin that reaches the plasma (mU/kg/min) of what is secreted; the liver keeps the rest."""
    share_P = np.minimum(1.0 - EXTRACTED_AT_REST + LESS_EXTRACTED * secreted_P, 1.0)
    return secreted_P * share_P


def secretion_for(supply_P: Array) -> Array:
    """The secretion (mU/kg/min) of which `supply_P` reaches the plasma: inverse of `past_liver`."""
    rest = 1.0 - EXTRACTED_AT_REST
    share_P = 0.5 * (rest + np.sqrt(rest**2 + 4.0 * LESS_EXTRACTED * supply_P))
    return np.asarray(supply_P / np.minimum(share_P, 1.0))


def derivatives(states_SP: Array, subjects: Subjects, inputs: Inputs) -> Array:
    """Rates of change of all states, shape (S, P), per minute.

    Args:
        states_SP: rows in the order of `STATES`: insulin under the skin s1, s2 (mU/kg), in plasma
            i (mU/L), its actions x1, x2 (1/min), x3 (fraction); glucose q1, q2 (mmol/kg), in the
            gut d1, d2 (mmol/kg), interstitial c (mmol/L); static secretion y (mU/kg/min).
        subjects: the people's constants.
        inputs: what acts on them.
    """
    p = subjects
    s1, s2, i, x1, x2, x3, q1, q2, d1, d2, c, y = states_SP
    glucose = q1 / p.vg_l_per_kg
    action = inputs.sensitivity_P * i
    absorption = p.ka_per_min * s2
    transport = x1 * q1
    back = p.k12_per_min * q2
    from_first_gut = d1 / p.tmax_g_min
    appearance = gut_appearance(d2, p)
    production = p.egp0 * inputs.production_P * np.maximum(1.0 - x3, 0.0)

    rates_SP = np.empty_like(states_SP)
    rates_SP[S1] = inputs.insulin_P - p.ka_per_min * s1
    rates_SP[S2] = p.ka_per_min * s1 - absorption
    rates_SP[X1] = p.ka1_per_min * (p.sit * action - x1)
    rates_SP[X2] = p.ka2_per_min * (p.sid * action - x2)
    rates_SP[X3] = p.ka3_per_min * (p.sie * action - x3)
    lost = insulin_independent_uptake(glucose, p) + renal_excretion(glucose, p)
    rates_SP[Q1] = production + appearance + back - transport - lost
    rates_SP[Q2] = transport - back - x2 * q2
    rates_SP[D1] = -from_first_gut
    rates_SP[D2] = from_first_gut - appearance
    rates_SP[C] = p.ka_int_per_min * (glucose - c)
    rates_SP[Y] = p.secretion_per_min * (p.secretion_static * (glucose - p.fasting_mmol_l) - y)
    rise = np.maximum(rates_SP[Q1], 0.0) / p.vg_l_per_kg
    secreted = np.maximum(p.secretion_basal + y, 0.0) + p.secretion_dynamic * rise
    rates_SP[INSULIN] = (absorption + past_liver(secreted)) / p.vi_l_per_kg - p.ke_per_min * i
    return rates_SP
