"""What a private schedule costs and whether n patients are enough for it, before any training.

Costs come from `privacy.accounting`. Signal against noise is arithmetic on public numbers: with n
patients, a step releases the clipped sum plus noise over q n. The noise of the mean over all steps
has the norm

    noise_multiplier × clip_norm × sqrt(parameters) / (q n sqrt(steps)),

and no mean of gradients that are clipped to clip_norm is longer than clip_norm: all patients agree in
every step and none is below the bound. The ratio of the two is the *greatest* signal-to-noise
ratio. Below 1 the noise is longer than any signal can be; above 1 training may succeed, how well
depends on how much patients agree. It is not a forecast of accuracy.

In a federation whose weights follow the numbers of patients the sites' noises add up as squares: k
sites with N patients have the noise of one site with N / sqrt(k) patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from privacy.accounting import (
    ACCOUNTANT,
    NEIGHBOURING,
    UNIT,
    GaussianRelease,
    calibrate,
    lifetime_epsilon,
)
from privacy.accounting import epsilon as schedule_epsilon
from privacy.errors import PrivacyError

PLANS: Final = (1, 2, 4, 12)
"""How many plans like this one the report composes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Signal and noise of one site, or of the whole federation.

    Attributes:
        patients: number of training patients.
        sites: 1, or how many sites share the work.
        noise_norm: expected norm of the noise in the mean update of a step over the plan, in the
            unit of the gradient (as clip_norm).
        ratio: clip_norm over noise_norm; infinite without noise.
        verdict: "above noise", "below noise" or "refused" (fewer than the policy's minimum).
    """

    patients: int
    sites: int
    noise_norm: float
    ratio: float
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """The answer of the planner; `str()` is for a person, `to_dict()` for a program.

    Attributes:
        release: the schedule with its noise multiplier.
        epsilon: upper bound of the schedule at `delta`; infinite without noise.
        epsilon_with_earlier: the same together with what the site spent before.
        epsilon_of_plans: number of such plans → epsilon of all of them, earlier spending included.
        minimum_patients: fewest patients at which one site's greatest signal equals its noise, and
            not below the policy's minimum.
        sites: one entry per number of patients, in the order given.
        federation: all of them together; None if there is one site, or none is admitted.
    """

    release: GaussianRelease
    epsilon: float
    delta: float
    clip_norm: float
    parameters: int
    epsilon_with_earlier: float
    epsilon_of_plans: dict[int, float]
    minimum_patients: int
    sites: tuple[Signal, ...]
    federation: Signal | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite number is null."""
        plain = asdict(self) | {"accountant": ACCOUNTANT, "neighbouring": NEIGHBOURING, "unit": UNIT}
        return {str(key): _finite(value) for key, value in plain.items()}

    def __str__(self) -> str:
        release = self.release
        sampling = (
            "every patient" if release.sampling_rate == 1 else f"a patient with p={release.sampling_rate:g}"
        )
        lines = [
            f"Schedule   {release.steps} noisy steps, {sampling} in each",
            f"Model      {self.parameters} parameters, clip norm {self.clip_norm:g}",
            f"Noise      multiplier {release.noise_multiplier:.6g} (standard deviation over clip norm)",
            f"Cost       epsilon {_number(self.epsilon)} at delta {self.delta:g}, an upper bound",
            f"           unit: {UNIT}; neighbouring: {NEIGHBOURING}",
        ]
        if self.epsilon_with_earlier > self.epsilon:
            lines.append(f"           {_number(self.epsilon_with_earlier)} with what was spent earlier")
        plans = ", ".join(f"{count}: {_number(value)}" for count, value in self.epsilon_of_plans.items())
        lines += [f"Add up     epsilon of this many such plans: {plans}", ""]
        lines.append(f"{'patients':>10} {'noise norm':>11} {'signal/noise':>13}  verdict")
        lines += [self._row(f"{site.patients}", site) for site in self.sites]
        if self.federation is not None:
            lines.append(self._row(f"all {self.federation.patients}", self.federation))
        lines += ["", f"Patients that a site on its own needs: {self.minimum_patients} or more."]
        lines.append("signal/noise is the greatest possible; below 1 noise is longer than any signal can be.")
        return "\n".join(lines)

    def _row(self, name: str, signal: Signal) -> str:
        words = {
            "above noise": "signal can stand above noise",
            "below noise": f"below noise: on its own it needs at least {self.minimum_patients} patients",
            "refused": "refused: fewer patients than privacy.minimum_patients",
        }
        if signal.sites > 1 and signal.verdict == "below noise":
            words["below noise"] = "below noise, even together"
        ratio = f"{signal.ratio:13.2f}" if math.isfinite(signal.ratio) else f"{'no noise':>13}"
        return f"{name:>10} {signal.noise_norm:11.3g} {ratio}  {words[signal.verdict]}"


def plan(
    *,
    patients: Sequence[int],
    epsilon: float | None,
    delta: float,
    noise_multiplier: float | None,
    sampling_rate: float,
    steps: int,
    clip_norm: float,
    parameters: int,
    earlier: Sequence[GaussianRelease] = (),
    minimum_patients: int = 1,
) -> PlanReport:
    """What a schedule costs and where its signal stands.

    Args:
        patients: training patients of each site, 1 or more each.
        epsilon: target over the plan; calibrates the noise unless `noise_multiplier` is given.
        delta: in (0, 1).
        noise_multiplier: used as it is if not None; 0 is no privacy.
        sampling_rate: in (0, 1].
        steps: noisy steps of the plan, rounds × local steps, 1 or more.
        clip_norm: above 0, unit of the gradient.
        parameters: number of trainable parameters, 1 or more.
        earlier: what a site released before, from its ledger.
        minimum_patients: the policy's; a site below it is refused.

    Raises:
        PrivacyError: an argument is out of range, or neither epsilon nor noise_multiplier is given.
    """
    _check(patients, clip_norm, parameters, steps, sampling_rate)
    if noise_multiplier is None:
        if epsilon is None:
            raise PrivacyError("Give privacy.epsilon (a target) or privacy.noise_multiplier; both are null.")
        noise_multiplier = calibrate(epsilon, delta, sampling_rate, steps)
    release = GaussianRelease(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)
    # Noise norm of one site with a single patient, in units of the clip norm.
    unit = noise_multiplier * math.sqrt(parameters / steps) / sampling_rate
    sites = tuple(_signal(count, 1, unit, clip_norm, minimum_patients) for count in patients)
    admitted = [count for count in patients if count >= minimum_patients]
    together = _signal(sum(admitted), len(admitted), unit, clip_norm, 1) if len(admitted) > 1 else None
    return PlanReport(
        release=release,
        epsilon=schedule_epsilon([release], delta),
        delta=delta,
        clip_norm=clip_norm,
        parameters=parameters,
        epsilon_with_earlier=lifetime_epsilon([*earlier, release], delta),
        epsilon_of_plans={count: lifetime_epsilon([*earlier, *[release] * count], delta) for count in PLANS},
        minimum_patients=max(minimum_patients, math.ceil(unit), 1),
        sites=sites,
        federation=together,
    )


def _signal(patients: int, sites: int, unit: float, clip_norm: float, minimum: int) -> Signal:
    noise = clip_norm * unit * math.sqrt(sites) / patients
    ratio = clip_norm / noise if noise > 0 else math.inf
    verdict = "refused" if patients < minimum else ("above noise" if ratio >= 1 else "below noise")
    return Signal(patients=patients, sites=sites, noise_norm=noise, ratio=ratio, verdict=verdict)


def _check(
    patients: Sequence[int], clip_norm: float, parameters: int, steps: int, sampling_rate: float
) -> None:
    faults = []
    if not patients or min(patients) < 1:
        faults.append("patients: expected one or more numbers of 1 or above (patients=9,57)")
    if not 0 < clip_norm < math.inf:
        faults.append(f"clip_norm: expected above 0, got {clip_norm}")
    if parameters < 1:
        faults.append(f"parameters: expected 1 or more, got {parameters}")
    if steps < 1:
        faults.append(f"steps (rounds × local steps): expected 1 or more, got {steps}")
    if not 0 < sampling_rate <= 1:
        faults.append(f"sampling_rate: expected in (0, 1], got {sampling_rate}")
    if faults:
        raise PrivacyError("The plan cannot be judged. " + "; ".join(faults) + ".")


def _number(value: float) -> str:
    """Three digits, rounded up: what is shown stays an upper bound."""
    if not 0 < value < math.inf:
        return "0" if value == 0 else "unbounded"
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / unit * (1 - 1e-12)) * unit:.6g}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
