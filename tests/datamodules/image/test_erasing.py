"""Random erasing: boxes, noise, and what they depend on."""

import math
import pickle

import numpy as np
import pytest
import torch

from datamodules.image import RandomErasing
from datamodules.image.draws import uniforms
from datamodules.loading import keyed_seed

SEEDS = tuple(keyed_seed(0, index) for index in range(4000))


def test_uniform_numbers():
    draws = uniforms(SEEDS, 1, 3)
    assert draws.shape == (4000, 3) and draws.min() >= 0 and draws.max() < 1
    for values in draws.T:
        distance = np.abs(np.sort(values) - (np.arange(4000) + 0.5) / 4000).max()
        assert distance < 1.95 / 4000**0.5  # Kolmogorov-Smirnov, p = 0.001
    assert np.abs(np.corrcoef(np.concatenate([draws, uniforms(SEEDS, 2, 3)], axis=1).T) - np.eye(6)).max() < 0.06
    assert (uniforms(range(4000), 1, 1)[:, 0] < 0.5).mean() == pytest.approx(0.5, abs=0.03)  # seeds in sequence
    assert (uniforms(SEEDS[7:9], 1, 2) == draws[7:9, :2]).all()


def test_boxes_are_those_of_the_recipe():
    # Row 12 of the usual mistakes: area 2 to 33 %, aspect 0.3 to 1 / 0.3, a quarter of the images.
    found = RandomErasing().boxes(200, 160, SEEDS)
    assert len(found) / 4000 == pytest.approx(0.25, abs=0.025)
    boxes = np.array([boxes[0] for _, boxes in found if boxes])
    assert all(len(boxes) <= 1 for _, boxes in found) and len(boxes) > 0.98 * len(found)
    top, bottom, left, right = boxes.T
    assert top.min() == 0 and left.min() == 0 and bottom.max() == 200 and right.max() == 160
    area = (bottom - top) * (right - left) / (200 * 160)
    assert 0.018 < area.min() < 0.03 and 0.3 < area.max() < 0.345
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.015)
    aspect = np.log((bottom - top) / (right - left))
    assert np.abs(aspect).max() == pytest.approx(-math.log(0.3), abs=0.1)
    assert aspect.mean() == pytest.approx(0, abs=0.08)
    assert ((bottom - top) < 200).all() and ((right - left) < 160).all()


def test_several_boxes_share_the_area():
    found = RandomErasing(probability=1, count=3, min_area=0.3, max_area=0.3).boxes(90, 90, SEEDS[:200])
    assert {len(boxes) for _, boxes in found} == {3}
    areas = [(box.bottom - box.top) * (box.right - box.left) for _, boxes in found for box in boxes]
    assert np.mean(areas) == pytest.approx(810, rel=0.02)


def test_only_the_boxes_are_filled_with_noise_of_unit_variance():
    erasing = RandomErasing(probability=1)
    images = torch.full((64, 3, 40, 40), 9.0)
    found = erasing(images, SEEDS[:64])
    assert found is images
    noise = []
    for index, boxes in erasing.boxes(40, 40, SEEDS[:64]):
        inside = torch.zeros(40, 40, dtype=torch.bool)
        for top, bottom, left, right in boxes:
            inside[top:bottom, left:right] = True
        assert (images[index][:, ~inside] == 9).all()
        noise.append(images[index][:, inside].flatten())
    noise = torch.cat(noise)
    assert (noise == 9).sum() == 0
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    assert noise.unique().numel() > 0.95 * noise.numel()  # a value for each pixel and channel


@pytest.mark.parametrize(("mode", "values"), [("const", 1), ("rand", 3)])
def test_other_modes(mode, values):
    erasing = RandomErasing(probability=1, mode=mode)
    images = erasing(torch.full((4, 3, 32, 32), 9.0), SEEDS[:4])
    for index, [(top, bottom, left, right)] in erasing.boxes(32, 32, SEEDS[:4]):
        region = images[index, :, top:bottom, left:right]
        assert region.unique().numel() == values
        assert (region == 0).all() == (mode == "const")
        assert (region == region[:, :1, :1]).all()


def test_an_image_is_erased_alike_in_any_batch():
    erasing = RandomErasing(probability=0.7)
    images = torch.randn(12, 3, 24, 24)
    whole = erasing(images.clone(), SEEDS[:12])
    part = pickle.loads(pickle.dumps(erasing))(images[[5, 2]].clone(), (SEEDS[5], SEEDS[2]))
    torch.rand(3)
    assert torch.equal(part, whole[[5, 2]])
    assert not torch.equal(whole, images)


def test_erasing_before_normalisation_is_refused():
    # Row 12: noise of unit variance is all but black in an image of bytes.
    with pytest.raises(ValueError, match="torch.uint8 cannot be erased"):
        RandomErasing()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), SEEDS[:2])


def test_seeds_must_be_as_many_as_images():
    with pytest.raises(ValueError, match="3 seeds for 2 images"):
        RandomErasing()(torch.zeros(2, 3, 8, 8), SEEDS[:3])


@pytest.mark.parametrize(
    "arguments",
    [
        {"probability": -0.1},
        {"min_area": 2},
        {"max_area": 0.01},
        {"min_aspect": 0},
        {"min_aspect": 3},
        {"count": 0},
        {"mode": "noise"},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=f"RandomErasing: {next(iter(arguments))}="):
        RandomErasing(**arguments)
