"""A hospital's store with its vault: made together, opened together, rotated in steps that a crash may cut.

A rotation first puts a new key beside the old one in the vault, then writes the store under it, then takes
the old one out. Whenever it is interrupted, the vault has the key that the store is under; opening the
store again completes the rotation.
"""

from __future__ import annotations

from pathlib import Path

from trust.vault import Lock, Vault
from twin.store import Store, StoreError, WrongKeyError


def make_store(path: Path, vault: Path, lock: Lock) -> Store:
    """A new store under a new data key, and the vault that keeps it.

    Raises:
        TrustError, StoreError: there is a vault or a store already, or the lock does not work.
    """
    if path.exists():
        raise StoreError(f"Expected no store at {path}; there is one.")
    return Store.create(path, Vault.create(vault, lock).key)


def open_store(path: Path, vault: Path, lock: Lock, *, accept_loss: bool = False) -> Store:
    """The store with the vault's key; a rotation that was interrupted is completed.

    Raises:
        TrustError: the lock is not that of the vault.
        StoreError: see `Store.open`; of the class WrongKeyError if none of the vault's keys fits.
    """
    opened = Vault.open(vault, lock)
    for key in opened.keys:
        try:
            store = Store.open(path, key, accept_loss=accept_loss)
        except WrongKeyError:
            continue
        if len(opened.keys) > 1:
            if key != opened.key:
                store.rotate(opened.key)
            opened.forget_old()
        return store
    raise WrongKeyError(f"Expected the key of {path} in {vault}; the vault keeps that of another store.")


def rotate_key(store: Store, vault: Path, lock: Lock) -> None:
    """Writes the store under a new data key and forgets the old one: older backups cannot be read any more.

    Raises:
        TrustError, StoreError: the lock is not the vault's, the disk is full; the store stays usable.
    """
    both = Vault.open(vault, lock).with_new_key()
    store.rotate(both.key)
    both.forget_old()
