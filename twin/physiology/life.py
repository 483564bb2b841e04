"""Virtual people living on: model, habits, sensor and decisions, closed in a loop over time.

The loop runs over moments five minutes apart; all people of all groups move together. What a
person does at a moment depends on the sensor's reading at that moment and on nothing later.
Letters: T moments, P people, S states.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from twin.physiology.equilibrium import Equilibrium, equilibrium
from twin.physiology.habits import Schedule
from twin.physiology.hovorka import (
    D1,
    D2,
    MMOL_PER_G_GLUCOSE,
    MU_PER_U,
    Q1,
    S1,
    S2,
    Array,
    C,
    Inputs,
    Subjects,
    derivatives,
)
from twin.physiology.sensor import GRID_MIN, SensorError
from twin.physiology.solver import advance
from twin.signals import MG_DL_PER_MMOL_L

STEP_MIN = 2.5
RESCUE_G = 16.0
RESCUE_PAUSE = 5  # moments
CORRECTION_PAUSE = 30  # moments
LARGEST_BOLUS_U = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What happened, each of shape (T, P).

    Attributes:
        plasma_TP, sensor_TP: glucose (mg/dL) in plasma, and as the sensor reads it, before limits.
        bolus_u_TP: boluses, 0 where none.
        rescue_g_TP: fast carbohydrates against a low, 0 where none.
    """

    plasma_TP: Array
    sensor_TP: Array
    bolus_u_TP: Array
    rescue_g_TP: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """How P people decide; from `habits.Profile`, one value per person, each of shape (P,)."""

    treated_P: np.ndarray
    target_P: Array
    correct_above_P: Array
    correct_chance_P: Array
    rescue_below_P: Array
    bolus_step_P: Array


def live(subjects: Subjects, schedule: Schedule, error: SensorError, choices: Choices) -> Record:
    """The record of P people over the T moments of their schedule.

    They start in equilibrium at midnight of the first day.
    """
    steady = equilibrium(subjects)
    states_SP = steady.states_SP.copy()
    shape_TP = schedule.eaten_g_TP.shape
    plasma, sensor, bolus, rescue = (np.zeros(shape_TP) for _ in range(4))
    since_bolus_P = np.full(shape_TP[1], CORRECTION_PAUSE)
    since_rescue_P = np.full(shape_TP[1], RESCUE_PAUSE)
    for t in range(shape_TP[0]):
        plasma[t] = states_SP[Q1] / subjects.vg_l_per_kg * MG_DL_PER_MMOL_L
        sensor[t] = error.gain_TP[t] * states_SP[C] * MG_DL_PER_MMOL_L + error.offset_TP[t]
        active_u_P = _insulin_on_board(states_SP, subjects, steady)
        bolus[t] = _bolus(t, sensor[t], active_u_P, since_bolus_P, schedule, choices)
        rescue[t] = _rescue(t, sensor[t], since_rescue_P, schedule, choices)
        since_bolus_P = np.where(bolus[t] > 0.0, 0, since_bolus_P + 1)
        since_rescue_P = np.where(rescue[t] > 0.0, 0, since_rescue_P + 1)
        states_SP = _taken(states_SP, bolus[t], rescue[t], t, schedule, subjects)
        rates = partial(derivatives, subjects=subjects, inputs=_inputs(t, schedule, subjects))
        states_SP = advance(rates, states_SP, GRID_MIN, STEP_MIN)
    return Record(plasma_TP=plasma, sensor_TP=sensor, bolus_u_TP=bolus, rescue_g_TP=rescue)


def side_by_side(schedules: list[Schedule]) -> Schedule:
    """Several groups' schedules as one."""
    names = [f.name for f in fields(Schedule)]
    return Schedule(
        **{name: np.concatenate([getattr(s, name) for s in schedules], axis=-1) for name in names}
    )


def _inputs(t: int, schedule: Schedule, subjects: Subjects) -> Inputs:
    return Inputs(
        insulin_P=schedule.basal_u_h_TP[t] * (MU_PER_U / 60.0) / subjects.weight_kg,
        sensitivity_P=schedule.sensitivity_TP[t],
        production_P=schedule.production_TP[t],
    )


def _taken(
    states_SP: Array, bolus_u_P: Array, rescue_g_P: Array, t: int, schedule: Schedule, subjects: Subjects
) -> Array:
    """The states after this moment's bolus, meal and rescue carbohydrates."""
    mmol_kg_per_g = subjects.ag * MMOL_PER_G_GLUCOSE / subjects.weight_kg
    fast_g_P = schedule.fast_g_TP[t]
    after_SP = states_SP.copy()
    after_SP[S1] += bolus_u_P * MU_PER_U / subjects.weight_kg
    after_SP[D1] += (schedule.eaten_g_TP[t] - fast_g_P) * mmol_kg_per_g
    after_SP[D2] += (fast_g_P + rescue_g_P) * mmol_kg_per_g
    return after_SP


def _insulin_on_board(states_SP: Array, subjects: Subjects, steady: Equilibrium) -> Array:
    """Insulin still under the skin beyond what the basal rate keeps there (U)."""
    above_SP = states_SP[S1 : S2 + 1] - steady.states_SP[S1 : S2 + 1]
    return np.asarray(np.maximum(above_SP.sum(axis=0), 0.0) * subjects.weight_kg / MU_PER_U)


def _bolus(
    t: int,
    reading_P: Array,
    active_u_P: Array,
    since_bolus_P: np.ndarray,
    schedule: Schedule,
    choices: Choices,
) -> Array:
    """Meal boluses with correction, and corrections between meals (U)."""
    counted_P = schedule.counted_g_TP[t]
    meal_P = counted_P > 0.0
    high_P = (
        (reading_P > choices.correct_above_P)
        & schedule.awake_TP[t]
        & (since_bolus_P >= CORRECTION_PAUSE)
        & (schedule.luck_TP[t] < choices.correct_chance_P)
    )
    wanted_P = (reading_P - choices.target_P) / schedule.correction_mg_dl_u_P
    correction_P = np.where(wanted_P > 0.0, np.maximum(wanted_P - active_u_P, 0.0), wanted_P)
    units_P = counted_P / schedule.ratio_g_u_P + correction_P
    units_P = np.where(choices.treated_P & (meal_P | high_P), units_P, 0.0)
    dosed_P = np.round(units_P / choices.bolus_step_P) * choices.bolus_step_P
    return np.clip(dosed_P, 0.0, LARGEST_BOLUS_U)


def _rescue(
    t: int, reading_P: Array, since_rescue_P: np.ndarray, schedule: Schedule, choices: Choices
) -> Array:
    """Fast carbohydrates against a low (g); a sleeper notices less often."""
    chance_P = np.where(schedule.awake_TP[t], 0.30, 0.10)
    low_P = (reading_P < choices.rescue_below_P) & (since_rescue_P >= RESCUE_PAUSE)
    return np.where(low_P & (schedule.luck_TP[t] > 1.0 - chance_P), RESCUE_G, 0.0)
