from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from twin.connectors.feeds import build


def test_site_broker_starts_a_broker_that_the_entry_it_prints_reads_from(tmp_path: Path) -> None:
    if shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") is None:
        message = "no mosquitto on this machine: apt-get install mosquitto"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    words = "import sys; from cli.main import main; sys.exit(main(sys.argv[1:]))"
    options = ["site", "broker", "--home", str(tmp_path), "--port", "0", "--json"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", words, *options], stdout=subprocess.PIPE, text=True, cwd=root
    ) as running:
        try:
            assert running.stdout is not None
            facts = json.loads(running.stdout.readline())
            entry = {"name": "trial", "host": "localhost", "topics": ["ward/{patient}/{signal}"]}
            batches = build("mqtt", entry | facts).batches("")
            assert all(next(batches).is_empty for _ in range(3))
            batches.close()
        finally:
            running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
