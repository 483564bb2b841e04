"""Sites as a simulation opens them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.load import load
from simulate.wards import open_wards
from twin import tasks
from twin.errors import DataError


def test_data_in_which_the_task_finds_nothing_stop_a_run(tmp_path: Path) -> None:
    for site in ("north", "south"):
        (tmp_path / site).mkdir()
        (tmp_path / site / "patients.csv").write_text("patient_id,age\n1,63\n2,70\n")
    config = load(["data=folder", f"data.path={tmp_path}"])
    with pytest.raises(DataError, match="task=glucose to learn from; found nothing at north, south"):
        open_wards(config, tasks.build(config.task))
