"""Checkpoints of classifiers, ours and public ones, read without running code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datamodules.batches import preprocessing_differences
from lit_models.checkpoints import (
    FORMAT,
    difference,
    entry_of,
    is_ours,
    network_weights,
    plain,
    read_checkpoint,
)
from lit_models.classification.network import Classifier

DATA_KEY = "ImageNetDataModule"
PREPROCESSING_KEYS = ("image_size", "crop", "crop_mode", "interpolation", "mean", "std")
# Settings that change how a network is trained or how large its images are, but not what its weights mean.
_FREE = (
    "image_size",
    "drop_path",
    "drop_path_mode",
    "dropout",
    "attention_dropout",
    "layer_scale",
    "padding",
    "unshifted_stages",
)


class LoadedClassifier(NamedTuple):
    """A network in evaluation mode, and what using it needs.

    Attributes:
        network: The network.
        class_names: Name of each class.
        preprocessing: What an image goes through, by the names of ``datamodules.image.evaluation.Preprocessing``.
        checkpoint: What the file holds.
    """

    network: Classifier
    class_names: list[str]
    preprocessing: dict[str, Any]
    checkpoint: dict[str, Any]


class Source(NamedTuple):
    """A network to start from or to learn from.

    Attributes:
        network: The network.
        class_names: Name of each class; None if nobody knows.
        preprocessing: As in :class:`LoadedClassifier`.
        ours: Whether this project wrote the file.
        report: What was loaded and what was not, for a person.
    """

    network: Classifier
    class_names: list[str] | None
    preprocessing: dict[str, Any]
    ours: bool
    report: str


def describe_network(network: Classifier) -> dict[str, Any]:
    """Return what rebuilding the network needs, in plain values."""
    return {
        "format": FORMAT,
        "task": "classification",
        "network": type(network).__name__,
        "num_classes": network.num_classes,
        "network_settings": plain(network.settings),
    }


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> LoadedClassifier:
    """Load a classifier that :class:`lit_models.ClassificationModule` saved.

    Args:
        path: The checkpoint file.
        map_location: Device of the weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is unreadable, or not a classification checkpoint of this project; the message names it.
    """
    from lit_models.classification.registry import build

    path = Path(path)
    checkpoint = read_checkpoint(path)
    saved = entry_of(checkpoint, "classification", path)
    data = checkpoint.get(DATA_KEY)
    if not isinstance(data, Mapping) or "class_names" not in data:
        raise ValueError(f"{path} has no class names (no {DATA_KEY!r} entry): it was trained with another datamodule")
    try:
        network = build(saved["network"], saved["num_classes"], dict(saved["network_settings"]))
        network.load_state_dict(network_weights(checkpoint))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: the weights do not fit the network that the checkpoint describes: {' '.join(str(error).split())}"
        ) from error
    preprocessing = {key: data[key] for key in PREPROCESSING_KEYS if key in data}
    return LoadedClassifier(network.to(map_location).eval(), list(data["class_names"]), preprocessing, checkpoint)


def load_source(path: str, key: str, like: Classifier | None = None, head_rows: str | None = None) -> Source:
    """Load a classifier of this project or a public checkpoint.

    Args:
        path: The file, or a directory of the Hugging Face Hub.
        key: The setting that named it, for messages.
        like: A network that public weights shall fit: positions are resized for its images by the source's own rule,
            those of a Swin for its windows, a head for other classes is fresh, and it knows the number of attention
            heads and the windows of a Swin V2, which few files tell. A public file of another architecture is refused.
        head_rows: Rows of a public checkpoint's head, see :func:`lit_models.pretrained.load_pretrained`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of no kind that is known, or a public one of another architecture than ``like``.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f'{key}: there is no file "{path}"')
    if is_ours(Path(path)):
        if head_rows is not None:
            raise ValueError(f'head_rows is for public checkpoints, and {key} "{path}" is one of this project')
        loaded = load_checkpoint(path)
        report = f"{path}: {type(loaded.network).__name__}, {loaded.network.num_classes} classes"
        return Source(loaded.network, loaded.class_names, loaded.preprocessing, True, report)
    from lit_models.pretrained import load_pretrained

    wanted: dict[str, Any] = {}
    if like is not None:
        wanted = {"num_classes": like.num_classes, "image_size": like.image_size, "network": type(like).__name__}
        for name in ("num_heads", "window_size", "pretrained_window_size"):
            wanted[name] = like.settings.get(name)
    found = load_pretrained(path, head_rows=head_rows, **wanted)
    told = (
        f"\n  note: {wanted['num_heads']} attention heads, as in the config"
        if isinstance(wanted.get("num_heads"), int)
        else ""
    )
    return Source(found.network, found.class_names, found.preprocessing, False, found.report() + told)


def same_classes(source: Source, class_names: list[str]) -> bool:
    """Whether a network has these classes in this order, as far as is known.

    Public weights often name ImageNet's classes in words where a folder has numbers: where the two have no name in
    common, only their number is compared.
    """
    if source.network.num_classes != len(class_names):
        return False
    known = source.class_names is not None and (source.ours or bool(set(source.class_names) & set(class_names)))
    return not known or source.class_names == class_names


def start_from(
    network: Classifier,
    path: str,
    class_names: list[str],
    head_rows: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> list[str]:
    """Fill a network with the weights of a checkpoint, as fine-tuning begins.

    Images of another size get resized position embeddings, other windows of a Swin resized tables, other classes new
    heads.

    Args:
        network: The network of the config, for ``class_names``.
        path: A checkpoint of this project or a public one.
        class_names: The data's classes.
        head_rows: Rows of a public checkpoint's head, see :func:`lit_models.pretrained.load_pretrained`.
        preprocessing: What the data's images go through, by the names of :class:`LoadedClassifier`; None if unknown.

    Returns:
        What was done to the weights, and how images are prepared otherwise than for the checkpoint, in words.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds another network than the config describes.
    """
    source = load_source(path, "init_from", network, head_rows)
    theirs = source.network
    notices = [source.report, *preprocessing_differences(source.preprocessing, preprocessing or {}, f'"{path}"')]
    if type(theirs) is not type(network):
        raise ValueError(
            f'init_from: "{path}" holds a {type(theirs).__name__}, the network of the config is a '
            f"{type(network).__name__}"
        )
    if source.ours and "window_size" in theirs.settings:
        from lit_models.pretrained.swin_architecture import with_windows

        theirs = with_windows(theirs, network.settings["window_size"])
    lines = difference(_fixed_settings(theirs), _fixed_settings(network), "network")
    if lines:
        raise ValueError(f'init_from: "{path}" is of another network than the config:\n  ' + "\n  ".join(lines))
    for key in ("padding", "unshifted_stages"):
        before, after = theirs.settings.get(key), network.settings.get(key)
        if before != after:
            notices.append(f"{key}: {before} becomes {after}, another result where windows do not divide a map")
    if not same_classes(source, class_names):
        notices.append(f"new head: {theirs.num_classes} classes become {network.num_classes}, or have other names")
        theirs.reset_classifier(network.num_classes)
    if network.image_size is not None and theirs.image_size != network.image_size:
        notices.append(f"position embedding: images of {theirs.image_size} become {network.image_size}")
        theirs.set_input_size(network.image_size)
    try:
        network.load_state_dict(theirs.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f'init_from: "{path}" does not fit the network of the config: {reason}') from error
    return notices


def _fixed_settings(network: Classifier) -> dict[str, Any]:
    """Return the settings that two networks must share for their weights to mean the same; 16 is (16, 16)."""
    fixed = {key: value for key, value in plain(network.settings).items() if key not in _FREE}
    return {
        key: value[0] if isinstance(value, list) and value and value.count(value[0]) == len(value) else value
        for key, value in fixed.items()
    }
