"""Quorum and deadline, late and repeated answers, sites that leave and return; memory of aggregation.

The grid is a LocalGrid over the real apps whose answers come when a schedule says so, as a network's do.
"""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

import client.app
import strategies
from client.site import Part, close_sites
from conf.load import load
from conf.schema import Config
from link.local import LocalGrid
from link.wire import Answer, answer
from server.app import coordinate, make_offer, settings_of, store_path, trainable_names
from server.asking import Asking
from server.buffered import machine
from server.errors import Halted, ServerError
from server.post import NetworkGrid, Post
from server.rounds import Rounds, trainable_shapes
from server.store import Store
from simulate.federation import run_config
from strategies.flower import FlowerStrategy
from strategies.rule import norm
from tests.heart_hospitals import SITES, settings, write_folder
from trust.plan import Plan
from twin import prior

NODES = {site: number for number, site in enumerate(SITES, start=2)}
NAMES = {node: site for site, node in NODES.items()}

# Whether the answer to (site, kind, how often it was asked this) may come; a text is an error instead.
Schedule = Callable[[str, str, int], "bool | str"]


class SlowGrid(LocalGrid):
    """A network: what a site answers can be pulled once the schedule lets it."""

    def __init__(self, config: Config, directory: Path, schedule: Schedule) -> None:
        super().__init__(client.app.app, run_config(config, directory, Part()), range(3))
        self.schedule = schedule
        self.asked: list[tuple[str, str, int]] = []
        self.withdrawn: set[str] = set()
        self._held: dict[str, tuple[str, str, int]] = {}
        self._failed: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        ids = list(super().push_messages(listed))
        for id_, message in zip(ids, listed, strict=True):
            site, kind = NAMES[message.metadata.dst_node_id], message.metadata.message_type
            round_number = int(message.metadata.group_id)
            key = (site, kind, round_number)
            self._held[id_] = (site, kind, 1 + sum(entry == key for entry in self.asked))
            self.asked.append(key)
            if isinstance(self.schedule(*self._held[id_]), str):
                code = str(self.schedule(*self._held[id_]))
                self._failed[id_] = Message(answer(Answer(site=site, plan="", error=code)), reply_to=message)
        return ids

    def wait_for_replies(self, message_ids: Collection[str], timeout_s: float) -> list[str]:
        ends_s = time.monotonic() + timeout_s
        while True:
            ready = [id_ for id_ in self._held if id_ in message_ids and self.schedule(*self._held[id_])]
            if ready or time.monotonic() >= ends_s:
                return ready
            time.sleep(0.005)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        for id_ in ids:
            self._held.pop(id_, None)
        found = list(super().pull_messages(ids))
        return [self._failed.get(reply.metadata.reply_to_message_id, reply) for reply in found]

    def withdraw(self, message_ids: Collection[str]) -> None:
        self.withdrawn |= set(message_ids)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


@contextmanager
def federation(
    config: Config, directory: Path, grid: SlowGrid, *, quorum: int, deadline_s: float
) -> Iterator[tuple[Store, Callable[[Post], Rounds]]]:
    """A store whose plan all three sites have accepted, and what makes its rounds."""
    with Store(store_path(directory)) as store:
        schedule, grid.schedule = grid.schedule, lambda *_: True
        model = prior.initial_state(config)
        offer = make_offer(config, "", model, quorum=quorum, deadline_s=deadline_s)
        store.begin(offer, settings_of(config, ""), model)
        post = Post(grid)
        asking = Asking(
            post=post, store=store, offer=offer, sites=SITES, node_of=NODES.get, sign=lambda _: "s"
        )
        while not asking.step(1.0, begin=False, overdue=False):
            pass
        plan = store.plan()
        assert plan is not None
        grid.schedule = schedule
        grid.asked.clear()

        def rounds(post: Post) -> Rounds:
            return machine(plan)(
                post=post,
                store=store,
                plan=plan,
                rule=strategies.build(plan.strategy),
                nodes=NODES,
                shapes=trainable_shapes(model, trainable_names(plan)),
            )

        try:
            yield store, rounds
        finally:
            close_sites()


def test_the_grid_of_these_tests_is_a_network(folder: Path, tmp_path: Path) -> None:
    assert isinstance(SlowGrid(settings(folder), tmp_path, lambda *_: True), NetworkGrid)
    assert not isinstance(LocalGrid(client.app.app, {}, []), NetworkGrid)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_network_that_answers_in_any_order_gives_the_model_of_a_local_grid(
    folder: Path, tmp_path: Path, strategy: str
) -> None:
    config = settings(folder, f"strategy={strategy}", rounds=3)
    begun_s = time.monotonic()
    delays = {"alpha": 0.06, "beta": 0.03, "gamma": 0.0}

    def one_by_one(site: str, kind: str, time_: int) -> bool:
        return (time.monotonic() - begun_s) % 0.1 >= delays[site]

    grid = SlowGrid(config, tmp_path / "slow", one_by_one)
    with Store(store_path(tmp_path / "slow")) as store:
        slow = coordinate(grid, store, config, "")
    close_sites()
    local = LocalGrid(client.app.app, run_config(config, tmp_path / "local", Part()), range(3))
    with Store(store_path(tmp_path / "local")) as store:
        assert coordinate(local, store, config, "") == slow
    close_sites()


def test_a_round_closes_at_its_deadline_with_a_quorum_and_the_late_answer_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    config = settings(folder, rounds=2)
    done: set[int] = set()

    def gamma_is_late(site: str, kind: str, time_: int) -> bool:
        if 1 not in done:
            return site != "gamma"
        return site != "beta" or all(held[0] != "gamma" for held in grid._held.values())

    grid = SlowGrid(config, tmp_path / "run", gamma_is_late)
    with federation(config, tmp_path / "run", grid, quorum=2, deadline_s=0.3) as (store, rounds):
        replace(rounds(Post(grid)), on_round=lambda number, _: done.add(number)).run()
        assert store.answered(1) == ("alpha", "beta")
        assert "gamma" in store.answered(2)  # it left, and returned
        assert (2, "gamma", "late") in store.refusals()


def test_a_site_that_is_away_for_long_is_owed_two_requests_at_most(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, rounds=5)
    grid = SlowGrid(config, tmp_path / "run", lambda site, *_: site != "gamma")
    with federation(config, tmp_path / "run", grid, quorum=2, deadline_s=0.1) as (store, rounds):
        rounds(Post(grid)).run()
        assert [store.answered(number) for number in range(1, 6)] == [("alpha", "beta")] * 5
        asked = [entry for entry in grid.asked if entry[0] == "gamma"]
        assert len(asked) == 5
        assert len(grid.withdrawn) >= 3


def test_a_round_without_a_quorum_stays_open_past_its_deadline_until_a_site_returns(
    folder: Path, tmp_path: Path
) -> None:
    config = settings(folder, rounds=1)
    begun_s = time.monotonic()

    def away(site: str, kind: str, time_: int) -> bool:
        return site == "alpha" or (site == "beta" and time.monotonic() - begun_s > 1.0)

    grid = SlowGrid(config, tmp_path / "run", away)
    with federation(config, tmp_path / "run", grid, quorum=2, deadline_s=0.1) as (store, rounds):
        begun_s = time.monotonic()
        rounds(Post(grid)).run()
        assert store.answered(1) == ("alpha", "beta")
        assert time.monotonic() - begun_s > 1.0


def test_sites_that_failed_are_asked_again_until_there_is_a_quorum(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, rounds=1)

    def fails_once(site: str, kind: str, time_: int) -> bool | str:
        return "internal_error" if site != "alpha" and time_ == 1 else True

    grid = SlowGrid(config, tmp_path / "run", fails_once)
    with federation(config, tmp_path / "run", grid, quorum=3, deadline_s=60.0) as (store, rounds):
        rounds(Post(grid)).run()
        assert store.answered(1) == SITES
        assert [why for _, _, why in store.refusals()] == ["site_error:internal_error"] * 2
        assert grid.asked.count(("alpha", "train", 1)) == 1


def test_a_round_in_which_too_few_can_answer_fails_at_its_deadline_with_the_reasons(
    folder: Path, tmp_path: Path
) -> None:
    config = settings(folder, rounds=1)
    broken = ["beta", "gamma"]

    def fails(site: str, kind: str, time_: int) -> bool | str:
        return "training_failed" if site in broken else True

    grid = SlowGrid(config, tmp_path / "run", fails)
    with federation(config, tmp_path / "run", grid, quorum=2, deadline_s=0.3) as (store, rounds):
        with pytest.raises(ServerError, match=r"at least 2 of .*'alpha'.*beta: site_error:training_failed"):
            rounds(Post(grid)).run()
        assert store.answered(1) == ("alpha",)  # what was admitted is kept
        broken.remove("beta")
        rounds(Post(grid)).run()
        assert store.answered(1) == ("alpha", "beta")
        assert grid.asked.count(("alpha", "train", 1)) == 1


def test_a_halted_round_lets_go_within_a_second_and_goes_on_later(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, rounds=1)
    halted = threading.Event()
    grid = SlowGrid(config, tmp_path / "run", lambda site, *_: site == "alpha" or halted.is_set())
    with federation(config, tmp_path / "run", grid, quorum=1, deadline_s=600.0) as (store, rounds):
        wait = grid.wait_for_replies

        def halted_while_it_waits(message_ids: Collection[str], timeout_s: float) -> list[str]:
            if store.answered(1) == ("alpha",):
                threading.Timer(0.2, halted.set).start()
            return wait(message_ids, timeout_s)

        grid.wait_for_replies = halted_while_it_waits  # type: ignore[method-assign]  # starts the clock late
        post = Post(grid, halted=halted.is_set)
        with pytest.raises(Halted):
            rounds(post).run()
        post.drop()
        assert len(grid.withdrawn) == 2
        assert store.answered(1) == ("alpha",)
        rounds(Post(grid)).run()
        assert store.answered(1) == SITES


def test_after_a_crash_only_sites_without_an_answer_on_disk_are_asked(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, rounds=1)
    grid = SlowGrid(config, tmp_path / "run", lambda site, *_: site != "gamma")
    with federation(config, tmp_path / "run", grid, quorum=3, deadline_s=60.0) as (store, rounds):
        first = Post(grid, halted=lambda: len(store.answered(1)) == 2)
        with pytest.raises(Halted):
            rounds(first).run()
        grid.asked.clear()
        grid.schedule = lambda *_: True
        rounds(Post(grid)).run()
        assert grid.asked == [("gamma", "train", 1)]


def asking(store: Store, grid: SlowGrid, offer: Plan, sites: Collection[str] = SITES) -> Asking:
    return Asking(
        post=Post(grid), store=store, offer=offer, sites=sites, node_of=NODES.get, sign=lambda _: "s"
    )


@contextmanager
def offered(config: Config, directory: Path, *, quorum: int = 2) -> Iterator[tuple[Store, Plan]]:
    with Store(store_path(directory)) as store:
        model = prior.initial_state(config)
        offer = make_offer(config, "", model, quorum=quorum, deadline_s=0.5)
        store.begin(offer, settings_of(config, ""), model)
        try:
            yield store, offer
        finally:
            close_sites()


def test_a_site_that_waits_for_a_person_is_asked_again_until_it_takes_the_plan(
    folder: Path, tmp_path: Path
) -> None:
    config = settings(folder)

    def approved_at_the_second(site: str, kind: str, time_: int) -> bool | str:
        return "awaiting_approval" if site == "beta" and kind == "query.declare" and time_ == 1 else True

    grid = SlowGrid(config, tmp_path / "run", approved_at_the_second)
    with offered(config, tmp_path / "run") as (store, offer):
        work = asking(store, grid, offer)
        assert not work.step(0.3, begin=False, overdue=False)
        while store.noted("query.declare").get("beta") != (0, "awaiting_approval"):
            assert not work.step(0.3, begin=False, overdue=False)
        assert store.plan() is None
        while not work.step(0.5, begin=False, overdue=False):
            pass
        plan = store.plan()
        assert plan is not None
        assert plan.sites == SITES
        declared = [site for site, kind, _ in grid.asked if kind == "query.declare"]
        assert sorted(declared) == ["alpha", "beta", "beta", "gamma"]


@pytest.mark.parametrize(("begin", "overdue"), [(True, False), (False, True)])
def test_a_plan_begins_without_those_who_let_wait_if_the_others_are_a_quorum(
    folder: Path, tmp_path: Path, begin: bool, overdue: bool
) -> None:
    config = settings(folder)
    grid = SlowGrid(
        config, tmp_path / "run", lambda site, *_: "awaiting_approval" if site == "beta" else True
    )
    with offered(config, tmp_path / "run") as (store, offer):
        work = asking(store, grid, offer)
        while len(store.noted("query.declare")) < 3:
            assert not work.step(0.3, begin=False, overdue=False)
        while not work.step(0.3, begin=begin, overdue=overdue):
            pass
        assert store.sites() == {"alpha": (10, ""), "beta": (0, "awaiting_approval"), "gamma": (10, "")}


def test_a_plan_that_too_few_take_fails_and_names_the_reasons(folder: Path, tmp_path: Path) -> None:
    config = settings(folder)
    grid = SlowGrid(config, tmp_path / "run", lambda site, *_: site == "alpha" or "budget_exhausted")
    with offered(config, tmp_path / "run") as (store, offer):
        work = asking(store, grid, offer, (*SITES, "delta"))
        while len(store.noted("query.declare")) < 3:
            assert not work.step(0.0, begin=False, overdue=False)
        with pytest.raises(ServerError, match=r"at least 2 sites.*budget_exhausted.*not_a_member"):
            work.step(1.0, begin=False, overdue=False)
        assert store.plan() is None


def test_after_a_crash_while_asking_nobody_is_asked_twice_whose_answer_is_there(
    folder: Path, tmp_path: Path
) -> None:
    config = settings(folder)
    grid = SlowGrid(config, tmp_path / "run", lambda site, *_: site != "beta")
    with offered(config, tmp_path / "run") as (store, offer):
        work = asking(store, grid, offer)
        while len(store.noted("query.declare")) < 2:
            assert not work.step(0.3, begin=False, overdue=False)
        grid.asked.clear()
        grid.schedule = lambda *_: True
        again = asking(store, grid, offer)
        while not again.step(0.5, begin=False, overdue=False):
            pass
        assert [site for site, kind, _ in grid.asked if kind == "query.declare"] == ["beta"]


@pytest.mark.parametrize(
    "strategy", sorted(set(strategies.NAMES) - {"clustered", "fedper", "ifca", "scaffold"})
)
def test_aggregation_takes_no_more_memory_for_more_sites(tmp_path: Path, strategy: str) -> None:
    peaks = {}
    for sites in (4, 32):
        with Store(tmp_path / f"{sites}.sqlite") as store:
            peaks[sites] = _aggregate(store, sites, strategy)
    assert peaks[32] < 1.1 * peaks[4]


def _aggregate(store: Store, sites: int, strategy: str) -> int:
    """Peak bytes while a round of so many sites with updates of 1 MB each is aggregated."""
    config = load([f"strategy={strategy}"])
    model = {"weight": np.zeros(250_000, np.float32)}
    offer = make_offer(config, "", model)
    plan = offer.with_participants({f"site-{number:02d}": 10 for number in range(sites)})
    store.begin(offer, "{}", model)
    store.declare(plan, {})
    store.open_round(1, plan.base_sha256)
    store.sent(1)
    for number in range(sites):
        update = {"weight": np.full(250_000, number, np.float32)}
        store.admit(1, {f"site-{number:02d}": update})
    store.collected(1, {})
    adapter = FlowerStrategy(
        rule=strategies.build(plan.strategy), plan=plan, model=model, trainable=["weight"], nodes={}
    )
    tracemalloc.start()
    applied = adapter.aggregate(store.updates(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert norm(applied.model) > 0
    return peak


def test_a_site_that_declares_fewer_steps_stands_with_them_in_the_plan_also_after_a_crash(
    folder: Path, tmp_path: Path
) -> None:
    config = settings(folder, "strategy.local_steps=4", "engine.most_steps=[1,9,3]")
    grid = SlowGrid(config, tmp_path / "run", lambda site, *_: site != "gamma")
    with offered(config, tmp_path / "run") as (store, offer):
        work = asking(store, grid, offer)
        while len(store.noted("query.declare")) < 2:
            assert not work.step(0.3, begin=False, overdue=False)
        grid.schedule = lambda *_: True
        again = asking(store, grid, offer)
        while not again.step(0.5, begin=False, overdue=False):
            pass
        plan = store.plan()
        assert plan is not None
        assert {site: plan.steps_of(site) for site in plan.sites} == {"alpha": 1, "beta": 4, "gamma": 3}
        assert {code for _, code in store.sites().values()} == {""}
