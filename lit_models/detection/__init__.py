"""Object detection as set prediction: DETR and its dense successors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_models.detection.backbone import ClassifierBackbone, ResNetBackbone
    from lit_models.detection.conditional import ConditionalDETR
    from lit_models.detection.criterion import SetCriterion
    from lit_models.detection.detr import DETR
    from lit_models.detection.evaluation import CocoScores
    from lit_models.detection.module import DetectionModule
    from lit_models.detection.network import Detector, Predictions
    from lit_models.detection.postprocess import Detections

_MODULE_OF = {
    "ClassifierBackbone": "backbone",
    "CocoScores": "evaluation",
    "ConditionalDETR": "conditional",
    "DETR": "detr",
    "DetectionModule": "module",
    "Detections": "postprocess",
    "Detector": "network",
    "Predictions": "network",
    "ResNetBackbone": "backbone",
    "SetCriterion": "criterion",
}
__all__ = [
    "DETR",
    "ClassifierBackbone",
    "CocoScores",
    "ConditionalDETR",
    "DetectionModule",
    "Detections",
    "Detector",
    "Predictions",
    "ResNetBackbone",
    "SetCriterion",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the networks need no Lightning, training no evaluation."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
