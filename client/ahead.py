"""The rounds of many sites of one process, worked out together before each site is asked for its answer.

Every site takes its request as its app does (`client.app.begin`: the same checks, the round reserved in
its own ledger before anything is computed), those that are to train go through the stacked trainer, and
each update is completed in its site's ledger. The app, which is then asked as ever, finds it there
and answers with it through the egress gate. What cannot be done here (a site that refuses, an update
that is not finite) is left to the app, which says why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flwr.app import Context, Message

from client.app import Begun, begin
from client.stacked import Work, can_stack, train_many
from conf.errors import TwinwardError
from link.stopwatch import phase
from link.wire import TRAIN
from privacy.errors import PrivacyError

logger = logging.getLogger(f"twinward.{__name__}")


def train_ahead(requests: Sequence[tuple[Message, Context]]) -> None:
    """Completes the rounds of those requests that ask for training and can be answered."""
    begun = [_begun(message, context) for message, context in requests if _asks_training(message)]
    groups: dict[tuple[str, str], list[Begun]] = {}
    for entry in begun:
        if entry is not None and entry.correction is None and can_stack(entry.site.model):
            groups.setdefault((entry.plan.hash, entry.request.base), []).append(entry)
    for group in groups.values():
        if len(group) > 1:
            _train(group)


def _asks_training(message: Message) -> bool:
    return message.metadata.message_type == TRAIN


def _begun(message: Message, context: Context) -> Begun | None:
    try:
        return begin(message, context)
    except (TwinwardError, OSError) as error:
        logger.debug("left to the site's app: %s", type(error).__name__)
        return None


def _train(group: list[Begun]) -> None:
    works = [
        Work(
            examples=entry.site.examples,
            declared=entry.plan.patients_of(entry.site.name),
            stream=entry.stream,
            wanted=entry.payload is None,
            correction=entry.correction,
        )
        for entry in group
    ]
    with phase("training"):
        _complete(group, works)


def _complete(group: list[Begun], works: list[Work]) -> None:
    first = group[0]
    updates = train_many(
        model=first.site.model,
        state=first.model,
        works=works,
        task=first.site.task,
        terms=first.plan.terms,
        strategy=first.plan.strategy,
    )
    for place, update in updates:
        if not isinstance(update, PrivacyError):
            group[place].complete(update)
