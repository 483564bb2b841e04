"""The folder of a run: one process at a time, and a message where a file of it is gone or damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.site import site_examples
from conf.errors import ConfigError
from conf.schema import Config
from simulate.folder import check_device, claim, configuration_of, held
from tests.heart_hospitals import settings, write_folder

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from simulate.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return settings(write_folder(tmp_path / "hospitals"))


def test_a_second_process_is_refused_until_the_first_is_gone_even_by_kill(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="Another process"), held(tmp_path / "run"):
            pass
        other.kill()
    with held(tmp_path / "run"):
        pass


def test_a_forked_process_that_outlives_its_parents_hold_does_not_hold_the_folder(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    hears, says = os.pipe()
    with held(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            os.close(writes)
            os.write(says, b"!")
            os.read(reads, 1)
            os._exit(0)
        assert os.read(hears, 1) == b"!"  # it is under way
        with pytest.raises(ConfigError, match="Another process"), held(tmp_path / "run"):
            pass
    try:
        with held(tmp_path / "run"):
            pass
    finally:
        for end in (writes, reads, hears, says):
            os.close(end)
        os.waitpid(child, 0)


@pytest.mark.parametrize("name", ["config.yaml", "data.json"])
def test_a_damaged_file_gives_one_message(config: Config, tmp_path: Path, name: str) -> None:
    claim(tmp_path / "run", config)
    (tmp_path / "run" / name).write_bytes(b"\xff\x00 no text")
    with pytest.raises(ConfigError, match="damaged"):
        claim(tmp_path / "run", config)


def test_a_run_whose_data_nobody_knows_any_more_does_not_go_on(config: Config, tmp_path: Path) -> None:
    claim(tmp_path / "run", config)
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(ConfigError, match="gone"):
        claim(tmp_path / "run", config)


def test_the_configuration_of_a_run_reads_back(config: Config, tmp_path: Path) -> None:
    claim(tmp_path / "run", config)
    assert configuration_of(tmp_path / "run") == config


def test_a_device_that_is_not_there_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA"):
        check_device("cuda")
    check_device("cpu")


def test_data_that_changed_between_two_runs_of_one_process_is_read_anew(
    config: Config, tmp_path: Path
) -> None:
    claim(tmp_path / "first", config)
    assert len(site_examples(config, "alpha")) == 12
    path = Path(str(config.data.path)) / "alpha" / "patients.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    claim(tmp_path / "second", config)
    assert len(site_examples(config, "alpha")) == 10
