"""Offsets of patients: the posterior mode, moved where patients differ and left alone where they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from conf import schema
from tests.records import toy_examples
from twin import models
from twin.halves import halves
from twin.models.network import Network
from twin.personal.logistic import (
    SiteClassifier,
    adapt_patient_classifiers,
    adapt_site_classifier,
    offset_precision,
)
from twin.tasks.heart import COLUMNS, HeartTask
from twin.tasks.protocol import Examples

PATIENTS, WINDOWS = 40, 60


def ward(seed: int, spread: float) -> tuple[Network, Examples]:
    """Patients with many windows each, whose log odds differ by `spread` beside what the table says."""
    draws = np.random.default_rng(seed)
    network = models.build(schema.Model(), HeartTask()).requires_grad_(False)
    network.head.weight[0, 0] = 1.0
    patient = np.repeat(np.arange(PATIENTS), WINDOWS)
    table = draws.normal(size=(len(patient), len(COLUMNS)))
    table[:, -1] = 1.0
    logit = table[:, 0] + spread * draws.normal(size=PATIENTS)[patient]
    label = draws.random(len(patient)) < 1 / (1 + np.exp(-logit))
    base = toy_examples(table, np.zeros((len(patient), 4)), patient)
    return network, replace(
        base,
        target_NH=torch.from_numpy(label.astype(np.float32))[:, None],
        observed_NH=torch.ones(len(patient), 1, dtype=torch.bool),
    )


def unmoved() -> SiteClassifier:
    return SiteClassifier(shift_D=torch.zeros(len(COLUMNS), dtype=torch.float64), precision=float("inf"))


@pytest.mark.parametrize("precision", [0.3, 10.0])
def test_an_offset_is_the_posterior_mode_that_an_optimiser_finds(precision: float) -> None:
    network, examples = ward(0, 2.0)
    everything = torch.ones(len(examples), dtype=torch.bool)
    found = adapt_patient_classifiers(network, unmoved(), examples, everything, precision).offset_P
    logit = network(examples)[:, 0].double().numpy()
    sign = 2 * examples.target_NH[:, 0].double().numpy() - 1
    for patient in range(0, PATIENTS, 7):
        own = examples.patient_N.numpy() == patient

        def loss(offset: float, own: np.ndarray = own) -> float:
            return float(
                np.logaddexp(0, -sign[own] * (logit[own] + offset)).sum() + precision / 2 * offset**2
            )

        assert float(found[patient]) == pytest.approx(minimize_scalar(loss).x, abs=1e-4)


def test_patients_move_where_they_differ_and_hardly_where_they_do_not() -> None:
    moved = {}
    for spread in (0.0, 2.0):
        network, examples = ward(1, spread)
        early_N, late_N = halves(examples, 60.0)
        precision = offset_precision(network, unmoved(), examples, early_N, late_N)
        personal = adapt_patient_classifiers(network, unmoved(), examples, early_N, precision)
        late, task = examples.at(late_N), HeartTask()
        before = task.loss(network(late), late).mean()
        moved[spread] = float(task.loss(personal.outputs(network, late), late).mean() / before)
    assert moved[2.0] < 0.9
    assert moved[0.0] < 1.01


def test_a_patient_without_an_earlier_half_keeps_the_sites_model() -> None:
    network, examples = ward(2, 2.0)
    nobody = torch.zeros(len(examples), dtype=torch.bool)
    personal = adapt_patient_classifiers(network, unmoved(), examples, nobody, 1.0)
    torch.testing.assert_close(personal.outputs(network, examples), unmoved().outputs(network, examples))
    assert offset_precision(network, unmoved(), examples, nobody, ~nobody) == float("inf")


def test_a_site_is_chosen_on_patients_it_has_not_seen_and_not_on_other_windows_of_the_same() -> None:
    # A column that names a patient forecasts other windows of that patient, and nothing of anybody else.
    network, examples = ward(3, 3.0)
    names = torch.zeros(len(examples), len(COLUMNS))
    for column in range(8):
        names[:, column] = 3.0 * (examples.patient_N % 8 == column)
    named = replace(examples, table_NF=names)
    network.head.weight.zero_()
    kept = torch.isin(named.patient_N, torch.arange(8))
    site = adapt_site_classifier(network, named.at(kept))
    assert site.precision >= 100.0


def test_windows_without_a_label_teach_a_site_nothing() -> None:
    network, examples = ward(4, 1.0)
    blind = examples.patient_N % 2 == 0
    wrong = torch.where(blind[:, None], 1.0 - examples.target_NH, examples.target_NH)
    hidden = replace(examples, target_NH=wrong, observed_NH=~blind[:, None])
    expected = adapt_site_classifier(network, examples.at(~blind))
    torch.testing.assert_close(adapt_site_classifier(network, hidden).shift_D, expected.shift_D)
