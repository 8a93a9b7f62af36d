"""Mixup and CutMix against computations image by image, and what they draw."""

import pickle

import numpy as np
import pytest
import torch

from datamodules.image import Mixing
from datamodules.loading import keyed_seed

BATCH, CLASSES, HEIGHT, WIDTH = 8, 5, 20, 24
SEEDS = tuple(keyed_seed(0, index) for index in range(BATCH))
MANY = [keyed_seed(1, index) for index in range(3000)]
SETTINGS = {
    "mixup": {"cutmix_alpha": 0.0},
    "cutmix": {"mixup_alpha": 0.0},
    "both": {},
    "sometimes": {"probability": 0.5},
    "minmax": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)},
}


def batch():
    return torch.randn(BATCH, 3, HEIGHT, WIDTH), torch.tensor([0, 1, 2, 3, 4, 4, 2, 0])


def one_by_one(mixing, images, labels, seeds):
    """Mixes pixel by pixel and class by class in float64."""
    images, count = images.double().numpy(), len(images)
    mixed, targets = images.copy(), np.zeros((count, CLASSES))
    smooth = mixing.label_smoothing / CLASSES + (1 - mixing.label_smoothing) * np.eye(CLASSES)[labels.numpy()]
    for i in range(count):
        partner = count - 1 - i
        own, box = mixing.draw(
            {"batch": seeds[0], "pair": seeds[min(i, partner)], "element": seeds[i]}[mixing.mode], HEIGHT, WIDTH
        )
        for y in range(HEIGHT):
            for x in range(WIDTH):
                if box is None:
                    mixed[i, :, y, x] = own * images[i, :, y, x] + (1 - own) * images[partner, :, y, x]
                elif box.top <= y < box.bottom and box.left <= x < box.right:
                    mixed[i, :, y, x] = images[partner, :, y, x]
        targets[i] = own * smooth[i] + (1 - own) * smooth[partner]
    return torch.from_numpy(mixed), torch.from_numpy(targets)


@pytest.mark.parametrize("mode", ["batch", "pair", "element"])
@pytest.mark.parametrize("name", SETTINGS)
def test_mixing_equals_a_computation_image_by_image(mode, name):
    mixing = Mixing(mode=mode, **SETTINGS[name])
    for start in range(3 if mode == "batch" else 1):
        images, labels = batch()
        seeds = SEEDS[start:] + SEEDS[:start]
        expected_images, expected_targets = one_by_one(mixing, images, labels, seeds)
        found, targets = mixing(images, labels, CLASSES, seeds, epoch=0)
        assert found is images and targets.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected_images, atol=3 * 2**-22, rtol=0)  # roundings below 8
        torch.testing.assert_close(targets.double(), expected_targets, atol=1e-6, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(BATCH))


def test_smoothing_is_folded_in_once():
    # Row 11 of the usual mistakes: the targets are smooth, so that a loss of soft targets adds nothing.
    images, labels = batch()
    _, targets = Mixing(probability=0.0)(images, labels, CLASSES, SEEDS, epoch=0)
    for row, label in zip(targets, labels, strict=True):
        assert row[label] == pytest.approx(0.9 + 0.02)
        assert (row[torch.arange(CLASSES) != label] - 0.02).abs().max() < 1e-7


def test_batch_mode_has_one_share_of_the_first_seed():
    # Row 11: a share for each image is another mode.
    mixing = Mixing(cutmix_alpha=0.0, label_smoothing=0.0)
    _, targets = mixing(torch.randn(BATCH, 3, 4, 4), torch.arange(BATCH), BATCH, SEEDS, epoch=0)
    share = mixing.draw(SEEDS[0], 4, 4).own
    torch.testing.assert_close(targets, share * torch.eye(BATCH) + (1 - share) * torch.eye(BATCH).flip(0))
    _, others = mixing(torch.randn(BATCH, 3, 4, 4), torch.arange(BATCH), BATCH, (SEEDS[0],) + SEEDS[:7], epoch=0)
    assert torch.equal(others, targets)


def test_element_mode_has_a_share_for_each_image_and_pair_mode_for_each_pair():
    images, labels = torch.randn(BATCH, 3, 4, 4), torch.arange(BATCH)
    _, each = Mixing(cutmix_alpha=0.0, mode="element")(images, labels, BATCH, SEEDS, epoch=0)
    assert each.diagonal().unique().numel() == BATCH
    _, pairs = Mixing(cutmix_alpha=0.0, mode="pair")(images, labels, BATCH, SEEDS, epoch=0)
    assert pairs.diagonal().unique().numel() == BATCH // 2
    assert torch.equal(pairs, pairs.flip(0, 1))


@pytest.mark.parametrize("mode", ["batch", "pair", "element"])
def test_an_odd_batch_is_refused(mode):
    # Row 11: the image in the middle would be its own partner.
    with pytest.raises(ValueError, match="a batch of 7 images cannot be mixed.*choose an even batch_size"):
        Mixing(mode=mode)(torch.randn(7, 3, 4, 4), torch.arange(7), 7, SEEDS[:7], epoch=0)


def test_from_the_off_epoch_on_labels_are_only_smoothed():
    mixing = Mixing(off_epoch=3)
    images, labels = batch()
    before = images.clone()
    _, targets = mixing(images, labels, CLASSES, SEEDS, epoch=3)
    assert torch.equal(images, before)
    assert targets.unique().tolist() == pytest.approx([0.02, 0.92])
    mixing(images[:7], labels[:7], CLASSES, SEEDS[:7], epoch=4)  # an odd batch needs no partners
    mixing(images, labels, CLASSES, SEEDS, epoch=2)
    assert not torch.equal(images, before)


@pytest.mark.parametrize(("alpha", "name"), [(0.8, "mixup_alpha"), (0.3, "mixup_alpha"), (1.0, "cutmix_alpha")])
def test_shares_have_the_beta_distribution(alpha, name):
    settings = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, name: alpha}
    drawn = np.sort([Mixing(**settings, correct_lambda=False).draw(seed, 32, 32).own for seed in MANY])
    expected = np.sort(np.random.default_rng(0).beta(alpha, alpha, 100_000))
    distance = np.abs(np.searchsorted(expected, drawn) / len(expected) - (np.arange(3000) + 0.5) / 3000).max()
    assert distance < 1.95 * (1 / 3000 + 1 / 100_000) ** 0.5  # Kolmogorov-Smirnov, p = 0.001


def test_probability_and_switch():
    drawn = [Mixing(probability=0.6, switch_probability=0.3).draw(seed, 32, 32) for seed in MANY]
    mixed = [mix for mix in drawn if mix.own < 1 or mix.box is not None]
    assert len(mixed) / len(drawn) == pytest.approx(0.6, abs=0.04)
    assert sum(mix.box is not None for mix in mixed) / len(mixed) == pytest.approx(0.3, abs=0.04)


def test_the_share_is_corrected_where_the_border_cuts_the_box():
    corrected, drawn = Mixing(mixup_alpha=0.0), Mixing(mixup_alpha=0.0, correct_lambda=False)
    cut = 0
    for seed in MANY[:300]:
        own, box = corrected.draw(seed, 30, 40)
        assert 0 <= box.top <= box.bottom <= 30 and 0 <= box.left <= box.right <= 40
        area = (box.bottom - box.top) * (box.right - box.left) / 1200
        assert own == pytest.approx(1 - area)
        raw, same = drawn.draw(seed, 30, 40)
        assert same == box and raw <= own + 1e-9 + 0.07  # sides are cut to whole pixels, so that little is lost too
        if box.top == 0 or box.bottom == 30 or box.left == 0 or box.right == 40:
            cut += own > raw + 0.05
    assert cut > 100


def test_boxes_between_two_shares():
    mixing = Mixing(cutmix_minmax=(0.25, 0.75), mixup_alpha=0.0, correct_lambda=False)
    boxes = [mixing.draw(seed, 40, 80) for seed in MANY[:500]]
    rows = {mix.box.bottom - mix.box.top for mix in boxes}
    assert rows == set(range(10, 30))
    assert {mix.box.right - mix.box.left for mix in boxes} <= set(range(20, 60))
    assert all(0 <= mix.box.top and mix.box.bottom <= 40 and 0 <= mix.box.left and mix.box.right <= 80 for mix in boxes)
    for own, box in boxes:
        assert own == pytest.approx(1 - (box.bottom - box.top) * (box.right - box.left) / 3200)


@pytest.mark.parametrize("mode", ["batch", "pair", "element"])
def test_mixing_depends_on_the_seeds_alone(mode):
    images, labels = batch()
    found = Mixing(mode=mode)(images.clone(), labels, CLASSES, SEEDS, epoch=0)
    torch.rand(5), np.random.rand(5)
    again = pickle.loads(pickle.dumps(Mixing(mode=mode)))(images.clone(), labels, CLASSES, SEEDS, epoch=0)
    assert torch.equal(found[0], again[0]) and torch.equal(found[1], again[1])
    other = Mixing(mode=mode)(images.clone(), labels, CLASSES, SEEDS[::-1], epoch=0)
    assert not torch.equal(found[0], other[0])


def test_channels_last_stays():
    images, labels = batch()
    expected, _ = Mixing(mode="element")(images.clone(), labels, CLASSES, SEEDS, epoch=0)
    images = images.to(memory_format=torch.channels_last)
    found, _ = Mixing(mode="element")(images, labels, CLASSES, SEEDS, epoch=0)
    assert found.is_contiguous(memory_format=torch.channels_last) and torch.equal(found, expected)


def test_wrong_batches_are_refused():
    images, labels = batch()
    with pytest.raises(ValueError, match="torch.uint8 cannot be mixed"):
        Mixing()(images.byte(), labels, CLASSES, SEEDS, epoch=0)
    with pytest.raises(ValueError, match="2 seeds for 8 images"):
        Mixing()(images, labels, CLASSES, SEEDS[:2], epoch=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mixup_alpha": -1},
        {"cutmix_alpha": -0.1},
        {"probability": 2},
        {"switch_probability": -1},
        {"label_smoothing": 1.5},
        {"off_epoch": -1},
        {"mode": "elem"},
        {"cutmix_minmax": (0.8, 0.2)},
        {"mixup_alpha": 0, "cutmix_alpha": 0},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=f"Mixing: {next(iter(arguments))}"):
        Mixing(**arguments)
