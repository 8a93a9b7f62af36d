import math
import random
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop as Published

from datamodules.image.crops import PaddedCrop, RandomResizedCrop, resize
from datamodules.image.decode import EncodedImage


def picture(width, height, seed=0, blob=8):
    """Blobs, which a filter can follow."""
    shape = (max(2, height // blob), max(2, width // blob), 3)
    small = np.random.default_rng(seed).integers(40, 216, shape, np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **settings):
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return EncodedImage(buffer.getvalue(), "a")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(16, 16), (50, 33), (224, 224), (80, 60)])
def test_resizing_is_pillows(size, interpolation):
    image = picture(80, 60)
    pixels = resize(torch.from_numpy(np.array(image)), size, interpolation)
    assert pixels.dtype == torch.uint8 and tuple(pixels.shape) == (*size, 3) and pixels.is_contiguous()
    filter_ = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    expected = np.array(image.resize(size[::-1], filter_)).astype(int)
    # Nothing overshoots here. Rounding twice, with weights whose sizes sum to at most 1.3 in the second pass, takes
    # either side at most 0.5 * 1.3 + 0.5 from the exact value, so they differ by 2 at most, and seldom by that.
    difference = np.abs(pixels.numpy() - expected)
    assert difference.max() <= 2 and (difference > 1).mean() < 1e-3


def test_regions_have_the_distribution_of_torchvisions():
    """Areas and ratios of 4,000 regions, and the share that needs the fallback, agree in mean and spread."""
    rng, crop = random.Random(0), RandomResizedCrop()
    ours = np.array([crop.draw(500, 375, rng) for _ in range(4000)])[:, [1, 0, 3, 2]]
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = np.array([Published.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    for column in range(4):
        error = math.sqrt((ours[:, column].var() + theirs[:, column].var()) / 4000)
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 4 * error
        assert ours[:, column].std() == pytest.approx(theirs[:, column].std(), rel=0.06)
    ratios = [np.log(regions[:, 3] / regions[:, 2]) for regions in (ours, theirs)]  # drawn evenly in the logarithm
    assert abs(ratios[0].mean() - ratios[1].mean()) < 4 * math.sqrt(2 / 4000) * ratios[1].std()


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13)), (1, 1, (0, 0, 1, 1))],
)
def test_ten_tries_and_then_the_middle(width, height, expected):
    assert RandomResizedCrop(scale=(0.9, 1.0)).draw(width, height, random.Random(0)) == expected


def test_a_region_is_resized_as_pillow_resizes_it():
    image, crop = picture(120, 90), RandomResizedCrop()
    for seed in range(5):
        size = (64, 16)[seed % 2]  # a JPEG, but no other format, would be reduced for the smaller one
        left, top, width, height = crop.draw(120, 90, random.Random(seed))
        region = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
        pixels = crop(encoded(image), size, "bicubic", random.Random(seed))
        assert np.abs(pixels.numpy().astype(int) - np.array(region)).max() <= 2


def test_draft_mode_shows_the_same_region():
    image = picture(800, 600, blob=100)
    crop = RandomResizedCrop(scale=(0.5, 1.0))
    pixels = crop(encoded(image, "JPEG", quality=95), 64, "bicubic", random.Random(3))
    left, top, width, height = crop.draw(800, 600, random.Random(3))
    region = image.crop((left, top, left + width, top + height)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(pixels.numpy().astype(int) - np.array(region)).mean() < 3


def test_a_padded_crop_cuts_a_square_with_black_borders():
    image = picture(32, 32)
    bordered = np.pad(np.array(image), ((4, 4), (4, 4), (0, 0)))
    squares = {bordered[top : top + 32, left : left + 32].tobytes() for top in range(9) for left in range(9)}
    found = {PaddedCrop()(encoded(image), 32, "bicubic", random.Random(seed)).numpy().tobytes() for seed in range(60)}
    assert found <= squares and len(found) > 30


def test_a_reflected_crop_of_an_oblong_image():
    image = picture(60, 40)
    shorter = image.resize((30, 20), Image.Resampling.BICUBIC)
    bordered = np.pad(np.array(shorter), ((4, 4), (4, 4), (0, 0)), mode="reflect").astype(int)
    lefts = set()
    for seed in range(40):
        pixels = PaddedCrop(reflect=True)(encoded(image), 20, "bicubic", random.Random(seed)).numpy()
        places = [
            (top, left)
            for top in range(9)
            for left in range(19)
            if np.abs(bordered[top : top + 20, left : left + 20] - pixels).max() <= 2
        ]
        assert len(places) == 1
        lefts.add(places[0][1])
    assert max(lefts) > 12 and min(lefts) < 6  # the whole width is used
