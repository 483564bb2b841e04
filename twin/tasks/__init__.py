"""What can be learnt, one file per task on the protocol of `twin.tasks.protocol`."""

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

    if config.name == "glucose":
        return GlucoseTask.build(config)
    if config.name == "heart":
        return HeartTask.build(config)
    raise DataError(f"there is no task {config.name!r}; task=glucose or task=heart")
