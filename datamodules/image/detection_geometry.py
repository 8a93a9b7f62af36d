"""Where the pixels and boxes of an image go on their way to the network, drawn without looking at the pixels.

The geometry of an image is a function of (seed, epoch, item) and its size alone. So every process knows how many boxes
survive the crops of all others, and which batch is how wide, before anybody has read an image.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from datamodules.image.checks import check_between
from datamodules.image.draws import uniforms
from datamodules.loading import Indices

Floats = NDArray[np.float64]


class Regions(NamedTuple):
    """How each image of a list is transformed: mirrored, resized, cut, and resized again.

    Attributes:
        flip: Whether it is mirrored, of shape ``(images,)``.
        resized: (height, width) that it is resized to first, of shape ``(images, 2)``; its own where it is not.
        crop: Left, top, width and height of what is cut out of that, in pixels, of shape ``(images, 4)``.
        sizes: (height, width) that the cut is resized to, of shape ``(images, 2)``.
    """

    flip: NDArray[np.bool_]
    resized: Indices
    crop: Indices
    sizes: Indices

    def row(self, number: int) -> "Regions":
        """Return the region of one image, still with one row."""
        rows = slice(number, number + 1)
        return Regions(self.flip[rows], self.resized[rows], self.crop[rows], self.sizes[rows])


class Geometry(Protocol):
    """Says how images are transformed."""

    def regions(self, originals: Indices, items: Indices, stream: int) -> Regions:
        """Return the regions of images.

        Args:
            originals: (height, width) of each image, of shape ``(images, 2)``.
            items: Number of each, which its random numbers depend on.
            stream: What else they depend on.
        """
        ...


@dataclass(frozen=True)
class TrainingGeometry:
    """DETR's augmentation (Carion et al. 2020, https://arxiv.org/abs/2005.12872, appendix A.4).

    The image is mirrored half of the time. Then either its shorter side is resized to one of ``sizes``; or to one of
    ``crop_from``, a rectangle is cut out whose sides are drawn from ``crop_sides``, and its shorter side is resized to
    one of ``sizes``. The last resizing leaves no side longer than ``max_size``. A side that is shorter than the
    smallest of ``crop_sides`` is not cut, where the official code raises.

    Attributes:
        sizes: Pixels of the shorter side that the network sees.
        max_size: Most pixels of the longer side.
        crop_from: Pixels of the shorter side that rectangles are cut from.
        crop_sides: Least and most pixels of a rectangle's side.
        crop_probability: How often a rectangle is cut.
        flip_probability: How often the image is mirrored.
        in_source: Cut the rectangle out of the image itself, in whole pixels, where the image would be resized first:
            for the fast transform, which resizes once.
        one_scale: Take the size of the first image for all of a list, so that a batch needs less padding.

    Raises:
        ValueError: If an attribute is not what it may be.
    """

    sizes: tuple[int, ...] = tuple(range(480, 801, 32))
    max_size: int = 1333
    crop_from: tuple[int, ...] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)
    crop_probability: float = 0.5
    flip_probability: float = 0.5
    in_source: bool = False
    one_scale: bool = False

    def __post_init__(self) -> None:
        for name in ("sizes", "crop_from"):
            sizes = getattr(self, name)
            if not sizes or min(sizes) < 1:
                raise ValueError(f"{name}={list(sizes)} must be one or more numbers of pixels")
        if len(self.crop_sides) != 2 or not 1 <= self.crop_sides[0] <= self.crop_sides[1]:
            raise ValueError(f"crop_sides={list(self.crop_sides)} must be two numbers of pixels, the smaller first")
        check_between("max_size", self.max_size, max(self.sizes))
        check_between("crop_probability", self.crop_probability, 0, 1)
        check_between("flip_probability", self.flip_probability, 0, 1)

    def regions(self, originals: Indices, items: Indices, stream: int) -> Regions:
        """Draw the regions of images, see ``Geometry``."""
        flip, cuts, size, before, width, height, left, top = uniforms(items.tolist(), stream, 8).T
        cut = (cuts < self.crop_probability)[:, None]
        resized = np.where(cut, resize_shorter(originals, _choose(before, self.crop_from)), originals)
        smallest, largest = self.crop_sides
        low, high = np.minimum(smallest, resized), np.minimum(largest, resized)
        sides = np.where(cut, low + _below(np.stack([height, width], axis=1), high - low + 1), resized)
        corner = _below(np.stack([top, left], axis=1), resized - sides + 1)
        crop = np.concatenate([corner[:, ::-1], sides[:, ::-1]], axis=1)
        scale = np.full_like(size, size[0]) if self.one_scale and len(size) else size
        sizes = resize_shorter(sides, _choose(scale, self.sizes), self.max_size)
        if self.in_source:
            crop, resized = _in_source(crop, resized, originals), originals
        return Regions(flip < self.flip_probability, resized, crop, sizes)


@dataclass(frozen=True)
class EvaluationGeometry:
    """Resizes the whole image.

    Attributes:
        size: Pixels of the shorter side.
        max_size: Most pixels of the longer side.

    Raises:
        ValueError: If an attribute is not what it may be.
    """

    size: int = 800
    max_size: int = 1333

    def __post_init__(self) -> None:
        check_between("eval_size", self.size, 1)
        check_between("max_size", self.max_size, self.size)

    def regions(self, originals: Indices, items: Indices, stream: int) -> Regions:
        """Return the regions of images; nothing is drawn."""
        crop = np.concatenate([np.zeros_like(originals), originals[:, ::-1]], axis=1)
        sizes = resize_shorter(originals, np.full(len(originals), self.size), self.max_size)
        return Regions(np.zeros(len(originals), dtype=bool), originals, crop, sizes)


def resize_shorter(sizes: Indices, shorter: Indices, max_size: int | None = None) -> Indices:
    """Return the (height, width) of images after their shorter sides are resized, rounded as DETR rounds.

    Args:
        sizes: (height, width) of each, of shape ``(images, 2)``.
        shorter: Pixels of the shorter side, of shape ``(images,)``.
        max_size: Most pixels of the longer side. Where it is reached, the shorter side is rounded to the nearest
            number, and the longer one computed from that and truncated: it may be a pixel shorter than ``max_size``.
    """
    least, most = sizes.min(axis=1), sizes.max(axis=1)
    if max_size is not None:
        capped = np.rint(max_size * least / most).astype(np.int64)
        shorter = np.where(most / least * shorter > max_size, np.maximum(capped, 1), shorter)
    longer = shorter * most // least
    return np.where(sizes == least[:, None], shorter[:, None], longer[:, None])


def move_boxes(boxes: Floats, rows: Indices, originals: Indices, regions: Regions) -> tuple[Floats, NDArray[np.bool_]]:
    """Transform boxes as their images are.

    Args:
        boxes: Left, top, right and bottom in pixels of the image, of shape ``(boxes, 4)``.
        rows: The image of each, as its row in ``regions``.
        originals: (height, width) of each image.
        regions: What is done to the images.

    Returns:
        The parts of the boxes that are seen, as (centre x, centre y, width, height) in shares of the result, of shape
        ``(boxes, 4)``, and whether anything of each is seen.
    """
    width = originals[rows, 1]
    mirrored = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    moved = np.where(regions.flip[rows, None], mirrored, boxes)
    scale = (regions.resized / originals)[rows][:, [1, 0, 1, 0]]
    crop = regions.crop[rows].astype(np.float64)
    sides = crop[:, [2, 3, 2, 3]]
    shares = np.clip(moved * scale - crop[:, [0, 1, 0, 1]], 0, sides) / sides
    extent = shares[:, 2:] - shares[:, :2]
    seen = np.all(extent > 0, axis=1)
    return np.concatenate([(shares[:, :2] + shares[:, 2:]) / 2, extent], axis=1), np.asarray(seen)


def _below(numbers: Floats, counts: Indices) -> Indices:
    """Turns uniform numbers into whole ones below each count."""
    return (numbers * counts).astype(np.int64)


def _choose(numbers: Floats, values: tuple[int, ...]) -> Indices:
    return np.array(values)[_below(numbers, np.array(len(values)))]


def _in_source(crop: Indices, resized: Indices, originals: Indices) -> Indices:
    """Turns rectangles of resized images into whole pixels of the images, at least one."""
    scale = (originals / resized)[:, ::-1]
    corner = np.minimum(np.rint(crop[:, :2] * scale).astype(np.int64), originals[:, ::-1] - 1)
    end = np.rint((crop[:, :2] + crop[:, 2:]) * scale).astype(np.int64)
    return np.concatenate([corner, np.maximum(end - corner, 1)], axis=1)
