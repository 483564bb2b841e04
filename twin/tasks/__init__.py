"""What can be learnt, one file per task on the protocol of `twin.tasks.protocol`."""

from dataclasses import replace

from conf import schema
from twin.errors import DataError
from twin.tasks.protocol import Task


def build(config: schema.Task) -> Task:
    """The task that a configuration names.

    Raises:
        DataError: there is no task of that name.
    """
    from twin.tasks.glucose import GlucoseTask
    from twin.tasks.heart import HeartTask
    from twin.tasks.hypoxemia import HypoxemiaTask

    if config.name == "glucose":
        return GlucoseTask.build(config)
    if config.name == "heart":
        return HeartTask.build(config)
    if config.name == "hypoxemia":
        return HypoxemiaTask.build(config)
    raise DataError(f"there is no task {config.name!r}; task=glucose, task=heart or task=hypoxemia")


def learnt(config: schema.Task) -> schema.Task:
    """The part of a task's settings that changes what is learnt; the rest stands at its default.

    In which unit figures are shown and when an alarm rings is each site's own affair.
    """
    default = schema.Task()
    return replace(
        config,
        unit=default.unit,
        low_mg_dl=default.low_mg_dl,
        alarm_mg_dl=default.alarm_mg_dl,
        false_alarms_per_day=default.false_alarms_per_day,
    )
