"""SIGKILL before and after every commit, and at random instants: nothing is lost or spent twice.

A driver in a process of its own imports everything once and forks a child per kill; the child runs
the federation as a user would, and dies by SIGKILL inside SQLite's own calls or by its parent.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.heart_hospitals import write_folder

ROOT = Path(__file__).parents[2]

DRIVER = '''
import json, os, random, shutil, signal, sqlite3, sys, time
from pathlib import Path

import torch
torch.set_num_threads(1)
from client.site import open_ledger, site_examples, site_names
from simulate.federation import run_federation
from trust.digest import arrays_sha256
from tests.heart_hospitals import settings

folder, work, what, stride = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
words = ["sites=[alpha,beta]", "strategy.local_steps=2", *sys.argv[6:]]
config = settings(folder, *words, rounds=int(sys.argv[5]))
for name in site_names(config):
    site_examples(config, name)
real_connect = sqlite3.connect


def child(directory, act):
    """Runs act in a forked process and waits for it; gives how it ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act(directory)
            code = 0
        finally:
            os._exit(code)
    return pid


def wait(pid):
    return os.waitpid(pid, 0)[1]


def run(directory):
    run_federation(config, directory=directory)


def run_and_die(at, after):
    """Runs the federation and dies just before or just after commit number `at`."""
    def act(directory):
        commits = 0

        class Deadly(sqlite3.Connection):
            def execute(self, sql, *parameters):
                nonlocal commits
                if sql != "COMMIT":
                    return super().execute(sql, *parameters)
                commits += 1
                if commits == at and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                done = super().execute(sql, *parameters)
                if commits == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

        sqlite3.connect = lambda *a, **k: real_connect(*a, factory=Deadly, **k)
        run(directory)
    return act


def outcome(directory):
    """What is on disk once it is done: model, and what each ledger was charged."""
    result = run_federation(config, directory=directory)
    charges = {}
    for name in site_names(config):
        with open_ledger(config, directory, name) as ledger:
            charges[name] = [(p.plan_hash, p.steps_reserved, p.rounds_complete) for p in ledger.plans()]
    cohorts = [[list(sites), arrays_sha256(model)] for sites, model in result.cohorts]
    return {"sha256": result.sha256, "cohorts": cohorts, "charges": charges,
            "rounds": result.rounds_committed,
            "spent": {name: site.epsilon for name, site in result.sites.items()}}


def resume_and_judge(directory):
    (directory / "outcome.json").write_text(json.dumps(outcome(directory), sort_keys=True))


def finish(directory):
    assert wait(child(directory, resume_and_judge)) == 0
    text = (directory / "outcome.json").read_text()
    shutil.rmtree(directory)
    return text


begun = time.monotonic()
assert wait(child(work / "calm", run)) == 0
calm_s = time.monotonic() - begun
expected = finish(work / "calm")
outcomes, killed = [], 0
if what == "commits":
    at = 1
    while True:
        home = work / f"commit-{at}"
        died = wait(child(home, run_and_die(at, after=at // stride % 2 == 0)))
        if died == 0:
            break
        assert died == signal.SIGKILL
        killed += 1
        # Killed a second time on the way back, a little later.
        wait(child(home, run_and_die(2, after=at // stride % 2 == 1)))
        outcomes.append(finish(home))
        at += stride
else:
    draws = random.Random(7)
    for number in range(12):
        home = work / f"instant-{number}"
        for _ in range(2):
            pid = child(home, run)
            time.sleep(draws.uniform(0, calm_s))
            os.kill(pid, signal.SIGKILL)
            struck = wait(pid) == signal.SIGKILL
            killed += struck
            # Who was done before has shown that the machine is faster now than in the calm run.
            calm_s *= 1.0 if struck else 0.8
        outcomes.append(finish(home))
print(json.dumps({"expected": expected, "outcomes": outcomes, "killed": killed}))
'''


SCAFFOLD = ["2", "strategy=scaffold"]
PARTED = ("cohort_rounds=1", "cohorts=2", "cohort_level=1")
CLUSTERED = ["2", "strategy=clustered", *(f"strategy.{key}" for key in PARTED)]
# Alpha makes three versions before beta's first task is done, which is then three versions behind.
FEDBUFF = ["4", "strategy=fedbuff", "strategy.buffer_size=1", "engine.task_s=[1,3]"]
# Of unequal steps, with losses in the updates.
FAIR = ["2", "strategy=qfedavg", "engine.most_steps=[1,9]"]
CHARGES = {"strategy=scaffold": {"alpha": [4, 2], "beta": [4, 2]}}
CHARGES |= {"strategy=clustered": CHARGES["strategy=scaffold"]}
CHARGES |= {"strategy=fedbuff": {"alpha": [8, 4], "beta": [2, 1]}}
CHARGES |= {"strategy=qfedavg": {"alpha": [2, 2], "beta": [4, 2]}}


@pytest.mark.parametrize(
    ("words", "what", "stride", "least"),
    [
        (SCAFFOLD, "commits", 1, 25),
        (SCAFFOLD, "instants", 1, 6),
        (FEDBUFF, "commits", 9, 4),
        (CLUSTERED, "commits", 9, 2),
        (FAIR, "commits", 18, 1),
    ],
)
def test_a_killed_federation_ends_bit_for_bit_as_an_undisturbed_one(
    tmp_path: Path, words: list[str], what: str, stride: int, least: int
) -> None:
    folder = write_folder(tmp_path / "data")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, str(driver), str(folder), str(tmp_path / "work"), what, str(stride), *words],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    expected = json.loads(told["expected"])
    assert expected["rounds"] == int(words[0])
    assert {site: [plan[1:] for plan in plans] for site, plans in expected["charges"].items()} == {
        site: [charge] for site, charge in CHARGES[words[1]].items()
    }
    assert told["killed"] >= least
    assert [json.loads(text) for text in told["outcomes"]] == [expected] * len(told["outcomes"])
