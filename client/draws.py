"""Which windows stand in each step of a round, for the sites of a chunk at once.

With privacy a step takes each patient with probability sampling_rate (Poisson), as the accounting asks.
Without, patients take turns in a random order until all had theirs, an epoch, and are then put into another:
in as many steps as come nearest to that rate, which differ by one patient at most. Of each patient a step
takes at most windows_per_patient windows, evenly spaced from a random start. What a site draws does not hang
on who is drawn for with it.

Letters: S sites, T steps, P patients of a site, A patients of all sites; over all steps and sites K patients
who take part, M windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privacy.noise import NoiseStream, spread
from trust.plan import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Who takes part with which windows, in the order step, site, patient.

    Attributes:
        counts_K: number of windows of each patient who takes part, at least one.
        windows_M: their windows, as numbers among those of their site, ascending within a site.
        present_TS: number of patients who take part.
    """

    counts_K: np.ndarray
    windows_M: np.ndarray
    present_TS: np.ndarray

    @property
    def steps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Counts and windows of each step over all sites."""
        ends_T = np.cumsum(self.present_TS.sum(1))
        counts = np.split(self.counts_K, ends_T[:-1])
        ends_M = np.cumsum([own.sum() for own in counts])
        return list(zip(counts, np.split(self.windows_M, ends_M[:-1]), strict=True))


def takes_all(counts_P: np.ndarray, terms: Terms) -> bool:
    """Whether every step takes every window, so that nothing is drawn."""
    return terms.sampling_rate >= 1.0 and int(counts_P.max(initial=0)) <= terms.windows_per_patient


class Drawing:
    """What some sites draw in a round, step after step, each from keyed streams of its own."""

    def __init__(self, counts: Sequence[np.ndarray], streams: Sequence[NoiseStream], terms: Terms) -> None:
        """Args:
        counts: of each site, the number of windows of each patient; windows are numbered patient by patient.
        streams: of each site, of this round.
        """
        self._terms, self._step = terms, 0
        self._everybody = terms.sampling_rate >= 1.0
        self._sizes = [len(own) for own in counts]
        self._counts_A = np.concatenate(counts)
        self._first_A = np.concatenate([np.cumsum(own) - own for own in counts])
        self._site_A = np.repeat(np.arange(len(counts)), self._sizes)
        self._starts = [
            stream.child("starts") if own.max(initial=0) > 1 else None
            for stream, own in zip(streams, counts, strict=True)
        ]
        self._choices = [] if self._everybody else [own.child("choices") for own in streams]
        # Of an epoch: its steps, and the one in which each patient has a turn.
        steps = round(1.0 / terms.sampling_rate)
        self._turns_S = np.array([max(1, min(steps, size)) for size in self._sizes])
        self._turn_A = np.zeros(len(self._counts_A), np.int64)

    def next(self, steps: int) -> Draws:
        """What is drawn in the next steps."""
        here_TA = np.broadcast_to(self._counts_A > 0, (steps, len(self._counts_A)))
        if not self._everybody:
            here_TA = here_TA & (self._sampled(steps) if self._terms.private else self._in_turn(steps))
        step_K, patient_K = np.nonzero(here_TA)
        counts_K, windows_M = self._counts_A[patient_K], self._first_A[patient_K]
        start_TA = self._drawn_starts(steps)
        if start_TA is not None:
            windows_M = spread(counts_K, start_TA[step_K, patient_K], self._terms.windows_per_patient)
            before_K = np.cumsum(counts_K) - counts_K
            counts_K = np.minimum(counts_K, self._terms.windows_per_patient)
            windows_M = windows_M + np.repeat(self._first_A[patient_K] - before_K, counts_K)
        sites = len(self._sizes)
        present = np.bincount(step_K * sites + self._site_A[patient_K], minlength=steps * sites)
        self._step += steps
        return Draws(counts_K=counts_K, windows_M=windows_M, present_TS=present.reshape(steps, sites))

    def _sampled(self, steps: int) -> np.ndarray:
        """Who takes part in each step, each on its own, shape T × A."""
        each = zip(self._choices, self._sizes, strict=True)
        rate = self._terms.sampling_rate
        parts = [stream.poisson_sample(steps * size, rate).reshape(steps, size) for stream, size in each]
        return np.concatenate(parts, axis=1)

    def _in_turn(self, steps: int) -> np.ndarray:
        """Whose turn it is in each step, shape T × A."""
        here_TA = np.empty((steps, len(self._turn_A)), bool)
        for row, step in enumerate(range(self._step, self._step + steps)):
            turn_S = step % self._turns_S
            self._shuffle(np.flatnonzero(turn_S == 0))
            here_TA[row] = self._turn_A == turn_S[self._site_A]
        return here_TA

    def _shuffle(self, anew: np.ndarray) -> None:
        """Gives the patients of some sites their turns in a new epoch."""
        if not len(anew):
            return
        sizes = [self._sizes[site] for site in anew]
        chance_B = np.concatenate([self._choices[site].uniform(self._sizes[site]) for site in anew])
        if len(set(sizes)) == 1:
            order_B = chance_B.reshape(len(anew), -1).argsort(axis=1, kind="stable")
            order_B = (order_B + sizes[0] * np.arange(len(anew))[:, None]).reshape(-1)
        else:
            order_B = np.lexsort((chance_B, np.repeat(anew, sizes)))
        rank_B = np.empty(len(order_B), np.int64)
        # Sites stand one after the other, before and after.
        rank_B[order_B] = np.arange(len(order_B)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        mine_A = np.isin(self._site_A, anew) if len(anew) < len(self._sizes) else slice(None)
        self._turn_A[mine_A] = rank_B * np.repeat(self._turns_S[anew], sizes) // np.repeat(sizes, sizes)

    def _drawn_starts(self, steps: int) -> np.ndarray | None:
        """Where in each patient's record windows begin, shape T × A; None if nobody has more than one."""
        if not any(self._starts):
            return None
        parts = [
            np.zeros((steps, size)) if stream is None else stream.uniform(steps * size).reshape(steps, size)
            for stream, size in zip(self._starts, self._sizes, strict=True)
        ]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which windows stand where in one step, S sites × P patients × W windows.

    Attributes:
        index_SPW: row of each in the sites' joined windows; the last row is padding.
        weight_SPW: of a window in its patient's mean; zero for padding.
        present_S: number of patients who take part.
    """

    index_SPW: np.ndarray
    weight_SPW: np.ndarray
    present_S: np.ndarray


def lay_out(draws: Draws, first_S: np.ndarray) -> list[Layout]:
    """Each step's layout, in which every site has room for the most patients and windows of any.

    Args:
        first_S: row at which the windows of each site begin, S + 1 numbers; the last is the padding's.
    """
    present_TS, counts_K = draws.present_TS, draws.counts_K
    steps, sites = present_TS.shape
    # A block is the patients of one site in one step.
    block_K = np.repeat(np.arange(steps * sites), present_TS.reshape(-1))
    step_K, site_K = np.divmod(block_K, sites)
    rows_T, width_T = present_TS.max(axis=1, initial=0), np.zeros(steps, np.int64)
    np.maximum.at(width_T, step_K, counts_K)
    end_T = np.cumsum(sites * rows_T * width_T)
    before_K = (np.cumsum(present_TS) - present_TS.reshape(-1))[block_K]
    place_K = site_K * rows_T[step_K] + np.arange(len(block_K)) - before_K
    slot_K = (end_T - sites * rows_T * width_T)[step_K] + place_K * width_T[step_K]
    begin_K, share_K = first_S[site_K], (1.0 / counts_K).astype(np.float32)
    if width_T.max(initial=0) > 1:
        within_M = np.arange(len(draws.windows_M)) - np.repeat(np.cumsum(counts_K) - counts_K, counts_K)
        slot_K, begin_K, share_K = (np.repeat(each, counts_K) for each in (slot_K, begin_K, share_K))
        slot_K = slot_K + within_M
    index, weight = np.full(int(end_T[-1]), first_S[-1]), np.zeros(int(end_T[-1]), np.float32)
    index[slot_K], weight[slot_K] = draws.windows_M + begin_K, share_K
    each = zip(np.split(index, end_T[:-1]), np.split(weight, end_T[:-1]), rows_T, width_T, strict=True)
    return [
        Layout(
            index_SPW=own_index.reshape(sites, rows, width),
            weight_SPW=own_weight.reshape(sites, rows, width),
            present_S=present_S,
        )
        for (own_index, own_weight, rows, width), present_S in zip(each, present_TS, strict=True)
    ]
