"""The detectors that a checkpoint may name, built from plain values."""

from collections.abc import Mapping
from typing import Any

from lit_models.detection.network import Detector
from lit_models.registry import build_named

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
    built: Detector = build_named(NETWORKS, "detector", name, num_classes, settings)
    return built
