"""engine=ray on two nodes, started as on two machines: the same bits as local, and deaths survived."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")

from client.site import open_ledger
from conf.errors import ConfigError
from conf.schema import Config
from link import ray_workers
from link.errors import LinkError
from link.ray_workers import RayWorkers
from simulate import cluster as engine
from simulate.cluster import cluster
from simulate.federation import FederationResult, run_federation
from tests.heart_hospitals import SITES, settings, write_folder
from tests.ports import free_port

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
RAY = Path(sys.executable).parent / "ray"
PLANS = {
    "fedavg": ["model=mlp", "model.hidden=5", "strategy.local_steps=3", "privacy.sampling_rate=0.7"],
    "scaffold": ["model=linear", "strategy=scaffold", "strategy.local_steps=2"],
}


class _Node:
    """One `ray start` with all that it started."""

    def __init__(self, *words: str) -> None:
        # Ray makes one process group of all this, so that nobody else's Ray on this machine is ended.
        self._process = subprocess.Popen(
            [str(RAY), "start", "--block", "--num-cpus=1", "--object-store-memory=80000000", *words],
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_this_process,  # noqa: PLW1509  it calls the kernel and nothing else
        )

    def end(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=15)


def _end_with_this_process() -> None:
    """Asks Linux to end the new process when this one is gone, however that happens."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, list[_Node]]]:
    """The address of a cluster, and its nodes: the head and another."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets must be short
    address = f"127.0.0.1:{free_port()}"
    port = address.partition(":")[2]
    head = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    started = [_Node(*head, f"--temp-dir={folder}")]
    try:
        _wait_for_nodes(address, 1)
        started.append(_Node(f"--address={address}", "--node-ip-address=127.0.0.1"))
        _wait_for_nodes(address, 2)
        yield address, started
    finally:
        for node in reversed(started):
            node.end(signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_nodes(address: str, wanted: int) -> None:
    """Asks in a process of its own: a driver that finds no head gives up for good."""
    code = (
        "import ray, sys, time; ray.init(address=sys.argv[1], logging_level='ERROR')\n"
        "while sum(n['Alive'] for n in ray.nodes()) < int(sys.argv[2]): time.sleep(0.2)"
    )
    for _ in range(20):
        asked = subprocess.run(
            [sys.executable, "-c", code, address, str(wanted)], capture_output=True, timeout=60, check=False
        )
        if asked.returncode == 0:
            return
    pytest.fail(f"the Ray cluster did not come up: {asked.stderr.decode()[-1000:]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hospitals"))


@pytest.fixture(scope="module")
def config(nodes: tuple[str, list[_Node]], folder: Path) -> Config:
    return settings(folder, "engine=ray", f"engine.ray_address={nodes[0]}", *PLANS["fedavg"])


@pytest.fixture(scope="module")
def workers(config: Config) -> Iterator[RayWorkers]:
    with cluster(config) as found:
        assert found is not None
        yield found


@pytest.fixture(scope="module")
def local(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FederationResult:
    quiet = settings(folder, "engine=local", *PLANS["fedavg"])
    return run_federation(quiet, directory=tmp_path_factory.mktemp("local"))


def _same(found: FederationResult, wanted: FederationResult) -> None:
    assert (found.sha256, found.plan_sha256, found.sites) == (wanted.sha256, wanted.plan_sha256, wanted.sites)
    assert [entry.participants for entry in found.rounds] == [len(SITES)] * len(wanted.rounds)


@pytest.mark.slow
def test_two_nodes_give_the_bits_of_local_and_each_ledger_holds_its_rounds(
    workers: RayWorkers, config: Config, local: FederationResult, tmp_path: Path
) -> None:
    found = run_federation(config, directory=tmp_path)
    _same(found, local)
    assert len(workers.on_each_node(os.getpid)) == 2
    for site in SITES:
        with open_ledger(config, tmp_path, site) as ledger:
            (plan,) = ledger.plans()
        assert (plan.plan_hash, plan.rounds_complete) == (local.plan_sha256, 4)


@pytest.mark.slow
def test_a_strategy_that_sends_sites_more_than_the_model_gives_the_bits_of_local(
    workers: RayWorkers, config: Config, folder: Path, tmp_path: Path
) -> None:
    del workers
    other = settings(folder, "engine=local", *PLANS["scaffold"], rounds=2)
    local = run_federation(other, directory=tmp_path / "local")
    _same(run_federation(replace(other, engine=config.engine), directory=tmp_path / "ray"), local)


@pytest.mark.slow
def test_a_process_that_is_killed_costs_nothing_but_its_time(
    workers: RayWorkers, config: Config, local: FederationResult, tmp_path: Path
) -> None:
    def kill(number: int, _: object) -> None:
        if number == 2:
            os.kill(workers.everywhere(os.getpid)[0], signal.SIGKILL)

    _same(run_federation(config, directory=tmp_path, on_round=kill), local)
    assert len(workers) == 1


@pytest.mark.slow
def test_a_node_that_is_gone_costs_nothing_but_its_time(
    nodes: tuple[str, list[_Node]],
    workers: RayWorkers,
    config: Config,
    local: FederationResult,
    tmp_path: Path,
) -> None:
    before = []

    def kill(number: int, _: object) -> None:
        if number == 1:
            before.append(len(workers))
            nodes[1][1].end(signal.SIGKILL)
        if number == 3:  # and then the last process there is
            os.kill(workers.everywhere(os.getpid)[0], signal.SIGKILL)

    _same(run_federation(config, directory=tmp_path, on_round=kill), local)
    assert (before, len(workers)) == ([2], 1)


@pytest.mark.slow
def test_a_process_that_cannot_be_had_is_told_with_the_way_out(workers: RayWorkers, config: Config) -> None:
    del workers
    greedy = RayWorkers(address=config.engine.ray_address, cpus=64.0, gpus=0.0)
    with pytest.raises(LinkError, match=r"room for one process of 64 CPU .* Lower engine\.num_cpus"):
        greedy.grow(1)


def test_a_node_without_the_folder_of_the_run_or_with_other_versions_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(RayWorkers):
        def __init__(self) -> None:
            pass

        def on_each_node(self, function: object, *args: object) -> dict[tuple[str, str], object]:
            assert function is engine._found
            return {("10.0.0.7", "n"): engine._found(str(args[0]), str(tmp_path / "not-mounted" / "mark"))}

    from conf.load import load

    with pytest.raises(ConfigError, match=r"Node 10\.0\.0\.7 .* does not see the run's folder .*not-mounted"):
        engine._check_nodes(Elsewhere(), load([]), tmp_path)
    other = ray_workers.versions() | {"torch": "1.0"}
    with pytest.raises(LinkError, match=r"has torch 1\.0 \(here .*same wheel"):
        ray_workers._check_versions(other)


def test_without_ray_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LinkError, match="extra ray"):
        RayWorkers(address=None, cpus=1.0, gpus=0.0)


def test_an_address_that_is_not_of_a_head_is_refused_before_anything_starts() -> None:
    with pytest.raises(LinkError, match="expected HOST:PORT"):
        RayWorkers(address="ray://10.0.0.7:10001", cpus=1.0, gpus=0.0)
    with pytest.raises(LinkError, match="expected HOST:PORT"):
        RayWorkers(address="10.0.0.7", cpus=1.0, gpus=0.0)


def test_a_port_at_which_nobody_listens_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LinkError, match=f"Nobody answers at 127.0.0.1:{port}"):
        RayWorkers(address=f"127.0.0.1:{port}", cpus=1.0, gpus=0.0)


_ALONE = """
import sys
from link.ray_workers import RayWorkers
workers = RayWorkers(address=None, cpus=1.0, gpus=0.0)
workers.grow(1)
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
workers.close()
"""
_STRANGER = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR')"


@pytest.mark.slow
def test_a_stranger_does_not_get_into_the_cluster_that_a_run_starts_for_itself() -> None:
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    before = set(Path("/tmp").glob("twinward-ray-*"))
    root = Path(ray_workers.__file__).parents[1]
    quiet |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    alone = subprocess.Popen(
        [sys.executable, "-c", _ALONE],
        env=quiet,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with alone:
        assert alone.stdout is not None and alone.stdin is not None
        address = alone.stdout.readline().strip()
        assert ":" in address
        words = [sys.executable, "-c", _STRANGER, address]
        asked = subprocess.run(words, env=quiet, capture_output=True, text=True, timeout=120, check=False)
        assert asked.returncode != 0
        assert "ConnectionError" in asked.stderr or "Auth" in asked.stderr
        folders = [path for path in Path("/tmp").glob("twinward-ray-*") if path not in before]
        assert folders and all(path.stat().st_mode & 0o077 == 0 for path in folders)
        alone.stdin.close()
        assert alone.wait(timeout=60) == 0
    assert not any(path.exists() for path in folders)


def test_rays_word_for_a_cluster_of_this_machine_gets_its_own_token_as_well() -> None:
    assert ray_workers._checked("local") is None
