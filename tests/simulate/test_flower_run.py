"""`flwr run .` on Flower's own simulation runtime (Ray) gives the model that engine=local gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from client.site import open_ledger
from conf.load import to_json
from server.app import store_path
from server.store import Store
from simulate.federation import run_federation
from tests.heart_hospitals import SITES, settings, write_folder
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
FLOWER = Path(sys.executable).parent


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperLink of this test alone, in simulation mode; the environment in which `flwr` finds it."""
    home = tmp_path / "flower-home"
    home.mkdir()
    port, control = free_ports(2)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "PATH": f"{FLOWER}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--control-api-address", f"127.0.0.1:{control}"]
    with (tmp_path / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_healthy(process, port, tmp_path / "superlink.log")
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=120)


@pytest.mark.slow
def test_flwr_run_and_engine_local_give_the_same_model(superlink: dict[str, str], tmp_path: Path) -> None:
    config = settings(write_folder(tmp_path / "data"), "engine=local", rounds=2)
    local = run_federation(config, directory=tmp_path / "local")
    there = tmp_path / "flower"
    done = subprocess.run(
        [
            "flwr",
            "run",
            str(ROOT),
            "test",
            "--stream",
            "--federation-config",
            "num-supernodes=3 client-resources-num-cpus=1",
            "--run-config",
            f"config='{to_json(config)}' directory='{there}'",
        ],
        env=superlink,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    # `flwr run --stream` may exit with 0 after a failed run: judge by what is on disk.
    assert store_path(there).exists(), done.stdout[-3000:] + done.stderr[-1000:]
    with Store(store_path(there)) as store:
        final = store.fact("final")
        assert final is not None, done.stdout[-3000:]
        model, rounds, plan = store.arrays(final), store.rounds(), store.plan()
    assert [row.state for row in rounds] == ["committed"] * 2
    assert plan is not None
    assert plan.hash == local.plan_sha256
    for name, array in local.model.items():
        np.testing.assert_allclose(model[name], array, rtol=1e-5, atol=1e-6)
    # Every round went through the ClientApp of every site: each ledger booked it.
    for site in SITES:
        with open_ledger(config, there, site) as ledger:
            (entry,) = ledger.plans()
        assert (entry.plan_hash, entry.rounds_complete) == (plan.hash, 2)


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1.0).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    pytest.fail(f"the SuperLink did not start: {log.read_text()[-2000:]}")
