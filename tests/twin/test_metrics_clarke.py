"""The Clarke grid against polygons drawn from the published lines, and against known points."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from twin.tasks.metrics import clarke_zone

# (reference, predicted) corners of every zone but B, in mg/dL, inside a plane that ends at 600.
OUTLINES: dict[int, list[list[tuple[float, float]]]] = {
    0: [[(0, 0), (70, 0), (70, 70), (0, 70)], [(0, 0), (600, 480), (600, 720)]],
    2: [[(70, 180), (490, 600), (70, 600)], [(130, 0), (180, 70), (180, 0)]],
    3: [
        [(0, 70), (175 / 3, 70), (70, 84), (70, 180), (0, 180)],
        [(240, 70), (600, 70), (600, 180), (240, 180)],
    ],
    4: [[(0, 180), (70, 180), (70, 600), (0, 600)], [(180, 0), (600, 0), (600, 70), (180, 70)]],
}


def by_outlines(points: np.ndarray) -> np.ndarray:
    zone = np.ones(len(points), dtype=np.int8)
    for number in (4, 3, 2, 0):
        for outline in OUTLINES[number]:
            zone[Outline([*outline, outline[0]], closed=True).contains_points(points)] = number
    return zone


def test_zones_equal_the_polygons_of_the_published_grid() -> None:
    points = np.random.default_rng(0).uniform(0.0, 600.0, (200_000, 2))
    low = np.random.default_rng(1).uniform(0.0, 200.0, (200_000, 2))
    for sample in (points, low):
        assert np.array_equal(clarke_zone(sample[:, 0], sample[:, 1]), by_outlines(sample))


@pytest.mark.parametrize(
    ("reference", "predicted", "zone"),
    [
        (100, 100, "A"),
        (100, 119, "A"),
        (60, 30, "A"),  # both low
        (100, 130, "B"),
        (300, 230, "B"),
        (100, 215, "C"),  # would be corrected for nothing
        (170, 40, "C"),
        (60, 120, "D"),  # a low is missed
        (300, 120, "D"),  # a high is missed
        (60, 200, "E"),  # a low is taken for a high
        (250, 60, "E"),
    ],
)
def test_known_points_lie_where_the_paper_puts_them(reference: float, predicted: float, zone: str) -> None:
    assert "ABCDE"[clarke_zone(np.array([reference]), np.array([predicted]))[0]] == zone
