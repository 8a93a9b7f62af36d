"""RandAugment: what it draws. Its operations are in test_operations, timm's whole in peers."""

import pickle
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image

from datamodules.image import RandAugment, operations
from datamodules.image.rand_augment import OPERATIONS

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def calls(monkeypatch):
    """Records (operation, magnitude) in place of applying operations."""
    made = []

    def recorder(name):
        def record(image, *arguments):
            made.append((name, arguments[0] if arguments else None))
            return image

        return record

    for name in OPERATIONS:
        monkeypatch.setattr(operations, name, recorder(name))
    return made


def draw(augment, calls, times):
    for seed in range(times):
        augment(IMAGE, Random(seed))
    values = {name: [] for name in OPERATIONS}
    for name, value in calls:
        values[name].append(value)
    return values


def test_deits_recipe_draws_two_of_15_operations_and_applies_half(calls):
    # Row 12 of the usual mistakes: torchvision's RandAugment applies every operation that it draws.
    augment = RandAugment()
    counts = []
    for seed in range(3000):
        calls.clear()
        augment(IMAGE, Random(seed))
        counts.append(tuple(name for name, _ in calls))
    applied = Counter(map(len, counts))
    for number, share in enumerate((0.25, 0.5, 0.25)):
        assert abs(applied[number] / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5
    frequency = Counter(name for names in counts for name in names)
    assert len(frequency) == 15
    assert sum((count - 200) ** 2 / 200 for count in frequency.values()) < 43  # chi-squared of 14, p < 1e-4
    assert any(names[0] == names[1] for names in counts if len(names) == 2)  # with replacement


def test_deits_recipe_draws_increasing_magnitudes(calls):
    # Row 12: at a magnitude of about 9 the increasing operations are strong, those of other sets are not.
    values = draw(RandAugment(probability=1.0), calls, 4000)
    assert set(values["posterize"]) == {0, 1}
    assert 0 <= min(values["solarize"]) < 10 and max(values["solarize"]) < 80
    assert 70 < min(values["solarize_add"]) and max(values["solarize_add"]) == 110
    for name in ("color", "contrast", "brightness", "sharpness"):
        distance = np.abs(np.array(values[name]) - 1)
        assert 0.6 < distance.min() and distance.max() <= 0.9 + 1e-9
        assert abs(np.mean(np.array(values[name]) > 1) - 0.5) < 0.1
    for name, most in (("rotate", 30), ("shear_x", 0.3), ("shear_y", 0.3), ("translate_x", 7.2), ("translate_y", 7.2)):
        levels = np.abs(values[name]) / most * 10
        assert levels.max() == pytest.approx(10)  # N(9, 0.5), cut at 10
        assert levels.mean() == pytest.approx(9, abs=0.1)
        assert levels.std() == pytest.approx(0.48, abs=0.06)
        assert abs(np.mean(np.array(values[name]) > 0) - 0.5) < 0.1


def test_the_other_set_decreases(calls):
    values = draw(RandAugment(magnitude=10, magnitude_std=0, probability=1, increasing=False), calls, 500)
    assert set(values["posterize"]) == {4}
    assert set(values["solarize"]) == {256}
    assert values["contrast"] == pytest.approx([1.9] * len(values["contrast"]))


def test_magnitudes_may_be_uniform_or_cut_elsewhere(calls):
    levels = np.abs(draw(RandAugment(8, 101, probability=1), calls, 2000)["rotate"]) / 3
    assert levels.max() < 8 and levels.mean() == pytest.approx(4, abs=0.5)
    calls.clear()
    values = draw(RandAugment(14, 0, probability=1, max_magnitude=13), calls, 300)
    assert max(values["rotate"]) == pytest.approx(39)
    assert min(values["color"]) == 0.1  # never further than to 0.1
    assert set(values["posterize"]) == {0}


def test_it_depends_on_its_generator_alone():
    augment = RandAugment()
    found = [augment(IMAGE, Random(seed)).tobytes() for seed in range(40)]
    assert len(set(found)) > 20
    Random(5).random(), np.random.seed(3)
    assert [pickle.loads(pickle.dumps(augment))(IMAGE, Random(seed)).tobytes() for seed in range(40)] == found


def test_the_fill_is_the_datas_mean():
    shift = RandAugment(magnitude=10, magnitude_std=0, num_ops=1, probability=1)
    for mean, color in ((None, (124, 116, 104)), ((0.0, 0.5, 1.0), (0, 128, 255))):
        augment = shift if mean is None else shift.with_mean(mean)
        seed = next(s for s in range(99) if OPERATIONS[int(Random(s).random() * 15)] == "translate_x")
        assert color in {augment(IMAGE, Random(seed)).getpixel((x, 8)) for x in (0, 15)}
    assert RandAugment(fill=(1, 2, 3)).with_mean((0.0, 0.5, 1.0)).fill == (1, 2, 3)


def test_timms_notation():
    assert RandAugment.from_string("rand-m9-mstd0.5-inc1") == RandAugment()
    assert RandAugment.from_string("rand") == RandAugment(magnitude=10, magnitude_std=0, increasing=False)
    assert RandAugment.from_string("rand-n3-p.25-mmax12-m6-inc0") == RandAugment(
        magnitude=6, magnitude_std=0, num_ops=3, probability=0.25, increasing=False, max_magnitude=12
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m9", "'augmix-m9' must begin with rand"),
        ("rand-q9", "'q9' in 'rand-q9' is not one of m, mstd, mmax, n, p, inc"),
        ("rand-m", "'m' in"),
        ("rand-m9-n1.5", "'n1.5' in 'rand-m9-n1.5' must have a whole number"),
        ("rand-inc2", "inc2"),
        ("rand-tweights", "'tweights'"),
        ("rand-p2", "probability=2.0 must be between 0 and 1"),
        ("", "must begin with rand"),
    ],
)
def test_wrong_notation_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        RandAugment.from_string(text)


@pytest.mark.parametrize(
    "arguments", [{"magnitude": -1}, {"num_ops": -1}, {"probability": 1.5}, {"magnitude_std": float("nan")}]
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=f"RandAugment: {next(iter(arguments))}=.* must be"):
        RandAugment(**arguments)
