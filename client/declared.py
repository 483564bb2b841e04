"""The number of patients that a site declares for a task: rounded once, then the same for every plan.

Offers are free, and which patients can train depends on a plan's settings. Were each offer answered with
a fresh count, a coordinator could learn from many of them who came, who left, and who has which data.
So the first number is kept in the site's folder, `declared.json`, until its people change it.
"""

from __future__ import annotations

import json
from pathlib import Path

from client.errors import ClientError
from trust.keys import write_file
from trust.plan import PATIENTS_STEP, round_patients
from trust.ranges import MOST_PATIENTS


def kept(path: Path, task: str) -> int | None:
    """What is declared for a task; None if nothing was yet.

    Raises:
        ClientError: home_unreadable.
    """
    return _read(path).get(task)


def keep(path: Path, task: str, patients: int) -> int:
    """What is declared for a task: what was kept before, else `patients` rounded, on disk on return.

    Raises:
        ClientError: home_unreadable.
    """
    numbers = _read(path)
    if task not in numbers:
        numbers[task] = round_patients(patients)
        write_file(path, (json.dumps(numbers, indent=2, sort_keys=True) + "\n").encode(), replace=True)
    return numbers[task]


def _read(path: Path) -> dict[str, int]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError):
        raise ClientError("home_unreadable", f"Expected JSON in {path}; it cannot be read.") from None
    if not isinstance(data, dict) or not all(_is_number(value) for value in data.values()):
        raise ClientError(
            "home_unreadable",
            f"Expected in {path} a multiple of {PATIENTS_STEP} up to {MOST_PATIENTS} for each task.",
        )
    return data


def _is_number(value: object) -> bool:
    return type(value) is int and PATIENTS_STEP <= value <= MOST_PATIENTS and value % PATIENTS_STEP == 0
