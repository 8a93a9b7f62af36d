"""Turn the exception that ends a run into the one line and the exit code that the person at the keyboard gets."""

import errno
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.image.decode import ImageError
from experiments.callbacks.run_record import RunRecord
from experiments.errors import CheckpointWriteError, NonFiniteError, UsageError, near_miss

# What a mistake in a file or a value raises. After the first batch the same errors are defects of the code.
_INPUT_ERRORS = (ValueError, OSError, MisconfigurationException)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def judge(error: Exception, record: RunRecord | None, built: Mapping[type, str]) -> tuple[int, Exception] | None:
    """Return the exit code and what to say; None for a defect of the code, which keeps its traceback.

    Args:
        error: What ended the run.
        record: Knows how far the run came; None if it did not come to the trainer.
        built: The classes that a config describes, and the key of each.
    """
    for kind, code in ((UsageError, 2), (NonFiniteError, 3), (CheckpointWriteError, 4)):
        if isinstance(error, kind):
            return code, error
    if str(error).startswith("Early stopping conditioned on metric"):
        return 2, UsageError(_early_stopping(str(error)))
    if isinstance(error, ImageError):
        fix = "--data.init_args.on_bad_image=skip"
        return 2, UsageError(f"{error}; mend or remove it, or go on without it: {fix}", correction=fix)
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return 2, RuntimeError(_dead_worker(error))
    if record is not None and record.started:
        return _under_way(error, record)
    origin = _origin(error)
    if isinstance(origin, OSError) and not _is_about_a_file(origin):
        return None
    if isinstance(error, _INPUT_ERRORS) and isinstance(origin, _INPUT_ERRORS):
        return 2, UsageError(_section(origin, built) + message(origin))
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return 2, UsageError(f"the checkpoint does not fit the network: {_joined(error)}")
    return None


def message(error: Exception) -> str:
    """Return what an error says; a failed system call names its file."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, CheckpointWriteError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error).strip() or type(error).__name__


def resume_hint(checkpoint: Path, record: RunRecord, error: Exception | None = None) -> str:
    """Return the command that resumes a run.

    Args:
        checkpoint: Its last checkpoint.
        record: Knows which config was written.
        error: The mistake that stopped the run, if it was one: the command must correct it.
    """
    words = ["python", "-m", "experiments", "fit"]
    if isinstance(error, UsageError) and not error.correction:
        words += ["-c", "CORRECTED_CONFIG"]
    elif record.config_path is not None and record.config_path.name != "config.yaml":
        words += ["-c", str(record.config_path)]  # without -c the first config of the directory is taken
    words += ["--ckpt_path", str(checkpoint)]
    if isinstance(error, UsageError) and error.correction:
        words.append(error.correction)
    return f"resume with: {shlex.join(words)}"


def _under_way(error: Exception, record: RunRecord) -> tuple[int, Exception] | None:
    """Judge an error after the first batch: the disk and the numbers can fail then, the rest is ours."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return 4, CheckpointWriteError(f"cannot write to the run directory: {message(error)}")
    # The search and DETR's matching refuse NaN; weights can be finite and still too large for the network's sums.
    if isinstance(error, FloatingPointError) or (isinstance(error, ValueError) and "logits are NaN" in str(error)):
        return 3, NonFiniteError(f"{record.place}: {error}")
    return None


def _is_about_a_file(error: OSError) -> bool:
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return isinstance(error, kinds) or error.filename is not None or error.errno in _DISK_ERRORS


def _origin(error: Exception) -> Exception:
    """Return what a constructor raised; jsonargparse wraps it in a list of all the types that it tried."""
    found: BaseException = error
    while found.__cause__ is not None and str(found).startswith(("Does not validate against", "Problem with given")):
        found = found.__cause__
    return found if isinstance(found, Exception) else error


def _section(error: Exception, built: Mapping[type, str]) -> str:
    """Return ``key: `` of the section whose constructor raised an error, empty if it names its key itself."""
    key, trace = "", error.__traceback__
    while trace is not None:
        code, owner = trace.tb_frame.f_code, type(trace.tb_frame.f_locals.get("self"))
        if code.co_name in ("__init__", "__post_init__") and owner in built:
            key = built[owner]
        trace = trace.tb_next
    return f"{key}: " if key and isinstance(error, ValueError) and not str(error).startswith('"') else ""


def _early_stopping(text: str) -> str:
    """Return the line for a metric that Lightning's EarlyStopping did not find, from Lightning's own text."""
    monitor, *logged = re.findall("`([^`]*)`", text.replace("`EarlyStopping`", ""))
    logged = [name for name in logged if name]
    return (
        f'"monitor" of EarlyStopping is "{monitor}", which is not logged'
        f"{near_miss(monitor, logged)} (logged: {', '.join(logged) or 'nothing'})"
    )


def _dead_worker(error: RuntimeError) -> str:
    """Return the line for a worker process that died, with the file it was reading if that is known."""
    text, notes = " ".join(str(error).split()).rstrip("."), getattr(error, "__notes__", [])
    told = f" ({'; '.join(notes)})" if notes and "died while it read" not in text else ""
    return f"{text}{told}; a system that is short of memory kills processes: lower data.num_workers or free some"


def _joined(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 500 else f"{text[:500]} ..."
