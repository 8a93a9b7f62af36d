"""Silence messages of other libraries that are of no use to our reader, each for a stated reason."""

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

# Lightning's log lines: (pattern, why it is dropped).
_LOG_LINES = (
    (r"litlogger|litmodels", "advertises another product"),
    (r"^(GPU|TPU|HPU) available", "environment.json records the devices"),
    (r"`Trainer\.fit` stopped: `max_(steps|epochs)=", "the bar shows that the last step is reached"),
    (r"^Seed set to", "config.yaml records the seed"),
    (r"^Restor(ing states|ed all states)|^Loaded model weights", "our own line names the checkpoint"),
)
# Warnings: (pattern, why it is dropped).
_WARNINGS = (
    (r".*does not have many workers.*", "the loaders choose their workers on purpose"),
    (r".*LeafSpec.*", "torch 2.14 renames a class that lightning 2.6 uses"),
    (r".*isinstance\(treespec.*", "the same renaming"),
    (r".*Checkpoint directory .* exists and is not empty.*", "checkpoints of a resumed run belong there"),
    (r".*JsonargparseDeprecation.*", "lightning 2.6 calls what jsonargparse 5 will remove"),
    (r".*is smaller than the logging interval.*", "training is counted in steps, not in epochs"),
    (r".*The dirpath has changed from.*", "a resumed run has its own directory; BestCheckpoint carries the score over"),
    (r".*You have overridden `on_before_batch_transfer`.*", "our modules count tokens there on purpose"),
    (r".*with `self\.log\(.*batch_size.*", "losses are logged with their own count"),
    (
        r".*callbacks used to create the checkpoint need to be provided.*",
        "testing needs no checkpointing; a resumed run without its averaging is an error of our own",
    ),
    (
        r".*The ``compute`` method of metric .* was called before the ``update`` method.*",
        "a process whose share of an evaluation is empty adds nothing to the sums",
    ),
    (r".*GPU available but not used.*", "the accelerator is chosen in the config"),
)


_default_format = warnings.formatwarning


class DropLines(logging.Filter):
    """Drop log records whose message matches one of the patterns."""

    def __init__(self, patterns: list[str]) -> None:
        super().__init__()
        self._pattern = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a record to be dropped."""
        return not self._pattern.search(record.getMessage())


class _Unbreakable:
    """A text stream that goes on to ``/dev/null`` once nobody reads it any more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._silence()
        return len(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._silence()

    def _silence(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def unbreakable_output() -> Iterator[None]:
    """Let a run go on silently when its output is closed, as by ``| head -1``: hours of training are worth more."""
    output, errors = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield
        finally:
            output.flush()
            errors.flush()


def _format_warning(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    """Return a warning for the user as one line, without the line of code that it comes from."""
    if issubclass(category, UserWarning):
        return f"warning: {' '.join(str(message).split())}\n"
    return _default_format(message, category, *place, **line)


def install() -> None:
    """Add the filters to the loggers and to :mod:`warnings`; calling it twice changes nothing."""
    warnings.formatwarning = _format_warning
    drop = DropLines([pattern for pattern, _ in _LOG_LINES])
    # A filter on a parent logger does not see its children's records, so it goes on each logger that speaks.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, DropLines) for existing in logger.filters):
            logger.addFilter(drop)
    # The seed is recorded in config.yaml; the signal and the checkpoint have a line of our own.
    for name in (
        "lightning.fabric.utilities.seed",
        "lightning.pytorch.trainer.connectors.signal_connector",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern, _ in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
