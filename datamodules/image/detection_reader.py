"""Batches of images with boxes: read, transformed on the host, padded, and handed on as uint8."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.batches import DetectionBatch
from datamodules.image.crops import resize
from datamodules.image.decode import EncodedImage, ImageError, reduction_for
from datamodules.image.detection_annotations import DetectionImages
from datamodules.image.detection_geometry import Floats, Geometry, Regions, move_boxes
from datamodules.image.detection_orders import DetectionOrder
from datamodules.image.orders import EvaluationOrder
from datamodules.image.reader import ImageLoader, ImageReader, OnBadImage
from datamodules.loading import Indices, keyed_seed

_GEOMETRY = 2  # the order draws from (seed, epoch), its groups from (seed, epoch, 1)


class DetectionReader(ImageReader):
    """Makes batches of a split; which files are bad and which one a worker has in hand is kept as for classification.

    Args:
        source: The images and their objects.
        geometry: What is done to them, in training or evaluation.
        training: Whether the batches are for training.
        fast: Decode and resize with torch's vector units instead of Pillow's, and resize once. Pixels differ by
            rounding from the official transform's where it resizes once, and by more where it resizes twice.
        seed: Decides what is random.
        on_bad_image: What a file that cannot be decoded, or has another size than the annotations say, does. ``error``
            raises. ``skip`` leaves it out of evaluation; in training it is black and has no objects, though
            ``step_boxes`` still counts them.
        num_workers: Processes that read.
    """

    def __init__(
        self,
        source: DetectionImages,
        geometry: Geometry,
        *,
        training: bool,
        fast: bool = False,
        seed: int = 0,
        on_bad_image: OnBadImage = "error",
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            cast(Any, source), cast(Any, None), seed=seed, on_bad_image=on_bad_image, num_workers=num_workers
        )
        self._images, self._geometry, self._training, self._fast = source, geometry, training, fast

    def read_batch(self, indices: Indices, epoch: int) -> DetectionBatch:  # type: ignore[override]
        """Return the batch of these images, without ``step_boxes`` and ``step_images``."""
        regions, boxes, labels, counts = self._plan(indices, epoch)
        ends = np.cumsum(counts)
        sizes = [(height, width) for height, width in regions.sizes.tolist()]
        images = torch.zeros((len(sizes), *regions.sizes.max(axis=0).tolist(), 3), dtype=torch.uint8)
        targets, classes = torch.zeros(len(sizes), max(counts), 4), torch.full((len(sizes), max(counts)), -1)
        kept, whole = [], True
        for row, (index, (height, width)) in enumerate(zip(indices.tolist(), sizes, strict=True)):
            try:
                images[row, :height, :width] = self._pixels(index, regions, row)
            except ImageError:
                if not self._skip:
                    raise
                self._bad[index] = True
                counts[row], whole = 0, False
                if not self._training:
                    continue
            kept.append(row)
            objects = slice(ends[row] - counts[row], ends[row])
            targets[row, : counts[row]] = torch.from_numpy(boxes[objects])
            classes[row, : counts[row]] = torch.from_numpy(labels[objects])
        batch = DetectionBatch(
            # Rows of the host's (height, width, 3): the device puts colours first.
            images.permute(0, 3, 1, 2),
            tuple(sizes),
            targets,
            classes,
            tuple(counts),
            tuple(self._images.image_ids[indices].tolist()),
            tuple((height, width) for height, width in self._images.sizes[indices].tolist()),
            step_boxes=0,
        )
        return batch if whole else _rows_of(batch, kept)

    def count_boxes(self, indices: Indices, epoch: int) -> int:
        """Return how many objects the batch of these images has, whoever reads it."""
        return sum(self._plan(indices, epoch)[-1])

    def aspects(self, indices: Indices, epoch: int) -> Floats:
        """Return the width / height that images have in an epoch, after their crops."""
        crop = self._regions(indices, epoch).crop
        return crop[:, 2] / crop[:, 3]

    def describe(self, index: int) -> str:
        """Say what is wrong with an image."""
        try:
            self._open(index).image()
        except (ImageError, OSError) as error:
            return str(error)
        return f"{self._images.path(index)} can be decoded now"

    def _regions(self, indices: Indices, epoch: int) -> Regions:
        stream = keyed_seed(self._seed, epoch, _GEOMETRY)
        return self._geometry.regions(self._images.sizes[indices], indices, stream)

    def _plan(self, indices: Indices, epoch: int) -> tuple[Regions, Floats, Indices, list[int]]:
        """Draws what is done to images: their regions, boxes and labels, image by image, and numbers of boxes."""
        regions = self._regions(indices, epoch)
        objects, rows = self._images.objects(indices)
        boxes, seen = move_boxes(self._images.boxes[objects], rows, self._images.sizes[indices], regions)
        counts = np.bincount(rows[seen], minlength=len(indices))
        return regions, boxes[seen].astype(np.float32), self._images.labels[objects[seen]], counts.tolist()

    def _open(self, index: int) -> EncodedImage:
        image = EncodedImage(self._images.read(index), self._images.path(index))
        height, width = self._images.sizes[index].tolist()
        if (image.height, image.width) != (height, width):
            turned = ", perhaps before it was turned upright" if (image.width, image.height) == (height, width) else ""
            raise ImageError(
                f"{image.name} has {image.width} x {image.height} pixels, but {self._images.name} says {width} x "
                f"{height} of image {self._images.image_ids[index]}{turned}: its boxes would be misplaced"
            )
        return image

    def _pixels(self, index: int, regions: Regions, row: int) -> Tensor:
        """Reads and transforms an image, to pixels of shape (height, width, 3)."""
        self._note(index)
        transform = transform_fast if self._fast else transform_exactly
        pixels = transform(self._open(index), regions.row(row))
        self._note(-1)
        return pixels


def transform_exactly(image: EncodedImage, region: Regions) -> Tensor:
    """Transform an image with Pillow, as DETR's official code does.

    Args:
        image: The image.
        region: What is done to it; each field has one row.

    Returns:
        Pixels of shape (height, width, 3), uint8.
    """
    pixels = image.image()
    if region.flip[0]:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    height, width = region.resized[0].tolist()
    pixels = _resized(pixels, width, height)
    left, top, width, height = region.crop[0].tolist()
    if (width, height) != pixels.size:
        pixels = pixels.crop((left, top, left + width, top + height))
    height, width = region.sizes[0].tolist()
    return torch.from_numpy(np.array(_resized(pixels, width, height)))


def transform_fast(image: EncodedImage, region: Regions) -> Tensor:
    """Transform an image with torch: only the rectangle is resized, and what is much too large is decoded smaller.

    Args:
        image: The image.
        region: What is done to it, with rectangles in pixels of the image itself; each field has one row.

    Returns:
        Pixels of shape (height, width, 3), uint8.
    """
    left, top, width, height = region.crop[0].tolist()
    rows, columns = region.sizes[0].tolist()
    if region.flip[0]:
        left = image.width - left - width
    reduction = reduction_for(min(height // rows, width // columns), 1)
    decoded = image.pixels(reduction)
    if decoded.shape[:2] == (image.height, image.width):
        reduction = 1  # the format knows no reduction
    left, top, right, bottom = (round(corner / reduction) for corner in (left, top, left + width, top + height))
    pixels = resize(decoded[top:bottom, left:right], (rows, columns), "bilinear")
    return pixels.flip(1) if region.flip[0] else pixels


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _rows_of(batch: DetectionBatch, rows: list[int]) -> DetectionBatch:
    """Returns some rows of a batch, padded no more than they need."""

    def pick(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[row] for row in rows)

    sizes, counts = pick(batch.sizes), pick(batch.counts)
    height, width = (max((size[side] for size in sizes), default=0) for side in (0, 1))
    most = max(counts, default=0)
    return DetectionBatch(
        batch.images[rows, :, :height, :width],
        sizes,
        batch.boxes[rows, :most],
        batch.labels[rows, :most],
        counts,
        pick(batch.image_ids),
        pick(batch.original_sizes),
        batch.step_boxes,
    )


class DetectionLoader(ImageLoader):
    """A resumable loader of training or evaluation batches that knows the images and boxes of every optimiser step.

    Args:
        reader: Makes the batches.
        order: Says which images make up each batch; of training, on all processes.
        step: For training: returns the micro-batches of an optimiser step, and the batches after which a pass ends and
            the step with it. It is asked when a pass starts.
        num_workers: Processes that read ahead.
        pin_memory: Copy batches to page-locked memory.
        restart: Start every pass at the first batch.
    """

    def __init__(
        self,
        reader: DetectionReader,
        order: DetectionOrder | EvaluationOrder,
        *,
        step: Callable[[], tuple[int, int]] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        restart: bool = False,
    ) -> None:
        super().__init__(reader, order, num_workers=num_workers, pin_memory=pin_memory, restart=restart)
        self._detections, self._step = reader, step
        self._done = 0  # batches of this pass that were handed out

    def __iter__(self) -> Iterator[DetectionBatch]:  # type: ignore[override]
        if self._step is None:
            yield from cast(Iterator[DetectionBatch], super().__iter__())
            return
        accumulated, length = self._step()
        self._done = self._done % length if self._resumed else 0
        # Batches are counted from the first one of epoch 0.
        start = self._epoch * len(self) + self._position - self._done
        counted: tuple[int, int] | None = None
        for number, batch in enumerate(cast(Iterator[DetectionBatch], super().__iter__()), start=self._done):
            within = number % length
            if within % accumulated == 0 or counted is None:
                first = within - within % accumulated
                offset = start + number - within
                counted = self._count(offset + first, offset + min(first + accumulated, length))
            self._done = number + 1
            boxes, images = counted
            yield batch._replace(step_boxes=boxes, step_images=images)

    def _count(self, start: int, end: int) -> tuple[int, int]:
        """Counts the boxes and the images in some successive batches of all processes."""
        order = cast(DetectionOrder, self.order)
        boxes = images = 0
        for number in range(start, end):
            epoch, position = divmod(number, len(self))
            items = np.concatenate([share[position] for share in order.everybodys_batches(epoch)])
            boxes += self._detections.count_boxes(items, epoch)
            images += len(items)
        return boxes, images

    def state_dict(self) -> dict[str, int]:
        """Return the position, and how many batches of the pass lie before it."""
        return super().state_dict() | {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass continue from a position."""
        super().load_state_dict(state)
        self._done = state["done"] if self._resumed else 0
