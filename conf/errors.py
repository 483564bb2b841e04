"""The root of every error that Twinward raises on purpose; each folder has one subclass."""


class TwinwardError(Exception):
    """Says what was expected, what came, what is allowed and where to change it.

    Its text never holds a patient's value, an identifier of a patient, a key or a token: it may
    be printed, logged and sent to a person at another organisation.
    """


class ConfigError(TwinwardError):
    """A configuration that cannot run; its text lists every fault at once."""
