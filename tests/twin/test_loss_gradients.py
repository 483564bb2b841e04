"""The gradient of each task's loss that is written out is the one that autograd finds."""

from __future__ import annotations

import pytest
import torch

from conf import schema
from twin import tasks
from twin.tasks.protocol import Examples

WINDOWS = 400


def _examples(name: str, horizons: int) -> Examples:
    draws = torch.Generator().manual_seed(3)
    label_NH = torch.bernoulli(torch.full((WINDOWS, horizons), 0.4), generator=draws)
    target_NH = 120 + 60 * torch.randn(WINDOWS, horizons, generator=draws) if name == "glucose" else label_NH
    observed_NH = torch.rand(WINDOWS, horizons, generator=draws) < (1.0 if name == "heart" else 0.6)
    return Examples(
        series_NTC=torch.zeros(WINDOWS, 0, 0),
        static_NS=torch.zeros(WINDOWS, 0),
        table_NF=torch.zeros(WINDOWS, 0),
        anchor_N=120 + 30 * torch.randn(WINDOWS, generator=draws),
        target_NH=target_NH * observed_NH,
        observed_NH=observed_NH,
        patient_N=torch.zeros(WINDOWS, dtype=torch.int64),
        time_us_N=torch.zeros(WINDOWS, dtype=torch.int64),
        patients=("p",),
    )


@pytest.mark.parametrize("name", ["glucose", "heart", "hypoxemia"])
def test_the_gradient_of_the_loss_at_the_outputs_is_that_of_autograd(name: str) -> None:
    task = tasks.build(schema.Task(name=name))
    examples = _examples(name, len(task.horizons_min))
    draws = torch.Generator().manual_seed(4)
    # Wide enough that spreads reach both of their ends.
    outputs_NO = 4 * torch.randn(WINDOWS, task.outputs, generator=draws)
    outputs_NO.requires_grad_()
    (expected_NO,) = torch.autograd.grad(task.loss(outputs_NO, examples).sum(), [outputs_NO])
    found_NO = task.loss_gradient(outputs_NO.detach(), examples)
    assert expected_NO.abs().max() > 0.1
    torch.testing.assert_close(found_NO, expected_NO, rtol=1e-5, atol=1e-6)
