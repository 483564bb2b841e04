"""What `twinward coordinator` prints about runs and models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from cli.words import output


def show_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    """One line per run."""
    from rich.table import Table

    if not runs:
        print("There are no runs yet. Launch one: twinward coordinator launch")
        return
    table = Table("run", "state", "task", "rounds", "sites", "by", "launched (UTC)", "why", box=None)
    for run in runs:
        done = run["progress"]
        table.add_row(
            run["id"],
            run["state"],
            run["config"]["task"]["name"],
            f"{done.get('committed', 0)}/{run['config']['rounds']}",
            str(len(done.get("taking_part", []))),
            run["who"],
            _when(run["launched_s"]),
            run["reason"],
        )
    output().print(table)


def show_status(status: Mapping[str, Any]) -> None:
    """A run whole: where it stands, what sites say, what was refused."""
    from rich.table import Table

    run, done, connected = status["run"], status["progress"], set(status["connected"])
    screen = output()
    screen.print(line(status), highlight=False)
    if not done:
        return
    price = "no privacy" if done["epsilon"] is None else f"epsilon {done['epsilon']:.4g} at {done['delta']:g}"
    screen.print(f"offer {done['offer_sha256'][:12]}, {price}, quorum {run['conditions']['quorum']}")
    table = Table("site", "says", "takes part", "this round", "connected", box=None)
    for site, says in done["sites"].items():
        part = "yes" if site in done["taking_part"] else ""
        answered = "answered" if site in done["answered"] else ""
        table.add_row(site, says, part, answered, "yes" if site in connected else "no")
    screen.print(table)
    for number, site, why in done["refusals"]:
        screen.print(f"refused in round {number}: {site or 'a node'}: {why}", highlight=False)
    if done["model"]:
        screen.print(f"model {done['model']}", highlight=False)


def show_models(models: Sequence[Mapping[str, Any]]) -> None:
    """One line per model."""
    from rich.table import Table

    if not models:
        print("There are no models yet.")
        return
    table = Table(
        "model", "task", "run", "rounds", "sites", "epsilon", "SHA-256", "added (UTC)", "", box=None
    )
    for model in models:
        costs = [cost for cost in model["epsilons"].values() if cost is not None]
        table.add_row(
            str(model["number"]),
            model["task"],
            model["run"],
            str(model["rounds"]),
            ", ".join(sorted(model["epsilons"])),
            f"{max(costs):.4g}" if costs else "none",
            model["sha256"][:16],
            _when(model["added_s"]),
            "current" if model["current"] else "",
        )
    output().print(table)


def line(status: Mapping[str, Any]) -> str:
    """Where a run stands, in one line."""
    run, done = status["run"], status["progress"]
    text = f"{run['id']} {run['state']}"
    if run["state"] in ("queued", "asking") and done:
        said = ", ".join(f"{site}: {says}" for site, says in done["sites"].items())
        text += f" ({said})"
    elif done.get("committed") is not None and done.get("rounds"):
        text += f", {done['committed']} of {done['rounds']} rounds"
        if run["state"] == "running" and done["answered"] and done["round_state"] == "sent":
            text += f", round {done['round']}: {len(done['answered'])} of {len(done['taking_part'])} answered"
    return text + (f": {run['reason']}" if run["reason"] else "")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
