"""What augmentations on the host have in common."""

import random
from typing import Self

from PIL import Image


class HostTransform:
    """Augments an image on the host, before it becomes a tensor; configs name a class of this kind."""

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """Return an RGB image of the same size; what is random is drawn from ``rng``."""
        raise NotImplementedError

    def with_mean(self, mean: tuple[float, float, float]) -> Self:
        """Return the same augmentation for data of this mean colour, red, green and blue between 0 and 1."""
        return self
