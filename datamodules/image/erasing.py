"""Random erasing of normalised images (Zhong et al. 2017, https://arxiv.org/abs/1708.04896)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.image.checks import check_between
from datamodules.image.draws import uniforms

STREAM = 1
"""Tells the draws of erasing apart from others that are made from a sample's seed."""
_TRIES = 10  # for a box that fits into the image


class Box(NamedTuple):
    """A rectangle in an image, in pixels; ``bottom`` and ``right`` are outside."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class RandomErasing:
    """Fills a random rectangle of some images with noise, as timm does it for DeiT.

    It follows normalisation: the noise has the mean and the variance of the pixels. torchvision's ``RandomErasing``
    draws the same boxes with its defaults, but fills them with zeros.

    Attributes:
        probability: How often an image is erased.
        min_area: Smallest box, as a share of the image.
        max_area: Largest box, as a share of the image.
        min_aspect: Smallest height / width of a box; the largest is its inverse.
        count: Boxes in an image that is erased; each has a share of the area.
        mode: ``pixel`` draws a normal value for every pixel and channel, ``rand`` one for every channel of a box, and
            ``const`` fills with zeros, the mean.
    """

    probability: float = 0.25
    min_area: float = 0.02
    max_area: float = 1 / 3
    min_aspect: float = 0.3
    count: int = 1
    mode: Literal["pixel", "rand", "const"] = "pixel"

    def __post_init__(self) -> None:
        check_between("RandomErasing: probability", self.probability, 0, 1)
        check_between("RandomErasing: min_area", self.min_area, 0, 1)
        check_between("RandomErasing: max_area", self.max_area, self.min_area, 1)
        check_between("RandomErasing: min_aspect", self.min_aspect, 1e-3, 1)
        check_between("RandomErasing: count", self.count, 1)
        if self.mode not in ("pixel", "rand", "const"):
            raise ValueError(f"RandomErasing: mode={self.mode!r} must be pixel, rand or const")

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Erases in place.

        Args:
            images: (batch, channels, height, width), normalised.
            seeds: A seed for each image: its boxes and its noise depend on nothing else.

        Returns:
            ``images``.

        Raises:
            ValueError: If the images are not normalised yet, or there is not a seed for each.
        """
        if not images.is_floating_point():
            raise ValueError(f"images of type {images.dtype} cannot be erased: the noise is that of normalised images")
        if len(seeds) != len(images):
            raise ValueError(f"{len(seeds)} seeds for {len(images)} images: there must be one for each")
        generator = torch.Generator(images.device)
        noise = images.new_empty(0)
        for index, boxes in self.boxes(images.shape[-2], images.shape[-1], seeds):
            if self.mode != "const":
                generator.manual_seed(seeds[index])
            for box in boxes:
                self._fill(images[index, :, box.top : box.bottom, box.left : box.right], generator, noise)
        return images

    def boxes(self, height: int, width: int, seeds: Sequence[int]) -> list[tuple[int, list[Box]]]:
        """Draws what is erased.

        Args:
            height: Height of the images in pixels.
            width: Their width.
            seeds: A seed for each image.

        Returns:
            (Position in the batch, boxes) of every image that is erased.
        """
        chosen = np.flatnonzero(uniforms(seeds, STREAM, 1)[:, 0] < self.probability).tolist()
        draws = uniforms([seeds[index] for index in chosen], STREAM, 1 + self.count * _TRIES * 4)
        tries = draws[:, 1:].reshape(len(chosen), self.count, _TRIES, 4).tolist()
        return [
            (index, [box for each in of_image if (box := self._box(each, height, width)) is not None])
            for index, of_image in zip(chosen, tries, strict=True)
        ]

    def _box(self, tries: Sequence[Sequence[float]], height: int, width: int) -> Box | None:
        """Makes a box from the first four numbers whose box fits into the image."""
        for share, shape, down, across in tries:
            area = (self.min_area + (self.max_area - self.min_area) * share) * height * width / self.count
            aspect = self.min_aspect ** (1 - 2 * shape)
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
                return Box(top, top + rows, left, left + columns)
        return None

    def _fill(self, region: Tensor, generator: torch.Generator, noise: Tensor) -> None:
        """Fills a box; ``noise`` is memory that one box after the other uses."""
        match self.mode:
            case "pixel" if region.is_cuda:
                region.normal_(generator=generator)  # one kernel; on a CPU it is slow where memory has gaps
            case "pixel":
                region.copy_(noise.resize_(region.shape).normal_(generator=generator))
            case "rand":
                shape = (region.shape[0], 1, 1)
                region.copy_(torch.randn(shape, generator=generator, device=region.device, dtype=region.dtype))
            case "const":
                region.zero_()
