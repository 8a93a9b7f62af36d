"""Checkpoints that carry everything needed to use them, read without running code."""

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lit_models.translation.transformer import Transformer, TransformerConfig

CHECKPOINT_KEY = "heddle"
FORMAT = 1

# How torch's reader says that a file names a class or a function that it does not know to be harmless.
_NEEDS_CODE = re.compile(r"GLOBAL|allowlisted|unrecognized function")
# What torch.save writes begins as a zip archive, what it wrote long ago as a pickle.
_BEGINNINGS = (b"PK", b"\x80")


class LoadedTranslator(NamedTuple):
    """A network in evaluation mode, and the checkpoint it came from."""

    network: Transformer
    checkpoint: dict[str, Any]


def describe_network(network: Transformer) -> dict[str, Any]:
    """Return what rebuilding the network needs, in plain values."""
    shared = network.target_embedding is network.source_embedding
    return {
        "format": FORMAT,
        "task": "translation",
        "network": asdict(network.config),
        "source_vocab_size": network.source_vocab_size,
        "target_vocab_size": None if shared else network.target_vocab_size,
    }


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> LoadedTranslator:
    """Load a translator that :class:`lit_models.TranslationModule` saved.

    Args:
        path: The checkpoint file.
        map_location: Device of the weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is unreadable, or not a translation checkpoint of this project; the message names the file.
    """
    path = Path(path)
    checkpoint = _read(path)
    saved = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(saved, Mapping) or saved.get("task") != "translation" or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a translation checkpoint of this project (it has no {CHECKPOINT_KEY!r} entry)")
    if saved.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {saved.get('format')!r}; this version reads format {FORMAT}")
    try:
        config = TransformerConfig.from_dict(dict(saved["network"]))
        network = Transformer(config, saved["source_vocab_size"], saved["target_vocab_size"])
        prefix = "network."
        network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: the weights do not fit the network that the checkpoint describes: {error}"
        ) from error
    return LoadedTranslator(network.to(map_location).eval(), checkpoint)


def _read(path: Path) -> dict[str, Any]:
    """Read a file onto the CPU: the device needs no room for an optimiser's state."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    foreign = f"{path} is not a PyTorch checkpoint, or it is cut short"
    with path.open("rb") as file:
        if not file.read(2).startswith(_BEGINNINGS):
            raise ValueError(foreign)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on foreign files; our error is all that is needed
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises a dozen kinds for the dozen ways in which a file can be foreign
        if isinstance(error, pickle.UnpicklingError) and _NEEDS_CODE.search(str(error)):
            raise ValueError(f"{path} holds objects that could run code; only plain weights are read") from error
        raise ValueError(foreign) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def difference(saved: Any, own: Any, key: str = "") -> list[str]:
    """Return a line ``key: checkpoint X, config Y`` for every value that differs."""
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        lines = []
        for name in sorted({*saved, *own}):
            lines += difference(saved.get(name), own.get(name), f"{key}.{name}" if key else str(name))
        return lines
    return [] if saved == own else [f"{key}: checkpoint {saved!r}, config {own!r}"]
