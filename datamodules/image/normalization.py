"""Normalisation on the device: workers hand over bytes, a quarter of what floating point takes to transfer."""

from functools import lru_cache

import torch
from torch import Tensor

Triple = tuple[float, float, float]


def normalize(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """Returns ``(images / 255 - mean) / std`` for each channel.

    Args:
        images: (batch, 3, height, width), uint8.
        mean: Mean of red, green and blue, where 1 is the largest value.
        std: Standard deviation of red, green and blue.

    Returns:
        float32 of the same shape and memory format, on the same device.

    Raises:
        ValueError: If the images are not uint8, as those are that have been normalised before.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images of shape {tuple(images.shape)} and type {images.dtype} cannot be normalised: they must be "
            "(batch, 3, height, width) and torch.uint8"
        )
    mean_, scale, offset = _constants(tuple(mean), tuple(std), images.device)
    if images.is_cuda:
        return torch.addcmul(offset, images, scale)  # one kernel, which casts as it reads
    return images.float().sub_(mean_).mul_(scale)  # a cast inside of a kernel is slow on a CPU


@lru_cache(maxsize=8)
def _constants(mean: Triple, std: Triple, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``255 mean``, ``1 / (255 std)`` and ``-mean / std``, kept so that a step copies nothing to the device."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean={mean} and std={std} must have three numbers each, and std positive ones")
    rows = [
        [255 * value for value in mean],
        [1 / (255 * value) for value in std],
        [-center / value for center, value in zip(mean, std, strict=True)],
    ]
    mean_, scale, offset = torch.tensor(rows, dtype=torch.float32, device=device).view(3, 3, 1, 1)
    return mean_, scale, offset
