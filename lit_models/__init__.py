"""Networks and their LightningModules."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_models.classification.module import ClassificationModule
    from lit_models.detection.module import DetectionModule
    from lit_models.translation.module import TranslationModule

_MODULE_OF = {
    "ClassificationModule": "classification.module",
    "DetectionModule": "detection.module",
    "TranslationModule": "translation.module",
}
__all__ = ["ClassificationModule", "DetectionModule", "TranslationModule"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
