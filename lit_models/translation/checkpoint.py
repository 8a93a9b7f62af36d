"""Checkpoints that carry everything needed to use them, read without running code."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lit_models.checkpoints import FORMAT, entry_of, network_weights, read_checkpoint
from lit_models.translation.transformer import Transformer, TransformerConfig


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
    checkpoint = read_checkpoint(path)
    saved = entry_of(checkpoint, "translation", path)
    try:
        config = TransformerConfig.from_dict(dict(saved["network"]))
        network = Transformer(config, saved["source_vocab_size"], saved["target_vocab_size"])
        network.load_state_dict(network_weights(checkpoint))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: the weights do not fit the network that the checkpoint describes: {error}"
        ) from error
    return LoadedTranslator(network.to(map_location).eval(), checkpoint)
