"""The error of aggregation rules."""

from conf.errors import TwinwardError


class StrategyError(TwinwardError):
    """Updates or weights that a rule cannot aggregate; says what was expected and what came."""
