"""Seconds per round of a federation that does nothing: the link beside Flower's SuperLink and SuperNodes.

    python -m benchmarks.round_overhead [--sites 2 8] [--rounds 200] [--stock-rounds 5]

Both carry the same small model to every site and back, on loopback, in one go. The sites of the link
are processes of their own, connected by mutual TLS; the stock SuperNodes run without TLS, as
Flower's own quick start has them. The median over rounds is printed, the first one left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.link_parts import connected
from link.coordinator import LinkGrid

from flwr.app import Array, ArrayRecord, Message, RecordDict  # isort: skip  (link must come first)

VALUES = 1_000
TOOLS = Path(sys.executable).parent

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "overhead"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "overhead.server:app"
clientapp = "overhead.client:app"
[tool.flwr.app.config]
rounds = 1
sites = 1
out = ""
"""

CLIENT = """
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)
"""

SERVER = f"""
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    while len(list(grid.get_node_ids())) < config["sites"]:
        time.sleep(0.5)
    took_s = []
    for number in range(config["rounds"]):
        started = time.perf_counter()
        model = RecordDict({{"model": ArrayRecord({{"w": Array(np.full({VALUES}, number, np.float32))}})}})
        replies = list(grid.send_and_receive([Message(model, n, "train") for n in grid.get_node_ids()]))
        assert sum(reply.has_content() for reply in replies) == config["sites"]
        took_s.append(time.perf_counter() - started)
        Path(config["out"]).write_text(json.dumps(took_s))
"""


def link_rounds(sites: int, rounds: int) -> list[float]:
    """Seconds of each round over the link."""
    with tempfile.TemporaryDirectory() as folder, connected(Path(folder), sites, sites) as server:
        grid, took_s = LinkGrid(server), []
        for number in range(rounds):
            started = time.perf_counter()
            model = RecordDict({"model": ArrayRecord({"w": Array(np.full(VALUES, number, np.float32))})})
            messages = [Message(model, node, "train") for node in grid.get_node_ids()]
            replies = list(grid.send_and_receive(messages, timeout=60))
            if sum(reply.has_content() for reply in replies) != sites:
                raise RuntimeError("a site did not answer")
            took_s.append(time.perf_counter() - started)
    return took_s


def stock_rounds(sites: int, rounds: int) -> list[float]:
    """Seconds of each round over a SuperLink and so many SuperNodes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        app = folder / "app"
        (app / "overhead").mkdir(parents=True)
        (app / "pyproject.toml").write_text(PROJECT)
        (app / "overhead" / "__init__.py").write_text("")
        (app / "overhead" / "client.py").write_text(CLIENT)
        (app / "overhead" / "server.py").write_text(SERVER)
        out = folder / "rounds.json"
        with stock(folder, sites) as environment:
            config = f"rounds={rounds} sites={sites} out='{out}'"
            command = ["flwr", "run", str(app), "bench", "--run-config", config]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  own words
            return _await_rounds(out, rounds)


@contextmanager
def stock(folder: Path, sites: int) -> Iterator[dict[str, str]]:
    """A SuperLink and its SuperNodes; the environment in which `flwr` finds them."""
    api = _free_port()
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{api}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    commands = [
        [
            *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
            *("--host", "127.0.0.1", "--port", str(api)),
        ]
    ]
    commands += [
        [
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{api}"),
            *("--host", "127.0.0.1", "--port", str(_free_port())),
            *("--node-config", f"partition-id={number}"),
        ]
        for number in range(sites)
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{number}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(  # noqa: S603  own words
                        command, env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
            if number == 0:
                _await_port(api)
        yield environment
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await_rounds(out: Path, rounds: int, timeout_s: float = 900) -> list[float]:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        took_s: list[float] = json.loads(out.read_text() or "[]") if out.exists() else []
        if len(took_s) >= rounds:
            return took_s
        time.sleep(0.5)
    raise TimeoutError("the stock runtime did not finish; see its logs")


def _await_port(port: int, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"nothing listens at port {port}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--stock-rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'sites':>5} {'link, ms':>10} {'slowest, ms':>12} {'stock, ms':>10} {'ratio':>7}")
    for sites in options.sites:
        ours = link_rounds(sites, options.rounds)[1:]
        theirs = stock_rounds(sites, options.stock_rounds)[1:]
        link_ms, stock_ms = 1000 * statistics.median(ours), 1000 * statistics.median(theirs)
        figures = f"{link_ms:>10.1f} {1000 * max(ours):>12.1f} {stock_ms:>10.0f} {stock_ms / link_ms:>7.0f}"
        print(f"{sites:>5} {figures}", flush=True)


if __name__ == "__main__":
    main()
