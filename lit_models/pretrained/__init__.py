"""Public checkpoints: one file per family, which reads it, renames it and says what it could not load.

:func:`load_pretrained` recognises the family of a file; ``to_timm``, ``to_huggingface`` and ``to_torchvision`` go back.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_models.pretrained.huggingface import to_huggingface
    from lit_models.pretrained.loading import Pretrained, load_pretrained
    from lit_models.pretrained.timm import to_timm
    from lit_models.pretrained.torchvision import to_torchvision

_MODULE_OF = {
    "Pretrained": "loading",
    "load_pretrained": "loading",
    "to_huggingface": "huggingface",
    "to_timm": "timm",
    "to_torchvision": "torchvision",
}
__all__ = ["Pretrained", "load_pretrained", "to_huggingface", "to_timm", "to_torchvision"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: Marian needs none of the image families."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
