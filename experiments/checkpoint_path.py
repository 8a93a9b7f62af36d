"""Which checkpoint and which device the words of a command mean."""

from pathlib import Path

import torch

from experiments.errors import UsageError, near_miss

DEVICES = ("auto", "cpu", "cuda")


def find_checkpoint(path: str) -> Path:
    """Return the checkpoint that a path means: the file itself, or the best (else the last) of a run directory.

    Raises:
        UsageError: There is none; the message has the nearest file that exists.
    """
    given = Path(path)
    if given.is_file():
        return given
    if given.is_dir():
        candidates = [folder / name for folder in (given / "checkpoints", given) for name in ("best.ckpt", "last.ckpt")]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise UsageError(f'"{path}" is a directory without checkpoints/best.ckpt and checkpoints/last.ckpt')
    neighbours = [str(found) for found in given.parent.glob("*")] if given.parent.is_dir() else []
    raise UsageError(f'there is no checkpoint "{path}"{near_miss(str(given), neighbours)}')


def choose_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` means.

    Raises:
        UsageError: A CUDA device is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    return torch.device(name)
