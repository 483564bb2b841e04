"""Print the error of the solver's step and its speed.

Run it from the root: PYTHONPATH=. .venv/bin/python benchmarks/physiology.py

Error: greatest deviation of plasma glucose over 24 h with three meals and boluses from an adaptive
solver (LSODA, rtol 1e-10) of the same right-hand side, over people of every kind. The solver is
restarted at every meal and bolus, as the fixed-step solver is. Speed: patient-days per second of
the right-hand side and solver alone, at several numbers of people.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import numpy as np
from scipy.integrate import solve_ivp

from twin.connectors.virtual import public_population, virtual_sites
from twin.physiology.cohort import KINDS
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
    concatenate,
    derivatives,
)
from twin.physiology.parameters import TYPE_1, draw_subjects
from twin.physiology.solver import advance
from twin.physiology.therapy import titrate
from twin.signals import MG_DL_PER_MMOL_L

STEPS_MIN = (5.0, 2.5, 1.0, 0.5)
PEOPLE = (1, 10, 100, 1000)
MEALS = ((0, 45.0), (300, 65.0), (660, 70.0))
DAY_MIN = 1440


def main() -> None:
    """Print all three tables."""
    subjects, ratio = _everyone()
    exact = _exact(subjects, ratio)
    say(f"error of plasma glucose, {len(subjects)} people, 24 h, three meals and boluses (mg/dL)")
    say(f"{'step, min':>10} {'greatest':>10} {'rms':>10}")
    for step_min in STEPS_MIN:
        error = np.abs(_fixed(subjects, ratio, step_min) - exact)
        say(f"{step_min:10.1f} {error.max():10.4f} {np.sqrt((error**2).mean()):10.4f}")
    say("\nspeed of the solver (patient-days per second)")
    say(f"{'people':>10} " + " ".join(f"{f'step {s} min':>14}" for s in STEPS_MIN[1:3]))
    for count in PEOPLE:
        say(f"{count:10d} " + " ".join(f"{_speed(count, s):14.0f}" for s in STEPS_MIN[1:3]))
    say("\nwhole populations, with habits, sensors and tables (s)")
    began = time.perf_counter()
    virtual_sites(sites=4, patients_per_site=16, days=14, seed=0)
    say(f"{'4 hospitals of 16 people, 14 days':>36} {time.perf_counter() - began:6.2f}")
    began = time.perf_counter()
    public_population()
    say(f"{'public, 96 people, 10 days':>36} {time.perf_counter() - began:6.2f}")


def say(line: str) -> None:
    """Write a line to the terminal."""
    sys.stdout.write(f"{line}\n")


def _everyone() -> tuple[Subjects, Array]:
    rng = np.random.default_rng(1)
    groups = [draw_subjects(kind, 8, rng) for kind in KINDS.values()]
    ratio = np.concatenate([titrate(groups[0]).ratio_g_u, np.full(24, np.inf)])
    return concatenate(groups), ratio


def _inputs(subjects: Subjects) -> Inputs:
    infused = np.where(subjects.secretion_static > 0.0, 0.0, equilibrium(subjects).supply_P)
    ones = np.ones(len(subjects))
    return Inputs(insulin_P=infused, sensitivity_P=ones, production_P=ones)


def _eaten(states: Array, subjects: Subjects, ratio: Array, meal_g: float) -> Array:
    after = states.copy()
    after[D1] += subjects.ag * meal_g * MMOL_PER_G_GLUCOSE / subjects.weight_kg
    after[S1] += meal_g / ratio * MU_PER_U / subjects.weight_kg
    return after


def _fixed(subjects: Subjects, ratio: Array, step_min: float) -> Array:
    rates = partial(derivatives, subjects=subjects, inputs=_inputs(subjects))
    states, glucose, meals = equilibrium(subjects).states_SP, [], dict(MEALS)
    for minute in range(0, DAY_MIN, 5):
        if minute in meals:
            states = _eaten(states, subjects, ratio, meals[minute])
        states = advance(rates, states, 5.0, step_min)
        glucose.append(states[Q1] / subjects.vg_l_per_kg * MG_DL_PER_MMOL_L)
    return np.array(glucose)


def _exact(subjects: Subjects, ratio: Array) -> Array:
    """Each person on their own, so that the adaptive step follows each person's needs."""
    return np.stack(
        [_exact_one(subjects.at(np.array([k])), ratio[[k]]) for k in range(len(subjects))], axis=1
    )


def _exact_one(person: Subjects, ratio: Array) -> Array:
    inputs = _inputs(person)
    states, glucose = equilibrium(person).states_SP, []
    ends = [start for start, _ in MEALS[1:]] + [DAY_MIN]

    def rates(_t: float, x: Array) -> Array:
        return derivatives(x[:, None], person, inputs)[:, 0]

    for (start, meal_g), end in zip(MEALS, ends, strict=True):
        states = _eaten(states, person, ratio, meal_g)
        moments = np.arange(start + 5.0, end + 1.0, 5.0)
        solved = solve_ivp(
            rates, (start, end), states[:, 0], "LSODA", moments, rtol=1e-10, atol=1e-12, max_step=2.0
        )
        states = solved.y[:, -1:]
        glucose.append(solved.y[Q1] / person.vg_l_per_kg * MG_DL_PER_MMOL_L)
    return np.concatenate(glucose)


def _speed(count: int, step_min: float) -> float:
    subjects = draw_subjects(TYPE_1, count, np.random.default_rng(2))
    rates = partial(derivatives, subjects=subjects, inputs=_inputs(subjects))
    states = equilibrium(subjects).states_SP
    began = time.perf_counter()
    advance(rates, states, DAY_MIN, step_min)
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
