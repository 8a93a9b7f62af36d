"""Which images make up each batch: shuffled or repeated for training, every one exactly once for evaluation."""

from collections.abc import Sequence

import numpy as np

from datamodules.loading import Indices, keyed_seed

_ROUNDED_TO = 256  # DeiT's samplers.py cuts an epoch of repeated augmentation to a multiple of this


class TrainingOrder:
    """A new order of the images in every epoch, shared among the processes; the last incomplete batch is left out.

    With ``copies`` above 1 it is repeated augmentation (Hoffer et al. 2020, https://arxiv.org/abs/1901.09335) with
    DeiT's meaning of an epoch: the copies of an image follow each other and go to successive processes, each process
    stops after ``images // 256 * 256 / world_size`` of them (``images / world_size`` if there are fewer than 256), and
    so an epoch is no longer than without copies and visits one image in ``copies``. On one process, where DeiT leaves
    it out, the copies of an image stand in the same batch.

    An item number is ``copy * images + index``.

    Args:
        images: Number of images.
        batch_size: Images of a batch of one process.
        seed: With the epoch it decides the order.
        copies: How often an image that is visited is used, each time with another random crop.
        rank: Number of this process.
        world_size: Number of processes.
        bounds: Number of the first image of each shard, and the number of images at the end. Shards are shuffled as
            wholes, and images among ``shards_together`` neighbours of that order, so that few shards are open at once.
        shards_together: Shards whose images are shuffled with one another.

    Raises:
        ValueError: If there are fewer images than an epoch's first batch needs.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        seed: int,
        copies: int = 1,
        rank: int = 0,
        world_size: int = 1,
        bounds: Indices | None = None,
        shards_together: int = 16,
    ) -> None:
        self._images, self._batch_size, self._seed, self._copies = images, batch_size, seed, copies
        self._rank, self._world_size = rank, world_size
        self._bounds, self._together = bounds, shards_together
        rounded = images // _ROUNDED_TO * _ROUNDED_TO if copies > 1 and images >= _ROUNDED_TO else images
        self._count = rounded // world_size // batch_size
        if self._count == 0:
            share = f" on each of {world_size} processes" if world_size > 1 else ""
            raise ValueError(
                f"{images:,} training images make no batch of {batch_size}{share}; lower batch_size"
                + (f" (an epoch is cut to {rounded:,} images with repeated augmentation)" if rounded < images else "")
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._count

    def batches(self, epoch: int) -> Sequence[Indices]:
        """Return the item numbers of each batch of an epoch, each of shape ``(batch_size,)``."""
        shuffled = self._shuffle(np.random.default_rng(keyed_seed(self._seed, epoch)))
        used = self._count * self._batch_size
        places = np.arange(used) * self._world_size + self._rank
        image, copy = places // self._copies, places % self._copies
        return np.split(copy * self._images + shuffled[image], self._count)

    def _shuffle(self, generator: np.random.Generator) -> Indices:
        if self._bounds is None:
            return generator.permutation(self._images)
        shards = generator.permutation(len(self._bounds) - 1)
        groups = [shards[start : start + self._together] for start in range(0, len(shards), self._together)]
        return np.concatenate(
            [
                generator.permutation(
                    np.concatenate([np.arange(self._bounds[shard], self._bounds[shard + 1]) for shard in group])
                )
                for group in groups
            ]
        )


class EvaluationOrder:
    """Every image exactly once over all processes, in the order of the files.

    Each process takes one run of images. Their lengths differ by one at most where the images do not divide evenly, and
    then the numbers of batches may: nothing is padded with images that would be counted twice.

    Args:
        images: Number of images.
        batch_size: Images of a batch of one process; the last may be smaller.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If there are fewer images than processes.
    """

    def __init__(self, images: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if images < world_size:
            raise ValueError(f"{images} images cannot be shared among {world_size} processes; start fewer")
        share = np.arange(images * rank // world_size, images * (rank + 1) // world_size)
        self._batches = np.split(share, range(batch_size, len(share), batch_size))

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self._batches)

    def batches(self, epoch: int) -> Sequence[Indices]:
        """Return the item numbers of each batch, the same in every epoch."""
        return self._batches
