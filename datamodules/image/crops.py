"""Random crops of training images."""

import math
import random
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.image.decode import EncodedImage, reduction_for
from datamodules.image.evaluation import Interpolation

Box = tuple[int, int, int, int]
"""Left, top, width and height of a region, in pixels."""


class Crop(Protocol):
    """Takes a random square out of an image."""

    def __call__(self, image: EncodedImage, size: int, interpolation: Interpolation, rng: random.Random) -> Tensor:
        """Return pixels of shape (size, size, 3), uint8."""
        ...


@dataclass(frozen=True)
class RandomResizedCrop:
    """A region of random area and aspect ratio, resized (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842).

    The region is drawn as torchvision draws it: ten tries, then the largest region in the middle whose ratio is
    allowed. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the region keeps at least the output's pixels.

    Attributes:
        scale: Smallest and largest area, as shares of the image.
        ratio: Smallest and largest width / height.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, image: EncodedImage, size: int, interpolation: Interpolation, rng: random.Random) -> Tensor:
        """Return pixels of shape (size, size, 3), uint8."""
        left, top, width, height = self.draw(image.width, image.height, rng)
        reduction = reduction_for(min(width, height), size)
        decoded = image.pixels(reduction)
        if decoded.shape[:2] == (image.height, image.width):
            reduction = 1  # the format knows no reduction
        # To whole pixels of what has been decoded.
        left, top, right, bottom = (round(corner / reduction) for corner in (left, top, left + width, top + height))
        return resize(decoded[top:bottom, left:right], (size, size), interpolation)

    def draw(self, width: int, height: int, rng: random.Random) -> Box:
        """Draw the region of an image of this size."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                return rng.randint(0, width - columns), rng.randint(0, height - rows), columns, rows
        columns, rows = width, height
        if width / height < self.ratio[0]:
            rows = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            columns = max(1, round(height * self.ratio[1]))
        return (width - columns) // 2, (height - rows) // 2, columns, rows


@dataclass(frozen=True)
class PaddedCrop:
    """A random square of the image after its shorter side is resized to the output and a border is added.

    With black borders this is CIFAR's usual crop, with reflected ones DeiT III's simple random crop (Touvron et al.
    2022, https://arxiv.org/abs/2204.07118, section 3.2).

    Attributes:
        padding: Pixels of the border.
        reflect: Fill the border with the image's reflection instead of black.
    """

    padding: int = 4
    reflect: bool = False

    def __call__(self, image: EncodedImage, size: int, interpolation: Interpolation, rng: random.Random) -> Tensor:
        """Return pixels of shape (size, size, 3), uint8."""
        shorter = min(image.width, image.height)
        rows, columns = (size if side == shorter else size * side // shorter for side in (image.height, image.width))
        pixels = resize(image.pixels(reduction_for(shorter, size)), (rows, columns), interpolation)
        top, left = rng.randint(0, rows + 2 * self.padding - size), rng.randint(0, columns + 2 * self.padding - size)
        border = ((self.padding, self.padding), (self.padding, self.padding), (0, 0))
        padded = np.pad(pixels.numpy(), border, mode="reflect" if self.reflect else "constant")
        return torch.from_numpy(padded)[top : top + size, left : left + size]


def resize(pixels: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resize an RGB image with Pillow's antialiasing filter, but on torch's vector units.

    Results are within 2 of Pillow's by rounding, and mostly within 1. Beside edges that overshoot they may differ by
    more: either library clips to 0 ... 255 between its two passes.

    Args:
        pixels: (height, width, 3), uint8.
        size: Height and width of the result.
        interpolation: The filter.

    Returns:
        Pixels of shape (height, width, 3), uint8, contiguous.
    """
    if pixels.shape[:2] == size:
        return pixels.contiguous()
    # The batch dimension comes first: so torch sees that colours are innermost, and uses its fast path for that.
    batch = pixels[None].permute(0, 3, 1, 2)
    return functional.interpolate(batch, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0)
