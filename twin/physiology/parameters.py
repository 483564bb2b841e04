"""Who the virtual people are: published parameter values and spreads, and draws from them.

Sources, cited by the short names below:
- W10: M. E. Wilinska et al., J. Diabetes Sci. Technol. 4:132-144 (2010), tables 1 and 2.
- H02: R. Hovorka et al., Am. J. Physiol. Endocrinol. Metab. 282:E992-E1007 (2002), six subjects;
  their arithmetic means are the constants of H04, R. Hovorka et al., Physiol. Meas. 25:905 (2004).
- D07: C. Dalla Man et al., IEEE Trans. Biomed. Eng. 54:1740-1749 (2007), table I.
- "ours": an assumption of this project, explained in docs/physiology.md.

W10 gives typical values of the tracer-derived parameters; their spread between people is the
standard deviation of the logarithms of the six subjects of H02. Every draw is cut at 1.5 standard
deviations, and a person whose basal insulin is outside the range of W10 is drawn again.
Letters: P people, N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from twin.errors import DataError
from twin.physiology.equilibrium import equilibrium
from twin.physiology.hovorka import PMOL_PER_MU, Array, Subjects, concatenate, secretion_for
from twin.signals import MG_DL_PER_MMOL_L

CUT_AT_SD = 1.5
BASAL_U_KG_DAY = (0.15, 0.63)  # W10, basal insulin requirement 0.35 (0.14) U/kg/day, up to 2 SD
FASTING_INSULIN_MU_L = (2.0, 40.0)  # ours: people who secrete insulin themselves
MOST_DRAWS = 50
MINUTES_PER_DAY = 1440.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One parameter between people: `kind` is normal, log (of the logarithm) or uniform.

    `centre` and `spread` are mean and standard deviation (normal), median and standard deviation
    of the logarithm (log), or the two ends (uniform). `low` cuts from below.
    """

    kind: str
    centre: float
    spread: float
    source: str
    low: float = -np.inf

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """`count` values."""
        if self.kind == "uniform":
            return rng.uniform(self.centre, self.spread, count)
        z_N = _cut_normal(count, rng)
        if self.kind == "log":
            return np.maximum(self.centre * np.exp(self.spread * z_N), self.low)
        return np.maximum(self.centre + self.spread * z_N, self.low)


def _normal(mean: float, sd: float, source: str, low: float = -np.inf) -> Spread:
    return Spread(kind="normal", centre=mean, spread=sd, source=source, low=low)


def _log(median: float, sd: float, source: str) -> Spread:
    return Spread(kind="log", centre=median, spread=sd, source=source)


def _uniform(low: float, high: float, source: str) -> Spread:
    return Spread(kind="uniform", centre=low, spread=high, source=source)


TYPE_1: dict[str, Spread] = {
    "weight_kg": _normal(74.9, 14.4, "W10 table 1", 35.0),
    "k12_per_min": _log(0.060, 0.463, "W10 table 1; spread H02"),
    "ka1_per_min": _log(0.0034, 1.119, "W10 table 1; spread H02"),
    "ka2_per_min": _log(0.056, 0.700, "W10 table 1; spread H02"),
    "ka3_per_min": _log(0.024, 0.766, "W10 table 1; spread H02"),
    "sit": _log(18.41e-4, 0.728, "W10 table 1; spread H02"),
    "sid": _log(5.05e-4, 1.170, "W10 table 1; spread H02"),
    "sie": _log(190e-4, 0.867, "W10 table 1; spread H02"),
    "egp0": _log(16.9e-3, 0.255, "W10 table 1; spread H02"),
    "f01": _log(11.1e-3, 0.227, "W10 table 1; spread H02"),
    "vg_l_per_kg": _log(0.15, 0.23, "W10 table 1"),
    "vi_l_per_kg": _normal(0.12, 0.012, "W10 table 1"),
    "ke_per_min": _normal(0.14, 0.035, "W10 table 1"),
    "ka_per_min": _normal(0.018, 0.0045, "W10 table 1"),
    "tmax_g_min": _log(40.0, 0.25, "W10 table 1, ln(1/tmaxG) = -3.689 (0.25)"),
    "ag": _uniform(0.70, 1.00, "W10 table 1 gives 0.70-1.20; cut at 1 so that mass is kept"),
    "ug_ceiling": _uniform(0.020, 0.035, "W10 table 1"),
    "renal_threshold_mmol_l": _normal(9.0, 1.5, "W10 table 1"),
    "renal_clearance_per_min": _normal(0.010, 0.025, "W10 table 1", 0.0),
    "ka_int_per_min": _log(0.0933, 0.30, "W10 table 1, ln = -2.372; its spread of 1.09 cut to 0.30: ours"),
    "fasting_mmol_l": _normal(7.1, 0.8, "ours: 128 mg/dL aimed at by the basal rate"),
    "secretion_dynamic": _uniform(0.0, 0.0, "none in type 1 diabetes"),
    "secretion_static": _uniform(0.0, 0.0, "none in type 1 diabetes"),
    "secretion_per_min": _uniform(0.05, 0.05, "without effect where nothing is secreted"),
}


def _secreting(
    fasting: Spread, sensitivity: float, dynamic: float, static: float, rate: float, source: str
) -> dict[str, Spread]:
    """Another kind of person; D07's pmol and mg/dL become mU and mmol/L."""
    factor = MG_DL_PER_MMOL_L / PMOL_PER_MU
    healthy = {
        "sit": _log(sensitivity * 41.8e-4, 0.728, "geometric mean and spread H02; factor ours"),
        "sid": _log(sensitivity * 5.09e-4, 1.170, "geometric mean and spread H02; factor ours"),
        "sie": _log(sensitivity * 413e-4, 0.867, "geometric mean and spread H02; factor ours"),
        "egp0": _log(15.7e-3, 0.255, "geometric mean and spread H02"),
        "f01": _log(9.5e-3, 0.227, "geometric mean and spread H02"),
        "fasting_mmol_l": fasting,
        "secretion_dynamic": _log(factor * dynamic, 0.30, source),
        "secretion_static": _log(factor * static, 0.30, source),
        "secretion_per_min": _log(rate, 0.20, source),
    }
    return {name: healthy.get(name, spread) for name, spread in TYPE_1.items()}


HEALTHY = _secreting(
    _normal(5.25, 0.25, "ADA: below 5.6 mmol/L, mostly"), 1.0, 2.30, 0.11, 0.050, "D07 normal; spread ours"
)
PREDIABETES = _secreting(
    _normal(5.8, 0.35, "ADA: 5.6-6.9 mmol/L"), 0.8, 2.30, 0.080, 0.036, "D07, between normal and type 2: ours"
)
TYPE_2 = _secreting(
    _normal(7.4, 0.9, "ADA: 7.0 mmol/L and above"), 0.45, 0.99, 0.05, 0.013, "D07 type 2; spread ours"
)


def draw_subjects(kind: dict[str, Spread], count: int, rng: np.random.Generator) -> Subjects:
    """`count` people of one kind whose basal insulin is plausible.

    Args:
        kind: one of `TYPE_1`, `HEALTHY`, `PREDIABETES`, `TYPE_2`.
        count: P, at least 1.
        rng: the only source of chance; the first P plausible candidates are taken, in order.

    Raises:
        DataError: too few candidates are plausible; only a changed table can bring this about.
    """
    kept: list[Subjects] = []
    missing = count
    for _ in range(MOST_DRAWS):
        candidates = _candidates(kind, 4 * count + 16, rng)
        plausible = candidates.at(np.flatnonzero(_plausible(candidates))[:missing])
        kept.append(plausible)
        missing -= len(plausible)
        if missing == 0:
            return concatenate(kept)
    raise DataError(
        f"expected {count} plausible virtual people, found {count - missing} among "
        f"{MOST_DRAWS * (4 * count + 16)} candidates; check the spreads in twin/physiology/parameters.py"
    )


def _candidates(kind: dict[str, Spread], count: int, rng: np.random.Generator) -> Subjects:
    values = {name: spread.draw(count, rng) for name, spread in kind.items()}
    subjects = Subjects(**values, secretion_basal=np.zeros(count))
    if not np.any(subjects.secretion_static):
        return subjects
    return replace(subjects, secretion_basal=secretion_for(equilibrium(subjects).supply_P))


def _plausible(subjects: Subjects) -> np.ndarray:
    steady = equilibrium(subjects)
    u_kg_day = steady.supply_P * MINUTES_PER_DAY / 1000.0
    infused = (u_kg_day >= BASAL_U_KG_DAY[0]) & (u_kg_day <= BASAL_U_KG_DAY[1])
    insulin = steady.insulin_mu_l_P
    secreted = (insulin >= FASTING_INSULIN_MU_L[0]) & (insulin <= FASTING_INSULIN_MU_L[1])
    return np.asarray(steady.exists_P & np.where(subjects.secretion_static > 0.0, secreted, infused))


def _cut_normal(count: int, rng: np.random.Generator) -> Array:
    """Standard normal values, drawn again where beyond the cut."""
    z_N = rng.standard_normal(count)
    while np.any(outside := np.abs(z_N) > CUT_AT_SD):
        z_N[outside] = rng.standard_normal(int(outside.sum()))
    return z_N
