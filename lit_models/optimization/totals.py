"""Gradients of a sum, divided by one count over all micro-batches and ranks.

Lightning's gradient accumulation, and DistributedDataParallel, average the *means* of unequal batches. That is not the
mean over tokens (or boxes) when their number varies. Here every micro-batch returns the sum of its losses, and the
gradients are divided by the global count once per optimiser step, before clipping.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter


class StepTotals:
    """The loss sum and count of one optimiser step."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, loss_sum: Tensor, count: Tensor) -> None:
        """Add a micro-batch: the sum of its losses and what to divide by, both scalars on one device."""
        sums = torch.stack((loss_sum.detach().float(), count.detach().float()))
        self._sums = sums if self._sums is None else self._sums + sums

    def scale_gradients(self, parameters: Iterable[Parameter], accumulated: int) -> Tensor:
        """Turn accumulated gradients into those of the mean over everything since the last call, and start anew.

        Args:
            parameters: Those whose gradients hold the (by Lightning and DDP) averaged sums.
            accumulated: ``trainer.accumulate_grad_batches``, by which Lightning divided every loss.

        Returns:
            The mean loss, a scalar.

        Raises:
            RuntimeError: If nothing was added since the last call.
        """
        if self._sums is None:
            raise RuntimeError("no micro-batch was added before the optimiser step")
        sums, self._sums = self._sums, None
        if _world_size() > 1:
            torch.distributed.all_reduce(sums)
        loss_sum, count = sums
        count = count.clamp(min=1.0)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, accumulated * _world_size() / count)
        return loss_sum / count


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
