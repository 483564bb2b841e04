"""The encrypted store of observations, facts, counts, consents and personal models (docs/store.md)."""

from twin.store.errors import StoreError, WrongKeyError
from twin.store.store import Store
from twin.store.writing import Committed

__all__ = ["Committed", "Store", "StoreError", "WrongKeyError"]
