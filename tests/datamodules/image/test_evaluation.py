import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from datamodules.image.evaluation import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


# Row 14: another share, filter or mode of the crop than the weights were trained for.
@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("width_height", [(100, 75), (75, 101), (64, 64), (87, 64), (64, 87)])
def test_the_middle_is_what_torchvision_cuts(crop, interpolation, width_height):
    image = picture(*width_height)
    published = transforms.Compose(
        [
            transforms.Resize(math.floor(56 / crop), InterpolationMode(interpolation)),
            transforms.CenterCrop(56),
            transforms.PILToTensor(),
        ]
    )
    pixels = Preprocessing(56, crop, "center", interpolation)(image)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 56, 56)
    assert torch.equal(pixels, published(image))


def test_squash_shows_the_whole_image():
    image = picture(100, 60)
    pixels = Preprocessing(48, 0.875, "squash")(image)
    expected = np.array(image.resize((48, 48), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_the_defaults_are_deits():
    assert Preprocessing() == Preprocessing(224, 0.875, "center", "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406) and IMAGENET_STD == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"crop": 0.0}, "crop=0.0 must be above 0"),
        ({"crop": 87.5}, "at most 1"),
        ({"crop_mode": "middle"}, "crop_mode='middle' must be center or squash"),
        ({"interpolation": "nearest"}, "must be one of bicubic, bilinear"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
    ],
)
def test_values_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**settings)
