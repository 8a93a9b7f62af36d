"""The detectors that a checkpoint may name, built from plain values."""

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from lit_models.detection.network import Detector

# Class name to module: what a checkpoint holds is looked up here, never imported by the checkpoint's own words.
NETWORKS = {
    "ConditionalDETR": "lit_models.detection.conditional",
    "DETR": "lit_models.detection.detr",
}


def build(name: str, num_classes: int, settings: Mapping[str, Any]) -> Detector:
    """Build a detector from its class name and its settings.

    Args:
        name: A key of ``NETWORKS``.
        num_classes: Classes of objects.
        settings: The network's ``settings``: arguments of the constructor beside ``num_classes``.

    Raises:
        ValueError: If there is no such network, or if it has no such settings.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no detector {name!r}; there are {', '.join(NETWORKS)}")
    network = getattr(import_module(NETWORKS[name]), name)
    known = list(signature(network).parameters)[1:]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{name} has no settings {', '.join(unknown)}; it has {', '.join(known)}")
    return network(num_classes, **settings)
