"""Images: reading, augmentation on the host, normalisation, erasing and mixing on the device."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.image.augment import ThreeAugment, TrivialAugment
    from datamodules.image.erasing import RandomErasing
    from datamodules.image.mixing import Mixing
    from datamodules.image.normalization import normalize
    from datamodules.image.rand_augment import RandAugment

_MODULE_OF = {
    "Mixing": "mixing",
    "RandAugment": "rand_augment",
    "RandomErasing": "erasing",
    "ThreeAugment": "augment",
    "TrivialAugment": "augment",
    "normalize": "normalization",
}
__all__ = ["Mixing", "RandAugment", "RandomErasing", "ThreeAugment", "TrivialAugment", "normalize"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
