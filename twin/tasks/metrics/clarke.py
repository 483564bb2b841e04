"""The Clarke error grid: what a wrong glucose value would do to a person who acts on it.

Source: Clarke et al. 1987, Diabetes Care 10(5):622-628, doi:10.2337/diacare.10.5.622. The lines are
those that later authors agreed on for its figure: A is within 20 % or both at most 70 mg/dL; E is
low taken for high or the reverse; D is a low or high that is missed; C is a correction of a value
that needed none; B is the rest. The published figure ends at 400 mg/dL; here its lines go on.
"""

from __future__ import annotations

import numpy as np

ZONES = "ABCDE"
LOW_MG_DL = 70.0
HIGH_MG_DL = 180.0


def clarke_zone(reference_mg_dl: np.ndarray, predicted_mg_dl: np.ndarray) -> np.ndarray:
    """The zone of each pair as int8: 0 is A, 1 is B, 2 is C, 3 is D, 4 is E.

    Args:
        reference_mg_dl: what was measured, mg/dL, not negative.
        predicted_mg_dl: what was said instead, mg/dL, same shape. A NaN on either side gives B,
            so callers put aside what is not finite.

    Points on a line between zones belong to the better zone for A and to the worse one otherwise.
    """
    r, p = np.asarray(reference_mg_dl, dtype=float), np.asarray(predicted_mg_dl, dtype=float)
    zone_a = (np.abs(p - r) <= 0.2 * r) | ((r <= LOW_MG_DL) & (p <= LOW_MG_DL))
    zone_e = ((r <= LOW_MG_DL) & (p >= HIGH_MG_DL)) | ((r >= HIGH_MG_DL) & (p <= LOW_MG_DL))
    missed_high = (r >= 240.0) & (p >= LOW_MG_DL) & (p <= HIGH_MG_DL)
    missed_low = (r <= LOW_MG_DL) & (p >= LOW_MG_DL) & (p <= HIGH_MG_DL) & (p >= 1.2 * r)
    overcorrected_down = (r >= LOW_MG_DL) & (p >= r + 110.0)
    overcorrected_up = (r >= 130.0) & (r <= HIGH_MG_DL) & (p <= 1.4 * r - 182.0)
    zones = np.select(
        [zone_a, zone_e, missed_high | missed_low, overcorrected_down | overcorrected_up],
        [0, 4, 3, 2],
        default=1,
    )
    return np.asarray(zones.astype(np.int8))
