"""The models that a site forecasts with: the federation's, and what the site made of them for itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from client import plugins
from client.errors import ClientError
from client.home import SiteHome
from client.own_models import OwnModels
from client.records import recorded_policy
from client.shelf import Shelf, plan_of
from client.trainer import load_state
from conf.errors import TwinwardError
from twin.ward.forecaster import Forecaster

logger = logging.getLogger(f"twinward.{__name__}")


class Models:
    """Called, it gives a forecaster for each task whose model is another than when it was called last."""

    def __init__(self, home: SiteHome, own: OwnModels) -> None:
        self._home, self._own = home, own
        self._known: dict[str, tuple[object, ...]] = {}

    def __call__(self) -> Iterator[Forecaster]:
        shelf = Shelf(self._home)
        for task in shelf.tasks():
            state = self._state(task)
            if self._known.get(task) == state:
                continue
            self._known[task] = state
            try:
                yield self._forecaster(shelf, task)
            except TwinwardError as error:
                logger.warning("the model of task %s makes no forecasts: %s", task, error)

    def _state(self, task: str) -> tuple[object, ...]:
        package = self._home.models / task / "global.package"
        return (package.stat().st_mtime_ns, self._own.version(task))

    def _forecaster(self, shelf: Shelf, task_name: str) -> Forecaster:
        held = shelf.held(task_name)
        if held is None:
            raise ClientError("home_unreadable", f"No model of task {task_name!r} is held.")
        card, state = held
        plan, pins = plan_of(card), recorded_policy(self._home).plugins
        task = plugins.build_task(plan.task, pins)
        network = plugins.build_model(plan.model, task, pins)
        load_state(network, state)
        own = self._own.of(task_name, card.sha256)
        return Forecaster.build(
            task,
            network,
            version=str(card.number),
            site=own.site if own else None,
            personal=own.personal if own and own.patients else None,
            patients=own.patients if own else (),
        )
