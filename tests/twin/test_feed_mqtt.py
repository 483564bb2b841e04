from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from client.broker import USER, TrialBroker
from tests.ports import free_port
from tests.twin import stored_feed
from tests.twin.connectors import local_tls
from tests.twin.driven_feed import PATIENCE_S, Driven
from twin.connectors.feeds import build
from twin.connectors.mqtt import Mqtt
from twin.errors import DataError
from twin.store import Store

TOPICS = ("ward/{patient}/{device}/{signal}",)


@pytest.fixture(scope="session")
def mosquitto_is_there() -> None:
    if shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") is None:
        message = "no mosquitto on this machine: apt-get install mosquitto"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def broker(mosquitto_is_there: None, tmp_path: Path) -> Iterator[TrialBroker]:
    with TrialBroker(tmp_path / "broker", free_port(), verbose=True) as running:
        yield running


def feed_of(broker: TrialBroker, **options: Any) -> Mqtt:
    ours: dict[str, Any] = {
        "name": "monitors",
        "host": "localhost",
        "port": broker.port,
        "topics": TOPICS,
        "ca_file": broker.ca_file,
        "user": USER,
        "password_file": broker.password_file,
        "batch_ms": 50,
    }
    return Mqtt(**(ours | options))


def told(broker: TrialBroker, what: str, times: int = 1) -> None:
    """Waits until the broker's log says so of the feed so many times."""
    end_s, log = time.monotonic() + PATIENCE_S, broker.folder / "broker.log"
    while log.read_text().count(f"{what} twinward-monitors") < times:
        assert time.monotonic() < end_s, log.read_text()[-2000:]
        time.sleep(0.02)


def held(broker: TrialBroker, times: int = 1) -> None:
    """Waits until the broker has been given the feed's subscription so many times."""
    told(broker, "Sending SUBACK to", times)


def saved(broker: TrialBroker) -> None:
    """Waits until what the broker holds is on its disk."""
    path, begin_s = broker.folder / "mosquitto.db", time.time()
    while not (path.exists() and path.stat().st_mtime > begin_s):
        assert time.time() < begin_s + PATIENCE_S
        time.sleep(0.05)


def numbers(values: list[float]) -> list[float]:
    """Which messages of `say` brought these values."""
    return [(value - 60) * 16 for value in values]


def stored(store: Store) -> list[float]:
    """Numbers of all rows that are stored, each as often as it is."""
    return numbers(sorted(store.site("s", purpose="care").observations["value"]))


@contextmanager
def gateway(broker: TrialBroker) -> Iterator[paho.Client]:
    """A client that publishes; it goes on by itself when the broker was away."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="gateway", clean_session=False)
    client.tls_set(str(broker.ca_file))
    client.username_pw_set(USER, broker.password_file.read_text().strip())
    client.reconnect_delay_set(1, 1)
    client.connect("localhost", broker.port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def say(client: paho.Client, first: int, last: int, *, wait: bool = True, **more: Any) -> None:
    """Publishes messages first … last - 1, a second apart, at QoS 1."""
    for k in range(first, last):
        payload = {
            "time": f"2024-03-01T10:{k // 60 % 60:02d}:{k % 60:02d}Z",
            "value": 60 + k / 16,
            "unit": "/min",
        }
        last = client.publish(f"ward/p{k % 3}/m1/heart_rate", json.dumps(payload), qos=1, **more)
    if wait:
        last.wait_for_publish(PATIENCE_S)
        assert last.is_published()


def test_messages_become_rows_and_are_not_delivered_again_once_committed(broker: TrialBroker) -> None:
    feed = feed_of(broker)
    driven = Driven(feed)
    held(broker)
    with gateway(broker) as client:
        say(client, 0, 30)
        driven.until(lambda: len(driven.rows) >= 30)
        assert numbers(driven.values) == list(range(30))
        assert driven.rows[4] == ("p1", "heart_rate", 60.25)
        assert driven.times[4] == "2024-03-01T10:00:04Z"
        told(broker, "Received PUBACK from", 30)
        driven.close()
        again = Driven(feed, driven.position)
        say(client, 30, 31)
        again.until(lambda: bool(again.rows))
        assert numbers(again.values) == [30]
        again.close()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_what_was_not_committed_is_delivered_again(broker: TrialBroker, version: str) -> None:
    feed = feed_of(broker, version=version)
    driven = Driven(feed)
    held(broker)
    with gateway(broker) as client:
        say(client, 0, 10)
        assert len(driven.next().observations)
        driven.close()
        say(client, 10, 20)  # while the feed is away
    again = Driven(feed)
    again.until(lambda: len(again.rows) >= 20)
    assert sorted(numbers(again.values)) == list(range(20))
    again.close()


def test_a_process_killed_between_commit_and_acknowledgement_stores_every_row_once(
    broker: TrialBroker, tmp_path: Path
) -> None:
    feed = feed_of(broker)
    driven = Driven(feed)
    held(broker)
    driven.close()
    with gateway(broker) as client:
        say(client, 0, 40)
    options = {name: getattr(feed, name) for name in ("name", "host", "port", "topics", "user")}
    options |= {"ca_file": str(feed.ca_file), "password_file": str(feed.password_file), "batch_ms": 50}
    path = tmp_path / "store.duckdb"
    words = [
        sys.executable,
        stored_feed.__file__,
        str(path),
        "mqtt",
        json.dumps(options | {"most_messages": 15}),
    ]
    root = Path(__file__).parents[2]
    died = subprocess.run(
        words, timeout=5 * PATIENCE_S, env=os.environ | {"PYTHONPATH": str(root)}, cwd=root, check=False
    )
    assert died.returncode == -signal.SIGKILL
    with Store.open(path, stored_feed.KEY) as store:
        before = stored(store)
        assert 0 < len(before) < 40
        stored_feed.drive(store, build("mqtt", options), until=lambda: len(stored(store)) >= 40)
        assert stored(store) == list(range(40))
        counts = store.counts()
        recognised = int(counts.loc[counts["reason"].str.startswith("duplicate"), "rows"].sum())
        assert recognised >= len(before)  # they came again, for nobody had acknowledged them


def test_a_number_without_a_time_counts_once_although_it_is_delivered_again(broker: TrialBroker) -> None:
    feed = feed_of(broker, form="number", server_time=True)
    driven = Driven(feed)
    held(broker)
    with gateway(broker) as client:
        for _ in range(3):  # the same number thrice is three measurements
            last = client.publish("ward/p/m/spo2", "97", qos=1)
        last.wait_for_publish(PATIENCE_S)
        batch = driven.next()
        while len(batch.observations) < 3:
            driven.commit()
            batch = driven.next()
        driven.close()  # after the store's commit, before the acknowledgement
        client.publish("ward/p/m/spo2", "97", qos=1).wait_for_publish(PATIENCE_S)
    again = Driven(feed, batch.position)
    again.until(lambda: bool(again.rows))
    assert again.values == [97.0]
    assert again.rejected == {"message delivered again": 3}
    again.close()


def test_a_broker_that_is_killed_and_starts_again_costs_nothing(broker: TrialBroker) -> None:
    driven = Driven(feed_of(broker))
    held(broker)
    with gateway(broker) as client:
        say(client, 0, 20)
        driven.next()
        saved(broker)
        os.kill(broker.pid, signal.SIGKILL)
        broker.wait()
        say(client, 20, 40, wait=False)
        broker.start()
        driven.commit()
        driven.until(lambda: len(set(numbers(driven.values))) >= 40)
        say(client, 40, 60)
        driven.until(lambda: len(set(numbers(driven.values))) >= 60)
    assert set(numbers(driven.values)) == set(range(60))
    driven.close()


def test_an_acknowledgement_is_not_sent_for_another_message_after_the_broker_forgot_everything(
    broker: TrialBroker,
) -> None:
    feed = feed_of(broker)
    driven = Driven(feed)
    held(broker)
    with gateway(broker) as client:
        say(client, 0, 1)
        driven.next()
        os.kill(broker.pid, signal.SIGKILL)
        broker.wait()
        (broker.folder / "mosquitto.db").unlink(missing_ok=True)
        broker.start()
        held(broker, times=2)
        say(client, 1, 2)  # the first message of this session, as the other was of its own
        told(broker, "Sending PUBLISH to", 2)
        driven.commit()
        time.sleep(0.3)  # an acknowledgement would have been sent by now
        driven.close()
    again = Driven(feed)
    again.until(lambda: bool(again.rows))
    assert numbers(again.values) == [1]
    again.close()


def test_the_broker_holds_back_what_is_beyond_the_messages_in_flight(broker: TrialBroker) -> None:
    driven = Driven(feed_of(broker, in_flight=10, batch_ms=300))
    held(broker)
    with gateway(broker) as client:
        say(client, 0, 35)
        sizes = []
        while sum(sizes) < 35:
            sizes.append(len(driven.next().observations))
            driven.commit()
    assert sizes[0] <= 10  # later ones may be larger: Mosquitto 2.0.11 counts on after the first
    assert numbers(driven.values) == list(range(35))
    driven.close()


def test_what_cannot_be_taken_is_counted_and_costs_no_good_row(broker: TrialBroker) -> None:
    with gateway(broker) as client:
        say(client, 0, 1, retain=True)
        driven = Driven(feed_of(broker, most_bytes=500, topics=("ward/{patient}/{device}/{signal}", "odd/#")))
        held(broker)
        for topic, payload in (
            ("ward/p/m/spo2", b"{"),
            ("ward/p/m/spo2", b"\xff\xfe"),
            ("ward/p/m/spo2", json.dumps({"value": 1, "note": "x" * 500}).encode()),
            ("ward/p/m/spo2", b'{"patient": "q", "value": 97, "time": "2024-03-01T10:00:00Z"}'),
            ("ward/p/m/spo2", b'{"value": "high", "time": "2024-03-01T10:00:00Z"}'),
            ("ward/p/m/spo2", b'{"value": 97, "time": "2024-03-01T10:00:00Z"}'),
        ):
            client.publish(topic, payload, qos=1).wait_for_publish(PATIENCE_S)
        driven.until(lambda: sum(driven.rejected.values()) >= 6 and bool(driven.rows))
    assert driven.rows == [("p", "spo2", 97.0)]
    assert driven.rejected == {
        "retained message": 1,
        "payload is no JSON": 2,
        "message too large": 1,
        "another patient than that of the topic or key": 1,
        "value is no number": 1,
    }
    driven.close()


def test_a_broker_or_account_that_is_not_ours_is_named_in_a_clear_error(
    broker: TrialBroker, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not it\n")
    other = local_tls.authority_with(tmp_path)
    for options, said in (
        ({"password_file": wrong}, "refuses user and password_file"),
        ({"ca_file": other}, "certificate that ca_file does not vouch for"),
        ({"port": free_port()}, "cannot be reached"),
        ({"tls": False, "ca_file": None}, "ended the connection|no MQTT|cannot be reached"),
    ):
        with pytest.raises(DataError, match=said) as raised:
            Driven(feed_of(broker, **options)).next()
        assert "not it" not in str(raised.value)


def test_a_broker_that_asks_for_certificates_takes_its_own_authority_s(
    mosquitto_is_there: None, tmp_path: Path
) -> None:
    with TrialBroker(tmp_path / "broker", free_port(), asks_certificates=True, verbose=True) as broker:
        cert_file, key_file = broker.client_certificate("agent")
        driven = Driven(feed_of(broker, cert_file=cert_file, key_file=key_file))
        held(broker)
        driven.close()
        with pytest.raises(DataError, match="certificate"):
            Driven(feed_of(broker)).next()


def test_options_that_would_lose_or_show_data_are_refused_before_anything_is_connected() -> None:
    good = {"name": "m", "host": "broker.example", "topics": ["ward/{patient}/{signal}"]}
    build("mqtt", good)
    build("mqtt", good | {"tls": False, "insecure_lan": True})
    build("mqtt", good | {"tls": False, "host": "127.0.0.1"})
    for options, said in (
        ({"tls": False}, "plain text"),
        ({"form": "number"}, "server_time"),
        ({"topics": ["ward/{patient}/#/x"]}, "#"),
        ({"topics": ["ward/{bed}"]}, "fields are"),
        ({"topics": ["ward/a{patient}"]}, "whole level"),
        ({"topics": []}, "topics"),
        ({"version": "3"}, "version"),
        ({"cert_file": "/x"}, "key_file"),
        ({"epoch": "days"}, "epoch"),
        ({"columns": ["time"]}, "columns"),
    ):
        with pytest.raises(DataError, match=said):
            build("mqtt", good | options)
