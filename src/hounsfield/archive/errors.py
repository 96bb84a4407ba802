"""The root of the archive's own errors. ``retry`` says whether doing the same again can help."""

from __future__ import annotations


class HounsfieldError(Exception):
    """Root of every error that a package of the archive raises on purpose.

    The message is one that an administrator can act on: what happened, to which thing, and what to do
    next. It never holds anything that identifies a patient.
    """

    retry = False
    mistaken = False
    """Whether the words that asked for it have to be written differently; nothing was tried, or failed."""


class ConfigError(HounsfieldError):
    """The configuration cannot be used as it stands: a key, a type, or a rule between keys."""


class UnsafeConfigError(ConfigError):
    """The configuration would open the archive to a network in a way that it refuses."""


class DataDirectoryError(HounsfieldError):
    """The data directory cannot be used: missing, not ours, of another version, or on a network share."""


class DataDirectoryBusyError(DataDirectoryError):
    """Another server, or a command that needs the archive to itself, holds the data directory."""

    retry = True


class ListenError(HounsfieldError):
    """An address cannot be listened on."""


class ControlError(HounsfieldError):
    """A running server refused or failed a request made through its control socket."""

    def __init__(self, message: str, *, mistaken: bool = False) -> None:
        super().__init__(message)
        self.mistaken = mistaken


class NoServerError(ControlError):
    """No server is running on this data directory."""


# ---------------------------------------------------------------- what may be said of any error


def is_ours(error: BaseException) -> bool:
    """Whether its text may be shown: every error class of ours says whether to retry, others are faults."""
    return isinstance(getattr(error, "retry", None), bool)


def alone(error: BaseException) -> BaseException:
    """What a nursery wrapped, when it is one error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def where(error: BaseException) -> dict[str, str]:
    """Type and place of a fault as keys of a log line; never its text, which may quote what a peer sent."""
    keys = {"error_type": type(error).__name__}
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        code = trace.tb_frame.f_code
        keys["where"] = f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}"
    return keys
