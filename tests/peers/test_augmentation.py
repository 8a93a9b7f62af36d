"""Augmentation, erasing and mixing against timm and torchvision, given the same draws."""

import random
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data import mixup as timm_mixup
from timm.data.random_erasing import RandomErasing as TimmErasing
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from datamodules.image import Mixing, RandAugment, RandomErasing, TrivialAugment, operations
from datamodules.image.augment import WIDE_OPERATIONS
from datamodules.image.mixing import STREAM
from datamodules.image.rand_augment import OPERATIONS
from datamodules.loading import keyed_seed

FILL = (124, 116, 104)
SETTINGS = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
NAMES = {
    True: auto_augment._RAND_INCREASING_TRANSFORMS,
    False: auto_augment._RAND_TRANSFORMS,
}


@pytest.fixture(scope="module")
def image():
    pixels = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(pixels[None], (48, 56), mode="bicubic")[0]
    return Image.fromarray((large.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())


@pytest.fixture(autouse=True)
def posterize_to_no_bits(monkeypatch):
    """Gives timm the black image of older versions of Pillow, where it raises an error with version 13."""
    timms = auto_augment.posterize

    def posterize(image, bits, **settings):
        return image.point(lambda _: 0) if bits == 0 else timms(image, bits, **settings)

    for name in ("Posterize", "PosterizeIncreasing"):
        monkeypatch.setitem(auto_augment.NAME_TO_OP, name, posterize)


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("position", range(15), ids=OPERATIONS)
def test_an_operation_is_timms(position, increasing, image):
    for magnitude in (0, 1, 3.7, 5, 8.4, 9, 10):
        augment = RandAugment(magnitude, 0, probability=1, increasing=increasing)
        theirs = auto_augment.AugmentOp(NAMES[increasing][position], prob=1, magnitude=magnitude, hparams=SETTINGS)
        for seed in (1, 2):  # a positive and a negative sign
            random.seed(seed)
            found = augment._apply(OPERATIONS[position], image, augment.magnitude / 10, Random(seed), FILL)
            assert found.tobytes() == theirs(image).tobytes(), magnitude


def test_rand_augment_is_timms_given_its_draws(image, monkeypatch):
    # Row 12 of the usual mistakes: the set of operations, their probability and their magnitudes are DeiT's.
    for notation in ("rand-m9-mstd0.5-inc1", "rand-m6-n3-mstd1-p0.8", "rand-m8-mstd101-inc1"):
        augment = RandAugment.from_string(notation)
        theirs = auto_augment.rand_augment_transform(notation, dict(SETTINGS))
        changed = 0
        for seed in range(60):
            rng = Random(seed)
            choice = [theirs.ops[int(rng.random() * 15)] for _ in range(theirs.num_layers)]
            monkeypatch.setattr(np.random, "choice", lambda *_, choice=choice, **__: choice)
            random.setstate(rng.getstate())
            expected = theirs(image).tobytes()
            assert augment(image, Random(seed)).tobytes() == expected
            changed += expected != image.tobytes()
        assert changed > 30


def test_trivial_augment_is_torchvisions(image):
    peer = TrivialAugmentWide()
    space = peer._augmentation_space(31)
    assert [name.replace("_", "") for name in WIDE_OPERATIONS] == [name.lower() for name in space]
    for interpolation in ("nearest", "bilinear"):
        augment = TrivialAugment(interpolation=interpolation)
        for name, (magnitudes, signed) in space.items():
            ours = next(found for found in WIDE_OPERATIONS if found.replace("_", "") == name.lower())
            for step in (0, 1, 7, 18, 30) if magnitudes.ndim else (0,):
                theirs = float(magnitudes[step]) if magnitudes.ndim else 0.0
                magnitude = {"posterize": 6 * step / 30, "solarize": 255 * step / 30}.get(ours, theirs)
                for sign in (1, -1) if signed else (1,):
                    expected = _apply_op(image, name, sign * theirs, InterpolationMode(interpolation), fill=None)
                    assert augment.apply(ours, image, sign * magnitude).tobytes() == expected.tobytes(), (name, step)


@pytest.mark.parametrize("mode", ["batch", "pair", "element"])
@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_mixing_is_timms_given_its_draws(mode, correct, switch, monkeypatch):
    images, labels = torch.randn(8, 3, 30, 22), torch.tensor([3, 1, 0, 2, 2, 4, 4, 0])
    seeds = [keyed_seed(3, index) for index in range(8)]
    drawing = {"batch": seeds[:1], "pair": seeds[:4], "element": seeds}[mode]
    shares, corners = [], []
    for seed in drawing:
        rng = Random(keyed_seed(seed, STREAM))
        rng.random(), rng.random()  # whether to mix, and how
        alpha = 1.0 if switch else 0.8
        shares.append(rng.betavariate(alpha, alpha))
        corners += [int(rng.random() * 30), int(rng.random() * 22)]
    corners = iter(corners)
    theirs = timm_mixup.Mixup(0.8, 1.0, mode="elem" if mode == "element" else mode, correct_lam=correct, num_classes=5)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (shares[0], bool(switch)))
    monkeypatch.setattr(
        theirs, "_params_per_elem", lambda size: (np.array(shares, np.float32), np.full(size, bool(switch)))
    )
    monkeypatch.setattr(timm_mixup.np.random, "randint", lambda *_, **__: next(corners))
    expected, expected_targets = theirs(images.clone(), labels)
    ours = Mixing(mode=mode, correct_lambda=correct, switch_probability=switch)
    found, targets = ours(images.clone(), labels, 5, seeds, epoch=0)
    # Three roundings, at most, of numbers below 8.
    torch.testing.assert_close(found, expected, atol=3 * 2**-22, rtol=0)
    torch.testing.assert_close(targets, expected_targets, atol=1e-6, rtol=0)


def test_erasing_draws_as_timm_does():
    seeds = [keyed_seed(4, index) for index in range(1500)]
    ours = torch.ones(1500, 1, 24, 32)
    RandomErasing(mode="const")(ours, seeds)
    random.seed(0)
    theirs = TimmErasing(probability=0.25, mode="const", device="cpu")(torch.ones(1500, 1, 24, 32))
    # The area that is erased, and how often each pixel is: two samples of 1500 images.
    for found, expected in ((ours, theirs), (ours[:, :, :4, :4], theirs[:, :, :4, :4])):
        erased = [1 - images.flatten(1).mean(1) for images in (found, expected)]
        deviation = torch.stack([values.var() / 1500 for values in erased]).sum().sqrt()
        assert (erased[0].mean() - erased[1].mean()).abs() < 3.5 * deviation


def test_fill_is_timms():
    assert operations.IMAGENET_MEAN_COLOR == FILL
