"""Checkpoints that carry everything needed to use them, read without running code."""

import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lit_models.translation.transformer import Transformer, TransformerConfig

CHECKPOINT_KEY = "heddle"
FORMAT = 1


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
    checkpoint = _read(path, map_location)
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


def _read(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {first_line}") from error
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
