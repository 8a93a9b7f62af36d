"""Operations against Pillow's own functions, byte by byte."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from datamodules.image import operations
from datamodules.image.operations import IMAGENET_MEAN_COLOR, check_fill, mean_color

FILL = (124, 116, 104)


def images():
    random = np.random.default_rng(0)
    yield "noise", random.integers(0, 256, (37, 50, 3))
    yield "narrow", random.integers((90, 0, 200), (130, 256, 202), (37, 50, 3))
    yield "flat", np.full((37, 50, 3), (7, 128, 255))
    yield "two values", np.where(random.random((37, 50, 1)) < 0.3, (0, 3, 250), (1, 90, 255))
    yield "few pixels", random.integers(0, 256, (3, 5, 3))


IMAGES = [
    pytest.param(Image.fromarray(pixels.astype(np.uint8)), id=name.replace(" ", "_")) for name, pixels in images()
]


def same(found, expected):
    return found.mode == "RGB" and found.size == expected.size and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(
    ("operation", "pillow"),
    [
        (operations.auto_contrast, ImageOps.autocontrast),
        (operations.equalize, ImageOps.equalize),
        (operations.invert, ImageOps.invert),
        (operations.greyscale, lambda image: ImageOps.grayscale(image).convert("RGB")),
    ],
)
def test_operations_without_a_magnitude_are_pillows(image, operation, pillow):
    before = image.tobytes()
    assert same(operation(image), pillow(image))
    assert image.tobytes() == before


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.53, 1.0, 1.27, 1.9])
@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_enhancements_are_pillows(image, name, factor):
    before = image.tobytes()
    assert same(getattr(operations, name)(image, factor), getattr(ImageEnhance, name.title())(image).enhance(factor))
    assert image.tobytes() == before


@pytest.mark.parametrize("image", IMAGES)
def test_tables_are_pillows(image):
    for bits in range(1, 9):
        assert same(operations.posterize(image, bits), ImageOps.posterize(image, bits))
    for threshold in (0, 1, 26, 127.5, 128, 255, 256):
        assert same(operations.solarize(image, threshold), ImageOps.solarize(image, threshold))
    pixels = np.asarray(image).astype(int)
    for amount in (0, 99, 128):
        expected = np.where(pixels < 128, np.minimum(pixels + amount, 255), pixels)
        assert (np.asarray(operations.solarize_add(image, amount)) == expected).all()


def test_posterize_to_no_bits_is_black():
    # Pillow refuses 0 bits since version 13; before, and in published trainings, the image was black.
    image = IMAGES[0].values[0]
    assert not np.asarray(operations.posterize(image, 0)).any()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_movements_are_pillows(interpolation):
    image = IMAGES[0].values[0]
    arguments = {"resample": operations.RESAMPLING[interpolation], "fillcolor": FILL}
    for amount in (-0.27, 0.0, 0.3):
        for found, matrix in (
            (operations.shear_x(image, amount, FILL, interpolation), (1, amount, 0, 0, 1, 0)),
            (operations.shear_y(image, amount, FILL, interpolation), (1, 0, 0, amount, 1, 0)),
            (operations.translate_x(image, 50 * amount, FILL, interpolation), (1, 0, 50 * amount, 0, 1, 0)),
            (operations.translate_y(image, 50 * amount, FILL, interpolation), (1, 0, 0, 0, 1, 50 * amount)),
        ):
            assert same(found, image.transform(image.size, Image.Transform.AFFINE, matrix, **arguments))
        assert same(operations.rotate(image, 90 * amount, FILL, interpolation), image.rotate(90 * amount, **arguments))


def test_what_comes_from_beyond_the_border_has_the_fill():
    moved = operations.translate_x(IMAGES[0].values[0], 20, FILL, "bicubic")
    assert moved.getpixel((49, 0)) == FILL
    assert moved.getpixel((0, 0)) == IMAGES[0].values[0].getpixel((20, 0))


def test_blur_is_pillows():
    image = IMAGES[0].values[0]
    assert same(operations.gaussian_blur(image, 1.3), image.filter(ImageFilter.GaussianBlur(1.3)))


def test_mean_color_is_in_bytes():
    assert mean_color((0.485, 0.456, 0.406)) == IMAGENET_MEAN_COLOR
    assert mean_color((0.0, 0.5, 1.0)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("fill", "interpolation", "message"),
    [
        ((0.4, 0.4, 0.4), "nearest", r"TrivialAugment: fill=\(0.4, 0.4, 0.4\) must be a colour"),
        ((1, 2), "nearest", "fill"),
        ((0, 0, 256), "nearest", "fill"),
        (None, "lanczos", "interpolation='lanczos' must be one of nearest, bilinear, bicubic"),
    ],
)
def test_a_wrong_fill_is_refused(fill, interpolation, message):
    with pytest.raises(ValueError, match=message):
        check_fill("TrivialAugment", fill, interpolation)
