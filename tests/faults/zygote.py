"""Imports everything once, then starts commands as forks of itself: a process a second would be too slow.

Nothing is open and no thread runs at the fork. Reads JSON lines, answers each with one: start → id of
the process; poll → how it ended, null while it runs. All it started ends with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any

MODULES = (
    "link",  # before grpc
    "torch",
    "cli.main",
    "cli.coordinator",
    "cli.site",
    "client.agent",
    "client.app",
    "client.hospital",
    "server.daemon",
    "server.operator",
    "strategies",
    "twin.connectors.folder",
    "twin.models",
    "twin.prior",
    "twin.tasks",
)


def start(words: list[str], log: str, fault: dict[str, Any]) -> int:
    """The id of a process that runs `twinward <words>` with a fault."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            _redirect(log)
            import_module("tests.faults.injected").inject(fault)
            code = import_module("cli.main").main(words)
    except BaseException:  # noqa: BLE001  whatever it is, the child ends here and says so
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: str) -> None:
    empty = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((empty, 0), (written, 1), (written, 2)):
        os.dup2(source, target)


def serve() -> None:
    """Until the other end closes its pipe."""
    for module in MODULES:
        import_module(module)
    import_module("torch").set_num_threads(1)
    _warm()
    codes: dict[int, int] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "start":
            process = start(asked["words"], asked["log"], asked["fault"])
            codes.pop(process, None)  # ids come round again
            answer: int | None = process
        else:
            answer = _ended(asked["process"], codes)
        print(json.dumps(answer), flush=True)


def _ended(process: int, codes: dict[int, int]) -> int | None:
    """How a process ended, also if that was asked before."""
    if process not in codes:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            codes[process] = os.waitstatus_to_exitcode(status)
    return codes.get(process)


def _warm() -> None:
    """Lets libraries that are loaded when they are first needed be loaded here."""
    accounting, load = import_module("privacy.accounting"), import_module("conf.load")
    accounting.epsilon([accounting.GaussianRelease(noise_multiplier=4.0, sampling_rate=0.5, steps=2)], 1e-4)
    load.load_plan(["task=heart"])


if __name__ == "__main__":
    serve()
