"""`twinward site broker`: a Mosquitto on this machine to try MQTT feeds with."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING

from cli.site import home_parser
from cli.words import read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

_BROKER = """\
example:
  twinward site broker --home site

Starts the installed mosquitto on loopback, with TLS, certificates and a password of its own, which it makes
in site/broker on first use, and prints the entry of feeds.toml that reads from it. Ends with Ctrl-C. It is
for trying out; docs/feeds-streams.md says what a hospital's broker needs.
"""
_ENTRY = """\
[[feed]]
name = "trial"
kind = "mqtt"
host = "localhost"
port = {port}
ca_file = {ca}
user = "{user}"
password_file = {password}
topics = ["ward/{{patient}}/{{device}}/{{signal}}"]
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    args = home_parser(name, "Start a broker to try MQTT feeds with.", _BROKER)
    args.add_argument("--port", type=int, default=8883, help="on loopback; default 8883; 0 takes a free one")
    said = read(args, words)
    from client.broker import USER, TrialBroker
    from link.ports import free_ports

    if not 0 <= said.port < 65536:
        raise ConfigError(f"--port must be 0 to 65535; {said.port} came")
    folder = said.home.resolve() / "broker"
    broker = TrialBroker(folder, said.port or free_ports(1)[0])
    stop = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with broker:
        paths = {"ca": json.dumps(str(broker.ca_file)), "password": json.dumps(str(broker.password_file))}
        entry = _ENTRY.format(port=broker.port, user=USER, **paths)
        if said.json:
            facts = {"port": broker.port, "user": USER, "ca_file": str(broker.ca_file)}
            print(json.dumps(facts | {"password_file": str(broker.password_file)}), flush=True)
        else:
            print(f"Mosquitto listens on localhost:{broker.port}. For feeds.toml:\n\n{entry}", flush=True)
            print(_try(broker.ca_file, broker.port, USER, broker.password_file), flush=True)
        while not stop.wait(0.5):
            if not broker.is_running:
                raise ConfigError(f"Mosquitto ended; see {folder / 'broker.log'}.")
    return 0


def _try(ca_file: Path, port: int, user: str, password_file: Path) -> str:
    return (
        "To publish, with the clients of Mosquitto:\n\n"
        f"mosquitto_pub -h localhost -p {port} --cafile '{ca_file}' -q 1 -u {user} \\\n"
        f"  -P \"$(cat '{password_file}')\" -t ward/17/m1/spo2 \\\n"
        '  -m \'{"time": "2024-03-01T10:00:00Z", "value": 97, "unit": "%"}\'\n'
    )
