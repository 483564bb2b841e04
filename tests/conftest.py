"""What all tests share: where the real recordings are, and one thread per process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"  # link/__init__.py says why

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # No example fails for being slow. In CI they are the same each time; new ones are tried wherever
    # people run the tests.
    settings.register_profile("ours", deadline=None, derandomize=os.environ.get("CI") == "true")
    settings.load_profile("ours")


@pytest.fixture(autouse=True)
def logs_as_at_the_start() -> None:
    """No test finds loggers as another left them: a command sets levels, a library's set-up silences all."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.split(".")[0] == "twinward" and isinstance(logger, logging.Logger):
            logger.disabled = False
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings; without it the test is skipped, and in CI it fails."""
    folder = Path(os.environ.get("TWINWARD_DATA", ROOT.parent / "shared" / "data"))
    if folder.is_dir():
        return folder
    message = f"no real recordings at {folder}; set TWINWARD_DATA to the folder that holds hall/, colas/ …"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
