"""TrivialAugment and 3-Augment: what they draw. Their operations are in test_operations."""

import pickle
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from datamodules.image import ThreeAugment, TrivialAugment
from datamodules.image.augment import WIDE_OPERATIONS

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))


@pytest.fixture
def applied(monkeypatch):
    """Records (operation, magnitude) in place of applying it."""
    made = []
    monkeypatch.setattr(
        TrivialAugment, "apply", lambda self, name, image, magnitude: made.append((name, magnitude)) or image
    )
    return made


def test_trivial_augment_draws_one_operation_and_one_of_31_magnitudes(applied):
    augment = TrivialAugment()
    for seed in range(6000):
        augment(IMAGE, Random(seed))
    assert len(applied) == 6000
    frequency = Counter(name for name, _ in applied)
    assert set(frequency) == set(WIDE_OPERATIONS) and len(frequency) == 14
    assert sum((count - 6000 / 14) ** 2 / (6000 / 14) for count in frequency.values()) < 42  # chi-squared of 13
    for name, most, signed in (
        ("rotate", 135, True),
        ("shear_x", 0.99, True),
        ("translate_y", 32, True),
        ("color", 0.99, True),
        ("solarize", 255, False),
        ("posterize", 6, False),
    ):
        steps = np.array([magnitude for found, magnitude in applied if found == name]) / most * 30
        assert set(np.abs(steps).round(6)) == set(range(31))
        assert (steps < 0).mean() == pytest.approx(0.48 if signed else 0, abs=0.1)
    assert {magnitude for name, magnitude in applied if name in ("identity", "equalize", "auto_contrast")} == {0}


def test_trivial_augments_operations_take_their_magnitudes_as_the_paper_has_them():
    apply = TrivialAugment().apply
    assert apply("posterize", IMAGE, 5.8).tobytes() == ImageOps.posterize(IMAGE, 2).tobytes()
    assert apply("solarize", IMAGE, 55).tobytes() == ImageOps.solarize(IMAGE, 200).tobytes()
    assert apply("contrast", IMAGE, -0.33).tobytes() == ImageEnhance.Contrast(IMAGE).enhance(0.67).tobytes()
    assert apply("identity", IMAGE, 0) is IMAGE
    moved = apply("translate_x", IMAGE, 3.2)
    assert np.array_equal(np.asarray(moved)[:, 3:], np.asarray(IMAGE)[:, :-3]) and not np.asarray(moved)[:, :3].any()


def three(image, rng):
    """3-Augment written down with Pillow alone."""
    choice = int(rng.random() * 3)
    if choice == 0:
        image = ImageOps.grayscale(image).convert("RGB")
    elif choice == 1:
        image = ImageOps.solarize(image, 128)
    else:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    jitter = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    rng.shuffle(jitter)
    for enhance in jitter:
        image = enhance(image).enhance(rng.uniform(0.7, 1.3))
    return image


def test_three_augment_is_one_of_three_and_color_jitter():
    kinds = Counter()
    for seed in range(60):
        assert ThreeAugment()(IMAGE, Random(seed)).tobytes() == three(IMAGE, Random(seed)).tobytes()
        kinds[int(Random(seed).random() * 3)] += 1
    assert len(kinds) == 3


def test_three_augment_without_jitter():
    found = {ThreeAugment(color_jitter=0)(IMAGE, Random(seed)).tobytes() for seed in range(30)}
    assert ImageOps.grayscale(IMAGE).convert("RGB").tobytes() in found
    assert ImageOps.solarize(IMAGE).tobytes() in found
    assert IMAGE.tobytes() not in found


@pytest.mark.parametrize("augment", [TrivialAugment(interpolation="bilinear"), ThreeAugment()])
def test_they_depend_on_their_generator_alone(augment):
    found = [augment(IMAGE, Random(seed)).tobytes() for seed in range(30)]
    assert len(set(found)) > 15
    assert [pickle.loads(pickle.dumps(augment))(IMAGE, Random(seed)).tobytes() for seed in range(30)] == found


def test_trivial_augment_fills_with_black_or_the_datas_mean():
    assert TrivialAugment().with_mean((1.0, 1.0, 1.0)).fill == (0, 0, 0)
    white = TrivialAugment(fill=None).with_mean((1.0, 1.0, 1.0)).apply("translate_x", IMAGE, 32)
    assert white.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrivialAugment(num_bins=1), "TrivialAugment: num_bins=1 must be at least 2"),
        (lambda: TrivialAugment(fill=(0, 0, 300)), "TrivialAugment: fill"),
        (lambda: ThreeAugment(color_jitter=2), "ThreeAugment: color_jitter=2 must be between 0 and 1"),
        (lambda: ThreeAugment(min_radius=1, max_radius=0.5), "ThreeAugment: max_radius=0.5 must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
