"""How virtual people live: meals, counting, therapy errors, sleep, exercise, and their day's rhythm.

A `Profile` describes a population; `draw_schedule` gives each person habits of their own and lays
out days on a five-minute grid. The figures of a profile are plausible ranges, our assumption
(docs/physiology.md), not fitted to any recording.

Letters: T moments on the grid, P people, D days, M meals of a day.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from twin.physiology.hovorka import Array
from twin.physiology.sensor import GRID_MIN, MINUTES_PER_DAY, autoregressive
from twin.physiology.therapy import Therapy

PER_DAY = MINUTES_PER_DAY // GRID_MIN
WANDER_HOURS = 5.0
AFTER_EXERCISE_HOURS = 2.5
EXERCISE_SENSITIVITY = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The habits of a population; pairs are (mean, standard deviation) or (lowest, highest).

    Attributes:
        meal_g: mean carbohydrates of breakfast, lunch, dinner, and two snacks.
        meal_time_h: their mean times of day.
        meal_probability: how often each is taken.
        person_sd, meal_sd: spread of the logarithm of sizes between people, between meals.
        person_time_sd_h, meal_time_sd_h: the same for times.
        fast: share of a meal that needs no digestion, lowest and highest.
        counting_bias_sd, counting_sd: error of counted carbohydrates, of a person, of a meal.
        missed_bolus: fraction of meals without a bolus.
        bolus_delay_min: bolus after (before, if negative) the first bite, lowest and highest.
        bolus_step_u: what pump or pen can dose.
        therapy_sd: error of the logarithm of a person's carbohydrate ratio and correction factor.
        basal_sd: the same for the basal rate.
        target_mg_dl, correction_mg_dl: aim, and glucose above which some correct between meals.
        correction_per_hour: how readily they do, while awake.
        dawn: lowest and highest rise of glucose production in the early morning.
        rhythm: lowest and highest amplitude of insulin sensitivity over the day.
        wander_sd: slow variation of the logarithm of insulin sensitivity.
        exercise_per_day: expected bouts.
        logged: fraction of meals and rescue carbohydrates that are written down.
    """

    meal_g: tuple[float, ...] = (45.0, 65.0, 70.0, 18.0, 18.0)
    meal_time_h: tuple[float, ...] = (7.5, 12.75, 19.0, 16.0, 21.5)
    meal_probability: tuple[float, ...] = (0.92, 0.97, 0.98, 0.45, 0.30)
    person_sd: float = 0.20
    meal_sd: float = 0.25
    person_time_sd_h: float = 0.7
    meal_time_sd_h: float = 0.5
    fast: tuple[float, float] = (0.0, 0.6)
    counting_bias_sd: float = 0.10
    counting_sd: float = 0.30
    missed_bolus: float = 0.10
    bolus_delay_min: tuple[int, int] = (-10, 15)
    bolus_step_u: float = 0.1
    therapy_sd: float = 0.22
    basal_sd: float = 0.18
    target_mg_dl: float = 120.0
    correction_mg_dl: float = 220.0
    correction_per_hour: float = 0.5
    dawn: tuple[float, float] = (0.0, 0.25)
    rhythm: tuple[float, float] = (0.0, 0.30)
    wander_sd: float = 0.22
    exercise_per_day: float = 0.3
    logged: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What P people intend over T moments, before glucose has its say.

    Attributes:
        eaten_g_TP: carbohydrates absorbed, before the gut's fraction; differ from what was written
            down by what meals of one size differ in effect.
        fast_g_TP: part of them that reaches the second gut compartment at once.
        counted_g_TP: what the person believes, at the moment of the bolus; 0 where none is given.
        written_g_TP: what is written down at the meal; 0 where nothing is.
        sensitivity_TP, production_TP: factors of `hovorka.Inputs`.
        awake_TP: True while awake.
        heart_rate_TP, steps_TP: as a watch shows them (1/min; steps within the five minutes).
        luck_TP: uniform values for decisions that depend on glucose.
        basal_u_h_TP: programmed rate.
        ratio_g_u_P, correction_mg_dl_u_P: what the person believes.
    """

    eaten_g_TP: Array
    fast_g_TP: Array
    counted_g_TP: Array
    written_g_TP: Array
    sensitivity_TP: Array
    production_TP: Array
    awake_TP: NDArray[np.bool_]
    heart_rate_TP: Array
    steps_TP: Array
    luck_TP: Array
    basal_u_h_TP: Array
    ratio_g_u_P: Array
    correction_mg_dl_u_P: Array


def draw_schedule(profile: Profile, therapy: Therapy, days: int, rng: np.random.Generator) -> Schedule:
    """Habits and days of the people of `therapy`.

    Args:
        profile: of the population.
        therapy: what would suit each person; a rate of 0 stands for a person without insulin.
        days: D, at least 1.
        rng: the only source of chance.
    """
    people = len(therapy.basal_u_h)
    shape = (days * PER_DAY, people)
    meals = _meals(profile, days, people, rng)
    hour_T1 = ((np.arange(shape[0]) % PER_DAY) / PER_DAY * 24.0)[:, None]
    wake_P = profile.meal_time_h[0] - 0.6 + 0.4 * rng.standard_normal(people)
    awake_TP = (hour_T1 >= wake_P) & (hour_T1 < wake_P + rng.uniform(15.3, 17.0, people))
    bout_TP, after_TP = _exercise(profile, shape, hour_T1, rng)
    dawn_P = rng.uniform(*profile.dawn, people)
    heart_TP, steps_TP = _watch(awake_TP, bout_TP, rng)
    return Schedule(
        **meals,
        sensitivity_TP=_sensitivity(profile, hour_T1, after_TP, rng),
        production_TP=1.0 + dawn_P * _dawn(hour_T1),
        awake_TP=awake_TP,
        heart_rate_TP=heart_TP,
        steps_TP=steps_TP,
        luck_TP=rng.random(shape),
        basal_u_h_TP=_basal(profile, therapy, dawn_P, hour_T1, rng),
        ratio_g_u_P=therapy.ratio_g_u * np.exp(profile.therapy_sd * rng.standard_normal(people)),
        correction_mg_dl_u_P=therapy.correction_mg_dl_u
        * np.exp(profile.therapy_sd * rng.standard_normal(people)),
    )


def _meals(profile: Profile, days: int, people: int, rng: np.random.Generator) -> dict[str, Array]:
    """The meal arrays of `Schedule`, each of shape (T, P)."""
    size_M, hour_M = np.array(profile.meal_g), np.array(profile.meal_time_h)
    shape_DMP = (days, len(size_M), people)
    own_size_MP = size_M[:, None] * np.exp(profile.person_sd * rng.standard_normal(shape_DMP[1:]))
    own_hour_MP = hour_M[:, None] + profile.person_time_sd_h * rng.standard_normal(shape_DMP[1:])
    grams_DMP = own_size_MP * np.exp(profile.meal_sd * rng.standard_normal(shape_DMP))
    grams_DMP *= rng.random(shape_DMP) < np.array(profile.meal_probability)[:, None]
    weekend_D = np.arange(days) % 7 >= 5
    hour_DMP = own_hour_MP + profile.meal_time_sd_h * rng.standard_normal(shape_DMP)
    hour_DMP += 0.8 * weekend_D[:, None, None]

    effect_DMP = rng.uniform(0.8, 1.2, shape_DMP)  # W10: bioavailability varies +-20 % between meals
    fast_DMP = rng.uniform(*profile.fast, shape_DMP)
    bias_P = profile.counting_bias_sd * rng.standard_normal(people)
    counted_DMP = grams_DMP * np.exp(bias_P + profile.counting_sd * rng.standard_normal(shape_DMP))
    dosed_DMP = rng.random(shape_DMP) >= profile.missed_bolus
    written_DMP = rng.random(shape_DMP) < profile.logged
    delay_DMP = rng.integers(profile.bolus_delay_min[0], profile.bolus_delay_min[1] + 1, shape_DMP)

    day_D11 = np.arange(days)[:, None, None] * PER_DAY
    meal_DMP = _slot(day_D11 + hour_DMP * 60.0 / GRID_MIN, days)
    bolus_DMP = _slot(meal_DMP + delay_DMP / GRID_MIN, days)
    grid = (days * PER_DAY, people)
    return {
        "eaten_g_TP": _scatter(grams_DMP * effect_DMP, meal_DMP, grid),
        "fast_g_TP": _scatter(grams_DMP * effect_DMP * fast_DMP, meal_DMP, grid),
        "counted_g_TP": _scatter(np.round(counted_DMP) * dosed_DMP, bolus_DMP, grid),
        "written_g_TP": _scatter(np.round(counted_DMP) * written_DMP, meal_DMP, grid),
    }


def _slot(position: Array, days: int) -> NDArray[np.int64]:
    return np.clip(np.round(position), 0, days * PER_DAY - 1).astype(np.int64)


def _scatter(values_DMP: Array, slot_DMP: NDArray[np.int64], shape_TP: tuple[int, int]) -> Array:
    grid_TP = np.zeros(shape_TP)
    person_DMP = np.broadcast_to(np.arange(shape_TP[1]), values_DMP.shape)
    np.add.at(grid_TP, (slot_DMP, person_DMP), values_DMP)
    return grid_TP


def _exercise(
    profile: Profile, shape_TP: tuple[int, int], hour_T1: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Exertion (0 or about 1) and its fading effect on insulin sensitivity."""
    likely_T1 = np.exp(-0.5 * ((hour_T1 - 17.5) / 2.5) ** 2)
    chance_T1 = profile.exercise_per_day * likely_T1 / likely_T1[:PER_DAY].sum()
    begins_TP = rng.random(shape_TP) < chance_T1
    length_TP = rng.integers(5, 13, shape_TP)
    moment_T1 = np.arange(shape_TP[0])[:, None]
    ends_TP = np.maximum.accumulate(np.where(begins_TP, moment_T1 + length_TP, 0), axis=0)
    bout_TP = (ends_TP > moment_T1) * rng.uniform(0.7, 1.2, shape_TP[1])
    return bout_TP, _faded(bout_TP, AFTER_EXERCISE_HOURS)


def _faded(drive_TP: Array, hours: float) -> Array:
    """The drive through a first-order lag; the lag's height after a full hour is near one."""
    keep = np.exp(-GRID_MIN / 60.0 / hours)
    lagged = np.asarray(lfilter([1.0 - keep], [1.0, -keep], drive_TP, axis=0), dtype=np.float64)
    return lagged * hours


def _sensitivity(profile: Profile, hour_T1: Array, after_TP: Array, rng: np.random.Generator) -> Array:
    people = after_TP.shape[1]
    height_P, peak_P = rng.uniform(*profile.rhythm, people), rng.normal(15.0, 3.0, people)
    rhythm_TP = height_P * np.cos((hour_T1 - peak_P) * (2.0 * np.pi / 24.0))
    keep = float(np.exp(-GRID_MIN / 60.0 / WANDER_HOURS))
    sd = profile.wander_sd * (1.0 - keep**2) ** 0.5
    wander_TP = autoregressive((keep,), sd, after_TP.shape, rng)
    return np.asarray(np.exp(rhythm_TP + wander_TP) * (1.0 + EXERCISE_SENSITIVITY * after_TP))


def _dawn(hour_T1: Array) -> Array:
    """0 to 1, greatest at six in the morning."""
    return np.asarray(np.exp(-0.5 * ((hour_T1 - 6.0) / 1.3) ** 2))


def _basal(
    profile: Profile, therapy: Therapy, dawn_P: Array, hour_T1: Array, rng: np.random.Generator
) -> Array:
    """The programmed rate: hourly, wrong by the person's error, half aware of the dawn."""
    people = len(therapy.basal_u_h)
    error_P = np.exp(profile.basal_sd * rng.standard_normal(people))
    shape_TP = 1.0 + 0.5 * dawn_P * _dawn(np.floor(hour_T1) - 0.5)
    return np.asarray(np.round(therapy.basal_u_h * error_P * shape_TP, 2))


def _watch(awake_TP: NDArray[np.bool_], bout_TP: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Heart rate and steps per five minutes."""
    people = awake_TP.shape[1]
    resting_P = np.clip(rng.normal(62.0, 7.0, people), 45.0, 85.0)
    walking_TP = awake_TP * (rng.random(awake_TP.shape) < 0.22) * rng.uniform(0.1, 1.0, awake_TP.shape)
    activity_TP = np.maximum(walking_TP * 0.35, bout_TP)
    noise_TP = autoregressive((0.8,), 2.5, awake_TP.shape, rng)
    heart_TP = resting_P + 12.0 * awake_TP + 55.0 * _faded(activity_TP, 0.1) * 10.0 + noise_TP
    steps_TP = np.round(180.0 * walking_TP + 520.0 * bout_TP * awake_TP)
    return np.clip(np.round(heart_TP), 38.0, 200.0), steps_TP
