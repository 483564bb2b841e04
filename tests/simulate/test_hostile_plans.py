"""Plans that ask a simulated site for more than its own configuration allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.errors import ClientError
from client.site import open_ledger
from privacy.accounting import GaussianRelease
from tests.heart_hospitals import settings, write_folder


def release(noise: float, steps: int = 4) -> GaussianRelease:
    return GaussianRelease(noise_multiplier=noise, sampling_rate=1.0, steps=steps)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_a_site_with_a_noise_multiplier_refuses_plans_with_less_noise_or_more_steps(
    tmp_path: Path, rate: float
) -> None:
    words = ["privacy.noise_multiplier=2.0", f"privacy.sampling_rate={rate}"]
    config = settings(write_folder(tmp_path / "hospitals"), *words, rounds=4)
    with open_ledger(config, tmp_path, "alpha") as ledger:
        for plan in (release(0.01), release(1.9), release(2.0, steps=40)):
            with pytest.raises(ClientError, match="budget_exhausted"):
                ledger.open_plan("f" * 64, plan)
        asked = GaussianRelease(noise_multiplier=2.0, sampling_rate=rate, steps=4)
        ledger.open_plan("f" * 64, asked)
        assert ledger.spent() > 0.0
