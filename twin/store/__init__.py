"""The encrypted store of observations, facts, counts, consents and personal models (docs/store.md)."""

from twin.store.errors import StoreError
from twin.store.store import Store

__all__ = ["Store", "StoreError"]
