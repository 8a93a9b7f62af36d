"""What is done to an image before a network sees it at evaluation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CropMode = Literal["center", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocessing:
    """Resizes and crops an image; with its mean and std it is what a checkpoint needs to be used.

    Attributes:
        image_size: Side of the square that the network sees.
        crop: Share of the shorter side that the square covers: the shorter side is resized to ``image_size / crop``
            pixels, rounded down, and the middle cut out. 0.875 for DeiT, 1.0 for DeiT III, CaiT and most at 384.
        crop_mode: ``center``, or ``squash``, which resizes the whole image to the square and ignores ``crop``.
        interpolation: Filter of the resizing.
        mean: Mean of each colour, between 0 and 1.
        std: Standard deviation of each colour.

    Raises:
        ValueError: If a value is not one of those.
    """

    image_size: int = 224
    crop: float = 0.875
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size={self.image_size} must be at least 1")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop} must be above 0 and at most 1: the share of the shorter side")
        if self.crop_mode not in ("center", "squash"):
            raise ValueError(f"crop_mode={self.crop_mode!r} must be center or squash")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation={self.interpolation!r} must be one of {', '.join(_FILTERS)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean} and std={self.std} must be three numbers each, std above 0")

    def __call__(self, image: Image.Image) -> Tensor:
        """Return what the network sees of an RGB image, of shape (3, image_size, image_size), uint8."""
        size, resample = self.image_size, _FILTERS[self.interpolation]
        if self.crop_mode == "squash":
            square = image.resize((size, size), resample)
        else:
            shorter = int(size / self.crop)
            width, height = (shorter * side // min(image.size) for side in image.size)
            left, top = round((width - size) / 2), round((height - size) / 2)
            square = image.resize((width, height), resample).crop((left, top, left + size, top + size))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def triple(values: tuple[float, float, float]) -> tuple[float, float, float]:
    """Returns a number for each colour as floats, whatever sequence and numbers a config held."""
    red, green, blue = values
    return float(red), float(green), float(blue)
