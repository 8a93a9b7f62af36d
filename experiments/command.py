"""What the commands without a config share: their argument parser, and how their errors end."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from experiments.errors import UsageError, near_miss
from experiments.line_io import STDOUT, naming

BROKEN_PIPE = 141  # what a shell reports for a program whose reader went away


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and makes a :class:`UsageError` of a mistake."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )

    def parse_args(self, args: list[str]) -> argparse.Namespace:  # type: ignore[override]
        """Parse the words after the command's name.

        Raises:
            UsageError: An option is unknown, misses its value, or has a wrong one.
        """
        options, unknown = self.parse_known_args(args)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            name = unknown[0].partition("=")[0]
            raise UsageError(f'unknown argument "{name}"{near_miss(name, known)}')
        return options

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message.

        Raises:
            UsageError: Always.
        """
        raise UsageError(message.removeprefix("argument "))


def run(command: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run a command and turn what it raises into one line and an exit code.

    Args:
        command: Takes the words after its name.
        argv: These words.

    Returns:
        0, 2 after a mistake in arguments, files or the checkpoint, 130 after Ctrl-C, 141 if nobody reads the output,
        143 after SIGTERM.
    """
    try:
        with _ended_by_sigterm(), naming(STDOUT):
            command(argv)
            sys.stdout.flush()
    except SystemExit as stop:  # --help has printed, or SIGTERM came
        return int(stop.code or 0)
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return 130
    except (UsageError, ValueError, OSError) as error:
        if os.environ.get("HEDDLE_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.filename == STDOUT:
            _discard_stdout()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as an exception does, so that temporary files are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _discard_stdout() -> None:
    """Send to nowhere what standard output still holds: Python flushes it once more at its end, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
