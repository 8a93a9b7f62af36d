"""Checkpoints of detectors, read without running code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datamodules.batches import refuse_other_classes
from lit_models.checkpoints import FORMAT, difference, entry_of, is_ours, network_weights, plain, read_checkpoint
from lit_models.detection.matcher import Classification
from lit_models.detection.network import Detector
from lit_models.detection.registry import build

DATA_KEY = "COCODataModule"
PREPROCESSING_KEYS = ("sizes", "mean", "std")
CLASS_HEAD = "class_head."
# Settings that change how a network is trained, but not what its weights mean.
_FREE = ("dropout", "trainable_from")


class LoadedDetector(NamedTuple):
    """A detector in evaluation mode, and what using it needs.

    Attributes:
        network: The network.
        class_names: Name of each class.
        category_ids: Number of each class in the data's json.
        preprocessing: ``sizes``, pixels of the shorter side and most of the longer one, and ``mean`` and ``std`` of the
            colours.
        classification: What reads the logits.
        checkpoint: What the file holds.
    """

    network: Detector
    class_names: list[str]
    category_ids: list[int]
    preprocessing: dict[str, Any]
    classification: Classification
    checkpoint: dict[str, Any]


def describe_network(network: Detector) -> dict[str, Any]:
    """Return what rebuilding the network needs, in plain values."""
    return {
        "format": FORMAT,
        "task": "detection",
        "network": type(network).__name__,
        "num_classes": network.num_classes,
        "network_settings": plain(network.settings),
    }


def classification_of(network: Detector) -> Classification:
    """Return what reads a network's logits: a softmax if there is one more output than classes, else a sigmoid."""
    return "softmax" if len(network.state_dict()[f"{CLASS_HEAD}weight"]) > network.num_classes else "focal"


def refuse_other_categories(saved: Mapping[str, Any], class_names: list[str], category_ids: list[int]) -> None:
    """Compare the classes of a checkpoint's entry with those of the data.

    Raises:
        ValueError: If they differ; the message lists what is only in one of them.
    """
    theirs, ours = (
        [f"{number} {name}" for number, name in zip(numbers, names, strict=True)]
        for numbers, names in ((saved["category_ids"], saved["class_names"]), (category_ids, class_names))
    )
    try:
        refuse_other_classes("the checkpoint", theirs, "the data", ours, "categories")
    except ValueError as error:
        raise ValueError(
            f"{error}; to train on from the checkpoint with a new class head give it as init_from"
        ) from None


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> LoadedDetector:
    """Load a detector that :class:`lit_models.DetectionModule` saved.

    Args:
        path: The checkpoint file.
        map_location: Device of the weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is unreadable, or not a detection checkpoint of this project; the message names it.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    saved = entry_of(checkpoint, "detection", path)
    data = checkpoint.get(DATA_KEY)
    preprocessing = {key: data[key] for key in PREPROCESSING_KEYS if key in data} if isinstance(data, Mapping) else {}
    try:
        network = build(saved["network"], saved["num_classes"], dict(saved["network_settings"]))
        network.load_state_dict(network_weights(checkpoint))
        names, numbers = list(saved["class_names"]), list(saved["category_ids"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: the weights do not fit the network that the checkpoint describes: {' '.join(str(error).split())}"
        ) from error
    network = network.to(map_location).eval()
    return LoadedDetector(network, names, numbers, preprocessing, classification_of(network), checkpoint)


def start_from(network: Detector, path: str, class_names: list[str]) -> list[str]:
    """Fill a network with the weights of a checkpoint, of this project or a public one, as fine-tuning begins.

    The class head is left as it was drawn where the classes differ. Public weights often name no classes: there only
    their number is compared.

    Args:
        network: The network of the config, for ``class_names``.
        path: The checkpoint.
        class_names: The data's classes.

    Returns:
        What was done to the weights, in words.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds another network than the config describes.
    """
    theirs, names, report = _load_source(path, network)
    if type(theirs) is not type(network):
        raise ValueError(
            f'init_from: "{path}" holds a {type(theirs).__name__}, the network of the config is a '
            f"{type(network).__name__}"
        )
    lines = difference(_fixed(theirs.settings), _fixed(network.settings), "network")
    if lines:
        raise ValueError(f'init_from: "{path}" is of another network than the config:\n  ' + "\n  ".join(lines))
    weights, notices = theirs.state_dict(), [report]
    if theirs.num_classes != network.num_classes or (names is not None and names != class_names):
        left = [name for name in weights if name.startswith(CLASS_HEAD)]
        weights |= {name: value for name, value in network.state_dict().items() if name in left}
        notices.append(
            f"new class head: {theirs.num_classes} classes become {network.num_classes}, or have other names; not "
            f"loaded: {', '.join(left)}"
        )
    network.load_state_dict(weights)
    return notices


def _load_source(path: str, like: Detector) -> tuple[Detector, list[str] | None, str]:
    """Return the detector of a file, its classes if they are known, and what was loaded, in words."""
    if not Path(path).exists():
        raise FileNotFoundError(f'init_from: there is no file "{path}"')
    if is_ours(Path(path)):
        loaded = load_checkpoint(path)
        words = f"{path}: {type(loaded.network).__name__}, {loaded.network.num_classes} classes"
        return loaded.network, loaded.class_names, words
    from lit_models.pretrained.detr import load_pretrained_detector

    settings = like.settings
    found = load_pretrained_detector(
        path, dilation=settings["backbone"].get("dilation"), num_heads=settings.get("num_heads")
    )
    return found.network, found.class_names, found.report()


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that two networks must share for their weights to mean the same."""
    values = {key: value for key, value in plain(settings).items() if key not in _FREE}
    return {key: _fixed(value) if isinstance(value, dict) else value for key, value in values.items()}
