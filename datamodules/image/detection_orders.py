"""Which images make up each batch of a detector's training, on this process and on all others."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.image.orders import TrainingOrder
from datamodules.loading import Indices, keyed_seed

Aspects = Callable[[Indices, int], NDArray[np.float64]]
"""Returns the width / height that images have in an epoch, after their crops."""
_GROUPING = 1  # the order of images draws from (seed, epoch) itself


class DetectionOrder:
    """A new order of the images in every epoch; it knows the batches of all processes.

    Every process sees its share as ``TrainingOrder`` has it. With groups, the images of an epoch are the same, but a
    batch holds images of similar aspect: their ratios are sorted into bins whose edges are evenly spaced in the
    logarithm between 1/2 and 2, as torchvision's reference training does, and batches are cut out of one bin after the
    other, so that no more than one batch at each edge is mixed. Then the batches are shuffled.

    Args:
        images: Number of images.
        batch_size: Images of a batch of one process.
        seed: With the epoch it decides the order.
        groups: Half the number of bins; 0 for none, torchvision takes 3.
        aspects: The ratios to group by; needed with groups.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If there are fewer images than an epoch's first batches need.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        seed: int,
        groups: int = 0,
        aspects: Aspects | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._shares = [
            TrainingOrder(images, batch_size, seed=seed, rank=other, world_size=world_size)
            for other in range(world_size)
        ]
        self._seed, self._groups, self._aspects, self._rank = seed, groups, aspects, rank
        self._kept: dict[int, list[Sequence[Indices]]] = {}

    def __len__(self) -> int:
        """Return the number of batches of one process in an epoch."""
        return len(self._shares[0])

    def batches(self, epoch: int) -> Sequence[Indices]:
        """Return the item numbers of each batch of this process."""
        return self.everybodys_batches(epoch)[self._rank]

    def everybodys_batches(self, epoch: int) -> list[Sequence[Indices]]:
        """Return the item numbers of each batch of each process."""
        if epoch not in self._kept:
            while len(self._kept) > 1:  # workers read ahead into the next epoch
                del self._kept[next(iter(self._kept))]
            shares = [share.batches(epoch) for share in self._shares]
            self._kept[epoch] = shares if not self._groups else self._regrouped(shares, epoch)
        return self._kept[epoch]

    def _regrouped(self, shares: list[Sequence[Indices]], epoch: int) -> list[Sequence[Indices]]:
        items = np.concatenate([batch for share in shares for batch in share])
        edges = 2.0 ** np.linspace(-1, 1, 2 * self._groups + 1)
        bins = np.digitize(self._aspects(items, epoch), edges) if self._aspects is not None else np.zeros_like(items)
        grouped = items[np.argsort(bins, kind="stable")].reshape(len(shares) * len(self), -1)
        grouped = np.random.default_rng(keyed_seed(self._seed, epoch, _GROUPING)).permutation(grouped)
        return [list(grouped[rank :: len(shares)]) for rank in range(len(shares))]
