"""Public checkpoints: one file per family, which reads it, renames it and says what it could not load.

:func:`load_pretrained` recognises the family of a file of a classifier; ``to_timm``, ``to_huggingface`` and
``to_torchvision`` go back. :func:`load_pretrained_detector` is for detectors; ``detector_to_official`` and
``detector_to_huggingface`` go back.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_models.pretrained.detr import PretrainedDetector, load_pretrained_detector
    from lit_models.pretrained.detr_writing import detector_to_huggingface, detector_to_official
    from lit_models.pretrained.huggingface import to_huggingface
    from lit_models.pretrained.loading import Pretrained, load_pretrained
    from lit_models.pretrained.timm import to_timm
    from lit_models.pretrained.torchvision import to_torchvision

_MODULE_OF = {
    "Pretrained": "loading",
    "PretrainedDetector": "detr",
    "detector_to_huggingface": "detr_writing",
    "detector_to_official": "detr_writing",
    "load_pretrained": "loading",
    "load_pretrained_detector": "detr",
    "to_huggingface": "huggingface",
    "to_timm": "timm",
    "to_torchvision": "torchvision",
}
__all__ = [
    "Pretrained",
    "PretrainedDetector",
    "detector_to_huggingface",
    "detector_to_official",
    "load_pretrained",
    "load_pretrained_detector",
    "to_huggingface",
    "to_timm",
    "to_torchvision",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: Marian needs none of the image families."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
