"""The error of the patient's side: data that cannot be read, a model that does not fit a task."""

from conf.errors import TwinwardError


class DataError(TwinwardError):
    """Data that stops the run: which file and column, what was expected, what came, how to mend it."""
