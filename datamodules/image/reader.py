"""Batches of images: read, transformed on the host, and handed on as uint8."""

import os
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import get_worker_info

from datamodules.batches import ImageBatch
from datamodules.image.crops import Crop
from datamodules.image.decode import EncodedImage, ImageError
from datamodules.image.evaluation import Interpolation, Preprocessing
from datamodules.image.folder import ImageSource
from datamodules.image.host_transform import HostTransform
from datamodules.loading import BatchOrder, Indices, ResumableLoader, keyed_seed

OnBadImage = Literal["error", "skip"]
_REPLACEMENTS = 10  # tries to find a whole image in place of a broken one
_NAMED = 5  # files that a warning names


@dataclass(frozen=True)
class TrainingTransform:
    """What is done to a training image on the host: crop, flip, augment.

    Attributes:
        image_size: Side of the square that the network sees.
        crop: Takes the square out of the image.
        flip_probability: How often the image is mirrored.
        augmentation: What follows, if anything.
        interpolation: Filter of the resizing.
    """

    image_size: int
    crop: Crop
    flip_probability: float = 0.5
    augmentation: HostTransform | None = None
    interpolation: Interpolation = "bicubic"

    def __call__(self, image: EncodedImage, rng: random.Random) -> NDArray[np.uint8]:
        """Return pixels of shape (image_size, image_size, 3), perhaps in memory that cannot be written."""
        pixels = self.crop(image, self.image_size, self.interpolation, rng)
        if rng.random() < self.flip_probability:
            pixels = pixels.flip(1)
        if self.augmentation is None:
            return pixels.numpy()
        plain = Image.fromarray(pixels.numpy())
        augmented = self.augmentation(plain, rng)
        return pixels.numpy() if augmented is plain else np.asarray(augmented)


class ImageReader:
    """Makes batches of a split.

    Item number ``copy * len(source) + index`` is a further copy of image ``index``, with random numbers of its own.
    What is random in an image depends on (seed, epoch, index, copy) alone.

    Args:
        source: The images.
        transform: What is done to an image: of training, or the preprocessing of evaluation.
        seed: Decides what is random in training.
        on_bad_image: What to do with a file that cannot be decoded. ``error`` raises. ``skip`` puts another image of
            the split, chosen by the same key, in its place in training, and leaves it out of its batch in evaluation.
        num_workers: Processes that read.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: TrainingTransform | Preprocessing,
        *,
        seed: int = 0,
        on_bad_image: OnBadImage = "error",
        num_workers: int = 0,
    ) -> None:
        self._source, self._transform, self._seed = source, transform, seed
        self._skip = on_bad_image == "skip"
        # Shared with the workers: which images are bad, and the process number and image that each worker has in hand.
        self._bad = torch.zeros(len(source), dtype=torch.bool)
        self._in_hand = torch.full((max(1, num_workers), 2), -1, dtype=torch.int64)
        if num_workers:
            self._bad.share_memory_()
            self._in_hand.share_memory_()

    def read_batch(self, indices: Indices, epoch: int) -> ImageBatch:
        """Return the batch of these items; it is smaller, even empty, if bad images are left out of an evaluation."""
        samples = [sample for item in indices.tolist() if (sample := self._sample(item, epoch)) is not None]
        training = isinstance(self._transform, TrainingTransform)
        side = self._transform.image_size
        # Rows of the host's (height, width, 3): the device puts colours first.
        images = torch.empty((len(samples), side, side, 3), dtype=torch.uint8)
        rows = images.numpy()
        for row, (pixels, _, _) in enumerate(samples):
            rows[row] = pixels
        found = np.array([index for _, index, _ in samples], dtype=np.int64)
        return ImageBatch(
            images=images.permute(0, 3, 1, 2),
            labels=torch.from_numpy(self._source.labels[found]),
            indices=torch.from_numpy(found),
            seeds=tuple(seed for _, _, seed in samples) if training else (),
            epoch=epoch,
        )

    def _sample(self, item: int, epoch: int) -> tuple[NDArray[np.uint8], int, int] | None:
        """Reads an item: pixels (height, width, 3), the number of its image, and its seed."""
        copy, index = divmod(item, len(self._source))
        seed = keyed_seed(self._seed, epoch, index, copy)
        for attempt in range(1 + _REPLACEMENTS):
            try:
                return self._read(index, seed), index, seed
            except ImageError:
                if not self._skip:
                    raise
                self._bad[index] = True
            if isinstance(self._transform, Preprocessing):
                return None
            index = keyed_seed(seed, attempt) % len(self._source)
        raise ImageError(
            f"{self._source.path(item % len(self._source))} cannot be decoded, nor can {_REPLACEMENTS} other images "
            f"that were tried in its place; look at {self._source.name}"
        )

    def _read(self, index: int, seed: int) -> NDArray[np.uint8]:
        self._note(index)
        image = EncodedImage(self._source.read(index), self._source.path(index))
        if isinstance(self._transform, TrainingTransform):
            pixels = self._transform(image, random.Random(seed))
        else:
            pixels = self._transform(image.image()).permute(1, 2, 0).numpy()
        self._note(-1)
        return pixels

    def _note(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None:
            self._in_hand[worker.id, 0], self._in_hand[worker.id, 1] = os.getpid(), index

    def bad_images(self) -> list[int]:
        """Return the numbers of the images that could not be decoded so far."""
        return self._bad.nonzero().flatten().tolist()

    def describe(self, index: int) -> str:
        """Say what is wrong with an image."""
        try:
            EncodedImage(self._source.read(index), self._source.path(index)).image()
        except (ImageError, OSError) as error:
            return str(error)
        return f"{self._source.path(index)} can be decoded now"

    def file_in_hand(self, error: BaseException) -> str | None:
        """Return the file that a worker was reading when it died, if an error of the DataLoader names the worker."""
        if "DataLoader worker" not in str(error):
            return None
        for pid in map(int, re.findall(r"\d+", str(error))):
            for worker, index in self._in_hand.tolist():
                if worker == pid and index >= 0:
                    return self._source.path(index)
        return None


class ImageLoader(ResumableLoader[ImageBatch]):
    """A resumable loader of images that says which files were bad, and at which one a worker died.

    Args:
        reader: Makes the batches.
        order: Says which items make up each batch.
        num_workers: Processes that read ahead.
        pin_memory: Copy batches to page-locked memory.
        restart: Start every pass at the first batch.
    """

    def __init__(
        self,
        reader: ImageReader,
        order: BatchOrder,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        restart: bool = False,
    ) -> None:
        super().__init__(reader, order, num_workers=num_workers, pin_memory=pin_memory, restart=restart)
        self.reader = reader
        self._reported = 0

    def __iter__(self) -> Iterator[ImageBatch]:
        self.report()
        try:
            for batch in super().__iter__():
                if self._position == 0:  # the last one of a pass: whoever knows their number asks for no more
                    self.report()
                if len(batch.labels):
                    yield batch
        except ImageError as error:
            # A worker's error arrives with the worker's traceback in its message.
            raise ImageError(str(error).rpartition("ImageError: ")[2].strip()) from None
        except RuntimeError as error:
            if (file := self.reader.file_in_hand(error)) is None:
                raise
            raise RuntimeError(f"a worker process died while it read {file}: {error}") from error
        except (ConnectionError, EOFError) as error:  # a batch comes through a socket of the worker's
            raise RuntimeError(f"a DataLoader worker died while it handed over a batch: {error}") from error

    def report(self) -> None:
        """Warn of the images that were skipped, if there are more of them than last time."""
        bad = self.reader.bad_images()
        if len(bad) > self._reported:
            self._reported = len(bad)
            named = "; ".join(self.reader.describe(index) for index in bad[:_NAMED])
            more = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
            warnings.warn(f"{len(bad):,} images were skipped: {named}{more}", stacklevel=2)
