"""Datamodules: from files on disk to batches.

Names are imported when they are first used, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.batches import DetectionBatch, ImageBatch, TranslationBatch
    from datamodules.coco import COCODataModule
    from datamodules.imagenet import ImageNetDataModule
    from datamodules.wmt import WMTDataModule

__all__ = [
    "COCODataModule",
    "DetectionBatch",
    "ImageBatch",
    "ImageNetDataModule",
    "TranslationBatch",
    "WMTDataModule",
]

_MODULE_OF = {
    "COCODataModule": "datamodules.coco",
    "DetectionBatch": "datamodules.batches",
    "ImageBatch": "datamodules.batches",
    "ImageNetDataModule": "datamodules.imagenet",
    "TranslationBatch": "datamodules.batches",
    "WMTDataModule": "datamodules.wmt",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'datamodules' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    """Lists the public names."""
    return sorted(__all__)
