"""Augmentations without a magnitude to tune: TrivialAugment and 3-Augment."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Self

from PIL import Image

from datamodules.image import operations
from datamodules.image.checks import check_between
from datamodules.image.host_transform import HostTransform
from datamodules.image.operations import Color, Interpolation, check_fill, mean_color

# Operations of the wide space, with the magnitude of the last bin and whether its sign is drawn.
_WIDE: dict[str, tuple[float, bool]] = {
    "identity": (0, False),
    "shear_x": (0.99, True),
    "shear_y": (0.99, True),
    "translate_x": (32, True),
    "translate_y": (32, True),
    "rotate": (135, True),
    "brightness": (0.99, True),
    "color": (0.99, True),
    "contrast": (0.99, True),
    "sharpness": (0.99, True),
    "posterize": (6, False),
    "solarize": (255, False),
    "auto_contrast": (0, False),
    "equalize": (0, False),
}
WIDE_OPERATIONS = tuple(_WIDE)
"""What TrivialAugment draws from, all equally likely."""


@dataclass(frozen=True)
class TrivialAugment(HostTransform):
    """Applies one operation of a random magnitude (Müller & Hutter 2021, https://arxiv.org/abs/2103.10158).

    This is the wide space, as torchvision's ``TrivialAugmentWide`` has it: 14 operations, one of which changes nothing.

    Attributes:
        num_bins: Number of magnitudes that are drawn from.
        fill: Colour of what is beyond the image's border; None for the data's mean, see ``with_mean``.
        interpolation: Filter of shearing and rotation: nearest, bilinear or bicubic. Translations are by whole pixels.
    """

    num_bins: int = 31
    fill: Color | None = (0, 0, 0)
    interpolation: Interpolation = "nearest"

    def __post_init__(self) -> None:
        check_between("TrivialAugment: num_bins", self.num_bins, 2)
        check_fill("TrivialAugment", self.fill, self.interpolation)

    def with_mean(self, mean: tuple[float, float, float]) -> Self:
        """Returns the same augmentation with the mean colour of the data as its fill, unless it has a fill.

        Args:
            mean: Red, green and blue between 0 and 1.
        """
        return self if self.fill is not None else replace(self, fill=mean_color(mean))

    def __call__(self, image: Image.Image, rng: Random) -> Image.Image:
        """Returns an augmented RGB image of the same size."""
        name = WIDE_OPERATIONS[int(rng.random() * len(WIDE_OPERATIONS))]
        most, signed = _WIDE[name]
        if most == 0:
            return self.apply(name, image, 0.0)
        magnitude = most * int(rng.random() * self.num_bins) / (self.num_bins - 1)
        return self.apply(name, image, -magnitude if signed and rng.random() < 0.5 else magnitude)

    def apply(self, name: str, image: Image.Image, magnitude: float) -> Image.Image:
        """Applies an operation.

        Args:
            name: One of ``WIDE_OPERATIONS``.
            image: An RGB image.
            magnitude: Share of a side, pixels, degrees, bits that are dropped, or distance of a factor from 1, as the
                operation has it; 0 changes least. Auto-contrast and equalize have none.

        Returns:
            An RGB image of the same size.
        """
        filling = (self.fill or operations.IMAGENET_MEAN_COLOR, self.interpolation)
        match name:
            case "shear_x":
                return operations.shear_x(image, magnitude, *filling)
            case "shear_y":
                return operations.shear_y(image, magnitude, *filling)
            case "translate_x":
                return operations.translate_x(image, -int(magnitude), *filling)
            case "translate_y":
                return operations.translate_y(image, -int(magnitude), *filling)
            case "rotate":
                return operations.rotate(image, magnitude, *filling)
            case "brightness":
                return operations.brightness(image, 1 + magnitude)
            case "color":
                return operations.color(image, 1 + magnitude)
            case "contrast":
                return operations.contrast(image, 1 + magnitude)
            case "sharpness":
                return operations.sharpness(image, 1 + magnitude)
            case "posterize":
                return operations.posterize(image, 8 - round(magnitude))
            case "solarize":
                return operations.solarize(image, 255 - magnitude)
            case "auto_contrast":
                return operations.auto_contrast(image)
            case "equalize":
                return operations.equalize(image)
        return image


@dataclass(frozen=True)
class ThreeAugment(HostTransform):
    """Greyscale, solarisation or a blur, then colour jitter (DeiT III, https://arxiv.org/abs/2204.07118, section 3).

    One of the three, all equally likely, is always applied. The jitter changes brightness, contrast and saturation in
    a random order, each by a factor between ``1 - color_jitter`` and ``1 + color_jitter``.

    Attributes:
        color_jitter: How far the factors go; 0 leaves the jitter out.
        min_radius: Standard deviation of the weakest blur, in pixels.
        max_radius: Standard deviation of the strongest blur.
        threshold: Values from here on are inverted by solarisation.
    """

    color_jitter: float = 0.3
    min_radius: float = 0.1
    max_radius: float = 2.0
    threshold: int = 128

    def __post_init__(self) -> None:
        check_between("ThreeAugment: color_jitter", self.color_jitter, 0, 1)
        check_between("ThreeAugment: min_radius", self.min_radius, 0)
        check_between("ThreeAugment: max_radius", self.max_radius, self.min_radius)
        check_between("ThreeAugment: threshold", self.threshold, 0, 256)

    def __call__(self, image: Image.Image, rng: Random) -> Image.Image:
        """Returns an augmented RGB image of the same size."""
        match int(rng.random() * 3):
            case 0:
                image = operations.greyscale(image)
            case 1:
                image = operations.solarize(image, self.threshold)
            case _:
                image = operations.gaussian_blur(image, rng.uniform(self.min_radius, self.max_radius))
        if self.color_jitter == 0:
            return image
        enhance: list[Callable[[Image.Image, float], Image.Image]]
        enhance = [operations.brightness, operations.contrast, operations.color]
        rng.shuffle(enhance)
        for operation in enhance:
            image = operation(image, rng.uniform(1 - self.color_jitter, 1 + self.color_jitter))
        return image
