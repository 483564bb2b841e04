"""A store and its vault fit each other whenever a rotation is interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.strongroom import make_store, open_store, rotate_key
from tests.stored import batch
from trust.vault import KeyFile, Vault
from twin.store import Store, StoreError, WrongKeyError


@pytest.mark.parametrize("step", ["before", "the vault has both", "the store is new", "done"])
def test_a_rotation_that_stops_after_any_step_is_completed_when_the_store_is_opened(
    step: str, tmp_path: Path
) -> None:
    path, vault, lock = (
        tmp_path / "store.duckdb",
        tmp_path / "vault.json",
        KeyFile.create(tmp_path / "site.key"),
    )
    with make_store(path, vault, lock) as store:
        first = Vault.open(vault, lock)
        store.commit(batch(("a", "glucose", 0, 90)))
        store.backup(tmp_path / "backup.duckdb")
        if step == "done":
            rotate_key(store, vault, lock)
        elif step != "before":
            both = first.with_new_key()
            if step == "the store is new":
                store.rotate(both.key)
    with open_store(path, vault, lock) as store:
        assert len(store.site("s", purpose="care").observations) == 1
    keys = Vault.open(vault, lock).keys
    assert len(keys) == 1
    assert (keys == first.keys) is (step == "before")
    if step != "before":
        with pytest.raises(WrongKeyError):
            Store.open(path, first.key)
        with pytest.raises(WrongKeyError):
            Store.restore(tmp_path / "backup.duckdb", tmp_path / "other.duckdb", keys[0])


def test_a_vault_of_another_store_is_said_to_be_one(tmp_path: Path) -> None:
    lock = KeyFile.create(tmp_path / "site.key")
    for name in ("a", "b"):
        make_store(tmp_path / f"{name}.duckdb", tmp_path / f"{name}.json", lock).close()
    with pytest.raises(WrongKeyError, match="another store"):
        open_store(tmp_path / "a.duckdb", tmp_path / "b.json", lock)
    with pytest.raises(StoreError, match="there is one"):
        make_store(tmp_path / "a.duckdb", tmp_path / "c.json", lock)
