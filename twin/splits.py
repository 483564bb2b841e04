"""Which patients of a site train and which only judge: by patient, per site, from the seed alone.

A simulation judges a federation several times, each time with other patients left out. A split
says which time this is; without one, every patient trains (the model that is released).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from twin.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way of leaving patients out.

    Attributes:
        kind: "folds" (each patient judges in exactly one of `count`), "splits" (each time a fresh
            random `test_fraction` judges) or "all" (nobody is left out).
        count: number of folds or of repeated splits; 1 for "all".
        index: which one of them, 0 … count-1.
        test_fraction: share of a site's patients that judge, in (0, 1); "splits" only.
        seed: of the simulation.
        limit: at most so many training patients per site; None is no limit.
    """

    kind: str = "all"
    count: int = 1
    index: int = 0
    test_fraction: float = 0.34
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("folds", "splits", "all"):
            raise DataError(f"a split is one of folds, splits, all; got {self.kind!r}")
        if not 0 <= self.index < self.count:
            raise DataError(f"split {self.index} of {self.count} does not exist; count from 0")

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def training_patients(self, site: str, patients: Sequence[str]) -> tuple[str, ...]:
        """The patients of a site that train, sorted; the others judge.

        A site with one patient has nobody to train in the fold where that patient judges.
        """
        ordered = sorted(patients)
        judged = set(self.test_patients(site, ordered))
        training = tuple(p for p in ordered if p not in judged)
        if self.limit is None or len(training) <= self.limit:
            return training
        chosen = self._generator(site, "limit").permutation(len(training))[: self.limit]
        return tuple(training[i] for i in sorted(chosen))

    def test_patients(self, site: str, patients: Sequence[str]) -> tuple[str, ...]:
        """The patients of a site that training never sees, sorted; none for "all"."""
        ordered = sorted(patients)
        if self.kind == "all" or not ordered:
            return ()
        if self.kind == "folds":
            order = self._generator(site, "folds").permutation(len(ordered))
            judged = order[self.index :: self.count]
        else:
            order = self._generator(site, f"split {self.index}").permutation(len(ordered))
            judged = order[: max(1, round(self.test_fraction * len(ordered)))]
        return tuple(ordered[i] for i in sorted(judged))

    def _generator(self, site: str, purpose: str) -> np.random.Generator:
        # A hash and not the site's position: another site joining moves nobody here.
        digest = hashlib.sha256(f"{self.seed}\0{site}\0{purpose}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))
