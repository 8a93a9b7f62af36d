"""Image classification: ViT, DeiT, CaiT, Swin and the ConvNets that teach them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_models.classification.cait import CaiT
    from lit_models.classification.module import ClassificationModule
    from lit_models.classification.network import Classifier, HeadLogits
    from lit_models.classification.resnet import ResNet
    from lit_models.classification.swin import SwinTransformer
    from lit_models.classification.vit import VisionTransformer

_MODULE_OF = {
    "CaiT": "cait",
    "ClassificationModule": "module",
    "Classifier": "network",
    "HeadLogits": "network",
    "ResNet": "resnet",
    "SwinTransformer": "swin",
    "VisionTransformer": "vit",
}
__all__ = [
    "CaiT",
    "ClassificationModule",
    "Classifier",
    "HeadLogits",
    "ResNet",
    "SwinTransformer",
    "VisionTransformer",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the networks need no Lightning."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
