"""Windows of many patients, made some patients at a time: the same windows in less memory and time.

A patient's windows follow from that patient's own rows alone, else clipping by patient would protect nobody.
So a site may be cut between patients. A handful at a time stays in the processor's cache, and the history,
which is most of a window, may be dropped before the next handful is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from twin.site import Site
from twin.tasks.protocol import Examples, Task
from twin.tasks.windows import places

ROWS_AT_ONCE: Final = 80_000
_THREADS: Final = 2


def examples_of(task: Task, sites: Iterable[Site], *, series: bool = True) -> Examples:
    """The windows of all patients, as `task.examples` makes them of one site that has them all.

    Args:
        sites: parts of one site, each patient in one of them, in the order of the patients.
        series: whether the history is kept; without it, as `Examples.without_series`.
    """

    def made(part: Site) -> Examples:
        found = task.examples(part)
        return found if series else found.without_series()

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = [found for site in sites for found in pool.map(made, cut(site))]
    return _joined(parts)


def cut(site: Site, rows: int = ROWS_AT_ONCE) -> Iterator[Site]:
    """The site in parts of about so many rows, cut between patients; at least one part.

    Args:
        site: sorted by patient, as a `Site` is.
    """
    names = site.patients.index
    patient_N = places(site.observations["patient_id"], names)
    begins_P = np.searchsorted(patient_N, np.arange(len(names) + 1))
    first = 0
    while True:
        last = int(np.searchsorted(begins_P, begins_P[first] + rows, side="right")) - 1
        last = min(max(last, first + 1), len(names))
        yield replace(
            site,
            observations=site.observations.iloc[begins_P[first] : begins_P[last]],
            patients=site.patients.iloc[first:last],
        )
        first = last
        if first >= len(names):
            return


def _joined(parts: list[Examples]) -> Examples:
    """All parts as one, field by field, so that no more than one field is there twice."""
    if len(parts) == 1:
        return parts[0]
    patients = tuple(patient for part in parts for patient in part.patients)
    offsets = np.cumsum([0, *(len(part.patients) for part in parts)])
    columns: list[dict[str, Tensor]] = [
        {entry.name: getattr(part, entry.name) for entry in fields(Examples) if entry.name != "patients"}
        for part in parts
    ]
    parts.clear()
    for column, offset in zip(columns, offsets, strict=False):
        column["patient_N"] = column["patient_N"] + int(offset)
    joined = {name: torch.cat([column.pop(name) for column in columns]) for name in list(columns[0])}
    return Examples(**joined, patients=patients)
