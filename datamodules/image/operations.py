"""Operations on Pillow images that RandAugment, TrivialAugment and 3-Augment are made of.

Each gives the very bytes that Pillow's ``ImageOps``, ``ImageEnhance`` and ``Image.transform`` give. What maps every
pixel value by itself is one table look-up; contrast and auto-contrast ask the image for no more than they need.

Images are RGB and none is changed in place.
"""

from functools import cache
from operator import mul
from typing import Literal, cast

import numpy as np
from PIL import Image, ImageChops, ImageFilter

Color = tuple[int, int, int]
Interpolation = Literal["nearest", "bilinear", "bicubic"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
IMAGENET_MEAN_COLOR: Color = (124, 116, 104)

# All values of a pixel: what an operation makes of them is its table.
_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))
_CONSTANTS = [Image.new("L", (256, 1), value) for value in range(256)]


def mean_color(mean: tuple[float, float, float]) -> Color:
    """Returns the colour in bytes of a mean whose red, green and blue are between 0 and 1."""
    red, green, blue = (min(255, round(255 * value)) for value in mean)
    return red, green, blue


def check_fill(owner: str, fill: Color | None, interpolation: str) -> None:
    """Refuses a colour or a filter that there is not; ``owner`` names the class whose argument it is.

    Raises:
        ValueError: If it is none.
    """
    if fill is not None and (len(fill) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in fill)):
        raise ValueError(f"{owner}: fill={fill} must be a colour of three whole numbers from 0 to 255")
    if interpolation not in RESAMPLING:
        raise ValueError(f"{owner}: interpolation={interpolation!r} must be one of {', '.join(RESAMPLING)}")


def shear_x(image: Image.Image, factor: float, fill: Color, interpolation: Interpolation) -> Image.Image:
    """Moves every row by ``factor`` times its distance from the top, to the left if positive."""
    return _affine(image, (1, factor, 0, 0, 1, 0), fill, interpolation)


def shear_y(image: Image.Image, factor: float, fill: Color, interpolation: Interpolation) -> Image.Image:
    """Moves every column by ``factor`` times its distance from the left, upwards if positive."""
    return _affine(image, (1, 0, 0, factor, 1, 0), fill, interpolation)


def translate_x(image: Image.Image, pixels: float, fill: Color, interpolation: Interpolation) -> Image.Image:
    """Moves the image by ``pixels`` to the left."""
    return _affine(image, (1, 0, pixels, 0, 1, 0), fill, interpolation)


def translate_y(image: Image.Image, pixels: float, fill: Color, interpolation: Interpolation) -> Image.Image:
    """Moves the image by ``pixels`` upwards."""
    return _affine(image, (1, 0, 0, 0, 1, pixels), fill, interpolation)


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Color, interpolation: Interpolation) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=RESAMPLING[interpolation], fillcolor=fill
    )


def rotate(image: Image.Image, degrees: float, fill: Color, interpolation: Interpolation) -> Image.Image:
    """Turns the image counter-clockwise about its centre."""
    return image.rotate(degrees, resample=RESAMPLING[interpolation], fillcolor=fill)


def auto_contrast(image: Image.Image) -> Image.Image:
    """Stretches the values of each channel to 0 ... 255; a channel of one value stays."""
    tables = []
    for darkest, lightest in cast(tuple[tuple[int, int], ...], image.getextrema()):  # one pair for each channel
        if lightest <= darkest:
            tables.append(np.arange(256))
        else:
            scale = 255.0 / (lightest - darkest)
            tables.append((np.arange(256) * scale - darkest * scale).astype(np.int64))
    return image.point(np.concatenate(tables).clip(0, 255).tolist())


def equalize(image: Image.Image) -> Image.Image:
    """Maps the values of each channel so that they are spread evenly; a channel of one value stays."""
    tables = []
    for counts in np.asarray(image.histogram()).reshape(-1, 256):
        used = counts.nonzero()[0]
        step = int(counts.sum() - counts[used[-1]]) // 255
        if len(used) == 1 or step == 0:
            tables.append(np.arange(256))
        else:
            tables.append((step // 2 + counts.cumsum() - counts) // step)
    return image.point(np.concatenate(tables).clip(0, 255).tolist())


def invert(image: Image.Image) -> Image.Image:
    """Gives every value v as 255 - v."""
    return ImageChops.invert(image)


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """Inverts the values from ``threshold`` on."""
    return image.point([value if value < threshold else 255 - value for value in range(256)] * 3)


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Adds ``amount`` to the values below 128."""
    return image.point([min(255, value + amount) if value < 128 else value for value in range(256)] * 3)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the upper ``bits`` of every value: 8 keep all, and 0, which Pillow refuses since version 13, make black."""
    if bits >= 8:
        return image
    return image.point(_posterized(bits))


@cache
def _posterized(bits: int) -> list[int]:
    return [value & (0xFF00 >> bits) for value in range(256)] * 3


def color(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the grey image: 0 is grey, 1 the image, more is more colourful."""
    return Image.blend(greyscale(image), image, factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the mean grey: 0 is grey, 1 the image, more has more contrast."""
    counts = image.convert("L").histogram()
    mean = int(sum(map(mul, counts, range(256))) / (image.width * image.height) + 0.5)
    return _blend_with_constant(image, mean, factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with black: 0 is black, 1 the image, more is brighter."""
    return _blend_with_constant(image, 0, factor)


def _blend_with_constant(image: Image.Image, value: int, factor: float) -> Image.Image:
    """Blends the 256 values of a pixel in place of the pixels."""
    return image.point(list(Image.blend(_CONSTANTS[value], _RAMP, factor).tobytes()) * 3)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the smoothed image: 0 is smooth, 1 the image, more is sharper."""
    return Image.blend(image.filter(ImageFilter.SMOOTH), image, factor)


def greyscale(image: Image.Image) -> Image.Image:
    """Takes the colour out of an image; it stays RGB."""
    return image.convert("L").convert("RGB")


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Blurs with a normal distribution of standard deviation ``radius``, in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))
