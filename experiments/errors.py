"""The errors that end a run on purpose, each with the exit code that the command line gives it.

======  ====================================================================
code    meaning
======  ====================================================================
0       the command did what was asked
1       a defect of this project (the traceback is printed)
2       a mistake in the command, the configuration, the data or a checkpoint
3       the loss or a weight became NaN or infinite
4       a checkpoint or another file of a run under way could not be written
130     stopped by Ctrl-C, the checkpoint is saved
143     stopped by SIGTERM, the checkpoint is saved
======  ====================================================================
"""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake that the person at the keyboard can correct; printed as one ``error: ...`` line, exit code 2.

    Args:
        message: The line.
        correction: The words that correct it when the run is resumed; empty if a config must be edited.
    """

    def __init__(self, message: str, correction: str = "") -> None:
        super().__init__(message)
        self.correction = correction


class NonFiniteError(RuntimeError):
    """The loss or a weight is NaN or infinite; exit code 3."""


class CheckpointWriteError(OSError):
    """A checkpoint or another file of a run under way could not be written; what it replaces is whole; exit code 4."""


class StopRequested(Exception):  # noqa: N818  it is a request, not an error
    """A signal asked the run to stop, and it stopped between two steps; exit code 128 + signal number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


def near_miss(name: str, candidates: Iterable[str]) -> str:
    """Return ``; did you mean "x"?`` for the closest candidate, or an empty string.

    Args:
        name: What was given.
        candidates: What would have been accepted.
    """
    options = list(candidates)
    matches = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if not matches:
        by_lower = {option.lower(): option for option in options}
        matches = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)]
    return f'; did you mean "{matches[0]}"?' if matches else ""
