"""A loader that resumes in the middle of an epoch exactly, for any task.

Which items make up batch b of epoch e is decided by an object that knows nothing else (``BatchOrder``), and what a
batch holds is a function of its items and the epoch (``BatchReader``). The position in the data is therefore two
numbers, and a resumed run sees the same batches as one that was never interrupted, with any number of workers.
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

Indices = NDArray[np.int64]
Batch = TypeVar("Batch")
ReadBatch = TypeVar("ReadBatch", covariant=True)

NEEDED_SPLITS: dict[str, tuple[str, ...]] = {
    "fit": ("train", "valid"),
    "validate": ("valid",),
    "test": ("test",),
    "predict": ("test",),
}
"""Splits that a stage of the Trainer reads."""


def place() -> dict[str, int]:
    """Returns this process's number, ``rank``, and how many there are, ``world_size``."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {"rank": 0, "world_size": 1}
    return {"rank": torch.distributed.get_rank(), "world_size": torch.distributed.get_world_size()}


class BatchOrder(Protocol):
    """Says which items make up each batch of each epoch."""

    def __len__(self) -> int:
        """Returns the number of batches in an epoch, the same in every epoch."""
        ...

    def batches(self, epoch: int) -> Sequence[Indices]:
        """Returns the item numbers of each batch of an epoch; a function of the epoch and nothing else."""
        ...


class BatchReader(Protocol[ReadBatch]):
    """Reads items into a batch. It is pickled into workers that are spawned."""

    def read_batch(self, indices: Indices, epoch: int) -> ReadBatch:
        """Returns the batch of these items; what is random in it is drawn from ``keyed_seed`` of epoch and item."""
        ...


def keyed_seed(*key: int) -> int:
    """Mixes numbers such as (seed, epoch, item) into one seed below 2**32 - 1.

    Unlike a global generator, it gives the same result in whatever process and order items are read.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) % (2**32 - 1)


class _Requests:
    """Yields (epoch, items) for some batches from a position on; a DataLoader takes it as its sampler."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order
        self.epoch = 0
        self.position = 0
        self.count = len(order)

    def __iter__(self) -> Iterator[tuple[int, Indices]]:
        epoch, position = self.epoch, self.position
        batches = self.order.batches(epoch)
        for _ in range(self.count):
            if position == len(batches):
                epoch, position = epoch + 1, 0
                batches = self.order.batches(epoch)
            yield epoch, batches[position]
            position += 1

    def __len__(self) -> int:
        return self.count


class _Requested(Dataset[Any]):
    """Answers requests of ``_Requests``."""

    def __init__(self, reader: BatchReader[Any]) -> None:
        self._reader = reader

    def __getitem__(self, request: tuple[int, Indices]) -> Any:
        epoch, indices = request
        return self._reader.read_batch(indices, epoch)


def _unchanged(batch: Batch) -> Batch:
    """Keeps a batch as the reader made it, where the DataLoader would convert its fields."""
    return batch


class ResumableLoader(Generic[Batch]):
    """Loads batches, and continues from ``state_dict`` with the batch after the last one that was handed out.

    The epochs are one endless stream of batches. A pass over the loader hands out as many as an epoch has, from where
    the last pass ended; after ``load_state_dict`` the first pass ends with the epoch that was resumed. So nothing is
    lost or repeated when a pass is cut short, as Lightning does with ``limit_train_batches`` and after resuming from a
    checkpoint that was written behind an epoch's last step. Batches that workers have read ahead but nobody has
    received do not count as handed out.

    Lightning stores ``state_dict`` in its checkpoints by itself. Pass ``use_distributed_sampler=False`` to the Trainer:
    the order of batches already holds this process's share.

    Args:
        reader: Makes a batch of item numbers.
        order: Says which items make up each batch of each epoch.
        num_workers: Processes that read ahead; 0 reads in this process.
        pin_memory: Copy batches to page-locked memory, for faster transfer to a GPU.
        restart: Start every pass at the first batch, as an evaluation does.
    """

    def __init__(
        self,
        reader: BatchReader[Batch],
        order: BatchOrder,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        restart: bool = False,
    ) -> None:
        self.order = order
        self._requests = _Requests(order)
        loader: DataLoader[Any] = DataLoader(
            _Requested(reader),
            batch_size=None,
            sampler=self._requests,
            collate_fn=_unchanged,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # A generator of its own: the default one would take a number from the global generator in every epoch.
            generator=torch.Generator(),
        )
        # A Trainer keeps its loader in a reference cycle. If workers and their queues died in the cycle collector, the
        # queues' threads would end before the workers were told to, and each would be waited for in vain for 5 seconds.
        # The finalizer keeps them out of the cycle and lets go of them in the right order.
        self._held = [loader]
        weakref.finalize(self, self._held.clear)
        self._restart = restart
        self._epoch = 0
        self._position = 0
        self._resumed = False

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        # A generator starts at the first next(): Lightning calls iter() more often than it iterates.
        if self._restart and not self._resumed:
            self._epoch, self._position = 0, 0
        self._requests.epoch, self._requests.position = self._epoch, self._position
        self._requests.count = len(self) - (self._position if self._resumed else 0)
        self._resumed = False
        for batch in self._held[0]:
            self._position += 1
            if self._position == len(self):
                self._epoch, self._position = self._epoch + 1, 0
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass start at the first batch of an epoch."""
        self._epoch, self._position, self._resumed = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        """Returns the position after the last batch that was handed out."""
        return {"epoch": self._epoch, "position": self._position, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next pass continue from a position.

        If an epoch now has another number of batches (another budget, corpus or number of processes), the position
        means nothing any more: the next pass then starts the epoch after the stored one, with a warning.
        """
        if state["position"] and state["batches"] != len(self):
            from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # workers that are spawned need none of it

            rank_zero_warn(
                f"the checkpoint was made after {state['position']} of {state['batches']} batches of epoch "
                f"{state['epoch']}, but an epoch now has {len(self)} batches: the data or the batch settings differ; "
                f"training continues at the start of epoch {state['epoch'] + 1}"
            )
            self.set_epoch(state["epoch"] + 1)
            return
        self._epoch, self._position, self._resumed = state["epoch"], state["position"], True
