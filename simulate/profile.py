"""Where the time of a run's rounds went, as a file and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from link.stopwatch import Stopwatch
from simulate.files import write_atomically

FILE = "profile.json"


def write_profile(watch: Stopwatch, directory: Path) -> None:
    """Writes what a stopwatch measured beside the run's results.

    A run that was stopped and continued has the figures of its last part alone.
    """
    total_s = sum(watch.seconds.values())
    phases = {
        name: {
            "seconds": round(seconds, 4),
            "share": round(seconds / max(total_s, 1e-9), 4),
            "calls": watch.calls[name],
        }
        for name, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1])
    }
    figures = {"rounds": watch.calls.get("aggregation", 0), "seconds": round(total_s, 4), "phases": phases}
    write_atomically(directory / FILE, (json.dumps(figures, indent=1) + "\n").encode())


def profile_lines(figures: dict[str, Any]) -> list[str]:
    """A table of `profile.json`, a line for each phase."""
    rounds = max(1, int(figures["rounds"]))
    lines = [f"{'phase':<20}{'ms a round':>12}{'share':>8}"]
    for name, found in figures["phases"].items():
        lines.append(f"{name:<20}{1e3 * found['seconds'] / rounds:>12.2f}{100 * found['share']:>6.1f} %")
    return [*lines, f"{'all':<20}{1e3 * figures['seconds'] / rounds:>12.2f}   of {rounds} rounds"]
