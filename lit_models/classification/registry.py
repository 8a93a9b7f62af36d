"""The networks that a checkpoint may name, built from plain values."""

from collections.abc import Mapping
from typing import Any

from lit_models.classification.network import Classifier
from lit_models.registry import build_named

NETWORKS = {
    "CaiT": "lit_models.classification.cait",
    "ResNet": "lit_models.classification.resnet",
    "SwinTransformer": "lit_models.classification.swin",
    "VisionTransformer": "lit_models.classification.vit",
}


def build(name: str, num_classes: int, settings: Mapping[str, Any]) -> Classifier:
    """Build a network from its class name and its settings.

    Args:
        name: A key of ``NETWORKS``.
        num_classes: Classes of the head.
        settings: The network's ``settings``: arguments of the constructor beside ``num_classes``.

    Raises:
        ValueError: If there is no such network, or if it has no such settings.
    """
    built: Classifier = build_named(NETWORKS, "network", name, num_classes, settings)
    return built
