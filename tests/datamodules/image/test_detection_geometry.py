import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.image.detection_geometry import (
    EvaluationGeometry,
    TrainingGeometry,
    move_boxes,
    resize_shorter,
)


def official_size(width, height, size, max_size):
    """(height, width) as DETR's transforms compute them, for one image."""
    if max_size is not None:
        short, long = float(min(width, height)), float(max(width, height))
        if long / short * size > max_size:
            size = int(round(max_size * short / long))
    if (width <= height and width == size) or (height <= width and height == size):
        return height, width
    return (int(size * height / width), size) if width < height else (size, int(size * width / height))


def draw(geometry, height, width, items=400, stream=7):
    originals = np.tile([height, width], (items, 1))
    return originals, geometry.regions(originals, np.arange(items), stream)


def test_sizes_of_evaluation_are_the_official_ones():
    # Row 10: at the cap the shorter side is rounded and the longer one truncated.
    geometry = EvaluationGeometry()
    originals = np.array([[480, 640], [361, 640], [640, 361], [500, 500], [427, 640]])
    sizes = geometry.regions(originals, np.arange(5), 0).sizes.tolist()
    assert sizes == [[800, 1066], [752, 1333], [1333, 752], [800, 800], [800, 1199]]


@settings(max_examples=200, deadline=None)
@given(st.integers(40, 3000), st.integers(40, 3000), st.integers(16, 900), st.one_of(st.none(), st.integers(900, 1400)))
def test_every_size_is_the_official_one(width, height, size, max_size):
    found = resize_shorter(np.array([[height, width]]), np.array([size]), max_size)
    assert tuple(found[0].tolist()) == official_size(width, height, size, max_size)


def test_what_is_drawn_is_what_detr_draws():
    geometry = TrainingGeometry()
    _, regions = draw(geometry, 480, 640, 2000)
    whole = (regions.resized == [480, 640]).all(axis=1)
    assert 0.45 < whole.mean() < 0.55 and 0.45 < regions.flip.mean() < 0.55
    assert (regions.crop[whole] == [0, 0, 640, 480]).all()
    shorter = regions.sizes.min(axis=1)
    # Every size occurs, and none is drawn that is not listed; extreme rectangles are capped at 1333 pixels.
    assert set(shorter[whole].tolist()) == set(range(480, 801, 32)) and regions.sizes.max() <= 1333
    cut = ~whole
    assert set(regions.resized[cut, 0].tolist()) == {400, 500, 600}
    sides = regions.crop[cut, 2:]
    limits = np.minimum(600, regions.resized[cut][:, ::-1])
    assert sides.min() == 384 and (sides <= limits).all() and (sides == limits).any() and sides.max() == 600
    ends = regions.crop[cut, :2] + sides
    assert regions.crop.min() == 0 and (ends <= regions.resized[cut][:, ::-1]).all()
    assert (ends == regions.resized[cut][:, ::-1]).any(axis=0).all()  # the last place is reached, too
    for row in np.flatnonzero(cut)[:50]:
        _, _, width, height = regions.crop[row].tolist()
        assert tuple(regions.sizes[row].tolist()) in {official_size(width, height, s, 1333) for s in geometry.sizes}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 3000), (383, 300)])
@pytest.mark.parametrize("in_source", [False, True])
def test_images_smaller_than_the_smallest_rectangle_are_no_error(height, width, in_source):
    # Row 10: the official crop raises if a side is shorter than 384 pixels.
    geometry = TrainingGeometry(
        sizes=(64,), max_size=96, crop_from=(48, 64), crop_sides=(384, 600), in_source=in_source
    )
    _, regions = draw(geometry, height, width)
    assert (regions.crop[:, 2:] >= 1).all() and (regions.sizes >= 1).all()
    ends = regions.crop[:, :2] + regions.crop[:, 2:]
    assert (ends <= regions.resized[:, ::-1]).all()
    if not in_source:
        short = regions.resized < 384
        assert (regions.crop[:, :1:-1][short] == regions.resized[short]).all()


def test_draws_depend_on_item_and_stream_alone():
    geometry = TrainingGeometry()
    originals = np.array([[480, 640], [400, 300], [333, 500]])
    together = geometry.regions(originals, np.array([5, 9, 2]), 3)
    alone = geometry.regions(originals[1:2], np.array([9]), 3)
    assert all(np.array_equal(a[1:2], b) for a, b in zip(together, alone, strict=True))
    other = geometry.regions(np.tile([480, 640], (50, 1)), np.arange(50), 4)
    assert not np.array_equal(other.sizes, geometry.regions(np.tile([480, 640], (50, 1)), np.arange(50), 3).sizes)


def test_one_scale_takes_the_size_of_the_first():
    _, drawn = draw(TrainingGeometry(), 480, 480, 30)
    _, shared = draw(TrainingGeometry(one_scale=True), 480, 480, 30)
    assert len(set(drawn.sizes.min(axis=1).tolist())) > 3
    assert set(shared.sizes.min(axis=1).tolist()) == {int(drawn.sizes[0].min())}
    assert np.array_equal(drawn.crop, shared.crop)  # so boxes survive or not whoever shares the batch


def official_boxes(boxes, original, region):
    """What DETR's target transforms make of boxes (left, top, right, bottom), in float32, for one image."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    height, width = original
    if region.flip[0]:
        boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor([width, 0.0, width, 0])
    rows, columns = region.resized[0].tolist()
    boxes = boxes * torch.tensor([columns / width, rows / height] * 2)
    left, top, columns, rows = region.crop[0].tolist()
    boxes = boxes - torch.tensor([left, top, left, top], dtype=torch.float32)
    boxes = torch.min(boxes.reshape(-1, 2, 2), torch.tensor([columns, rows], dtype=torch.float32)).clamp(min=0)
    keep = (boxes[:, 1] > boxes[:, 0]).all(dim=1)
    high, wide = region.sizes[0].tolist()
    boxes = boxes.reshape(-1, 4) * torch.tensor([wide / columns, high / rows] * 2)
    left_, top_, right, bottom = boxes.unbind(1)
    moved = torch.stack([(left_ + right) / 2, (top_ + bottom) / 2, right - left_, bottom - top_], dim=1)
    return moved / torch.tensor([wide, high] * 2, dtype=torch.float32), keep


def test_boxes_move_as_in_the_official_code():
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 1, (12, 2, 2))
    boxes = np.sort(corners, axis=1).reshape(12, 4) * [640, 480, 640, 480]
    boxes[0] = [0, 0, 9, 9]
    originals, regions = draw(TrainingGeometry(), 480, 640, 60)
    lost = 0
    for row in range(60):
        region = regions.row(row)
        moved, seen = move_boxes(boxes, np.zeros(12, dtype=np.int64), originals[:1], region)
        expected, keep = official_boxes(boxes, (480, 640), region)
        assert seen.tolist() == keep.tolist()
        torch.testing.assert_close(torch.tensor(moved[seen]), expected[keep].double(), rtol=0, atol=3e-6)
        lost += int((~seen).sum())
    assert lost > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": ()}, r"sizes=\[\] must be one or more"),
        ({"crop_from": (0,)}, r"crop_from=\[0\] must be one or more"),
        ({"crop_sides": (600, 384)}, r"crop_sides=\[600, 384\] must be two numbers of pixels, the smaller first"),
        ({"max_size": 700}, "max_size=700 must be at least 800"),
        ({"crop_probability": 1.5}, "crop_probability=1.5 must be between 0 and 1"),
        ({"flip_probability": -1}, "flip_probability=-1 must be between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainingGeometry(**arguments)
