"""Updates of a simulation lie in a file beside the coordinator's: none is lost, and none is read wrongly."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

import server.rounds
from conf.schema import Config
from server.app import make_offer
from server.errors import ServerError
from server.store import Store
from simulate.federation import run_federation
from tests.heart_hospitals import SITES, settings, write_folder
from trust.digest import Arrays

MODEL = {"weight": np.zeros(999, np.float32)}


class Interrupted(Exception):
    """Stands for a process that was stopped."""


def begun(path: Path, *, simulated: bool = True) -> Store:
    """A coordinator's file with a first round that is under way."""
    store = Store(path / "coordinator.sqlite", simulated=simulated)
    offer = make_offer(Config(), "", MODEL)
    store.begin(offer, "{}", MODEL)
    store.declare(offer.with_participants(dict.fromkeys(SITES, 10)), {})
    store.open_round(1, offer.base_sha256)
    store.sent(1)
    return store


def again(path: Path) -> Store:
    """The same file as another process opens it, with nothing in memory."""
    return Store(path / "coordinator.sqlite", simulated=True)


def update(seed: int) -> Arrays:
    return {"weight": np.random.default_rng(seed).normal(size=999).astype(np.float32)}


def finish(store: Store, number: int) -> None:
    store.collected(number, {})
    store.aggregated(number, model=update(-number % 97), rule={}, total={}, diagnostics={"step_norm": 0.0})
    store.committed(number)


def same(store: Store, number: int, expected: dict[str, Arrays]) -> bool:
    found = store.updates(number)
    return list(found) == sorted(expected) and all(
        np.array_equal(found[site]["weight"], arrays["weight"]) for site, arrays in expected.items()
    )


def damage(path: Path, place: int) -> None:
    with (path / "updates.bin").open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_updates_are_read_back_from_their_file_and_from_no_blob(tmp_path: Path) -> None:
    expected = {site: update(seed) for seed, site in enumerate(SITES)}
    with begun(tmp_path) as store:
        store.admit(1, {site: expected[site] for site in SITES[:2]})
        store.collected(1, {SITES[2]: expected[SITES[2]]})
        assert same(store, 1, expected)
    with again(tmp_path) as store:
        assert same(store, 1, expected)
        assert store.answered(1) == SITES
        sizes = store.reply_bytes(1)
    path = tmp_path / "updates.bin"
    assert path.stat().st_size == sum(sizes.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_real_coordinator_keeps_updates_in_its_one_file(tmp_path: Path) -> None:
    with begun(tmp_path, simulated=False) as store:
        store.admit(1, {"alpha": update(0)})
        assert same(store, 1, {"alpha": update(0)})
    assert not (tmp_path / "updates.bin").exists()


def test_a_process_killed_between_bytes_and_rows_has_not_admitted_the_update(tmp_path: Path) -> None:
    with begun(tmp_path) as store:
        store.admit(1, {"alpha": update(0)})
    child = os.fork()
    if child == 0:
        try:
            store = again(tmp_path)
            store._laid._db = Dying(store)  # type: ignore[assignment]  # stands in for it
            store.admit(1, {"beta": update(1)})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77
    size = len(store_bytes(tmp_path))
    with again(tmp_path) as store:
        assert size == 2 * store.reply_bytes(1)["alpha"]  # the bytes are there
        assert store.answered(1) == ("alpha",)
        store.admit(1, {"gamma": update(2)})
        store.admit(1, {"beta": update(3)})
    with again(tmp_path) as store:
        assert same(store, 1, {"alpha": update(0), "beta": update(3), "gamma": update(2)})


class Dying:
    """The database of a process that is killed when it is about to write rows."""

    def __init__(self, store: Store) -> None:
        self.execute = store._db.execute

    def executemany(self, *_: object) -> None:
        os._exit(77)


def store_bytes(path: Path) -> bytes:
    return (path / "updates.bin").read_bytes()


@pytest.mark.parametrize("collected", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_a_round_whose_updates_are_not_whole_on_disk_is_asked_about_again(
    tmp_path: Path, *, collected: bool, cut: bool
) -> None:
    with begun(tmp_path) as store:
        store.admit(1, {"alpha": update(0), "beta": update(1)})
        if collected:
            store.collected(1, {})
        size = store.reply_bytes(1)["alpha"]
    if cut:
        os.truncate(tmp_path / "updates.bin", 2 * size - 1)
    else:
        damage(tmp_path, size + 200)
    with again(tmp_path) as store:
        assert store.answered(1) == ()
        assert store.round(1).state == "sent"
        store.collected(1, {"beta": update(1), "alpha": update(0)})
    with again(tmp_path) as store:
        assert same(store, 1, {"alpha": update(0), "beta": update(1)})


def test_damage_while_the_file_is_open_is_told_and_never_read_as_an_update(tmp_path: Path) -> None:
    begun(tmp_path).close()
    with again(tmp_path) as writer:
        writer.collected(1, {"alpha": update(0)})
    with again(tmp_path) as store:
        damage(tmp_path, 200)
        with pytest.raises(ServerError, match="damaged"):
            store.updates(1)["alpha"]


def test_the_rounds_of_a_simulation_take_the_disk_of_one(tmp_path: Path) -> None:
    store = begun(tmp_path)
    sizes = []
    for number in range(1, 5):
        if number > 1:
            store.open_round(number, str(store.round(number - 1).model))
            store.sent(number)
        store.admit(number, {site: update(10 * number + seed) for seed, site in enumerate(SITES)})
        assert same(store, number, {site: update(10 * number + seed) for seed, site in enumerate(SITES)})
        finish(store, number)
        sizes.append(len(store_bytes(tmp_path)))
    assert len(set(sizes)) == 1
    assert [sum(store.reply_bytes(number).values()) for number in range(1, 5)] == sizes
    store.close()
    with again(tmp_path) as store:
        assert store.rounds()[-1].state == "committed"
        assert store.answered(1) == SITES
        with pytest.raises(ServerError):  # another round's lie in its place
            store.updates(1)["alpha"]


def test_a_round_that_was_begun_with_updates_in_the_one_file_goes_on(tmp_path: Path) -> None:
    with begun(tmp_path, simulated=False) as store:
        store._db.execute("DROP TABLE laid")  # as files were before there was such a table
        store.admit(1, {"beta": update(1)})
    with again(tmp_path) as store:
        store.admit(1, {"alpha": update(0), "gamma": update(2)})
        expected = {site: update(seed) for seed, site in enumerate(SITES)}
        assert same(store, 1, expected)
        assert list(store.reply_bytes(1)) == list(SITES)


def test_a_federation_whose_updates_a_power_cut_took_ends_with_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(write_folder(tmp_path / "hospitals"), "engine=local", rounds=2)
    calm = run_federation(config, directory=tmp_path / "calm")

    def interrupted(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(server.rounds.Rounds, "_aggregate", interrupted)
        with pytest.raises(Interrupted):
            run_federation(config, directory=tmp_path / "cut")
    damage(tmp_path / "cut", 200)
    (tmp_path / "cut" / "releases.bin").write_bytes(b"")
    assert run_federation(config, directory=tmp_path / "cut").sha256 == calm.sha256


def test_a_power_cut_that_took_a_round_from_the_coordinator_alone_parts_no_sites_that_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals, folder = write_folder(tmp_path / "hospitals"), tmp_path / "run"
    config = settings(hospitals, "engine=batched", "privacy=none", "model=mlp", rounds=2)

    def interrupted(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(server.rounds.Rounds, "_aggregate", interrupted)
        with pytest.raises(Interrupted):
            run_federation(config, directory=folder)
    with Store(folder / "coordinator.sqlite") as store:
        size = store.reply_bytes(1)["alpha"]
    early = {file.name: file.read_bytes() for file in folder.glob("coordinator.sqlite*")}
    first = store_bytes(folder)
    calm = run_federation(config, directory=folder).sha256
    for file in folder.glob("coordinator.sqlite*"):
        file.unlink()
    for name, data in early.items():
        (folder / name).write_bytes(data)
    # Of the second round one update reached the disk; the sites' ledgers have it whole.
    (folder / "updates.bin").write_bytes(store_bytes(folder)[:size] + first[size:])
    assert run_federation(config, directory=folder).sha256 == calm
