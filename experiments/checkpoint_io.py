"""Write checkpoints so that a full disk or a kill leaves the previous one whole, and read them safely.

Lightning 2.6 serialises into memory, writes a temporary file elsewhere and moves it, without forcing the bytes to
the disk: twice the memory, and an empty file after a power cut.
"""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from experiments.errors import CheckpointWriteError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes ``X.tmp`` beside ``X``, forces it to the disk and renames it; always reads with ``weights_only``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What to save.
            path: A file on this machine; an address such as ``s3://`` is left to Lightning.
            storage_options: Not used by this writer.

        Raises:
            CheckpointWriteError: The file could not be written; names the path and the free space.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_directory(target.parent)
        except (OSError, RuntimeError) as error:
            # torch's zip writer turns a failed write into a RuntimeError, which hides the reason.
            cause = _os_error(error)
            if cause is None:
                raise
            free = shutil.disk_usage(target.parent).free if target.parent.is_dir() else 0
            kept = "the previous one is whole" if target.exists() else "there was none before"
            raise CheckpointWriteError(
                f'cannot write the checkpoint "{target}": {cause.strerror or cause} ({free / 1e6:,.0f} MB free); {kept}'
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: Any = True
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU; code in the file is never run.

        Raises:
            ValueError: The file is not a checkpoint.
        """
        return read_checkpoint(path)


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a training checkpoint.

    Args:
        path: The file.
        mmap: Leave the tensors in the file until they are used; enough to look at what it says.

    Returns:
        The checkpoint, tensors on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is cut short, is no checkpoint, or is one of another program.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no checkpoint "{path}"')
    if not zipfile.is_zipfile(path):  # what torch.save writes is a zip file, whose end is its table of contents
        raise ValueError(f'"{path}" is not a checkpoint, or it is cut short')
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or None)
    except Exception as error:  # torch raises a dozen kinds for the dozen ways in which a file can be foreign
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f'"{path}" is not a checkpoint that can be read ({reason})') from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "loops" not in checkpoint:
        kind = f"holds {', '.join(map(str, list(checkpoint)[:4]))}" if isinstance(checkpoint, dict) else "is no mapping"
        raise ValueError(f'"{path}" is not a checkpoint of a training run of this project (it {kind})')
    return checkpoint


def _os_error(error: BaseException) -> OSError | None:
    """Return the failed system call behind an error of torch's writer."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    text = str(error)
    return OSError(text.splitlines()[0]) if "PytorchStreamWriter" in text or "unexpected pos" in text else None


def _sync_directory(directory: Path) -> None:
    """Force a rename to the disk, where the system can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a directory; the rename itself is done
    finally:
        os.close(descriptor)
