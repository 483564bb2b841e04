"""The part that fits the site's and the patients' own models: for each new global model, then each day."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from client.errors import ClientError
from client.home import SiteHome
from client.own_models import OwnModels
from client.personalise import fit
from client.shelf import Shelf

EVERY_S: Final = 86_400.0
RETRY_S: Final = 3600.0
LOOK_S: Final = 60.0

logger = logging.getLogger(f"twinward.{__name__}")


class Fitting:
    """Fits models of all tasks that the shelf has; what cannot be fitted yet is tried again an hour later."""

    def __init__(self, home: SiteHome, own: OwnModels, *, look_s: float = LOOK_S) -> None:
        self._home, self._own, self._look_s = home, own, look_s
        self._due_s: dict[tuple[str, str], float] = {}
        self._retry_s: dict[tuple[str, str], float] = {}

    @property
    def name(self) -> str:
        return "models"

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`."""
        while not stop.wait(self._look_s):
            shelf = Shelf(self._home)
            for task in shelf.tasks():
                held = shelf.held(task)
                if held is not None and not stop.is_set():
                    self._fit(task, held[0].sha256)

    def _fit(self, task: str, base: str) -> None:
        key, now_s = (task, base), time.monotonic()
        if self._own.of(task, base) is not None:
            due_s = self._due_s.setdefault(key, now_s + EVERY_S)
        else:  # never fitted, or an erasure took them
            due_s = self._retry_s.get(key, 0.0)
        if now_s < due_s:
            return
        self._due_s[key], self._retry_s[key] = now_s + EVERY_S, now_s + RETRY_S
        try:
            moved = fit(self._home, task, self._own)
        except ClientError as error:
            logger.warning("models of task %s were not fitted: %s", task, error)
        else:
            self._retry_s[key] = 0.0
            logger.info("models of task %s were fitted; %d patients have their own", task, moved)
