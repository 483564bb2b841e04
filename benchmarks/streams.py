"""Print how many MQTT messages a site takes into its encrypted store, and what a restart and a SIGKILL cost.

Run it from the root: PYTHONPATH=. .venv/bin/python benchmarks/streams.py [--seconds 60] [--rate 2000]
    [--kill-broker]

A gateway (a process of its own) publishes heart rates of 200 patients at QoS 1 over TLS to a Mosquitto of
this machine. After two fifths of the time the broker is restarted (--kill-broker: SIGKILL, which Mosquitto
answers with the loss of what it took since it last saved), after three fifths the consumer is killed with
SIGKILL and begun anew a second later. In the end what was published is compared with what is kept, message
by message. Latency is from publish to durable commit; "undisturbed" is before the broker's restart. The
other consumer is what one writes in an afternoon: paho as it comes, a frame each 250 ms, appended to a CSV
and synced.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from client.broker import USER, TrialBroker
from link.ports import free_ports

PATIENTS: Final = 200
KEY: Final = bytes(range(32))
NAME: Final = "monitors"
DRAIN_S: Final = 90.0


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 2 and sys.argv[1] in ROLES:
        ROLES[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--kill-broker", action="store_true")
    said = parser.parse_args()
    print(
        f"{'':<24} {'published':>10} {'kept':>9} {'lost':>7} {'doubled':>8} {'messages/s':>11}"
        f" {'p50':>8} {'p99':>8} {'p99 of all':>11} {'CPU':>7}"
    )
    for title, role in (("site, encrypted store", "site"), ("paho + pandas + CSV", "plain")):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{title:<24} {_measure(Path(folder), role, said)}", flush=True)


def _measure(folder: Path, role: str, said: argparse.Namespace) -> str:
    with TrialBroker(folder / "broker", free_ports(1)[0]) as broker:
        options = _options(broker) | {"rate": said.rate, "seconds": said.seconds}
        if role == "site":
            from twin.store import Store

            Store.create(folder / "store.duckdb", KEY).close()
        consumer = _begin(role, folder, options)
        _wait_for(folder / "ready")
        began_s, cpu_before_s = time.time(), _cpu_of_children_s()
        gateway = _begin("gateway", folder, options)
        _sleep_until(began_s + 0.4 * said.seconds)
        if said.kill_broker:
            os.kill(broker.pid, signal.SIGKILL)
            broker.wait()
        broker.stop()
        restart_s = time.time()
        broker.start()
        _sleep_until(began_s + 0.6 * said.seconds)
        consumer.send_signal(signal.SIGKILL)
        consumer.wait()
        time.sleep(1.0)
        consumer = _begin(role, folder, options)
        gateway.wait()
        published = np.fromfile(folder / "published", dtype=np.int64)
        cpu_s = _drained(folder, len(published), cpu_before_s, consumer)
    kept = _stored(folder) if role == "site" else _in_csv(folder)
    lost = len(np.setdiff1d(published, kept))
    doubled = len(kept) - len(np.unique(kept))
    sent_s, done_s = np.fromfile(folder / "latencies", dtype=np.float64).reshape(-1, 2).T
    late_ms = 1000 * (done_s - sent_s)
    calm_ms = late_ms[done_s < restart_s]
    rate = len(published) / (np.max(published) - np.min(published)) * 1e6
    return (
        f"{len(published):>10,} {len(kept):>9,} {lost:>7,} {doubled:>8,} {rate:>11,.0f}"
        f" {np.median(calm_ms):>5.0f} ms {np.quantile(calm_ms, 0.99):>5.0f} ms"
        f" {np.quantile(late_ms, 0.99):>8,.0f} ms {cpu_s:>5.0f} s"
    )


def _options(broker: TrialBroker) -> dict[str, Any]:
    return {
        "port": broker.port,
        "ca_file": str(broker.ca_file),
        "password_file": str(broker.password_file),
    }


def _begin(role: str, folder: Path, options: dict[str, Any]) -> subprocess.Popen[bytes]:
    words = [sys.executable, __file__, role, str(folder), json.dumps(options)]
    return subprocess.Popen(  # noqa: S603 - this very file
        words, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    )


def _drained(folder: Path, published: int, cpu_before_s: float, consumer: subprocess.Popen[bytes]) -> float:
    """Ends the consumer when nothing new is kept; returns the CPU seconds of everybody."""
    log, size, still = folder / "latencies", -1, 0
    end_s = time.time() + DRAIN_S
    while still < 8 and time.time() < end_s:
        now = log.stat().st_size
        still = still + 1 if now == size else 0
        size = now
        time.sleep(0.5)
    if size < 16 * published:
        print(f"  ({size // 16:,} commits of messages noted)")
    consumer.send_signal(signal.SIGKILL)
    consumer.wait()
    return _cpu_of_children_s() - cpu_before_s


def _cpu_of_children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def _sleep_until(moment_s: float) -> None:
    time.sleep(max(0.0, moment_s - time.time()))


def _gateway(folder: Path, options: dict[str, Any]) -> None:
    """Publishes at a steady rate, notes the times it gave to messages, ends when all are the broker's."""
    client, number = _client("gateway", options), 0
    client.max_inflight_messages_set(1000)
    client.connect("localhost", options["port"])
    client.loop_start()
    times: list[int] = []
    random = np.random.default_rng(0)
    began_s = time.monotonic()
    total = int(options["rate"] * options["seconds"])
    while number < total:
        due = min(total, int((time.monotonic() - began_s) * options["rate"]))
        for _ in range(number, due):
            time_us = max(time.time_ns() // 1000, times[-1] + 1 if times else 0)
            times.append(time_us)
            told = client.publish(
                f"ward/p{number % PATIENTS}/m/heart_rate",
                json.dumps(
                    {"time": _text(time_us), "value": round(75 + random.normal(0, 2), 1), "unit": "/min"}
                ),
                qos=1,
            )
            number += 1
        time.sleep(0.005)
    told.wait_for_publish(DRAIN_S)
    client.disconnect()
    client.loop_stop()
    np.array(times, dtype=np.int64).tofile(folder / "published")


def _site(folder: Path, options: dict[str, Any]) -> None:
    """The parts of a site that keep a feed's rows."""
    from client.custodian import Custodian
    from client.feeds import FeedPart
    from trust.pseudonym import Pseudonyms
    from twin.connectors.mqtt import Mqtt
    from twin.store import Store

    feed = Mqtt(
        name=NAME,
        host="localhost",
        topics=("ward/{patient}/{device}/{signal}",),
        port=options["port"],
        ca_file=Path(options["ca_file"]),
        user=USER,
        password_file=Path(options["password_file"]),
    )
    with Store.open(folder / "store.duckdb", KEY) as store, (folder / "latencies").open("ab") as log:
        custodian = Custodian(store, pseudonym=Pseudonyms(KEY), codes=folder / "codes.toml", live=[NAME])
        custodian.listen(_Noting(log))
        threading.Timer(1.0, (folder / "ready").touch).start()
        FeedPart(feed, custodian).run(threading.Event())


class _Noting:
    """Notes when rows were sent and committed."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def committed(self, observations: pd.DataFrame) -> None:
        """Rows that are on disk now."""
        _note(self._log, _microseconds(observations["time"]) / 1e6)

    def erased(self, patient_id: str) -> None:
        """Nothing is kept."""


def _plain(folder: Path, options: dict[str, Any]) -> None:
    """What one writes in an afternoon."""
    rows: list[dict[str, Any]] = []
    lock = threading.Lock()

    def take(_: Any, __: Any, message: Any) -> None:
        with lock:
            rows.append({"topic": message.topic, **json.loads(message.payload)})

    client = _client("plain", options, clean=False)
    client.on_connect = lambda *_: client.subscribe("ward/+/+/+", qos=1)
    client.on_message = take
    client.connect("localhost", options["port"])
    client.loop_start()
    threading.Timer(1.0, (folder / "ready").touch).start()
    with (folder / "rows.csv").open("a") as file, (folder / "latencies").open("ab") as log:
        while True:
            time.sleep(0.25)
            with lock:
                batch, rows[:] = list(rows), []
            if batch:
                frame = pd.DataFrame(batch)
                frame.to_csv(file, index=False, header=False)
                file.flush()
                os.fsync(file.fileno())
                _note(log, _microseconds(pd.to_datetime(frame["time"])) / 1e6)


def _note(log: Any, sent_s: np.ndarray) -> None:
    np.column_stack([sent_s, np.full(len(sent_s), time.time())]).tofile(log)
    log.flush()


def _client(name: str, options: dict[str, Any], *, clean: bool = True) -> Any:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=clean)
    client.tls_set(options["ca_file"])
    client.username_pw_set(USER, Path(options["password_file"]).read_text().strip())
    client.reconnect_delay_set(1, 1)
    return client


def _stored(folder: Path) -> np.ndarray:
    """Times of all rows in the store, in microseconds since 1970."""
    from twin.store import Store

    with Store.open(folder / "store.duckdb", KEY) as store:
        rows = store.site("s", purpose="care", marked=True).observations
    return _microseconds(rows["time"])


def _in_csv(folder: Path) -> np.ndarray:
    rows = pd.read_csv(folder / "rows.csv", names=["topic", "time", "value", "unit"], on_bad_lines="skip")
    times = pd.to_datetime(rows["time"], format="ISO8601", utc=True, errors="coerce").dropna()
    return _microseconds(times)


def _microseconds(times: pd.Series) -> np.ndarray:
    """Since 1970."""
    naive = times.dt.tz_convert("UTC").dt.tz_localize(None)
    return np.asarray(naive.to_numpy(dtype="datetime64[us]").astype(np.int64))


def _text(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="microseconds")


ROLES: Final[dict[str, Callable[[Path, dict[str, Any]], None]]] = {
    "gateway": _gateway,
    "site": _site,
    "plain": _plain,
}

if __name__ == "__main__":
    main()
