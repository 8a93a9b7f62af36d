"""RandAugment as timm has it and DeiT uses it (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719)."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Self

from PIL import Image

from datamodules.image import operations
from datamodules.image.checks import check_between
from datamodules.image.host_transform import HostTransform
from datamodules.image.operations import IMAGENET_MEAN_COLOR, Color, Interpolation, check_fill, mean_color

OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""What is drawn from, all equally likely."""

# The options of timm's grammar, m9 or mstd0.5, with the arguments that they set.
_OPTIONS: dict[str, tuple[str, Callable[[str], float]]] = {
    "m": ("magnitude", float),
    "mstd": ("magnitude_std", float),
    "mmax": ("max_magnitude", float),
    "n": ("num_ops", int),
    "p": ("probability", float),
    "inc": ("increasing", int),
}


@dataclass(frozen=True)
class RandAugment(HostTransform):
    """Applies some of 15 operations, drawn with replacement, each with a probability.

    With the defaults this is timm's ``rand-m9-mstd0.5-inc1``, the augmentation of DeiT: two operations, either of which
    is left out half of the time, with a magnitude from a normal distribution. torchvision's RandAugment differs: it
    always applies both, and some of its operations do less at a larger magnitude.

    Attributes:
        magnitude: Mean magnitude; 0 changes least and 10 most.
        magnitude_std: Standard deviation of the magnitude. More than 100 draws it evenly between 0 and ``magnitude``,
            as in timm.
        num_ops: Operations drawn for an image.
        probability: How often an operation that was drawn is applied.
        increasing: Whether every operation does more at a larger magnitude. If not, posterize and solarize do less, and
            color, contrast, brightness and sharpness go from 0.1 over 1, which changes nothing, to 1.9.
        max_magnitude: Where magnitudes are cut.
        translate: Largest translation, as a share of the image's side.
        fill: Colour of what is beyond the image's border; None for the data's mean, see ``with_mean``.
        interpolation: Filter of shearing, translation and rotation: nearest, bilinear or bicubic.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_ops: int = 2
    probability: float = 0.5
    increasing: bool = True
    max_magnitude: float = 10.0
    translate: float = 0.45
    fill: Color | None = None
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        for name in ("magnitude", "magnitude_std", "num_ops", "max_magnitude"):
            check_between(f"RandAugment: {name}", getattr(self, name), 0)
        check_between("RandAugment: probability", self.probability, 0, 1)
        check_between("RandAugment: translate", self.translate, 0, 1)
        check_fill("RandAugment", self.fill, self.interpolation)

    @classmethod
    def from_string(cls, text: str) -> Self:
        """Reads timm's notation, such as ``rand-m9-mstd0.5-inc1``.

        Known are m (magnitude, 10 if not given), mstd (its standard deviation, 0), mmax (where it is cut, 10), n
        (operations, 2), p (probability, 0.5) and inc (0 or 1, 0).

        Raises:
            ValueError: If the text is not of this form.
        """
        first, *sections = text.split("-")
        if first != "rand":
            raise ValueError(f"RandAugment: {text!r} must begin with rand, as rand-m9-mstd0.5-inc1 does")
        given: dict[str, float] = {"magnitude": 10.0, "magnitude_std": 0.0, "increasing": 0}
        for section in sections:
            found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|\.\d+)", section)
            if not found or found[1] not in _OPTIONS:
                raise ValueError(
                    f"RandAugment: {section!r} in {text!r} is not one of {', '.join(_OPTIONS)} with a number behind it"
                )
            name, read = _OPTIONS[found[1]]
            try:
                given[name] = read(found[2])
            except ValueError as error:
                raise ValueError(f"RandAugment: {section!r} in {text!r} must have a whole number") from error
        if given["increasing"] not in (0, 1):
            raise ValueError(f"RandAugment: inc{given['increasing']} in {text!r} must be inc0 or inc1")
        return cls(**{**given, "increasing": bool(given["increasing"])})  # type: ignore[arg-type]

    def with_mean(self, mean: tuple[float, float, float]) -> Self:
        """Returns the same augmentation with the mean colour of the data as its fill, unless it has a fill.

        Args:
            mean: Red, green and blue between 0 and 1.
        """
        return self if self.fill is not None else replace(self, fill=mean_color(mean))

    def __call__(self, image: Image.Image, rng: Random) -> Image.Image:
        """Returns an augmented RGB image of the same size."""
        fill = self.fill or IMAGENET_MEAN_COLOR
        for name in [OPERATIONS[int(rng.random() * len(OPERATIONS))] for _ in range(self.num_ops)]:
            if self.probability < 1 and rng.random() > self.probability:
                continue
            image = self._apply(name, image, self._level(rng) / 10, rng, fill)
        return image

    def _level(self, rng: Random) -> float:
        level = self.magnitude
        if self.magnitude_std > 100:
            level = rng.uniform(0, level)
        elif self.magnitude_std > 0:
            level = rng.gauss(level, self.magnitude_std)
        return min(max(level, 0.0), self.max_magnitude)

    def _apply(self, name: str, image: Image.Image, level: float, rng: Random, fill: Color) -> Image.Image:
        """Applies an operation; ``level`` is from 0 to 1, or more if ``max_magnitude`` is more than 10."""
        match name:
            case "auto_contrast":
                return operations.auto_contrast(image)
            case "equalize":
                return operations.equalize(image)
            case "invert":
                return operations.invert(image)
            case "posterize":
                bits = int(level * 4)
                return operations.posterize(image, max(0, 4 - bits) if self.increasing else bits)
            case "solarize":
                threshold = min(256, int(level * 256))
                return operations.solarize(image, 256 - threshold if self.increasing else threshold)
            case "solarize_add":
                return operations.solarize_add(image, min(128, int(level * 110)))
            case "color":
                return operations.color(image, self._enhancement(level, rng))
            case "contrast":
                return operations.contrast(image, self._enhancement(level, rng))
            case "brightness":
                return operations.brightness(image, self._enhancement(level, rng))
            case "sharpness":
                return operations.sharpness(image, self._enhancement(level, rng))
            case "rotate":
                return operations.rotate(image, _signed(level * 30, rng), fill, self.interpolation)
            case "shear_x":
                return operations.shear_x(image, _signed(level * 0.3, rng), fill, self.interpolation)
            case "shear_y":
                return operations.shear_y(image, _signed(level * 0.3, rng), fill, self.interpolation)
            case "translate_x":
                pixels = _signed(level * self.translate, rng) * image.width
                return operations.translate_x(image, pixels, fill, self.interpolation)
        pixels = _signed(level * self.translate, rng) * image.height
        return operations.translate_y(image, pixels, fill, self.interpolation)

    def _enhancement(self, level: float, rng: Random) -> float:
        if self.increasing:
            return max(0.1, 1 + _signed(level * 0.9, rng))
        return level * 1.8 + 0.1


def _signed(value: float, rng: Random) -> float:
    return -value if rng.random() > 0.5 else value
