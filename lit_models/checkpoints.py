"""What the checkpoints of every task have in common: one entry of plain values, read without running code."""

import errno
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_models.optimization.schedules import Schedule

CHECKPOINT_KEY = "heddle"
FORMAT = 1

# How torch's reader names a class or a function that it does not know to be harmless.
_OBJECT = re.compile(r"(?:GLOBAL|class|function|instance of)\s+'?([A-Za-z_][\w.]*)")
# What torch.save writes begins as a zip archive, what it wrote long ago as a pickle.
_BEGINNINGS = (b"PK", b"\x80")


class NeedsCodeError(ValueError):
    """A file holds an object of a class that is not known to be harmless."""


def read_checkpoint(path: Path, harmless: Sequence[type] = ()) -> dict[str, Any]:
    """Read a file onto the CPU: the device needs no room for an optimiser's state.

    Args:
        path: The file.
        harmless: Classes whose objects may be in it, beside plain values and tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        NeedsCodeError: If it would have to run code; the message names the file and what asks for it.
        ValueError: If it is foreign or cut short; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    foreign = f"{path} is not a PyTorch checkpoint, or it is cut short"
    with path.open("rb") as file:
        if not file.read(2).startswith(_BEGINNINGS):
            raise ValueError(foreign)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*harmless]):
            warnings.simplefilter("ignore")  # torch's remarks on foreign files; our error is all that is needed
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises a dozen kinds for the dozen ways in which a file can be foreign
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a place before the file's beginning
            raise
        named = _OBJECT.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is None:
            raise ValueError(foreign) from error
        raise NeedsCodeError(
            f"{path} holds an object of {named[1]}, which only code can rebuild, and no code is run from a checkpoint"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return dict(checkpoint)


def is_ours(path: Path) -> bool:
    """Look whether a file has the project's entry; the weights stay in the file."""
    if path.suffix in (".safetensors", ".npz") or not zipfile.is_zipfile(path):
        return False
    try:
        return CHECKPOINT_KEY in torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a public file may hold objects that only its own reader knows
        return False


def write_entry(checkpoint: dict[str, Any], entry: Mapping[str, Any]) -> None:
    """Put what using a network needs under the project's key, in plain values.

    Lightning's own ``hyper_parameters`` key would override a user's config without a word when the checkpoint is given
    on the command line: it is taken out, and settings are kept in the entry and compared instead.
    """
    checkpoint.pop("hyper_parameters", None)
    checkpoint.pop("hparams_name", None)
    checkpoint[CHECKPOINT_KEY] = dict(entry)


def entry_of(checkpoint: Mapping[str, Any], task: str, path: Path) -> Mapping[str, Any]:
    """Return the project's own entry of a checkpoint.

    Args:
        checkpoint: What the file holds.
        task: ``translation``, ``classification`` or ``detection``.
        path: The file, for messages.

    Raises:
        ValueError: If it has none, or one of another task or format.
    """
    saved = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(saved, Mapping) or saved.get("task") != task or "state_dict" not in checkpoint:
        found = saved.get("task") if isinstance(saved, Mapping) else None
        reason = f"it is one of {found}" if found and found != task else f"it has no {CHECKPOINT_KEY!r} entry"
        raise ValueError(f"{path} is not a {task} checkpoint of this project ({reason})")
    if saved.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {saved.get('format')!r}; this version reads format {FORMAT}")
    return saved


def network_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a module's ``network``, named as the network names them."""
    prefix = "network."
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


def difference(saved: Any, own: Any, key: str = "") -> list[str]:
    """Return a line ``key: checkpoint X, config Y`` for every value that differs."""
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        lines = []
        for name in sorted({*saved, *own}):
            lines += difference(saved.get(name), own.get(name), f"{key}.{name}" if key else str(name))
        return lines
    return [] if saved == own else [f"{key}: checkpoint {saved!r}, config {own!r}"]


def check_same_settings(lines: list[str]) -> None:
    """Raise a ValueError that lists every difference between a checkpoint's settings and the config's, if any."""
    if lines:
        raise ValueError(
            "the checkpoint's settings differ from the config's; give the same, or start without it:\n  "
            + "\n  ".join(lines)
        )


def plain(value: Any) -> Any:
    """Return settings as values that a checkpoint can hold and load without running code."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if key != "_instantiator"}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):  # also turns restricted types, such as a positive int, into plain ones
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, partial):
        # The command line's partial calls functions of its own, with the class among the arguments.
        factory = next((argument for argument in value.args if isinstance(argument, type)), value.func)
        return {"class_path": plain(factory), "init_args": plain(value.keywords)}
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Schedule):
        return {"class_path": plain(type(value)), "init_args": plain(vars(value))}
    return str(value)
