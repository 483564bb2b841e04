from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.ports import free_port
from tests.twin import stored_feed
from tests.twin.driven_feed import PATIENCE_S, Driven
from twin.connectors.feeds import build
from twin.connectors.kafka import Kafka
from twin.errors import DataError
from twin.store import Store

GROUP = "twinward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """librdkafka's own mock of a cluster, which lives in a producer."""

    producer: Producer
    brokers: str

    def say(self, topic: str, first: int, last: int) -> None:
        """Messages first … last - 1, of three patients, a second apart."""
        for k in range(first, last):
            time_ = f"2024-03-01T10:{k // 60 % 60:02d}:{k % 60:02d}Z"
            row = {"code": "heart_rate", "value": 60 + k / 16, "unit": "/min", "time": time_}
            self.producer.produce(topic, json.dumps(row), key=f"p{k % 3}", partition=k % 4)
        self.producer.flush(PATIENCE_S)

    def committed(self, topic: str) -> int:
        """Sum of the group's offsets."""
        asking = Consumer({"bootstrap.servers": self.brokers, "group.id": GROUP})
        found = asking.committed([TopicPartition(topic, part) for part in range(4)], timeout=PATIENCE_S)
        asking.close()
        return sum(max(0, part.offset) for part in found)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none:1", "linger.ms": 1})
    producer.list_topics(timeout=PATIENCE_S)
    broker = next(iter(producer.list_topics(timeout=PATIENCE_S).brokers.values()))
    return Cluster(producer=producer, brokers=f"{broker.host}:{broker.port}")


def feed_of(cluster: Cluster, topic: str, name: str = "devices", **options: Any) -> Kafka:
    # The mock lets a group wait 3 s for its first member, and between members a second less than a session.
    quick = {"heartbeat.interval.ms": "100", "session.timeout.ms": "4500", "fetch.wait.max.ms": "20"}
    ours: dict[str, Any] = {"name": name, "brokers": (cluster.brokers,), "topics": (topic,), "tls": False}
    return Kafka(**(ours | {"group": GROUP, "batch_ms": 50, "settings": quick} | options))


def numbers(driven: Driven) -> list[float]:
    return sorted((value - 60) * 16 for value in driven.values)


def comes_true(what: Any) -> bool:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        if what():
            return True
        time.sleep(0.05)
    return False


def test_offsets_are_committed_after_the_store_which_decides_where_a_feed_goes_on(cluster: Cluster) -> None:
    cluster.say("after", 0, 24)
    driven = Driven(feed_of(cluster, "after"))
    batch = driven.next()
    time.sleep(0.3)
    assert cluster.committed("after") == 0
    said = json.loads(batch.position)["offsets"]["after"]
    assert sum(said.values()) == len(batch.observations)
    driven.commit()
    driven.until(lambda: len(driven.rows) >= 24)
    assert numbers(driven) == list(range(24))
    assert {patient for patient, _, _ in driven.rows} == {"p0", "p1", "p2"}
    assert comes_true(lambda: cluster.committed("after") == 24)
    driven.close()
    behind = json.dumps({"offsets": {"after": {"0": 4, "1": 5, "2": 6, "3": 6}}})
    restored = Driven(feed_of(cluster, "after"), behind)  # of a backup, say
    restored.until(lambda: len(restored.rows) >= 3)
    assert numbers(restored) == [16, 20, 21]
    restored.close()


def test_a_crash_between_commit_and_offsets_stores_every_row_once(cluster: Cluster, tmp_path: Path) -> None:
    cluster.say("crash", 0, 40)
    feed = feed_of(cluster, "crash", most_messages=10)
    with Store.create(tmp_path / "store.duckdb", stored_feed.KEY) as store:

        def stored() -> int:
            return len(store.site("s", purpose="care").observations)

        stored_feed.drive(store, feed, until=lambda: stored() > 0)  # ends before the offsets are told
        assert cluster.committed("crash") < stored() < 40
        stored_feed.drive(store, feed, until=lambda: stored() >= 40)
        counts = store.counts()
        assert int(counts.loc[counts["fate"] == "kept", "rows"].sum()) == 40
        assert not counts["reason"].str.startswith("duplicate").any()  # the store knew where to go on


def test_what_is_taken_away_in_a_rebalance_is_not_committed_and_nothing_is_lost(cluster: Cluster) -> None:
    cluster.say("shared", 0, 40)
    one = Driven(feed_of(cluster, "shared", "one"))
    one.until(lambda: len(one.rows) >= 40)
    two = Driven(feed_of(cluster, "shared", "two"))
    both = [one, two]
    said = 40
    end_s = time.monotonic() + PATIENCE_S
    while not two.rows or len({*numbers(one), *numbers(two)}) < said:
        assert time.monotonic() < end_s, "the second member got nothing"
        if not two.rows:  # what is said from now on is for both, once the group has parted the topic
            cluster.say("shared", said, said + 8)
            said += 8
        for driven in both:
            driven.step(0.1)
    assert {*numbers(one), *numbers(two)} == set(range(said))
    assert (
        json.loads(one.position)["offsets"]["shared"]
        .keys()
        .isdisjoint(json.loads(two.position)["offsets"]["shared"])
    )
    for driven in both:
        driven.close()


def test_kafka_messages_that_cannot_be_taken_are_counted(cluster: Cluster) -> None:
    driven = Driven(feed_of(cluster, "odd", most_bytes=100, message_time=True))
    for key, value in (
        ("p", b"{"),
        ("p", b'{"code": "spo2", "value": 97, "note": "' + b"x" * 100 + b'"}'),
        (b"\xff", b'{"code": "spo2", "value": 97}'),
        ("p", None),
        ("p", b'{"code": "spo2", "patient": "q", "value": 97}'),
    ):
        cluster.producer.produce("odd", value, key=key)
    cluster.producer.produce("odd", b'{"code": "spo2", "value": 97}', key="p", timestamp=1709287200000)
    cluster.producer.flush(PATIENCE_S)
    driven.until(lambda: bool(driven.rows) and sum(driven.rejected.values()) >= 5)
    assert driven.rows == [("p", "spo2", 97.0)]
    assert driven.times == ["2024-03-01T10:00:00+00:00"]
    assert driven.rejected == {
        "payload is no JSON": 1,
        "message too large": 1,
        "key is no text": 1,
        "message without a payload": 1,
        "another patient than that of the topic or key": 1,
    }
    driven.close()


def test_brokers_that_are_not_there_and_options_that_would_lose_data_are_named(tmp_path: Path) -> None:
    good = {"name": "k", "brokers": ["kafka.example:9093"], "topics": ["vitals"]}
    build("kafka", good)
    password = tmp_path / "password"
    password.write_text("secret\n")
    for options, said in (
        ({"tls": False}, "plain text"),
        ({"brokers": ["kafka.example"]}, "host:port"),
        ({"settings": {"enable.auto.commit": "true"}}, "settings may not"),
        ({"settings": {"sasl.password": "x"}}, "settings may not"),
        ({"user": "x"}, "belong together"),
        ({"form": "number"}, "message_time"),
        ({"topics": ["^.*"]}, "topics"),
        ({"begin": "now"}, "begin"),
    ):
        with pytest.raises(DataError, match=said):
            build("kafka", good | options)
    here = good | {"brokers": [f"127.0.0.1:{free_port()}"], "tls": False}
    with pytest.raises(DataError, match="cannot be reached"):
        Driven(build("kafka", here)).next()
    with pytest.raises(DataError, match="settings are refused"):
        Driven(build("kafka", here | {"settings": {"no.such.setting": "1"}})).next()
